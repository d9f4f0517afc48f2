//! What cannot work is said within seconds, and putting it right is enough.

use crate::{
    client_pod,
    database::{Db, spec, with},
    objects::{self, current, describe, stalled},
    runner::Scene,
    store,
    wait::{Seen, say, seconds, wait_for},
};
use anyhow::{Context, Result, ensure};
use holdfast_core::{Database, conditions::types};
use k8s_openapi::api::{events::v1::Event, storage::v1::StorageClass};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};

/// A Database that waits for something missing says so by Stalled and an event, and goes on by itself when it is there.
pub async fn bad_input(scene: Scene) -> Result<()> {
    let class = format!("e2e-{}", scene.namespace);
    let result = cases(&scene, &class).await;
    let _ = scene.cluster.cluster_api::<StorageClass>().delete(&class, &DeleteParams::default()).await;
    result
}

async fn cases(scene: &Scene, class: &str) -> Result<()> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    // (name, what is wrong, what the message must name)
    let mut table: Vec<(&str, Value, String)> = vec![
        ("no-store", json!({"archive": {"storeRef": {"name": "later"}}}), "later".into()),
        ("no-class", json!({"storage": {"storageClassName": class}}), class.into()),
        (
            "no-image",
            json!({"image": "devcluster.local/holdfast/none:1"}),
            "devcluster.local/holdfast/none:1".into(),
        ),
    ];
    let unknown = unknown_version(scene).await?;
    if let Some(version) = &unknown {
        table.push(("no-version", json!({ "version": version }), version.clone()));
    }
    for (name, wrong, _) in &table {
        Db::apply(cluster, ns, name, &with(spec(1), wrong)).await?;
    }
    let api = cluster.api::<Database>(ns);
    let mut wrong = Vec::new();
    for (name, _, word) in &table {
        // A transient trouble of Kubernetes' own may be named first.
        let what = format!("{name} to be Stalled for {word}");
        let named = wait_for(&what, seconds(20), || async {
            let object = api.get(name).await?;
            let said = current(&object, types::STALLED).filter(|c| c.status == "True");
            let found = said.is_some_and(|c| c.message.contains(word.as_str()) && !c.reason.is_empty());
            Ok(if found { Seen::Yes(()) } else { Seen::NotYet(describe(&object)) })
        });
        wrong.extend(named.await.err().map(|error| say(&error)));
        wait_for(&format!("a Warning event on {name}"), seconds(10), || async {
            let events = cluster.api::<Event>(ns).list(&ListParams::default()).await?.items;
            let found = events.iter().any(|e| {
                e.type_.as_deref() == Some("Warning")
                    && e.regarding.as_ref().is_some_and(|r| {
                        r.kind.as_deref() == Some("Database") && r.name.as_deref() == Some(*name)
                    })
            });
            Ok(if found { Seen::Yes(()) } else { Seen::NotYet("none".into()) })
        })
        .await?;
    }

    // A Backup that names a Database that is not there.
    let missing = json!({"databaseRef": {"name": "nobody"}});
    objects::apply::<holdfast_core::Backup>(cluster, ns, "of-nobody", &missing).await?;
    let said = stalled(&cluster.api::<holdfast_core::Backup>(ns), "of-nobody", seconds(20)).await?;
    ensure!(said.message.contains("nobody"), "{}: {}", said.reason, said.message);

    if unknown.is_some() {
        objects::delete::<Database>(
            cluster,
            ns,
            "no-version",
            kube::api::PropagationPolicy::Background,
            seconds(30),
        )
        .await?;
    }
    store::make(cluster, ns, "later").await?;
    make_class(scene, class).await?;
    objects::merge::<Database>(cluster, ns, "no-image", &json!({"spec": {"image": null}})).await?;
    for name in ["no-store", "no-class", "no-image"] {
        Db::at(cluster, ns, name).ready().await.context("it was put right")?;
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

/// A version that the API takes and the operator's image catalogue does not have.
async fn unknown_version(scene: &Scene) -> Result<Option<String>> {
    let catalogue = client_pod::catalogue(&scene.cluster).await?;
    Ok(["18", "16", "15"].into_iter().find(|v| !catalogue.contains_key(*v)).map(String::from))
}

/// Makes the missing class: the default one under another name.
async fn make_class(scene: &Scene, name: &str) -> Result<()> {
    let api = scene.cluster.cluster_api::<StorageClass>();
    let default = "storageclass.kubernetes.io/is-default-class";
    let all = api.list(&ListParams::default()).await?.items;
    let found = all.into_iter().find(|c| c.annotations().get(default).map(String::as_str) == Some("true"));
    let mut class = found.context("the cluster has no default StorageClass")?;
    class.metadata = kube::core::ObjectMeta { name: Some(name.into()), ..kube::core::ObjectMeta::default() };
    api.create(&PostParams::default(), &class).await?;
    Ok(())
}

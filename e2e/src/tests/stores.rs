//! Places for backups: a volume, S3 over HTTPS with an own CA, and what is said when they cannot be used.

use crate::{
    database::{Db, spec, with},
    namespace,
    objects::{self, condition, stalled},
    runner::Scene,
    store::{self, BUCKET, S3},
    wait::seconds,
};
use anyhow::{Context, Result, ensure};
use holdfast_core::{BackupStore, Database, conditions::types};
use serde_json::{Value, json};

/// A spec with an archive.
pub fn archived(instances: i32, store: &str) -> Value {
    with(spec(instances), &json!({"archive": {"storeRef": {"name": store}}}))
}

async fn archives_and_backs_up(scene: &Scene, store: &store::Store) -> Result<()> {
    let db = Db::start(&scene.cluster, &scene.namespace, "journal", &archived(1, &store.name)).await?;
    db.fill("entry", 1000).await?;
    condition::<Database>(&db.api(), "journal", types::ARCHIVING, "True", seconds(60)).await?;
    let backup = store::backup(&db, "first").await?;
    let status = backup.status.unwrap_or_default();
    ensure!(status.size.is_some_and(|s| s > 0), "status.size is {:?}", status.size);
    ensure!(status.stored_size.is_some_and(|s| s > 0), "status.storedSize is {:?}", status.stored_size);
    Ok(())
}

/// A volume as a store.
pub async fn store_volume(scene: Scene) -> Result<()> {
    let store = store::make_volume(&scene.cluster, &scene.namespace, "shelf").await?;
    archives_and_backs_up(&scene, &store).await
}

/// S3 over HTTPS with an own CA; without that CA it is refused and said why.
pub async fn store_s3(scene: Scene) -> Result<()> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let Some(s3) = S3::find(cluster) else {
        println!("        store_s3: no S3 server on this cluster, left out");
        return Ok(());
    };
    let store = store::make_s3(cluster, ns, "bucket", &s3).await?;
    let untrusting = with(s3.spec(ns), &json!({"s3": {"caSecretRef": null}}));
    objects::apply::<BackupStore>(cluster, ns, "untrusting", &untrusting).await?;
    let said = stalled(&cluster.api::<BackupStore>(ns), "untrusting", seconds(60)).await?;
    ensure!(said.reason == "CertificateNotTrusted", "{}: {}", said.reason, said.message);
    archives_and_backs_up(&scene, &store).await
}

/// What is wrong is said in words that name the field, and putting it right is enough.
pub async fn store_errors(scene: Scene) -> Result<()> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let Some(s3) = S3::find(cluster) else {
        println!("        store_errors: no S3 server on this cluster, left out");
        return Ok(());
    };
    cluster.script("bucket", &[BUCKET]).await?;
    s3.secrets(cluster, ns).await?;
    namespace::secret(cluster, ns, "s3-wrong", &[("accessKeyId", &s3.access), ("secretAccessKey", "wrong")])
        .await?;
    let right = s3.spec(ns);
    // (name, what is wrong, words of which the condition must contain one)
    let table = [
        ("wrong-bucket", json!({"bucket": "no-such-bucket"}), vec!["spec.s3.bucket", "no-such-bucket"]),
        (
            "wrong-key",
            json!({"credentialsSecretRef": {"name": "s3-wrong"}}),
            vec!["credentialsSecretRef", "s3-wrong", "SignatureDoesNotMatch"],
        ),
        (
            "wrong-endpoint",
            json!({"endpoint": "https://172.30.0.1:7071"}),
            vec!["endpoint", "172.30.0.1:7071"],
        ),
        ("missing-secret", json!({"credentialsSecretRef": {"name": "s3-late"}}), vec!["s3-late"]),
    ];
    for (name, wrong, _) in &table {
        objects::apply::<BackupStore>(cluster, ns, name, &with(right.clone(), &json!({"s3": wrong}))).await?;
    }
    let api = cluster.api::<BackupStore>(ns);
    let mut wrong = Vec::new();
    for (name, _, words) in &table {
        // The kubelet says only after a while that a Secret is missing.
        let object = condition(&api, name, types::READY, "False", seconds(90)).await?;
        let said =
            stalled(&api, name, seconds(90)).await.context("Ready=False must come with Stalled=True")?;
        let text = format!("{}: {}", said.reason, said.message);
        if !words.iter().any(|w| text.contains(w)) {
            wrong.push(format!("{name} says \"{text}\", which has none of {words:?}"));
        }
        ensure!(
            objects::current(&object, types::READY).is_some_and(|c| !c.message.is_empty()),
            "{name}: no message"
        );
    }
    namespace::secret(
        cluster,
        ns,
        "s3-late",
        &[("accessKeyId", &s3.access), ("secretAccessKey", &s3.secret)],
    )
    .await?;
    for (name, _, _) in table.iter().filter(|(name, _, _)| *name != "missing-secret") {
        objects::apply::<BackupStore>(cluster, ns, name, &right).await?;
    }
    for (name, _, _) in &table {
        // The kubelet looks for a missing Secret again only after a while, up to two minutes.
        condition(&api, name, types::READY, "True", seconds(150)).await.context("it was put right")?;
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

//! Volumes that exist in one zone: instances spread over zones, and stay with their volumes.

use crate::{
    database::{Db, spec, with},
    objects::stalled,
    runner::Scene,
    wait::{Seen, seconds, wait_for},
};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

const ZONE: &str = "topology.kubernetes.io/zone";

/// Node of each pod.
async fn nodes(db: &Db) -> Result<BTreeMap<String, String>> {
    let pods = db.pods().await?;
    Ok(pods.into_iter().filter_map(|(name, pod)| Some((name, pod.spec?.node_name?))).collect())
}

/// Zones that a claim's volume is reached from.
async fn zones_of(db: &Db, pod: &str) -> Result<BTreeSet<String>> {
    let claim = db.claims().await?.into_iter().find(|c| c.name_any().ends_with(&format!("-{pod}")));
    let volume = claim.and_then(|c| c.spec?.volume_name).with_context(|| format!("{pod} has no volume"))?;
    let volume = db.cluster.cluster_api::<PersistentVolume>().get(&volume).await?;
    let terms = volume.spec.and_then(|s| s.node_affinity?.required).map(|r| r.node_selector_terms);
    let zones = terms.into_iter().flatten().flat_map(|t| t.match_expressions.unwrap_or_default());
    Ok(zones.filter(|e| e.key == ZONE).flat_map(|e| e.values.unwrap_or_default()).collect())
}

async fn schedulable(scene: &Scene, node: &str, yes: bool) -> Result<()> {
    let patch = Patch::Merge(json!({"spec": {"unschedulable": if yes { None } else { Some(true) }}}));
    scene.cluster.cluster_api::<Node>().patch(node, &PatchParams::default(), &patch).await?;
    Ok(())
}

/// Three instances in three zones; a pod whose zone takes none waits and says so, and comes back to its own volume.
pub async fn zonal_volumes(scene: Scene) -> Result<()> {
    if scene.cluster.run.is_none() {
        println!("        zonal_volumes: needs the development cluster's zones, left out");
        return Ok(());
    }
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let spec =
        with(spec(3), &json!({"storage": {"storageClassName": "zonal"}, "placement": {"spreadZones": true}}));
    let db = Db::start(cluster, ns, "atlas", &spec).await?;
    db.fill("map", 500).await?;
    let before = nodes(&db).await?;
    let mut zones = BTreeSet::new();
    for (pod, node) in &before {
        let own = cluster.cluster_api::<Node>().get(node).await?.labels().get(ZONE).cloned();
        let volume = zones_of(&db, pod).await?;
        ensure!(volume == own.iter().cloned().collect(), "{pod} is in {own:?}, its volume in {volume:?}");
        zones.extend(volume);
    }
    ensure!(zones.len() == 3, "three instances in {} zones: {zones:?}", zones.len());

    let pod = db.primary().await?;
    let node = before.get(&pod).context("the primary is on no node")?;
    schedulable(&scene, node, false).await?;
    let result = without_its_node(&db, &pod).await;
    schedulable(&scene, node, true).await?;
    result?;
    db.ready().await?;
    ensure!(nodes(&db).await? == before, "an instance left its volume");
    db.everywhere("map", 500, seconds(30)).await
}

async fn without_its_node(db: &Db, pod: &str) -> Result<()> {
    db.cluster.api::<Pod>(&db.namespace).delete(pod, &DeleteParams::default()).await?;
    db.primary_other_than(pod, seconds(60)).await?;
    wait_for("Stalled to name the pod and its volume", seconds(40), || async {
        let said = stalled(&db.api(), &db.name, seconds(20)).await?;
        let named = said.message.contains(pod) && said.message.contains("volume");
        Ok(if named { Seen::Yes(()) } else { Seen::NotYet(format!("{}: {}", said.reason, said.message)) })
    })
    .await?;
    ensure!(db.count("map").await? == 500, "rows are missing");
    Ok(())
}

//! What is printed when a test failed: everything that one would type next.

use crate::{SYSTEM, cluster::Cluster, objects};
use holdfast_core::{Backup, BackupSchedule, BackupStore, Database, Restore};
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, api::ListParams};
use std::fmt::Write;

/// The state of a namespace: objects, conditions, events, the last lines of the pods' and the operators' logs.
pub async fn namespace(cluster: &Cluster, namespace: &str) -> String {
    let mut text = String::new();
    let listing = "holdfast,statefulsets,pods,jobs,pvc,leases,endpointslices";
    section(&mut text, cluster, &["get", listing, "-n", namespace, "-o", "wide"]).await;
    conditions::<Database>(&mut text, cluster, namespace).await;
    conditions::<BackupStore>(&mut text, cluster, namespace).await;
    conditions::<BackupSchedule>(&mut text, cluster, namespace).await;
    conditions::<Backup>(&mut text, cluster, namespace).await;
    conditions::<Restore>(&mut text, cluster, namespace).await;
    let columns = "custom-columns=TYPE:.type,OBJECT:.regarding.name,REASON:.reason,NOTE:.note";
    let events = [
        "get",
        "events.v1.events.k8s.io",
        "-n",
        namespace,
        "--sort-by=.metadata.creationTimestamp",
        "-o",
        columns,
    ];
    section(&mut text, cluster, &events).await;
    for place in [namespace, SYSTEM] {
        let pods = cluster.api::<Pod>(place).list(&ListParams::default()).await;
        for pod in pods.map(|l| l.items).unwrap_or_default() {
            let name = pod.name_any();
            section(&mut text, cluster, &["logs", "-n", place, &name, "--all-containers", "--tail=40"]).await;
        }
    }
    text
}

async fn section(text: &mut String, cluster: &Cluster, arguments: &[&str]) {
    let said = match cluster.kubectl(arguments).await {
        Ok(said) => said,
        Err(error) => format!("{error:#}"),
    };
    let _ = writeln!(text, "--- kubectl {}\n{}", arguments.join(" "), said.trim_end());
}

async fn conditions<K: objects::Kind>(text: &mut String, cluster: &Cluster, namespace: &str) {
    let Ok(list) = cluster.api::<K>(namespace).list(&ListParams::default()).await else { return };
    for object in list.items {
        let generation = object.meta().generation.unwrap_or_default();
        let _ = writeln!(text, "--- {} {} (generation {generation})", K::kind(&()), object.name_any());
        for c in object.conditions() {
            let of = c.observed_generation.unwrap_or_default();
            let _ = writeln!(text, "{}={} {} (generation {of}): {}", c.type_, c.status, c.reason, c.message);
        }
    }
}

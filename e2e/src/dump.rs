//! What is printed when a test failed: everything that one would type next.

use crate::{SYSTEM, cluster::Cluster, objects, wait::say};
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
    for pod in pods(cluster, namespace).await {
        section(&mut text, cluster, &["logs", "-n", namespace, &pod, "--all-containers", "--tail=40"]).await;
    }
    // Of the operators what concerns this namespace: other tests run at the same time.
    for pod in pods(cluster, SYSTEM).await {
        let arguments = ["logs", "-n", SYSTEM, &pod, "--tail=2000"];
        let said = cluster.kubectl(&arguments).await.unwrap_or_else(|error| say(&error));
        let lines: Vec<&str> = said.lines().filter(|l| l.contains(namespace)).collect();
        let last = lines[lines.len().saturating_sub(40)..].join("\n");
        let _ = writeln!(text, "--- kubectl {} | grep {namespace}\n{last}", arguments.join(" "));
    }
    text
}

async fn pods(cluster: &Cluster, namespace: &str) -> Vec<String> {
    let list = cluster.api::<Pod>(namespace).list(&ListParams::default()).await;
    list.map(|l| l.items.iter().map(|p| p.name_any()).collect()).unwrap_or_default()
}

async fn section(text: &mut String, cluster: &Cluster, arguments: &[&str]) {
    let said = match cluster.kubectl(arguments).await {
        Ok(said) => said,
        Err(error) => say(&error),
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

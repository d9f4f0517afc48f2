//! The operators as processes: probes, metrics, logs.

use crate::{
    SYSTEM,
    runner::Scene,
    wait::{Seen, seconds, wait_for},
};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{ResourceExt, api::ListParams};
use serde_json::Value;

/// Names of the operators' Deployments.
pub const OPERATORS: [&str; 3] = ["database-operator", "backup-scheduler-operator", "restore-operator"];

/// Each operator is a Deployment of its own that answers probes, shows metrics and logs JSON.
pub async fn operators_alone(scene: Scene) -> Result<()> {
    let cluster = &scene.cluster;
    for name in OPERATORS {
        let deployment = cluster.api::<Deployment>(SYSTEM).get(name).await;
        let deployment =
            deployment.with_context(|| format!("Deployment {name}: deploy the operators first"))?;
        let labels = deployment.spec.and_then(|s| s.selector.match_labels).unwrap_or_default();
        let selector: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let parameters = ListParams::default().labels(&selector.join(","));
        let pods = cluster.api::<Pod>(SYSTEM).list(&parameters).await?.items;
        let running = pods.iter().find(|p| p.metadata.deletion_timestamp.is_none());
        let pod = running.with_context(|| format!("{name} has no pod"))?.name_any();
        let get = |path: &str| format!("/api/v1/namespaces/{SYSTEM}/pods/{pod}:8080/proxy{path}");
        for path in ["/healthz", "/readyz"] {
            cluster.get_text(&get(path)).await.with_context(|| format!("{name} {path}"))?;
        }
        // The leader has reconciled something as soon as there is an object of its kind; before that the series may be missing.
        let metrics = wait_for(&format!("{name}'s metrics"), seconds(10), || async {
            let text = cluster.get_text(&get("/metrics")).await?;
            Ok(if text.contains("# TYPE") { Seen::Yes(text) } else { Seen::NotYet(text) })
        })
        .await?;
        ensure!(metrics.contains("process_") || metrics.contains("controller_runtime_"), "{name}: {metrics}");
        let logs = cluster.kubectl(&["logs", "-n", SYSTEM, &pod, "--tail=50"]).await?;
        ensure!(!logs.trim().is_empty(), "{name} logs nothing");
        for line in logs.lines() {
            let parsed: Value =
                serde_json::from_str(line).with_context(|| format!("{name} logs no JSON: {line}"))?;
            ensure!(parsed.is_object(), "{name} logs {line}");
        }
        let spec = pods[0].spec.clone().unwrap_or_default();
        let plain = spec
            .containers
            .iter()
            .all(|c| c.security_context.as_ref().is_some_and(|s| s.read_only_root_filesystem == Some(true)));
        ensure!(plain, "{name} can write to its root file system");
    }
    Ok(())
}

//! A namespace of one's own for each test, under the restricted Pod Security Standard, gone afterwards.

use crate::{
    cluster::Cluster,
    wait::{Seen, seconds, wait_for},
};
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, Secret};
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;
use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A unique name with this beginning, at most 40 characters.
pub fn unique(beginning: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let counter = COUNTER.fetch_add(1, Ordering::Relaxed);
    let beginning: String = beginning.replace('_', "-").chars().take(26).collect();
    format!("{beginning}-{:05x}{:x}{counter:x}", now & 0xf_ffff, std::process::id() & 0xff)
}

/// Makes a namespace that enforces the restricted Pod Security Standard.
pub async fn create(cluster: &Cluster, name: &str) -> Result<()> {
    let namespace: Namespace = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {
            "pod-security.kubernetes.io/enforce": "restricted", "holdfast.dev/test": "true",
        }},
    }))?;
    let made = cluster.cluster_api::<Namespace>().create(&PostParams::default(), &namespace).await;
    made.with_context(|| format!("creating namespace {name}"))?;
    Ok(())
}

/// Deletes a namespace and waits until it and its volumes are gone. That it goes is itself a promise: no finalizer holds it.
pub async fn delete(cluster: &Cluster, name: &str) -> Result<()> {
    let api = cluster.cluster_api::<Namespace>();
    if api.get_opt(name).await?.is_none() {
        return Ok(());
    }
    api.delete(name, &DeleteParams::default()).await.with_context(|| format!("deleting namespace {name}"))?;
    wait_for(&format!("namespace {name} to be gone"), seconds(180), || async {
        Ok(match api.get_opt(name).await? {
            None => Seen::Yes(()),
            Some(left) => {
                let conditions = left.status.and_then(|s| s.conditions).unwrap_or_default();
                let said = conditions.into_iter().filter(|c| c.status == "True").filter_map(|c| c.message);
                Seen::NotYet(said.collect::<Vec<_>>().join("; "))
            }
        })
    })
    .await?;
    let volumes = cluster.cluster_api::<PersistentVolume>();
    for volume in volumes.list(&ListParams::default()).await?.items {
        let spec = volume.spec.unwrap_or_default();
        let ours = spec.claim_ref.and_then(|c| c.namespace).as_deref() == Some(name);
        // Class default is Delete, and then the provisioner does it; only volumes that are kept need a hand.
        if ours && spec.persistent_volume_reclaim_policy.as_deref() == Some("Retain") {
            let name = volume.metadata.name.unwrap_or_default();
            let _ = volumes.delete(&name, &DeleteParams::default()).await;
        }
    }
    Ok(())
}

/// Makes a Secret.
pub async fn secret(cluster: &Cluster, namespace: &str, name: &str, entries: &[(&str, &str)]) -> Result<()> {
    let data: serde_json::Map<String, serde_json::Value> =
        entries.iter().map(|(k, v)| (k.to_string(), json!(v))).collect();
    let secret: Secret = serde_json::from_value(json!({"metadata": {"name": name}, "stringData": data}))?;
    let made = cluster.api::<Secret>(namespace).create(&PostParams::default(), &secret).await;
    made.with_context(|| format!("creating Secret {name}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_labels() {
        let (a, b) = (
            unique("a_test_with_a_name_that_is_far_too_long"),
            unique("a_test_with_a_name_that_is_far_too_long"),
        );
        assert_ne!(a, b);
        assert!(
            a.len() <= 40 && a.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'),
            "{a}"
        );
    }
}

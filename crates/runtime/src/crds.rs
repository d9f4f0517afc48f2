//! Which of the operator's CRDs the API server serves. Reads the API's discovery document, which needs no rights of its own.

use crate::{apply, health::Health, metrics::Metrics, telemetry};
use holdfast_core::crd::{GROUP, VERSION};
use kube::Client;
use std::{sync::Arc, time::Duration};
use tokio::sync::Notify;

/// How often to look while something is missing.
const IMPATIENT: Duration = Duration::from_secs(3);

/// Looks for ever, and keeps health, gauge and log up to date. Never returns. While nothing is missing it looks again only after a
/// watch has failed (`doubts`): the watches of a CRD that is removed do.
pub async fn watch(
    client: Client,
    wanted: &'static [&'static str],
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    doubts: Arc<Notify>,
) {
    let mut before: Option<Vec<String>> = None;
    loop {
        match served(&client).await {
            Ok(served) => {
                let missing = missing(wanted, &served);
                for crd in wanted {
                    metrics.crd_missing(crd, missing.iter().any(|m| m == crd));
                }
                if before.as_ref() != Some(&missing) && !missing.is_empty() {
                    tracing::warn!(
                        crds = missing.join(", "),
                        "CRDs are missing: apply the operator's deploy folder, or deploy/crds; waiting for them"
                    );
                }
                health.crds_missing(missing.clone());
                before = Some(missing);
            }
            // What was known stays: an API server that is away takes no CRD with it.
            Err(error) => tracing::warn!(
                error = telemetry::chain(&error),
                "cannot ask the API server which kinds it serves"
            ),
        }
        if before.as_ref().is_some_and(Vec::is_empty) {
            doubts.notified().await;
        }
        tokio::time::sleep(IMPATIENT).await;
    }
}

/// Plural names of the kinds that the API server serves in our group and version.
async fn served(client: &Client) -> Result<Vec<String>, kube::Error> {
    let version = format!("{GROUP}/{VERSION}");
    match apply::bounded(client.list_api_group_resources(&version)).await {
        Ok(list) => Ok(list.resources.into_iter().map(|r| r.name).collect()),
        // Without any CRD of the group, the group itself is unknown, and that is said in plain text: only the code tells.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Which of the wanted CRDs (`databases.holdfast.dev`) are not among the served plurals (`databases`).
fn missing(wanted: &[&str], served: &[String]) -> Vec<String> {
    wanted
        .iter()
        .filter(|crd| {
            !served.iter().any(|plural| crd.strip_prefix(plural.as_str()) == Some(&format!(".{GROUP}")))
        })
        .map(|crd| (*crd).to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plural_counts_only_as_a_whole() {
        let wanted = ["backups.holdfast.dev", "backupstores.holdfast.dev"];
        let served = ["backups", "backups/status"].map(String::from);
        assert_eq!(missing(&wanted, &served), ["backupstores.holdfast.dev"]);
        assert_eq!(missing(&wanted, &[]).len(), 2);
        let all = ["backups", "backupstores"].map(String::from);
        assert!(missing(&wanted, &all).is_empty());
    }
}

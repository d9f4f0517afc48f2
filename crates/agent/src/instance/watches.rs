//! What the agent watches by API: its configuration and the Lease. Both may be stale while the API is away; nothing is
//! written on their word alone, for every write has a precondition.

use super::{clock, lease};
use futures::StreamExt;
use holdfast_core::{names, wire::AgentConfig};
use holdfast_postgresql::failover::Record;
use holdfast_runtime::operator::expired;
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::ConfigMap},
    jiff::Timestamp,
};
use kube::{
    Api,
    runtime::{WatchStreamExt, watcher},
};
use std::time::Duration;
use tokio::sync::watch;

/// The Lease as last seen.
#[derive(Clone, Debug, Default)]
pub struct SeenLease {
    /// It was looked for at least once.
    pub known: bool,
    /// The object; none: it does not exist.
    pub lease: Option<Lease>,
    /// What it says.
    pub record: Option<Record>,
    /// Its record cannot be read.
    pub unreadable: Option<String>,
    /// When it last changed, by this machine's clock.
    pub changed: Duration,
    /// When its last holder was last known to be good, by this machine's clock: only for those who count.
    pub alive: Duration,
}

impl SeenLease {
    fn of(lease: Option<Lease>) -> Self {
        let (record, unreadable) = match lease.as_ref().map(lease::to_record) {
            None => (None, None),
            Some(Ok(record)) => (Some(record), None),
            Some(Err(error)) => (None, Some(format!("{error:#}"))),
        };
        let changed = clock::now();
        Self { known: true, lease, record, unreadable, changed, alive: changed }
    }

    /// What was seen before knows how long ago the holder was well; a member that has just begun has only the holder's own word.
    fn after(self, old: &Self, now: Timestamp) -> Self {
        let held = self.record.as_ref().is_some_and(|r| r.holder.is_some());
        let alive = match (old.known, held) {
            (true, true) => self.changed,
            (true, false) => old.alive,
            (false, _) => {
                let renewed = self.lease.as_ref().and_then(|l| l.spec.as_ref()?.renew_time.as_ref());
                let ago = renewed.and_then(|at| Duration::try_from(now.duration_since(at.0)).ok());
                self.changed.saturating_sub(ago.unwrap_or_default())
            }
        };
        Self { alive, ..self }
    }

    fn version(&self) -> Option<(&str, &str)> {
        let meta = &self.lease.as_ref()?.metadata;
        Some((meta.uid.as_deref()?, meta.resource_version.as_deref()?))
    }
}

fn only(name: &str) -> watcher::Config {
    watcher::Config::default().fields(&format!("metadata.name={name}")).timeout(60)
}

/// Watches until the process ends.
pub async fn run(
    client: kube::Client,
    config: AgentConfig,
    configs: watch::Sender<AgentConfig>,
    leases: watch::Sender<SeenLease>,
) {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &config.namespace);
    let maps = watcher(maps, only(&names::config_map(&config.database)))
        .default_backoff()
        .applied_objects()
        .for_each(|map| {
            match map {
                Ok(map) => {
                    let text = map.data.as_ref().and_then(|d| d.get("agent.json"));
                    match text.map(|t| serde_json::from_str::<AgentConfig>(t)) {
                        Some(Ok(new)) => {
                            configs.send_if_modified(|old| {
                                let changed = *old != new;
                                *old = new;
                                changed
                            });
                        }
                        Some(Err(error)) => {
                            tracing::error!(%error, "the configuration cannot be read: the last one stays")
                        }
                        None => tracing::error!("the ConfigMap has no agent.json: the last one stays"),
                    }
                }
                Err(error) if expired(&error) => {
                    tracing::debug!("the watch of the configuration begins anew")
                }
                Err(error) => tracing::warn!(%error, "watching the configuration"),
            }
            std::future::ready(())
        });
    let all: Api<Lease> = Api::namespaced(client, &config.namespace);
    // During a relist the Lease counts as gone only if the new list does not name it.
    let mut listed: Option<Lease> = None;
    let leases = watcher(all, only(&names::lease_primary(&config.database))).default_backoff().for_each(
        move |event| {
            let seen = match event {
                Ok(watcher::Event::Apply(lease)) => Some(Some(lease)),
                Ok(watcher::Event::Delete(_)) => Some(None),
                Ok(watcher::Event::Init) => {
                    listed = None;
                    None
                }
                Ok(watcher::Event::InitApply(lease)) => {
                    listed = Some(lease);
                    None
                }
                Ok(watcher::Event::InitDone) => Some(listed.take()),
                Err(error) => {
                    if expired(&error) {
                        tracing::debug!("the watch of the Lease begins anew");
                    } else {
                        tracing::warn!(%error, "watching the Lease");
                    }
                    None
                }
            };
            if let Some(lease) = seen {
                let new = SeenLease::of(lease);
                // The same version seen again is no sign of life.
                leases.send_if_modified(|old| {
                    let changed = !old.known || old.version() != new.version();
                    if changed {
                        *old = new.after(old, Timestamp::now());
                    }
                    changed
                });
            }
            std::future::ready(())
        },
    );
    tokio::join!(maps, leases);
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_postgresql::failover::Holder;
    use k8s_openapi::{api::coordination::v1::LeaseSpec, apimachinery::pkg::apis::meta::v1::MicroTime};

    fn seen(changed: u64, held: bool, renewed: Timestamp) -> SeenLease {
        let spec = LeaseSpec { renew_time: Some(MicroTime(renewed)), ..LeaseSpec::default() };
        let holder = held.then(|| Holder { pod: "reef-0".into(), uid: "u".into(), nonce: "n".into() });
        let record = serde_json::json!({"holder": holder, "last_holder": "reef-0", "term": 1, "timeline": 1, "data_set": "d",
            "system_identifier": "7", "synchronous": [], "confirmations": 0});
        SeenLease {
            known: true,
            lease: Some(Lease { spec: Some(spec), ..Lease::default() }),
            record: Some(serde_json::from_value(record).unwrap()),
            changed: Duration::from_secs(changed),
            ..SeenLease::default()
        }
    }

    #[test]
    fn a_holder_was_well_when_it_last_renewed_not_when_it_let_go() {
        let now: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
        let earlier: Timestamp = "2026-11-22T09:59:50Z".parse().unwrap();
        let first = seen(100, true, earlier).after(&SeenLease::default(), now);
        assert_eq!(first.alive, Duration::from_secs(90), "its own word is all there is");
        let renewed = seen(102, true, now).after(&first, now);
        assert_eq!(renewed.alive, Duration::from_secs(102));
        assert_eq!(seen(109, false, now).after(&renewed, now).alive, Duration::from_secs(102));
        let future = seen(100, true, now).after(&SeenLease::default(), earlier);
        assert_eq!(
            future.alive,
            Duration::from_secs(100),
            "a clock that is ahead is no reason to count backwards"
        );
    }
}

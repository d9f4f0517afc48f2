//! What an instance watches: its configuration and the Lease.

use futures::{StreamExt, stream::BoxStream};
use holdfast_core::{names, wire::AgentConfig};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::ConfigMap};
use kube::{Api, Client, runtime::watcher};

/// What a watch has to say.
pub enum Event {
    /// The Lease, or that there is none.
    Lease(Option<Lease>),
    /// The configuration.
    Config(AgentConfig),
    /// A watch failed.
    Failed,
}

/// Reads what the agents are told.
pub fn told(map: &ConfigMap) -> Option<AgentConfig> {
    serde_json::from_str(map.data.as_ref()?.get("agent.json")?).ok()
}

/// Watches the Lease and the configuration.
pub fn watch(client: &Client, config: &AgentConfig) -> BoxStream<'static, Event> {
    let only = |name: String| watcher::Config::default().fields(&format!("metadata.name={name}"));
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &config.namespace);
    let maps = watcher(maps, only(names::config_map(&config.database))).filter_map(|event| {
        let event = match event {
            Ok(watcher::Event::Apply(map) | watcher::Event::InitApply(map)) => told(&map).map(Event::Config),
            Err(_) => Some(Event::Failed),
            Ok(_) => None,
        };
        std::future::ready(event)
    });
    let leases: Api<Lease> = Api::namespaced(client.clone(), &config.namespace);
    // During a relist the Lease counts as gone only if the new list does not name it.
    let mut listed = None;
    let leases = watcher(leases, only(names::lease_primary(&config.database))).filter_map(move |event| {
        let event = match event {
            Ok(watcher::Event::Apply(lease)) => Some(Event::Lease(Some(lease))),
            Ok(watcher::Event::Delete(_)) => Some(Event::Lease(None)),
            Ok(watcher::Event::Init) => {
                listed = None;
                None
            }
            Ok(watcher::Event::InitApply(lease)) => {
                listed = Some(lease);
                None
            }
            Ok(watcher::Event::InitDone) => Some(Event::Lease(listed.take())),
            Err(_) => Some(Event::Failed),
        };
        std::future::ready(event)
    });
    futures::stream::select(maps, leases).boxed()
}

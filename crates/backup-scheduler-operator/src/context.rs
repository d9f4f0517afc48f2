//! What every reconcile of this process is given.

use crate::{cache::Caches, metrics::Results};
use holdfast_runtime::{events::Events, operator::Clock};
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client, Resource, core::NamespaceResourceScope};
use tokio::sync::{Mutex, Semaphore};

/// Schedules that read Backups from the API server at once.
pub const LISTS: usize = 8;

/// What every reconcile of this process is given.
pub struct Context {
    /// The client.
    pub client: Client,
    /// The agent's image.
    pub agent_image: String,
    /// The one namespace to work in; none: all.
    pub namespace: Option<String>,
    /// Records events.
    pub events: Events,
    /// What is known of the cluster.
    pub caches: Caches,
    /// Counts ended Backups.
    pub results: Results,
    /// Held from counting a store's running backups until the next one's Job exists, so that two Backups that start at
    /// once do not both take the last place. One process leads, so a lock within it is enough.
    pub places: Mutex<()>,
    /// Held while Backups are read from the API server: a thousand schedules that wake together must not hold all of them in
    /// memory at once.
    pub lists: Semaphore,
    /// The clock.
    pub clock: Clock,
}

impl Context {
    /// The time of day.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// The API of a kind in a namespace.
    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The API of a kind in all namespaces that this process may see.
    pub fn everywhere<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        match &self.namespace {
            Some(namespace) => self.api(namespace),
            None => Api::all(self.client.clone()),
        }
    }
}

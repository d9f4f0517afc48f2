//! The controllers, the scheduler and the kubelets of the in-memory cluster, through the real kube client on a paused clock.

// Helpers of tests are not tests to clippy.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "cluster/collecting.rs"]
mod collecting;
#[path = "cluster/endpoints.rs"]
mod endpoints;
#[path = "cluster/jobs.rs"]
mod jobs;
#[path = "cluster/pods.rs"]
mod pods;
#[path = "cluster/sets.rs"]
mod sets;
#[path = "cluster/storage.rs"]
mod storage;

use futures::{FutureExt, future::BoxFuture};
use holdfast_testkit::{
    Server,
    cluster::{Cluster, Exit, Host, Programs},
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{Event, PersistentVolumeClaim, Pod},
};
use kube::{Api, Client, Resource, ResourceExt, api::PostParams};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{
    fmt::Debug,
    sync::{Arc, Mutex},
    time::Duration,
};

/// What the containers of a test do, by their command's first word: `serve` is ready until it is told to stop, `deaf` does not
/// hear that, `mute` never gets ready, `exit:<code>:<message>` ends after a second.
#[derive(Clone, Default)]
struct Script {
    /// Starts, by pod, with the number of the restart.
    starts: Arc<Mutex<Vec<(String, i32)>>>,
    /// Programs that were told to stop.
    stopped: Arc<Mutex<Vec<String>>>,
}

impl Programs for Script {
    fn run(&self, host: Host) -> BoxFuture<'static, Exit> {
        let script = self.clone();
        async move {
            let name = host.pod.name_any();
            script.starts.lock().unwrap().push((name.clone(), host.restarts));
            let spec = host.pod.spec.clone().unwrap();
            let word = spec.containers[0].command.iter().flatten().next().cloned().unwrap_or_default();
            host.message(&format!("nonce {}", host.restarts));
            if let Some(rest) = word.strip_prefix("exit:") {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let (code, message) = rest.split_once(':').unwrap();
                return Exit { code: code.parse().unwrap(), message: message.into() };
            }
            host.ready(word != "mute");
            if word == "deaf" {
                std::future::pending::<()>().await;
            }
            host.told_to_stop().await;
            script.stopped.lock().unwrap().push(name);
            tokio::time::sleep(Duration::from_millis(500)).await;
            Exit { code: 0, message: String::new() }
        }
        .boxed()
    }
}

/// A cluster with the namespace `lab`.
struct Lab {
    server: Server,
    client: Client,
    cluster: Cluster,
    script: Script,
}

impl Lab {
    fn new() -> Self {
        let server = Server::new("2026-03-01T10:00:00Z".parse().unwrap(), 1);
        server.namespace("lab");
        let client = server.client("tester", "lab");
        let script = Script::default();
        let cluster = Cluster::start(&server, Arc::new(script.clone()));
        Self { server, client, cluster, script }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "lab")
    }

    async fn make<K>(&self, object: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        self.api::<K>().create(&PostParams::default(), &of(object)).await.unwrap()
    }

    /// An object as it is now, as JSON; null when it is not there.
    async fn see<K>(&self, name: &str) -> Value
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        let found = self.api::<K>().get_opt(name).await.unwrap();
        found.map_or(Value::Null, |object| serde_json::to_value(object).unwrap())
    }

    async fn pod(&self, name: &str) -> Value {
        self.see::<Pod>(name).await
    }

    async fn claim(&self, name: &str) -> Value {
        self.see::<PersistentVolumeClaim>(name).await
    }

    async fn names<K>(&self) -> Vec<String>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        self.api::<K>().list(&Default::default()).await.unwrap().iter().map(ResourceExt::name_any).collect()
    }

    /// Events as "reason: message".
    async fn events(&self) -> Vec<String> {
        let all = self.api::<Event>().list(&Default::default()).await.unwrap();
        let text = |e: Event| format!("{}: {}", e.reason.unwrap_or_default(), e.message.unwrap_or_default());
        all.into_iter().map(text).collect()
    }

    /// Waits until nothing is left to do.
    async fn rest(&self) {
        assert!(self.cluster.rest(Duration::from_secs(600)).await, "the cluster does not come to rest");
    }

    /// Lets time pass.
    async fn pass(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

fn of<K: DeserializeOwned>(object: Value) -> K {
    serde_json::from_value(object).unwrap()
}

/// The status of a condition.
fn is(object: &Value, condition: &str) -> String {
    let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.into_iter().find(|c| c["type"] == condition);
    found.map_or(String::new(), |c| c["status"].as_str().unwrap().to_string())
}

/// A container that does what its word says.
fn container(word: &str) -> Value {
    json!({"name": "main", "image": "lab.test/main:1", "command": [word],
        "readinessProbe": {"httpGet": {"port": 1}}})
}

/// A set with one claim for each pod.
fn set(name: &str, replicas: i32, policy: &str, strategy: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "serviceName": format!("{name}-pods"),
        "podManagementPolicy": policy, "updateStrategy": strategy,
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name, "tier": "store"}}, "spec": {
            "terminationGracePeriodSeconds": 5,
            "initContainers": [{"name": "prepare", "image": "lab.test/prepare:1"}],
            "containers": [container("serve")]}},
        "volumeClaimTemplates": [{"metadata": {"name": "data", "labels": {"kind": "current"}}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]}})
}

fn on_delete() -> Value {
    json!({"type": "OnDelete"})
}

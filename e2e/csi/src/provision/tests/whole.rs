//! The loops as they run, with watches over HTTP.

use super::{CLAIM, CLAIMS, DRIVER, FakeDriver, Server, VOLUME, claim, volume};
use crate::provision::{
    Options,
    plan::names::{SELECTED_NODE, STORAGE_PROVISIONER},
    provision,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tempfile::TempDir;

struct Running {
    server: Server,
    driver: FakeDriver,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
    _folder: TempDir,
}

async fn start() -> Running {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (server, driver, folder) = (Server::new(), FakeDriver::default(), TempDir::new().unwrap());
    let controller = folder.path().join("controller.sock");
    driver.serve(&controller);
    server.put("/api/v1/nodes/n1", json!({"metadata": {"name": "n1"}}));
    let drivers =
        json!({"metadata": {"name": "n1"}, "spec": {"drivers": [{"name": DRIVER, "nodeID": "n1"}]}});
    server.put("/apis/storage.k8s.io/v1/csinodes/n1", drivers);
    let class = json!({"metadata": {"name": "fast"}, "provisioner": DRIVER,
        "volumeBindingMode": "WaitForFirstConsumer"});
    server.put("/apis/storage.k8s.io/v1/storageclasses/fast", class);
    let client = server.connected().await;
    let options = Options { kubeconfig: "unused".into(), controller, driver: DRIVER.into() };
    // Spawned as its users do: it has to be Send.
    let task = tokio::spawn(async move { provision(client, &options).await });
    Running { server, driver, task, _folder: folder }
}

fn unselected() -> Value {
    let mut claim = claim();
    claim["metadata"]["annotations"] = json!({STORAGE_PROVISIONER: DRIVER});
    claim["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    claim
}

#[tokio::test]
async fn a_claim_is_served_as_soon_as_its_node_is_chosen_and_its_volume_deleted_when_it_is_released() {
    let running = start().await;
    let server = &running.server;
    // A first claim shows that the loops have begun.
    let mut first = claim();
    first["metadata"]["name"] = json!("first");
    first["metadata"]["uid"] = json!("0001");
    server.put(&format!("{CLAIMS}/first"), first);
    server.until("the first volume", |s| s.get("/api/v1/persistentvolumes/pvc-0001").is_some()).await;

    server.put(CLAIM, unselected());
    let mut chosen = unselected();
    chosen["metadata"]["annotations"][SELECTED_NODE] = json!("n1");
    let begun = Instant::now();
    server.put(CLAIM, chosen.clone());
    server.until("the volume", |s| s.get(VOLUME).is_some()).await;
    let took = begun.elapsed();
    // It is one call to the driver and one to the API server. Generous: other tests run at the same time.
    assert!(took < Duration::from_millis(500), "{took:?}");

    // Bound, then its claim goes.
    let made = server.get(VOLUME).unwrap();
    let phase = |phase: &str| {
        let mut now = made.clone();
        now["status"] = json!({"phase": phase});
        now["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        now
    };
    server.put(VOLUME, phase("Bound"));
    let mut gone = chosen;
    gone["metadata"]["uid"] = json!("newer");
    gone["metadata"]["annotations"] = json!({});
    server.put(CLAIM, gone);
    server.put(VOLUME, phase("Released"));
    server.until("the end of the volume", |s| s.get(VOLUME).is_none()).await;
    let left: Vec<_> = running.driver.shelf.lock().unwrap().volumes.values().cloned().collect();
    assert_eq!(left, ["pvc-0001"]);
    assert!(!running.task.is_finished());
    running.task.abort();
}

#[tokio::test]
async fn volumes_released_while_it_was_away_are_deleted_at_start() {
    let running = start().await;
    running.driver.shelf.lock().unwrap().volumes.insert("vol-of-pvc-0b5a".into(), "pvc-0b5a".into());
    let mut released = volume("Released");
    released["metadata"]["finalizers"] = json!(["external-provisioner.volume.kubernetes.io/finalizer"]);
    running.server.put(VOLUME, released);
    running.server.until("the end of the volume", |s| s.get(VOLUME).is_none()).await;
    assert!(running.driver.shelf.lock().unwrap().volumes.is_empty());
    running.task.abort();
}

#[tokio::test]
async fn a_cluster_that_has_not_begun_yet_is_waited_for() {
    let folder = TempDir::new().unwrap();
    let options = Options {
        kubeconfig: folder.path().join("admin.conf"),
        controller: folder.path().join("controller.sock"),
        driver: DRIVER.into(),
    };
    let mut task = tokio::spawn(crate::provision::run(options));
    let ended = tokio::time::timeout(Duration::from_millis(50), &mut task).await;
    assert!(ended.is_err(), "{ended:?}");
    task.abort();
}

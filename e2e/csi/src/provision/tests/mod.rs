//! Reconciles against an API server and a driver in memory.

mod api;
mod fake_driver;
mod whole;

use super::{
    Context, Driver, Events, Intents, Retry, claims, leftovers,
    plan::names::{FINALIZER, PROVISIONED_BY, SELECTED_NODE, STORAGE_PROVISIONER},
    volumes,
};
use api::Server;
use fake_driver::FakeDriver;
use kube::{
    Resource,
    runtime::{reflector, watcher::Event},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{fmt::Debug, sync::Arc, time::Duration};
use tempfile::TempDir;
use tonic::Code;

const DRIVER: &str = "disks.example.com";
const VOLUMES: &str = "/api/v1/persistentvolumes";
const VOLUME: &str = "/api/v1/persistentvolumes/pvc-0b5a";
const CLAIMS: &str = "/api/v1/namespaces/shop/persistentvolumeclaims";
const CLAIM: &str = "/api/v1/namespaces/shop/persistentvolumeclaims/pgdata-orders-0";
const EVENTS: &str = "/api/v1/namespaces/shop/events";

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn store<K>(objects: &[Value]) -> reflector::Store<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + 'static,
{
    let (store, mut writer) = reflector::store();
    for object in objects {
        writer.apply_watcher_event(&Event::Apply(read::<K>(object.clone())));
    }
    store
}

struct World {
    server: Server,
    driver: FakeDriver,
    folder: TempDir,
    context: Arc<Context>,
}

fn claim() -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "pgdata-orders-0", "namespace": "shop", "uid": "0b5a", "resourceVersion": "1",
            "annotations": {STORAGE_PROVISIONER: DRIVER, SELECTED_NODE: "n1"}},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
            "resources": {"requests": {"storage": "1Gi"}}},
    })
}

fn volume(phase: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": "pvc-0b5a", "uid": "v1", "resourceVersion": "1",
            "annotations": {PROVISIONED_BY: DRIVER}, "finalizers": ["kubernetes.io/pv-protection", FINALIZER]},
        "spec": {"csi": {"driver": DRIVER, "volumeHandle": "vol-of-pvc-0b5a"},
            "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": {"namespace": "shop", "name": "pgdata-orders-0", "uid": "0b5a"}},
        "status": {"phase": phase},
    })
}

impl World {
    fn new() -> Self {
        let (server, driver, folder) = (Server::new(), FakeDriver::default(), TempDir::new().unwrap());
        let socket = folder.path().join("controller.sock");
        driver.serve(&socket);
        let nodes: Vec<Value> = ["n1", "n2"].iter().map(|n| json!({"metadata": {"name": n}})).collect();
        let drivers =
            |n: &&str| json!({"metadata": {"name": n}, "spec": {"drivers": [{"name": DRIVER, "nodeID": n}]}});
        let csi_nodes: Vec<Value> = ["n1", "n2"].iter().map(drivers).collect();
        let class = json!({"metadata": {"name": "fast"}, "provisioner": DRIVER,
            "volumeBindingMode": "WaitForFirstConsumer"});
        let context = Context {
            client: server.client(),
            name: DRIVER.into(),
            identity: "17-disks".into(),
            driver: Driver::new(&socket),
            events: Events::new(server.client(), DRIVER),
            intents: Intents::new(folder.path().join("intents")),
            claims: Retry::default(),
            releases: Retry::default(),
            classes: store(&[class]),
            nodes: store(&nodes),
            csi_nodes: store(&csi_nodes),
            volumes: store(&[]),
        };
        server.put(CLAIM, claim());
        Self { server, driver, folder, context: Arc::new(context) }
    }

    async fn claim(&self, claim: Value) {
        claims::reconcile(Arc::new(read(claim)), Arc::clone(&self.context)).await.unwrap();
    }

    async fn volume(&self, volume: Value) {
        volumes::reconcile(Arc::new(read(volume)), Arc::clone(&self.context)).await.unwrap();
    }

    fn refuse(&self, code: Code, words: &str) {
        self.driver.shelf.lock().unwrap().refusal = Some((code, words.into()));
    }

    fn asked(&self) -> usize {
        self.driver.shelf.lock().unwrap().requests.len()
    }

    fn on_shelf(&self) -> Vec<String> {
        self.driver.shelf.lock().unwrap().volumes.values().cloned().collect()
    }

    fn shelve(&self, name: &str) {
        self.driver.shelf.lock().unwrap().volumes.insert(format!("vol-of-{name}"), name.into());
    }

    async fn notes(&self) -> usize {
        self.context.intents.old(Duration::ZERO).await.unwrap().len()
    }

    /// The event with this reason: events are written in the background.
    async fn event(&self, under: &str, reason: &str) -> Value {
        let find = |server: &Server| server.under(under).into_iter().find(|event| event["reason"] == reason);
        self.server.until(reason, |server| find(server).is_some()).await;
        find(&self.server).unwrap()
    }
}

#[tokio::test]
async fn a_claim_gets_a_volume_once() {
    let world = World::new();
    world.claim(claim()).await;
    let made = world.server.get(VOLUME).unwrap();
    assert_eq!(made["spec"]["csi"]["volumeHandle"], "vol-of-pvc-0b5a");
    assert_eq!(made["spec"]["claimRef"]["uid"], "0b5a");
    assert_eq!(made["spec"]["capacity"]["storage"], "1Gi");
    assert_eq!(world.event(EVENTS, "Provisioning").await["type"], "Normal");
    let event = world.event(EVENTS, "ProvisioningSucceeded").await;
    assert_eq!(event["involvedObject"]["uid"], "0b5a");
    assert_eq!(world.notes().await, 0);
    // Also while the caches do not show it.
    world.claim(claim()).await;
    assert_eq!((world.asked(), world.server.requests(&format!("POST {VOLUMES}"))), (1, 1));
}

#[tokio::test]
async fn a_volume_that_was_saved_before_a_crash_is_taken() {
    let world = World::new();
    world.server.put(VOLUME, volume("Available"));
    world.claim(claim()).await;
    world.event(EVENTS, "ProvisioningSucceeded").await;
    let other = World::new();
    let mut stranger = volume("Available");
    stranger["spec"]["claimRef"]["uid"] = json!("other");
    other.server.put(VOLUME, stranger);
    other.claim(claim()).await;
    let event = other.event(EVENTS, "ProvisioningFailed").await;
    assert!(event["message"].as_str().unwrap().contains("another claim"));
}

#[tokio::test]
async fn no_room_sends_the_claim_back_to_the_scheduler_and_another_node_is_tried_at_once() {
    let world = World::new();
    world.refuse(Code::ResourceExhausted, "the pool is full");
    world.claim(claim()).await;
    let event = world.event(EVENTS, "ProvisioningFailed").await;
    assert_eq!(event["type"], "Warning");
    let words = event["message"].as_str().unwrap();
    assert!(words.contains("ResourceExhausted: the pool is full"), "{words}");
    let now = world.server.get(CLAIM).unwrap();
    assert_eq!(now["metadata"]["annotations"], json!({STORAGE_PROVISIONER: DRIVER}));
    assert_eq!(world.server.get(VOLUME), None);
    // The same again waits; another choice does not.
    world.claim(claim()).await;
    assert_eq!(world.asked(), 1);
    let mut moved = claim();
    moved["metadata"]["annotations"][SELECTED_NODE] = json!("n2");
    world.claim(moved).await;
    assert_eq!(world.asked(), 2);
}

#[tokio::test]
async fn other_refusals_keep_the_node() {
    let world = World::new();
    world.refuse(Code::Unavailable, "asked to fail");
    world.claim(claim()).await;
    let event = world.event(EVENTS, "ProvisioningFailed").await;
    assert!(event["message"].as_str().unwrap().contains("Unavailable: asked to fail"));
    let now = world.server.get(CLAIM).unwrap();
    assert_eq!(now["metadata"]["annotations"][SELECTED_NODE], "n1");
    assert_eq!(world.notes().await, 1);
}

#[tokio::test]
async fn a_driver_that_is_away_is_said() {
    let world = World::new();
    let mut context = Arc::into_inner(world.context).unwrap();
    context.driver = Driver::new(&world.folder.path().join("nobody.sock"));
    let world = World { context: Arc::new(context), ..world };
    world.claim(claim()).await;
    let event = world.event(EVENTS, "ProvisioningFailed").await;
    assert!(event["message"].as_str().unwrap().contains("Unavailable"), "{event}");
}

#[tokio::test]
async fn a_clone_reads_its_source_and_an_empty_volume_is_not_taken_for_one() {
    let mut copy = claim();
    copy["spec"]["dataSource"] = json!({"kind": "PersistentVolumeClaim", "name": "first"});
    let world = World::new();
    world.claim(copy.clone()).await;
    let event = world.event(EVENTS, "ProvisioningFailed").await;
    assert!(event["message"].as_str().unwrap().contains("first does not exist"));
    assert_eq!(world.asked(), 0);
    let source = json!({"metadata": {"name": "first", "namespace": "shop", "uid": "u7"},
        "spec": {"volumeName": "pvc-u7"}, "status": {"phase": "Bound"}});
    world.server.put(&format!("{CLAIMS}/first"), source);
    let original = json!({"metadata": {"name": "pvc-u7"}, "spec": {"claimRef": {"uid": "u7"},
        "csi": {"driver": DRIVER, "volumeHandle": "vol-7"}}});
    world.server.put(&format!("{VOLUMES}/pvc-u7"), original);
    world.driver.shelf.lock().unwrap().forgetful = true;
    world.claim(copy.clone()).await;
    assert_eq!((world.asked(), world.server.get(VOLUME)), (1, None));
    world.driver.shelf.lock().unwrap().forgetful = false;
    copy["metadata"]["annotations"][SELECTED_NODE] = json!("n2");
    world.claim(copy).await;
    assert!(world.server.get(VOLUME).is_some());
}

#[tokio::test]
async fn a_snapshot_is_found_through_its_content() {
    let group = "/apis/snapshot.storage.k8s.io/v1";
    let mut restored = claim();
    restored["spec"]["dataSourceRef"] =
        json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "noon"});
    let world = World::new();
    world.server.put(
        &format!("{group}/namespaces/shop/volumesnapshots/noon"),
        json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
        "metadata": {"name": "noon", "namespace": "shop", "uid": "s1"},
        "status": {"readyToUse": true, "boundVolumeSnapshotContentName": "content-1"}}),
    );
    world.server.put(
        &format!("{group}/volumesnapshotcontents/content-1"),
        json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
        "metadata": {"name": "content-1"},
        "spec": {"driver": DRIVER, "volumeSnapshotRef": {"uid": "s1"}},
        "status": {"snapshotHandle": "snap-5"}}),
    );
    world.claim(restored).await;
    assert!(world.server.get(VOLUME).is_some());
    let source = world.driver.shelf.lock().unwrap().requests[0].volume_content_source.clone();
    assert!(format!("{source:?}").contains("snap-5"));
}

#[tokio::test]
async fn a_released_volume_is_deleted_with_its_object() {
    let world = World::new();
    world.shelve("pvc-0b5a");
    world.server.put(VOLUME, volume("Released"));
    let mut newer = claim();
    newer["metadata"]["uid"] = json!("newer");
    world.server.put(CLAIM, newer);
    world.volume(volume("Released")).await;
    assert_eq!(world.on_shelf(), [""; 0]);
    let left = world.server.get(VOLUME).unwrap();
    assert_eq!(left["metadata"]["finalizers"], json!(["kubernetes.io/pv-protection"]));
    assert!(!left["metadata"]["deletionTimestamp"].is_null());
}

#[tokio::test]
async fn what_is_bound_by_now_or_has_its_claim_is_kept() {
    let world = World::new();
    world.shelve("pvc-0b5a");
    world.server.put(VOLUME, volume("Bound"));
    world.volume(volume("Released")).await;
    assert_eq!(world.on_shelf(), ["pvc-0b5a"]);
    world.server.put(VOLUME, volume("Released"));
    world.volume(volume("Released")).await;
    let event = world.event("/api/v1/namespaces/default/events", "VolumeFailedDelete").await;
    assert!(event["message"].as_str().unwrap().contains("claim still exists"));
    assert_eq!(world.on_shelf(), ["pvc-0b5a"]);
}

#[tokio::test]
async fn a_refused_deletion_is_said_and_the_object_stays() {
    let world = World::new();
    world.shelve("pvc-0b5a");
    world.server.put(VOLUME, volume("Released"));
    world.server.put(CLAIM, json!({"metadata": {"name": "pgdata-orders-0", "uid": "newer"}}));
    world.refuse(Code::FailedPrecondition, "in use on n1");
    world.volume(volume("Released")).await;
    let event = world.event("/api/v1/namespaces/default/events", "VolumeFailedDelete").await;
    assert!(event["message"].as_str().unwrap().contains("FailedPrecondition: in use on n1"));
    assert!(world.server.get(VOLUME).unwrap()["metadata"]["deletionTimestamp"].is_null());
}

#[tokio::test]
async fn the_finalizer_follows_the_reclaim_policy() {
    let world = World::new();
    let mut kept = volume("Bound");
    kept["spec"]["persistentVolumeReclaimPolicy"] = json!("Retain");
    // The cached object is older than the one on the server: the finalizers of the latter count.
    let mut newer = kept.clone();
    newer["metadata"]["resourceVersion"] = json!("9");
    newer["metadata"]["finalizers"] = json!([FINALIZER, "example.com/other"]);
    world.server.put(VOLUME, newer);
    world.volume(kept).await;
    let now = world.server.get(VOLUME).unwrap();
    assert_eq!(now["metadata"]["finalizers"], json!(["example.com/other"]));
    let mut back = now;
    back["spec"]["persistentVolumeReclaimPolicy"] = json!("Delete");
    world.server.put(VOLUME, back.clone());
    world.volume(back).await;
    let now = world.server.get(VOLUME).unwrap();
    assert_eq!(now["metadata"]["finalizers"], json!(["example.com/other", FINALIZER]));
}

#[tokio::test]
async fn only_noted_leftovers_are_swept() {
    let world = World::new();
    world.context.intents.begin("pvc-0b5a", &read(claim())).await.unwrap();
    world.shelve("pvc-0b5a");
    world.shelve("pvc-kept");
    leftovers::sweep(&world.context, Duration::ZERO).await;
    assert_eq!(world.on_shelf(), ["pvc-0b5a", "pvc-kept"], "its claim is there");
    world.server.put(CLAIM, json!({"metadata": {"name": "pgdata-orders-0", "uid": "newer"}}));
    world.refuse(Code::Unavailable, "later");
    leftovers::sweep(&world.context, Duration::ZERO).await;
    assert_eq!(world.notes().await, 1);
    world.driver.shelf.lock().unwrap().refusal = None;
    leftovers::sweep(&world.context, Duration::ZERO).await;
    assert_eq!(world.on_shelf(), ["pvc-kept"], "kept: a volume whose policy was Retain");
    assert_eq!(world.notes().await, 0);
}

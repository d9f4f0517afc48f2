//! Against a real API server: the cluster of KUBECONFIG, in namespaces of their own that are removed again.
//! Run with `cargo test -p holdfast-runtime --test cluster -- --ignored`.
#![allow(clippy::unwrap_used)] // Helpers of tests are tests, too.

use holdfast_runtime::{
    apply, client,
    health::{Health, Role},
    leader::{DURATION, Elector, Lost, RETRY},
};
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{ConfigMap, Namespace},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, ResourceExt, api::PropagationPolicy};
use std::time::{Duration, Instant};

async fn namespace(client: &Client, name: &str) -> (Api<Namespace>, String, String) {
    let api: Api<Namespace> = Api::all(client.clone());
    let name = format!("runtime-{name}-{}", std::process::id());
    let wanted = Namespace {
        metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
        ..Namespace::default()
    };
    let made = apply::create(&api, &wanted).await.unwrap().unwrap();
    (api, name, made.uid().unwrap())
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn one_leads_and_another_takes_over() {
    let client = client::connect().await.unwrap();
    let (namespaces, name, uid) = namespace(&client, "leader").await;
    let leases: Api<Lease> = Api::namespaced(client.clone(), &name);
    let [a, b] = ["a", "b"].map(|identity| Elector::new(leases.clone(), "operator", identity));
    let (health_a, health_b) = (Health::default(), Health::default());

    let mut held = a.acquire(&health_a).await;
    let patience = RETRY * 3;
    assert!(tokio::time::timeout(patience, b.acquire(&health_b)).await.is_err(), "two lead");
    assert_eq!(health_b.readiness().role, Role::Standby { holder: "a".into() });

    // Held for longer than it lasts: it is renewed.
    let long = DURATION + patience;
    assert!(tokio::time::timeout(long, a.hold(&mut held)).await.is_err(), "a lost it");

    // Let go: the other has it at once.
    a.release(held).await;
    let started = Instant::now();
    let held = tokio::time::timeout(patience, b.acquire(&health_b)).await.unwrap();
    assert!(started.elapsed() < DURATION / 2);
    let lease = leases.get("operator").await.unwrap().spec.unwrap();
    assert_eq!((lease.holder_identity.as_deref(), lease.lease_transitions), (Some("b"), Some(1)));

    // Taken away by hand: the holder notices.
    let mut held = held;
    let stolen = serde_json::json!({"spec": {"holderIdentity": "c"}});
    apply::apply_json(&leases, "test", "operator", &stolen).await.unwrap();
    let lost = tokio::time::timeout(patience, b.hold(&mut held)).await.unwrap();
    assert!(matches!(lost, Lost::Taken { holder, .. } if holder == "c"));
    drop(held);

    // Nobody renews for c: whoever watched it for as long as it lasts takes it.
    let started = Instant::now();
    let held = tokio::time::timeout(DURATION + patience * 2, a.acquire(&health_a)).await.unwrap();
    assert!(started.elapsed() >= DURATION, "taken too early");
    a.release(held).await;

    apply::delete(&namespaces, &name, &uid, PropagationPolicy::Background).await.unwrap();
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn writes_do_what_they_say() {
    let client = client::connect().await.unwrap();
    let (namespaces, name, uid) = namespace(&client, "apply").await;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &name);
    let mut map = ConfigMap {
        metadata: ObjectMeta { name: Some("settings".into()), ..ObjectMeta::default() },
        data: Some([("a".to_string(), "1".to_string())].into()),
        ..ConfigMap::default()
    };

    let first = apply::apply(&maps, "one", &map).await.unwrap();
    // What was read can be applied as it is, and an unchanged apply changes nothing.
    let again = apply::apply(&maps, "one", &first).await.unwrap();
    assert_eq!(first.resource_version(), again.resource_version());
    // Another manager's field stays when the first one no longer names it.
    let other = serde_json::json!({"data": {"b": "2"}});
    apply::apply_json(&maps, "two", "settings", &other).await.unwrap();
    map.data = None;
    let merged = apply::apply(&maps, "one", &map).await.unwrap();
    assert_eq!(merged.data, Some([("b".to_string(), "2".to_string())].into()));

    assert!(apply::create(&maps, &map).await.unwrap().is_none(), "created twice");
    let foreign = "00000000-0000-0000-0000-000000000000";
    assert!(!apply::delete(&maps, "settings", foreign, PropagationPolicy::Background).await.unwrap());
    assert!(maps.get_opt("settings").await.unwrap().is_some());
    let own = merged.uid().unwrap();
    assert!(apply::delete(&maps, "settings", &own, PropagationPolicy::Background).await.unwrap());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!apply::delete(&maps, "settings", &own, PropagationPolicy::Background).await.unwrap());

    apply::delete(&namespaces, &name, &uid, PropagationPolicy::Background).await.unwrap();
}

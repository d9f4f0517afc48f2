use crate::*;
use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::PersistentVolume};
use kube::api::{DeleteParams, Patch, PatchParams};

fn claim(name: &str, class: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}})
}

fn user(name: &str, claim: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [container("serve")],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]}})
}

async fn grow(lab: &Lab, name: &str, size: &str) -> Result<PersistentVolumeClaim, kube::Error> {
    let patch = json!({"spec": {"resources": {"requests": {"storage": size}}}});
    lab.api::<PersistentVolumeClaim>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await
}

async fn volumes(lab: &Lab) -> Vec<PersistentVolume> {
    Api::<PersistentVolume>::all(lab.client.clone()).list(&Default::default()).await.unwrap().items
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_bound_when_a_pod_uses_it_and_its_volume_goes_with_it() {
    let lab = Lab::new();
    let _: PersistentVolumeClaim = lab.make(claim("data", "standard")).await;
    lab.rest().await;
    assert_eq!(lab.claim("data").await["status"]["phase"], "Pending");
    let _: Pod = lab.make(user("one", "data")).await;
    lab.rest().await;
    let data = lab.claim("data").await;
    assert_eq!(data["status"]["phase"], "Bound");
    let pod = lab.pod("one").await;
    assert_eq!(
        data["metadata"]["annotations"]["volume.kubernetes.io/selected-node"],
        pod["spec"]["nodeName"]
    );
    let of = volumes(&lab).await[0].spec.clone().unwrap().claim_ref.unwrap();
    assert_eq!(of.uid.as_deref(), data["metadata"]["uid"].as_str());

    // While a pod names it a deleted claim stays, and nobody else gets it.
    lab.api::<PersistentVolumeClaim>().delete("data", &DeleteParams::default()).await.unwrap();
    lab.rest().await;
    let going = lab.claim("data").await;
    assert!(going["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(going["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    let _: Pod = lab.make(user("two", "data")).await;
    lab.rest().await;
    let waits = lab.pod("two").await;
    assert!(
        waits["status"]["conditions"][0]["message"].as_str().unwrap().contains("\"data\" is being deleted")
    );
    lab.api::<Pod>().delete("one", &DeleteParams::default()).await.unwrap();
    lab.rest().await;
    assert!(lab.claim("data").await.is_null() && volumes(&lab).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_a_set_waits_for_its_old_claim_to_go() {
    let lab = Lab::new();
    let mut two = set("shop", 1, "Parallel", on_delete());
    two["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 1.into();
    let _: StatefulSet = lab.make(two).await;
    let _: Pod = lab.make(user("reader", "data-shop-0")).await;
    lab.rest().await;
    let old = lab.claim("data-shop-0").await["metadata"]["uid"].clone();
    lab.api::<PersistentVolumeClaim>().delete("data-shop-0", &DeleteParams::default()).await.unwrap();
    lab.api::<Pod>().delete("shop-0", &DeleteParams::default()).await.unwrap();
    lab.rest().await;
    assert!(lab.pod("shop-0").await.is_null(), "no pod on a claim that goes");
    assert!(lab.events().await.iter().any(|e| e.contains("pvc data-shop-0 is being deleted")));
    lab.api::<Pod>().delete("reader", &DeleteParams::default()).await.unwrap();
    lab.rest().await;
    assert_eq!(is(&lab.pod("shop-0").await, "Ready"), "True");
    assert_ne!(lab.claim("data-shop-0").await["metadata"]["uid"], old);
}

#[tokio::test(start_paused = true)]
async fn volumes_grow_where_their_class_lets_them() {
    let lab = Lab::new();
    for class in ["standard", "fixed"] {
        let _: PersistentVolumeClaim = lab.make(claim(class, class)).await;
        let _: Pod = lab.make(user(class, class)).await;
    }
    lab.rest().await;
    assert!(grow(&lab, "fixed", "2Gi").await.unwrap_err().to_string().contains("must support resize"));

    lab.cluster.hold_expansion(true);
    grow(&lab, "standard", "2Gi").await.unwrap();
    lab.rest().await;
    let held = lab.claim("standard").await;
    assert_eq!(
        (is(&held, "Resizing"), &held["status"]["capacity"]["storage"]),
        ("True".into(), &json!("1Gi"))
    );
    lab.cluster.hold_expansion(false);
    lab.rest().await;
    let grown = lab.claim("standard").await;
    assert_eq!(grown["status"]["capacity"]["storage"], "2Gi");
    assert!(grown["status"].get("conditions").is_none());

    // Without a pod the filesystem waits.
    lab.api::<Pod>().delete("standard", &DeleteParams::default()).await.unwrap();
    lab.rest().await;
    grow(&lab, "standard", "3Gi").await.unwrap();
    lab.rest().await;
    let waits = lab.claim("standard").await;
    assert_eq!(
        (is(&waits, "FileSystemResizePending"), &waits["status"]["capacity"]["storage"]),
        ("True".into(), &json!("2Gi"))
    );
    let _: Pod = lab.make(user("standard", "standard")).await;
    lab.rest().await;
    assert_eq!(lab.claim("standard").await["status"]["capacity"]["storage"], "3Gi");
    let wanted: Vec<String> = volumes(&lab)
        .await
        .iter()
        .map(|v| v.spec.as_ref().unwrap().capacity.as_ref().unwrap()["storage"].0.clone())
        .collect();
    assert!(wanted.contains(&"3Gi".to_string()));
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_gets_no_volume_says_why() {
    let lab = Lab::new();
    lab.cluster.hold_claims(true);
    let _: PersistentVolumeClaim = lab.make(claim("held", "standard")).await;
    let _: Pod = lab.make(user("held", "held")).await;
    let _: PersistentVolumeClaim = lab.make(claim("odd", "nowhere")).await;
    let _: Pod = lab.make(user("odd", "odd")).await;
    let _: Pod = lab.make(user("lost", "missing")).await;
    lab.rest().await;
    let events = lab.events().await;
    for words in [
        "ExternalProvisioning: Waiting for a volume",
        r#"ProvisioningFailed: storageclass.storage.k8s.io "nowhere" not found"#,
    ] {
        assert!(events.iter().any(|e| e.starts_with(words)), "{words}: {events:?}");
    }
    for (pod, words) in
        [("odd", "unbound immediate"), ("lost", "persistentvolumeclaim \"missing\" not found")]
    {
        assert!(
            lab.pod(pod).await["status"]["conditions"][0]["message"].as_str().unwrap().contains(words),
            "{pod}"
        );
    }
    assert!(lab.pod("held").await["spec"].get("nodeName").is_none());
    lab.cluster.hold_claims(false);
    lab.rest().await;
    assert_eq!(is(&lab.pod("held").await, "Ready"), "True");
}

#[tokio::test(start_paused = true)]
async fn a_clone_waits_for_its_source() {
    let lab = Lab::new();
    let mut copy = claim("copy", "standard");
    copy["spec"]["dataSource"] = json!({"kind": "PersistentVolumeClaim", "name": "data"});
    let _: PersistentVolumeClaim = lab.make(copy).await;
    let _: Pod = lab.make(user("copy", "copy")).await;
    lab.rest().await;
    assert_eq!(lab.claim("copy").await["status"]["phase"], "Pending");
    let _: PersistentVolumeClaim = lab.make(claim("data", "standard")).await;
    let _: Pod = lab.make(user("data", "data")).await;
    lab.rest().await;
    assert_eq!(lab.claim("copy").await["status"]["phase"], "Bound");
}

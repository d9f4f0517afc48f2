use crate::*;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use kube::api::{DeleteParams, Patch, PatchParams, PropagationPolicy};

async fn patch(lab: &Lab, name: &str, patch: Value) {
    let params = PatchParams::default();
    lab.api::<StatefulSet>().patch(name, &params, &Patch::Merge(patch)).await.unwrap();
}

fn image(tag: &str) -> Value {
    let mut one = container("serve");
    one["image"] = format!("lab.test/main:{tag}").into();
    json!({"spec": {"template": {"spec": {"containers": [one]}}}})
}

async fn image_of(lab: &Lab, pod: &str) -> String {
    lab.pod(pod).await["spec"]["containers"][0]["image"].as_str().unwrap().into()
}

fn uid(object: &Value) -> String {
    object["metadata"]["uid"].as_str().unwrap().into()
}

#[tokio::test(start_paused = true)]
async fn a_set_comes_up_and_then_nothing_is_written() {
    let lab = Lab::new();
    let made: StatefulSet = lab.make(set("shop", 3, "Parallel", on_delete())).await;
    lab.rest().await;

    let shop = lab.see::<StatefulSet>("shop").await;
    let status = &shop["status"];
    for field in ["replicas", "readyReplicas", "availableReplicas", "updatedReplicas", "currentReplicas"] {
        assert_eq!(status[field], 3, "{field}");
    }
    assert_eq!(status["observedGeneration"], made.metadata.generation.unwrap());
    let revision = status["updateRevision"].as_str().unwrap();
    assert!(revision.starts_with("shop-") && status["currentRevision"] == revision);

    let mut nodes = Vec::new();
    for n in 0..3 {
        let pod = lab.pod(&format!("shop-{n}")).await;
        assert_eq!(pod["status"]["phase"], "Running");
        for condition in ["PodScheduled", "Initialized", "ContainersReady", "Ready"] {
            assert_eq!(is(&pod, condition), "True", "{condition}");
        }
        let labels = &pod["metadata"]["labels"];
        assert_eq!(labels["apps.kubernetes.io/pod-index"], n.to_string());
        assert_eq!(labels["statefulset.kubernetes.io/pod-name"], format!("shop-{n}"));
        assert_eq!(labels["controller-revision-hash"], revision);
        let owner = &pod["metadata"]["ownerReferences"][0];
        assert_eq!((&owner["controller"], &owner["blockOwnerDeletion"]), (&json!(true), &json!(true)));
        assert_eq!(
            (&pod["spec"]["hostname"], &pod["spec"]["subdomain"]),
            (&json!(format!("shop-{n}")), &json!("shop-pods"))
        );
        let volume =
            json!({"name": "data", "persistentVolumeClaim": {"claimName": format!("data-shop-{n}")}});
        assert_eq!(pod["spec"]["volumes"], json!([volume]));
        let main = &pod["status"]["containerStatuses"][0];
        assert_eq!(
            (&main["ready"], &main["started"], &main["restartCount"]),
            (&json!(true), &json!(true), &json!(0))
        );
        assert_eq!(pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 0);
        nodes.push(pod["spec"]["nodeName"].as_str().unwrap().to_string());

        let claim = lab.claim(&format!("data-shop-{n}")).await;
        assert_eq!(claim["status"]["phase"], "Bound");
        assert_eq!(claim["status"]["capacity"]["storage"], "1Gi");
        assert_eq!(claim["metadata"]["labels"], json!({"app": "shop", "kind": "current"}));
        assert!(claim["metadata"].get("ownerReferences").is_none());
        assert_eq!(claim["metadata"]["annotations"]["volume.kubernetes.io/selected-node"], nodes[n].as_str());
    }
    nodes.sort();
    assert_eq!(nodes, ["node-1", "node-2", "node-3"]);

    let (revision, writes) = (lab.server.revision(), lab.server.writes().len());
    lab.pass(3600).await;
    assert_eq!((lab.server.revision(), lab.server.writes().len()), (revision, writes));
    let refused: Vec<String> =
        lab.server.writes().iter().filter(|w| w.code >= 400).map(ToString::to_string).collect();
    assert!(refused.is_empty(), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn pods_in_order_wait_for_the_one_before() {
    let lab = Lab::new();
    let mut slow = set("line", 3, "OrderedReady", on_delete());
    slow["spec"]["template"]["spec"]["containers"][0] = container("mute");
    let _: StatefulSet = lab.make(slow).await;
    lab.rest().await;
    assert_eq!(lab.names::<Pod>().await, ["line-0"]);

    let _: StatefulSet = lab.make(set("row", 3, "OrderedReady", on_delete())).await;
    lab.rest().await;
    let starts: Vec<String> =
        lab.script.starts.lock().unwrap().iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(starts, ["line-0", "row-0", "row-1", "row-2"]);

    patch(&lab, "row", json!({"spec": {"replicas": 1}})).await;
    lab.rest().await;
    assert_eq!(*lab.script.stopped.lock().unwrap(), ["row-2", "row-1"]);
    assert_eq!(lab.see::<StatefulSet>("row").await["status"]["replicas"], 1);
    assert_eq!(lab.claim("data-row-2").await["status"]["phase"], "Bound", "claims stay");
}

#[tokio::test(start_paused = true)]
async fn to_zero_and_back_on_the_same_volumes() {
    let lab = Lab::new();
    let _: StatefulSet = lab.make(set("shop", 2, "Parallel", on_delete())).await;
    lab.rest().await;
    let volume = lab.claim("data-shop-1").await["spec"]["volumeName"].clone();
    patch(&lab, "shop", json!({"spec": {"replicas": 0}})).await;
    // The pods take their time to stop: meanwhile the set still counts them.
    lab.pass(0).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let status = lab.see::<StatefulSet>("shop").await["status"].clone();
    assert_eq!((&status["observedGeneration"], &status["replicas"]), (&json!(2), &json!(2)));
    lab.rest().await;
    assert!(lab.names::<Pod>().await.is_empty());
    assert_eq!(lab.see::<StatefulSet>("shop").await["status"]["replicas"], 0);
    patch(&lab, "shop", json!({"spec": {"replicas": 2}})).await;
    lab.rest().await;
    assert_eq!(lab.claim("data-shop-1").await["spec"]["volumeName"], volume);
    assert_eq!(is(&lab.pod("shop-1").await, "Ready"), "True");
}

#[tokio::test(start_paused = true)]
async fn a_new_template_waits_for_deletions_or_rolls_from_the_last_pod() {
    let lab = Lab::new();
    let _: StatefulSet = lab.make(set("still", 2, "Parallel", on_delete())).await;
    let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 1}});
    let _: StatefulSet = lab.make(set("roll", 3, "Parallel", rolling)).await;
    lab.rest().await;
    let first = lab.see::<StatefulSet>("roll").await["status"]["updateRevision"].clone();
    lab.script.starts.lock().unwrap().clear();
    patch(&lab, "still", image("2")).await;
    patch(&lab, "roll", image("2")).await;
    lab.rest().await;

    let still = lab.see::<StatefulSet>("still").await["status"].clone();
    assert_ne!(still["currentRevision"], still["updateRevision"]);
    assert_eq!((&still["currentReplicas"], &still["updatedReplicas"]), (&json!(2), &Value::Null));
    lab.api::<Pod>().delete("still-0", &DeleteParams::default()).await.unwrap();
    lab.rest().await;
    assert_eq!(
        (image_of(&lab, "still-0").await, image_of(&lab, "still-1").await),
        ("lab.test/main:2".into(), "lab.test/main:1".into())
    );
    assert_eq!(lab.see::<StatefulSet>("still").await["status"]["updatedReplicas"], 1);

    let starts: Vec<String> =
        lab.script.starts.lock().unwrap().iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(starts, ["roll-2", "roll-1", "still-0"], "the last one first, the partition kept");
    // A pod below the partition comes back from the template before.
    lab.api::<Pod>().delete("roll-0", &DeleteParams::default()).await.unwrap();
    lab.rest().await;
    assert_eq!(image_of(&lab, "roll-0").await, "lab.test/main:1");
    patch(&lab, "roll", json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}})).await;
    lab.rest().await;
    assert_eq!(image_of(&lab, "roll-0").await, "lab.test/main:2");
    let roll = lab.see::<StatefulSet>("roll").await["status"].clone();
    assert_eq!(roll["currentRevision"], roll["updateRevision"]);
    assert_ne!(roll["updateRevision"], first);
    // And back: the revision of before is the newest again, not a third one.
    patch(&lab, "roll", image("1")).await;
    lab.rest().await;
    assert_eq!(lab.see::<StatefulSet>("roll").await["status"]["updateRevision"], first);
    assert_eq!(lab.names::<ControllerRevision>().await.iter().filter(|n| n.starts_with("roll-")).count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_set_made_anew_adopts_the_pods_that_were_left() {
    let lab = Lab::new();
    let _: StatefulSet = lab.make(set("shop", 3, "Parallel", on_delete())).await;
    lab.rest().await;
    let before = [lab.pod("shop-0").await, lab.pod("shop-1").await, lab.pod("shop-2").await].map(|p| uid(&p));
    let revision = lab.see::<StatefulSet>("shop").await["status"]["updateRevision"].clone();
    let orphan =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
    lab.api::<StatefulSet>().delete("shop", &orphan).await.unwrap();
    lab.rest().await;
    assert!(lab.see::<StatefulSet>("shop").await.is_null());
    assert!(lab.pod("shop-0").await["metadata"].get("ownerReferences").is_none());

    let made: StatefulSet = lab.make(set("shop", 3, "Parallel", on_delete())).await;
    lab.rest().await;
    let after = [lab.pod("shop-0").await, lab.pod("shop-1").await, lab.pod("shop-2").await];
    for pod in &after {
        assert_eq!(pod["metadata"]["ownerReferences"][0]["uid"], made.uid().unwrap());
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    }
    assert_eq!(after.map(|p| uid(&p)), before);
    let status = lab.see::<StatefulSet>("shop").await["status"].clone();
    assert_eq!((&status["updateRevision"], &status["readyReplicas"]), (&revision, &json!(3)));

    // A pod whose labels no longer fit is let go, and another one cannot take its name until it is gone.
    let unfit = json!({"metadata": {"labels": {"app": "other"}}});
    lab.api::<Pod>().patch("shop-2", &PatchParams::default(), &Patch::Merge(unfit)).await.unwrap();
    lab.rest().await;
    assert!(lab.pod("shop-2").await["metadata"].get("ownerReferences").is_none());
    assert!(lab.events().await.iter().any(|e| e.contains("already exists")));
    lab.api::<Pod>().delete("shop-2", &DeleteParams::default()).await.unwrap();
    lab.rest().await;
    assert_eq!(is(&lab.pod("shop-2").await, "Ready"), "True");
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_its_service_account_and_its_secret() {
    let lab = Lab::new();
    let mut needy = set("shop", 1, "Parallel", on_delete());
    needy["spec"]["template"]["spec"]["serviceAccountName"] = "keeper".into();
    needy["spec"]["template"]["spec"]["volumes"] =
        json!([{"name": "tls", "secret": {"secretName": "shop-tls"}}]);
    let _: StatefulSet = lab.make(needy).await;
    lab.rest().await;
    assert!(lab.pod("shop-0").await.is_null());
    assert!(lab.events().await.iter().any(|e| e.contains("serviceaccount \"keeper\" not found")));

    let _: k8s_openapi::api::core::v1::ServiceAccount =
        lab.make(json!({"metadata": {"name": "keeper"}})).await;
    lab.rest().await;
    let pod = lab.pod("shop-0").await;
    assert_eq!(pod["status"]["phase"], "Pending");
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
    let words = r#"FailedMount: MountVolume.SetUp failed for volume "tls" : secret "shop-tls" not found"#;
    assert!(lab.events().await.contains(&words.to_string()));

    let _: k8s_openapi::api::core::v1::Secret = lab.make(json!({"metadata": {"name": "shop-tls"}})).await;
    lab.rest().await;
    assert_eq!(is(&lab.pod("shop-0").await, "Ready"), "True");
}

/// One life of a cluster, and its writes.
fn life() -> Vec<String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let lab = Lab::new();
        let _: StatefulSet = lab.make(set("shop", 3, "Parallel", on_delete())).await;
        lab.rest().await;
        lab.server.writes().iter().map(ToString::to_string).collect()
    })
}

#[test]
fn the_same_life_makes_the_same_writes() {
    assert_eq!(life(), life());
}

/// `cargo test -p holdfast-testkit --test cluster costs -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn what_a_cluster_costs() {
    const LIVES: u32 = 50;
    let begun = std::time::Instant::now();
    let writes = (0..LIVES).map(|_| life().len()).max().unwrap();
    println!("{:?} for each of {LIVES} clusters, {writes} writes", begun.elapsed() / LIVES);
}

use crate::*;
use kube::api::{DeleteParams, Preconditions};

/// A bare pod.
fn pod(name: &str, word: &str, restarts: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"restartPolicy": restarts, "terminationGracePeriodSeconds": 5,
        "containers": [container(word)]}})
}

fn main_of(pod: &Value) -> Value {
    pod["status"]["containerStatuses"][0].clone()
}

async fn delete(lab: &Lab, name: &str) {
    lab.api::<Pod>().delete(name, &DeleteParams::default()).await.unwrap();
}

async fn shortly() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_stops_says_how_it_ended_and_goes() {
    let lab = Lab::new();
    let _: Pod = lab.make(pod("one", "serve", "Always")).await;
    lab.rest().await;
    delete(&lab, "one").await;
    shortly().await;
    let going = lab.pod("one").await;
    assert!(going["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 5);
    assert_eq!(*lab.script.stopped.lock().unwrap(), ["one"]);
    assert!(lab.cluster.busy(), "a pod that stops is work");
    let end = loop {
        let now = lab.pod("one").await;
        if !main_of(&now)["state"]["terminated"].is_null() {
            break now;
        }
        assert!(!now.is_null(), "it went without a word");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(end["status"]["phase"], "Succeeded");
    assert_eq!(main_of(&end)["state"]["terminated"]["message"], "nonce 0");
    lab.rest().await;
    assert!(lab.pod("one").await.is_null());
}

#[tokio::test(start_paused = true)]
async fn a_program_that_does_not_hear_is_killed_when_its_time_is_over() {
    let lab = Lab::new();
    let _: Pod = lab.make(pod("deaf", "deaf", "Always")).await;
    lab.rest().await;
    delete(&lab, "deaf").await;
    lab.pass(4).await;
    assert_eq!(lab.pod("deaf").await["status"]["phase"], "Running");
    lab.pass(2).await;
    assert!(lab.pod("deaf").await.is_null());

    // Deleted by force it is gone at once, and another one of its name begins from nothing.
    let first: Pod = lab.make(pod("deaf", "deaf", "Always")).await;
    lab.rest().await;
    let force = DeleteParams::default()
        .grace_period(0)
        .preconditions(Preconditions { uid: first.uid(), resource_version: None });
    lab.api::<Pod>().delete("deaf", &force).await.unwrap();
    assert!(lab.pod("deaf").await.is_null());
    lab.rest().await;
    let _: Pod = lab.make(pod("deaf", "serve", "Always")).await;
    lab.rest().await;
    assert_eq!(main_of(&lab.pod("deaf").await)["restartCount"], 0);
}

#[tokio::test(start_paused = true)]
async fn containers_are_restarted_as_their_pod_says() {
    let lab = Lab::new();
    let _: Pod = lab.make(pod("again", "serve", "Always")).await;
    let _: Pod = lab.make(pod("once", "exit:3:broken", "Never")).await;
    let _: Pod = lab.make(pod("done", "exit:0:made", "OnFailure")).await;
    let _: Pod = lab.make(pod("loops", "exit:1:", "Always")).await;
    lab.pass(2).await;
    let (once, done) = (lab.pod("once").await, lab.pod("done").await);
    assert_eq!((&once["status"]["phase"], &done["status"]["phase"]), (&json!("Failed"), &json!("Succeeded")));
    let ended = &main_of(&once)["state"]["terminated"];
    assert_eq!(
        (&ended["exitCode"], &ended["reason"], &ended["message"]),
        (&json!(3), &json!("Error"), &json!("broken"))
    );
    assert_eq!(is(&done, "Ready"), "False");

    let before = main_of(&lab.pod("again").await);
    assert!(lab.cluster.kill("lab", "again"));
    shortly().await;
    let down = lab.pod("again").await;
    assert_eq!(main_of(&down)["state"]["terminated"]["exitCode"], 137);
    assert_eq!(main_of(&down)["state"]["terminated"]["message"], "nonce 0");
    assert_eq!((is(&down, "Ready"), &down["status"]["phase"]), ("False".into(), &json!("Running")));
    assert!(!lab.cluster.kill("lab", "again"), "nothing runs");
    lab.pass(2).await;
    let after = main_of(&lab.pod("again").await);
    assert_eq!((&after["restartCount"], &after["ready"]), (&json!(1), &json!(true)));
    assert_eq!(after["lastState"]["terminated"]["containerID"], before["containerID"]);
    assert_ne!(after["containerID"], before["containerID"]);

    // 1 s of work and a pause each time: 1 s, 2 s, 4 s, 8 s.
    lab.pass(20).await;
    let loops = main_of(&lab.pod("loops").await);
    assert_eq!(
        (&loops["restartCount"], &loops["state"]["waiting"]["reason"]),
        (&json!(4), &json!("CrashLoopBackOff"))
    );
    assert_eq!(loops["lastState"]["terminated"]["message"], "nonce 4");
}

#[tokio::test(start_paused = true)]
async fn what_keeps_a_pod_from_running_is_said() {
    let lab = Lab::new();
    lab.cluster.hold_pods(true);
    let _: Pod = lab.make(pod("held", "serve", "Always")).await;
    lab.rest().await;
    let held = lab.pod("held").await;
    let condition = &held["status"]["conditions"][0];
    assert_eq!(
        (&condition["type"], &condition["status"], &condition["reason"]),
        (&json!("PodScheduled"), &json!("False"), &json!("Unschedulable"))
    );
    assert!(condition["message"].as_str().unwrap().starts_with("0/3 nodes are available"));
    assert!(lab.events().await.iter().any(|e| e.starts_with("FailedScheduling: 0/3 nodes")));
    delete(&lab, "held").await;
    assert!(lab.pod("held").await.is_null(), "no node has to end it");

    lab.cluster.hold_pods(false);
    lab.cluster.fail_image("lab.test/main:1");
    let _: Pod = lab.make(pod("pulls", "serve", "Always")).await;
    lab.rest().await;
    let pulls = lab.pod("pulls").await;
    assert_eq!(pulls["status"]["phase"], "Pending");
    assert_eq!(main_of(&pulls)["state"]["waiting"]["reason"], "ImagePullBackOff");
    lab.cluster.mend_image("lab.test/main:1");
    lab.rest().await;
    assert_eq!(is(&lab.pod("pulls").await, "Ready"), "True");

    let mut choosy = pod("choosy", "serve", "Always");
    choosy["spec"]["nodeSelector"] = json!({"disk": "fast"});
    let _: Pod = lab.make(choosy).await;
    lab.rest().await;
    assert_eq!(is(&lab.pod("choosy").await, "PodScheduled"), "False");
}

#[tokio::test(start_paused = true)]
async fn a_lost_node_takes_its_pods_with_it_until_it_returns() {
    let lab = Lab::new();
    let _: Pod = lab.make(pod("one", "serve", "Always")).await;
    lab.rest().await;
    let node = lab.pod("one").await["spec"]["nodeName"].as_str().unwrap().to_string();
    lab.cluster.lose_node(&node);
    lab.pass(30).await;
    assert_eq!(is(&lab.pod("one").await, "Ready"), "True", "nobody knows yet");
    assert!(!lab.cluster.busy());
    lab.pass(20).await;
    assert_eq!(is(&lab.pod("one").await, "Ready"), "False");
    lab.cluster.return_node(&node);
    lab.rest().await;
    let back = lab.pod("one").await;
    assert_eq!((is(&back, "Ready"), &main_of(&back)["restartCount"]), ("True".into(), &json!(1)));
    assert_eq!(main_of(&back)["lastState"]["terminated"]["exitCode"], 255);

    lab.cluster.lose_node(&node);
    lab.pass(400).await;
    assert!(
        lab.pod("one").await["metadata"]["deletionTimestamp"].is_string(),
        "evicted, and nobody to end it"
    );
    lab.cluster.return_node(&node);
    lab.rest().await;
    assert!(lab.pod("one").await.is_null());
}

#[tokio::test(start_paused = true)]
async fn programs_end_with_the_cluster() {
    struct Canary(Arc<Mutex<bool>>);
    impl Drop for Canary {
        fn drop(&mut self) {
            *self.0.lock().unwrap() = true;
        }
    }
    struct Holds(Arc<Mutex<bool>>);
    impl Programs for Holds {
        fn run(&self, host: Host) -> BoxFuture<'static, Exit> {
            let canary = Canary(Arc::clone(&self.0));
            async move {
                let _canary = canary;
                host.told_to_stop().await;
                std::future::pending().await
            }
            .boxed()
        }
    }
    let server = Server::new("2026-03-01T10:00:00Z".parse().unwrap(), 1);
    server.namespace("lab");
    let dropped = Arc::new(Mutex::new(false));
    let cluster = Cluster::start(&server, Arc::new(Holds(Arc::clone(&dropped))));
    let api: Api<Pod> = Api::namespaced(server.client("tester", "lab"), "lab");
    api.create(&PostParams::default(), &of(pod("one", "", "Always"))).await.unwrap();
    assert!(cluster.rest(Duration::from_secs(10)).await);
    assert!(!*dropped.lock().unwrap());
    drop(cluster);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(*dropped.lock().unwrap());
}

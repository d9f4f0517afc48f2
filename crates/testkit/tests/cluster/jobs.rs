use crate::*;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{DeleteParams, ListParams};

fn job(name: &str, word: &str, more: Value) -> Value {
    let mut spec = json!({"backoffLimit": 0, "template": {"metadata": {"labels": {"app": "work"}}, "spec": {
        "restartPolicy": "Never", "containers": [{"name": "worker", "image": "lab.test/worker:1", "command": [word]}]}}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"metadata": {"name": name}, "spec": spec})
}

async fn job_pods(lab: &Lab, job: &str) -> Vec<Value> {
    let by_name = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={job}"));
    let all = lab.api::<Pod>().list(&by_name).await.unwrap();
    all.into_iter().map(|pod| serde_json::to_value(pod).unwrap()).collect()
}

fn conditions(job: &Value) -> Vec<(String, String)> {
    let all = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let text = |c: &Value, field: &str| c[field].as_str().unwrap_or_default().to_string();
    all.iter().map(|c| (text(c, "type"), text(c, "reason"))).collect()
}

fn pair(a: &str, b: &str) -> (String, String) {
    (a.into(), b.into())
}

#[tokio::test(start_paused = true)]
async fn a_job_runs_to_its_end_and_keeps_its_pod() {
    let lab = Lab::new();
    let made: Job = lab.make(job("copy", "exit:0:copied", json!({}))).await;
    lab.rest().await;
    let running = lab.see::<Job>("copy").await["status"].clone();
    assert_eq!((&running["active"], &running["ready"]), (&json!(1), &json!(1)));
    assert!(running["startTime"].is_string());
    let pod = job_pods(&lab, "copy").await.remove(0);
    assert!(pod["metadata"]["name"].as_str().unwrap().starts_with("copy-"));
    assert_eq!(pod["metadata"]["finalizers"], json!(["batch.kubernetes.io/job-tracking"]));
    assert_eq!(pod["metadata"]["labels"]["batch.kubernetes.io/controller-uid"], made.uid().unwrap());

    lab.pass(2).await;
    lab.rest().await;
    let done = lab.see::<Job>("copy").await;
    let status = &done["status"];
    assert_eq!(
        conditions(&done),
        [pair("SuccessCriteriaMet", "CompletionsReached"), pair("Complete", "CompletionsReached")]
    );
    assert_eq!(
        (&status["succeeded"], &status["active"], &status["ready"]),
        (&json!(1), &Value::Null, &json!(0))
    );
    assert!(status["completionTime"].is_string());
    let pod = job_pods(&lab, "copy").await.remove(0);
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"], "copied");
    assert!(pod["metadata"].get("finalizers").is_none(), "counted");
    let writes = lab.server.writes().len();
    lab.pass(3600).await;
    assert_eq!(lab.server.writes().len(), writes);

    lab.api::<Job>().delete("copy", &DeleteParams::background()).await.unwrap();
    lab.rest().await;
    assert!(job_pods(&lab, "copy").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_failed_job_says_why_and_one_with_a_limit_tries_again() {
    let lab = Lab::new();
    let _: Job = lab.make(job("fails", "exit:1:no room", json!({}))).await;
    let _: Job = lab.make(job("tries", "exit:1:", json!({"backoffLimit": 2}))).await;
    lab.pass(2).await;
    let failed = lab.see::<Job>("fails").await;
    assert_eq!(
        conditions(&failed),
        [pair("FailureTarget", "BackoffLimitExceeded"), pair("Failed", "BackoffLimitExceeded")]
    );
    assert_eq!(failed["status"]["failed"], 1);
    assert_eq!(
        job_pods(&lab, "fails").await[0]["status"]["containerStatuses"][0]["state"]["terminated"]["message"],
        "no room"
    );

    assert_eq!(job_pods(&lab, "tries").await.len(), 1, "it waits before it tries again");
    // Pauses of 10 s and 20 s, and a second of work each time.
    lab.pass(40).await;
    let tries = lab.see::<Job>("tries").await;
    assert_eq!((job_pods(&lab, "tries").await.len(), &tries["status"]["failed"]), (3, &json!(3)));
    assert_eq!(is(&tries, "Failed"), "True");
}

#[tokio::test(start_paused = true)]
async fn a_job_ends_at_its_deadline_and_when_its_pod_is_deleted() {
    let lab = Lab::new();
    let _: Job = lab.make(job("slow", "serve", json!({"activeDeadlineSeconds": 60}))).await;
    let _: Job = lab.make(job("gone", "serve", json!({}))).await;
    lab.rest().await;
    let pod = job_pods(&lab, "gone").await[0]["metadata"]["name"].as_str().unwrap().to_string();
    lab.api::<Pod>().delete(&pod, &DeleteParams::default()).await.unwrap();
    lab.rest().await;
    let gone = lab.see::<Job>("gone").await;
    assert_eq!((is(&gone, "Failed"), &gone["status"]["failed"]), ("True".into(), &json!(1)));
    assert!(job_pods(&lab, "gone").await.is_empty());

    assert!(!lab.cluster.busy(), "a deadline is no work");
    lab.pass(50).await;
    assert!(conditions(&lab.see::<Job>("slow").await).is_empty());
    lab.pass(15).await;
    lab.rest().await;
    let slow = lab.see::<Job>("slow").await;
    assert_eq!(
        conditions(&slow),
        [pair("FailureTarget", "DeadlineExceeded"), pair("Failed", "DeadlineExceeded")]
    );
    assert!(job_pods(&lab, "slow").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_unschedulable_job_is_active_and_a_finished_one_expires() {
    let lab = Lab::new();
    lab.cluster.hold_pods(true);
    let _: Job = lab.make(job("held", "exit:0:", json!({"ttlSecondsAfterFinished": 100}))).await;
    lab.rest().await;
    let held = lab.see::<Job>("held").await;
    assert_eq!((&held["status"]["active"], &held["status"]["ready"]), (&json!(1), &json!(0)));
    lab.cluster.hold_pods(false);
    lab.pass(3).await;
    assert_eq!(is(&lab.see::<Job>("held").await, "Complete"), "True");
    lab.pass(200).await;
    assert!(lab.see::<Job>("held").await.is_null() && job_pods(&lab, "held").await.is_empty());
}

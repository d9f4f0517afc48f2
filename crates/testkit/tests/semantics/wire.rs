//! What the kube client does not ask for by itself, on the wire: found by comparison with a real API server.

use super::lab;
use http::Request;
use kube::{Client, client::Body};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/lab/configmaps";
const SERVICES: &str = "/api/v1/namespaces/lab/services";
const MERGE: &str = "application/merge-patch+json";

/// One request: the code and the body of its answer.
async fn ask(client: &Client, method: &str, path: &str, content: &str, body: Value) -> (u16, Value) {
    let bytes = if body.is_null() { Vec::new() } else { serde_json::to_vec(&body).unwrap() };
    let request = Request::builder().method(method).uri(path).header("content-type", content);
    let response = client.send(request.body(Body::from(bytes)).unwrap()).await.unwrap();
    let code = response.status().as_u16();
    (code, serde_json::from_slice(&response.into_body().collect_bytes().await.unwrap()).unwrap())
}

async fn post(client: &Client, path: &str, body: Value) -> (u16, Value) {
    ask(client, "POST", path, "application/json", body).await
}

async fn put(client: &Client, path: &str, body: Value) -> (u16, Value) {
    ask(client, "PUT", path, "application/json", body).await
}

async fn get(client: &Client, path: &str) -> Value {
    ask(client, "GET", path, "application/json", Value::Null).await.1
}

async fn apply(client: &Client, path: &str, manager: &str, body: Value) -> (u16, Value) {
    let path = format!("{path}?fieldManager={manager}");
    ask(client, "PATCH", &path, "application/apply-patch+yaml", body).await
}

fn map(metadata: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
}

fn version(object: &Value) -> &str {
    object["metadata"]["resourceVersion"].as_str().unwrap()
}

fn fields(answer: &Value) -> Vec<&str> {
    let causes = answer["details"]["causes"].as_array().unwrap();
    causes.iter().map(|cause| cause["field"].as_str().unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn who_creates_owns_every_field_and_the_maps_that_hold_them() {
    let (_, client) = lab();
    let mut body = map(json!({"name": "a", "labels": {"tier": "x"}}));
    body["data"] = json!({"key": "value"});
    let (_, made) = post(&client, &format!("{MAPS}?fieldManager=me"), body).await;
    let entry = &made["metadata"]["managedFields"][0];
    assert_eq!(
        entry["fieldsV1"],
        json!({"f:data": {".": {}, "f:key": {}}, "f:metadata": {"f:labels": {".": {}, "f:tier": {}}}})
    );
    assert_eq!((&entry["manager"], &entry["operation"]), (&json!("me"), &json!("Update")));
}

#[tokio::test(start_paused = true)]
async fn what_was_there_before_the_first_apply_is_somebodys() {
    let (_, client) = lab();
    let (_, made) = post(&client, MAPS, map(json!({"name": "a", "labels": {"tier": "x"}}))).await;
    let mut bare = made.clone();
    bare["metadata"]["managedFields"] = json!([{}]);
    let (code, bare) = put(&client, &format!("{MAPS}/a"), bare).await;
    assert_eq!((code, bare["metadata"].get("managedFields")), (200, None));
    let body = map(json!({"name": "a", "labels": {"tier": "y"}}));
    let (code, refused) = apply(&client, &format!("{MAPS}/a"), "me", body).await;
    assert_eq!(code, 409, "{refused}");
    assert_eq!(refused["details"]["causes"][0]["message"], "conflict with \"before-first-apply\" using v1");
}

#[tokio::test(start_paused = true)]
async fn an_apply_that_stores_nothing_new_is_none_however_late() {
    let (_, client) = lab();
    let path = "/apis/rbac.authorization.k8s.io/v1/namespaces/lab/roles/a";
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "a"}, "rules": []});
    let (_, first) = apply(&client, path, "me", role.clone()).await;
    tokio::time::advance(std::time::Duration::from_secs(60)).await;
    let (code, again) = apply(&client, path, "me", role).await;
    assert_eq!((code, version(&again)), (200, version(&first)));
}

#[tokio::test(start_paused = true)]
async fn an_apply_names_the_field_that_its_kind_does_not_have() {
    let (_, client) = lab();
    let mut body = map(json!({"name": "a"}));
    body["surprise"] = json!(1);
    let (code, refused) = apply(&client, &format!("{MAPS}/a"), "me", body).await;
    assert_eq!(code, 500);
    let message = refused["message"].as_str().unwrap();
    assert!(message.ends_with(".surprise: field not declared in schema"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_field_of_a_built_in_kind_is_refused_when_asked_for() {
    let (_, client) = lab();
    let mut body = map(json!({"name": "a"}));
    body["surprise"] = json!(1);
    let (code, refused) = post(&client, &format!("{MAPS}?fieldValidation=Strict"), body.clone()).await;
    assert_eq!(code, 400);
    assert!(refused["message"].as_str().unwrap().contains("unknown field \"surprise\""), "{refused}");
    assert_eq!(post(&client, MAPS, body).await.0, 201);
}

#[tokio::test(start_paused = true)]
async fn a_json_patch_replaces_what_is_missing_in_an_object() {
    let (_, client) = lab();
    let _ = post(&client, MAPS, map(json!({"name": "a", "labels": {"tier": "x"}}))).await;
    let patch = json!([{"op": "test", "path": "/metadata/labels/more", "value": null},
        {"op": "replace", "path": "/metadata/labels/more", "value": "y"}]);
    let (code, new) = ask(&client, "PATCH", &format!("{MAPS}/a"), "application/json-patch+json", patch).await;
    assert_eq!((code, &new["metadata"]["labels"]), (200, &json!({"tier": "x", "more": "y"})));
    let patch = json!([{"op": "remove", "path": "/metadata/labels/none"}]);
    assert_eq!(
        ask(&client, "PATCH", &format!("{MAPS}/a"), "application/json-patch+json", patch).await.0,
        422
    );
}

#[tokio::test(start_paused = true)]
async fn a_name_is_taken_until_its_object_is_gone() {
    let (_, client) = lab();
    let _ = post(&client, MAPS, map(json!({"name": "a", "finalizers": ["example.com/hold"]}))).await;
    let (code, answer) = ask(&client, "DELETE", &format!("{MAPS}/a"), "application/json", Value::Null).await;
    assert_eq!((code, answer["metadata"]["deletionTimestamp"].is_string()), (200, true));
    let (code, answer) = post(&client, MAPS, map(json!({"name": "a"}))).await;
    assert_eq!((code, &answer["reason"]), (409, &json!("AlreadyExists")));
    assert_eq!(answer["message"], "object is being deleted: configmaps \"a\" already exists");
    let (code, answer) =
        ask(&client, "PATCH", &format!("{MAPS}/a"), MERGE, json!({"metadata": {"finalizers": ["b.c/d"]}}))
            .await;
    assert_eq!((code, fields(&answer)), (422, vec!["metadata.finalizers"]));
}

#[tokio::test(start_paused = true)]
async fn deletion_options_are_looked_at_first() {
    let (_, client) = lab();
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Odd"});
    let (code, answer) = ask(&client, "DELETE", &format!("{MAPS}/none"), "application/json", options).await;
    assert_eq!((code, fields(&answer)), (422, vec!["propagationPolicy"]));
    let _ = post(&client, MAPS, map(json!({"name": "a"}))).await;
    let path = format!("{MAPS}/a?dryRun=All");
    assert_eq!(ask(&client, "DELETE", &path, "application/json", Value::Null).await.0, 200);
    assert_eq!(get(&client, &format!("{MAPS}/a")).await["metadata"]["name"], "a");
}

#[tokio::test(start_paused = true)]
async fn a_put_that_creates_may_make_what_is_already_being_deleted() {
    let (_, client) = lab();
    let path = "/apis/coordination.k8s.io/v1/namespaces/lab/leases";
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "a", "deletionTimestamp": "2020-01-01T00:00:00Z"}});
    let (code, made) = put(&client, &format!("{path}/a"), lease.clone()).await;
    assert_eq!((code, &made["metadata"]["deletionTimestamp"]), (201, &json!("2020-01-01T00:00:00Z")));
    let mut other = lease;
    other["metadata"]["name"] = "b".into();
    let (code, made) = post(&client, path, other).await;
    assert_eq!((code, made["metadata"].get("deletionTimestamp")), (201, None));
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_the_same_however_its_amount_is_written() {
    let (_, client) = lab();
    let path = "/api/v1/namespaces/lab/persistentvolumeclaims";
    let claim = json!({"metadata": {"name": "a"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "storageClassName": "none", "resources": {"requests": {"storage": "1Gi"}}}});
    let (_, made) = post(&client, path, claim).await;
    let patch = json!({"spec": {"resources": {"requests": {"storage": 1_073_741_824}}}});
    assert_eq!(ask(&client, "PATCH", &format!("{path}/a"), MERGE, patch).await.0, 200);
    let patch = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    let (code, refused) = ask(&client, "PATCH", &format!("{path}/a"), MERGE, patch).await;
    assert_eq!((code, fields(&refused)), (422, vec!["spec"]), "{made}");
}

#[tokio::test(start_paused = true)]
async fn a_claims_first_write_is_one_even_if_it_changes_nothing() {
    let (_, client) = lab();
    let path = "/api/v1/namespaces/lab/persistentvolumeclaims";
    let claim = json!({"metadata": {"name": "a"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "storageClassName": "none", "resources": {"requests": {"storage": "1Gi"}}}});
    let (_, first) = post(&client, path, claim).await;
    let (_, second) = ask(&client, "PATCH", &format!("{path}/a"), MERGE, json!({})).await;
    let (_, third) = ask(&client, "PATCH", &format!("{path}/a"), MERGE, json!({})).await;
    assert_ne!(version(&first), version(&second));
    assert_eq!(version(&second), version(&third));
}

#[tokio::test(start_paused = true)]
async fn a_job_without_labels_shows_those_of_its_pods() {
    let (_, client) = lab();
    let path = "/apis/batch/v1/namespaces/lab/jobs";
    let job = json!({"metadata": {"name": "a"}, "spec": {"suspend": true, "template": {"spec":
        {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    let (code, made) = post(&client, path, job.clone()).await;
    assert_eq!((code, &made["metadata"]["labels"]["job-name"]), (201, &json!("a")));
    // A name that is no label: the template is refused, what is only shown is not.
    let mut odd = job;
    odd["metadata"]["name"] = "a/b".into();
    let (code, refused) = post(&client, path, odd).await;
    let mut fields = fields(&refused);
    fields.dedup();
    assert_eq!((code, fields), (422, vec!["metadata.name", "spec.template.labels"]));
}

#[tokio::test(start_paused = true)]
async fn a_service_keeps_what_it_was_allotted() {
    let (_, client) = lab();
    let ports = json!([{"port": 5432}]);
    let spec = json!({"type": "NodePort", "ports": ports});
    let (_, made) = post(&client, SERVICES, json!({"metadata": {"name": "a"}, "spec": spec})).await;
    let (address, port) = (&made["spec"]["clusterIP"], &made["spec"]["ports"][0]["nodePort"]);
    assert!(address.as_str().is_some_and(|a| a.starts_with("10.")) && port.is_number(), "{made}");
    let body = json!({"metadata": {"name": "a"}, "spec": spec});
    let (code, same) = put(&client, &format!("{SERVICES}/a"), body).await;
    assert_eq!((code, &same["spec"]), (200, &made["spec"]));

    let body = json!({"spec": {"type": "ClusterIP"}});
    let (code, inner) = ask(&client, "PATCH", &format!("{SERVICES}/a"), MERGE, body).await;
    assert_eq!((code, inner["spec"]["ports"][0].get("nodePort")), (200, None));
    assert_eq!((&inner["spec"]["clusterIP"], inner["spec"].get("externalTrafficPolicy")), (address, None));

    let taken = json!({"metadata": {"name": "b"}, "spec": {"clusterIP": address, "ports": ports}});
    let (code, refused) = post(&client, SERVICES, taken).await;
    assert_eq!((code, fields(&refused)), (422, vec!["spec.clusterIPs"]));
}

#[tokio::test(start_paused = true)]
async fn the_status_of_a_pod_does_not_touch_its_owners() {
    let (_, client) = lab();
    let _ = post(&client, "/api/v1/namespaces/lab/serviceaccounts", json!({"metadata": {"name": "default"}}))
        .await;
    let path = "/api/v1/namespaces/lab/pods";
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "uid": "u"});
    let pod = json!({"metadata": {"name": "p", "ownerReferences": [owner]},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let (code, made) = post(&client, path, pod).await;
    assert_eq!(code, 201, "{made}");
    let body = json!({"metadata": {"name": "p"}, "status": {"phase": "Running"}});
    let (code, new) = put(&client, &format!("{path}/p/status"), body).await;
    assert_eq!(code, 200, "{new}");
    assert_eq!(new["metadata"]["ownerReferences"], json!([owner]));
    assert_eq!(
        (&new["status"]["phase"], &new["status"]["qosClass"]),
        (&json!("Running"), &json!("BestEffort"))
    );
}

use crate::{lab, map, maps, of, refusal};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy},
};
use serde_json::{Value, json};

async fn create(api: &Api<ConfigMap>, name: &str, metadata: Value) -> ConfigMap {
    let mut metadata = metadata;
    metadata["name"] = name.into();
    api.create(&PostParams::default(), &of(json!({ "metadata": metadata }))).await.unwrap()
}

fn owned_by(owner: &ConfigMap, blocks: bool) -> Value {
    json!({"ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": owner.name_any(),
        "uid": owner.uid(), "blockOwnerDeletion": blocks, "controller": true}]})
}

fn with(policy: PropagationPolicy) -> DeleteParams {
    DeleteParams { propagation_policy: Some(policy), ..DeleteParams::default() }
}

async fn there(client: &Client) -> Vec<String> {
    let all = maps(client).list(&Default::default()).await.unwrap();
    all.iter().map(ResourceExt::name_any).collect()
}

#[tokio::test(start_paused = true)]
async fn preconditions_must_hold() {
    let (_, client) = lab();
    let api = maps(&client);
    let made = api.create(&PostParams::default(), &map("one", json!({}))).await.unwrap();
    let params = |uid: Option<String>, resource_version: Option<String>| DeleteParams {
        preconditions: Some(Preconditions { uid, resource_version }),
        ..DeleteParams::default()
    };
    let refused = refusal(api.delete("one", &params(Some("other".into()), None)).await);
    assert!(refused.is_conflict());
    assert!(refused.message.contains("the UID in the precondition (other) does not match the UID in record"));
    let refused = refusal(api.delete("one", &params(None, Some("1".into()))).await);
    assert!(refused.is_conflict() && refused.message.contains("The object might have been modified"));
    let gone = api.delete("one", &params(made.uid(), made.resource_version())).await.unwrap();
    let status = gone.right().unwrap();
    assert!(status.is_success());
    assert_eq!(status.details.unwrap().uid, made.uid().unwrap());
    assert_eq!(refusal(api.delete("one", &DeleteParams::default()).await).code, 404);
}

#[tokio::test(start_paused = true)]
async fn a_finalizer_holds_the_object_until_it_is_taken_off() {
    let (_, client) = lab();
    let api = maps(&client);
    create(&api, "one", json!({"finalizers": ["lab.test/hold"]})).await;
    let held = api.delete("one", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert!(held.metadata.deletion_timestamp.is_some());
    assert_eq!(held.metadata.deletion_grace_period_seconds, Some(0));
    let more = Patch::Merge(json!({"metadata": {"finalizers": ["lab.test/hold", "lab.test/more"]}}));
    let refused = refusal(api.patch("one", &PatchParams::default(), &more).await);
    assert!(refused.message.contains("no new finalizers can be added if the object is being deleted, found new finalizers []string{\"lab.test/more\"}"));
    let off = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    api.patch("one", &PatchParams::default(), &off).await.unwrap();
    assert!(api.get_opt("one").await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_second_delete_of_a_held_object_changes_nothing() {
    let (server, client) = lab();
    let api = maps(&client);
    create(&api, "one", json!({"finalizers": ["lab.test/hold"]})).await;
    api.delete("one", &DeleteParams::default()).await.unwrap();
    let before = server.revision();
    api.delete("one", &DeleteParams::default()).await.unwrap();
    assert_eq!(server.revision(), before);
}

#[tokio::test(start_paused = true)]
async fn in_the_background_the_owner_goes_first() {
    let (server, client) = lab();
    let api = maps(&client);
    let owner = create(&api, "owner", json!({})).await;
    let child = create(&api, "child", owned_by(&owner, true)).await;
    create(&api, "grandchild", owned_by(&child, true)).await;
    create(&api, "stranger", json!({})).await;
    assert_eq!(server.collect_all(), 0);
    api.delete("owner", &with(PropagationPolicy::Background)).await.unwrap();
    assert_eq!(there(&client).await, ["child", "grandchild", "stranger"]);
    assert_eq!(server.collect_all(), 2);
    assert_eq!(there(&client).await, ["stranger"]);
}

#[tokio::test(start_paused = true)]
async fn in_the_foreground_the_owner_waits_for_what_blocks_it() {
    let (server, client) = lab();
    let api = maps(&client);
    let owner = create(&api, "owner", json!({})).await;
    let child = create(&api, "child", owned_by(&owner, true)).await;
    create(&api, "grandchild", owned_by(&child, true)).await;
    let mut held = owned_by(&child, true);
    held["finalizers"] = json!(["lab.test/hold"]);
    create(&api, "held", held).await;
    create(&api, "loose", owned_by(&owner, false)).await;
    let going = api.delete("owner", &with(PropagationPolicy::Foreground)).await.unwrap().left().unwrap();
    assert_eq!(going.finalizers(), ["foregroundDeletion"]);
    server.collect_all();
    assert_eq!(there(&client).await, ["child", "held", "owner"], "what is held blocks all above it");
    let child = api.get("child").await.unwrap();
    assert_eq!(
        child.finalizers(),
        ["foregroundDeletion"],
        "a dependent with dependents goes in the foreground too"
    );
    api.patch("held", &PatchParams::default(), &Patch::Merge(json!({"metadata": {"finalizers": null}})))
        .await
        .unwrap();
    server.collect_all();
    assert_eq!(there(&client).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn orphans_lose_their_owner_and_stay() {
    let (server, client) = lab();
    let api = maps(&client);
    let owner = create(&api, "owner", json!({})).await;
    create(&api, "child", owned_by(&owner, true)).await;
    api.delete("owner", &with(PropagationPolicy::Orphan)).await.unwrap();
    assert_eq!(there(&client).await, ["child", "owner"]);
    server.collect_all();
    assert_eq!(there(&client).await, ["child"]);
    assert!(api.get("child").await.unwrap().owner_references().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_object_of_two_owners_stays_with_the_one_that_is_left() {
    let (server, client) = lab();
    let api = maps(&client);
    let one = create(&api, "one", json!({})).await;
    let two = create(&api, "two", json!({})).await;
    let mut both = owned_by(&one, false);
    let mut second = owned_by(&two, false)["ownerReferences"][0].clone();
    second["controller"] = false.into();
    both["ownerReferences"].as_array_mut().unwrap().push(second);
    create(&api, "child", both).await;
    api.delete("one", &DeleteParams::default()).await.unwrap();
    server.collect_all();
    let left = api.get("child").await.unwrap();
    assert_eq!(left.owner_references().len(), 1);
    assert_eq!(left.owner_references()[0].name, "two");
}

#[tokio::test(start_paused = true)]
async fn an_owner_of_the_same_name_with_another_uid_is_no_owner() {
    let (server, client) = lab();
    let api = maps(&client);
    let owner = create(&api, "owner", json!({})).await;
    create(&api, "child", owned_by(&owner, false)).await;
    api.delete("owner", &DeleteParams::default()).await.unwrap();
    create(&api, "owner", json!({})).await;
    server.collect_all();
    assert_eq!(there(&client).await, ["owner"]);
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_is_held_keeps_its_dependents() {
    let (server, client) = lab();
    let api = maps(&client);
    let owner = create(&api, "owner", json!({"finalizers": ["lab.test/hold"]})).await;
    create(&api, "child", owned_by(&owner, true)).await;
    api.delete("owner", &DeleteParams::default()).await.unwrap();
    assert_eq!(server.collect_all(), 0);
    assert_eq!(there(&client).await, ["child", "owner"]);
}

#[tokio::test(start_paused = true)]
async fn a_job_deleted_without_a_policy_leaves_its_pods() {
    let (server, client) = lab();
    let jobs: Api<Job> = Api::namespaced(client.clone(), "lab");
    let job: Job = of(json!({"metadata": {"name": "j"}, "spec": {"template": {"spec": {
        "restartPolicy": "Never", "containers": [{"name": "c", "image": "i:1"}]}}}}));
    let job = jobs.create(&PostParams::default(), &job).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client, "lab");
    let pod: Pod =
        of(json!({"metadata": {"name": "p", "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job",
        "name": "j", "uid": job.uid()}]}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}));
    pods.create(&PostParams::default(), &pod).await.unwrap();
    jobs.delete("j", &DeleteParams::default()).await.unwrap();
    server.collect_all();
    assert!(jobs.get_opt("j").await.unwrap().is_none());
    assert!(pods.get("p").await.unwrap().owner_references().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_running_pod_goes_when_its_node_says_so() {
    let (_, client) = lab();
    let pods: Api<Pod> = Api::namespaced(client, "lab");
    let pod = |name: &str, node: Option<&str>| -> Pod {
        of(json!({"metadata": {"name": name}, "spec": {"nodeName": node, "terminationGracePeriodSeconds": 20,
            "containers": [{"name": "c", "image": "i:1"}]}}))
    };
    pods.create(&PostParams::default(), &pod("waiting", None)).await.unwrap();
    pods.delete("waiting", &DeleteParams::default()).await.unwrap();
    assert!(pods.get_opt("waiting").await.unwrap().is_none(), "nobody runs it");
    let made = pods.create(&PostParams::default(), &pod("running", Some("node"))).await.unwrap();
    let going = pods.delete("running", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(going.metadata.deletion_grace_period_seconds, Some(20));
    assert_eq!(going.metadata.deletion_timestamp.as_ref().unwrap().0.to_string(), "2026-03-01T10:00:20Z");
    assert_eq!(going.metadata.generation, made.metadata.generation.map(|g| g + 1));
    let sooner = pods
        .delete("running", &DeleteParams { grace_period_seconds: Some(5), ..DeleteParams::default() })
        .await
        .unwrap();
    assert_eq!(
        sooner.left().unwrap().metadata.deletion_timestamp.unwrap().0.to_string(),
        "2026-03-01T10:00:05Z"
    );
    pods.delete("running", &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() })
        .await
        .unwrap();
    assert!(pods.get_opt("running").await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_claim_goes_when_no_scheduled_pod_names_it_any_more() {
    let (server, client) = lab();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), "lab");
    let pods: Api<Pod> = Api::namespaced(client, "lab");
    let claim: PersistentVolumeClaim = of(json!({"metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}));
    claims.create(&PostParams::default(), &claim).await.unwrap();
    let pod: Pod = of(json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n",
        "containers": [{"name": "c", "image": "i:1"}],
        "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]}}));
    pods.create(&PostParams::default(), &pod).await.unwrap();
    let ended = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
    pods.patch_status("p", &PatchParams::default(), &ended).await.unwrap();
    let held = claims.delete("data", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(held.finalizers(), ["kubernetes.io/pvc-protection"]);
    server.collect_all();
    assert!(claims.get_opt("data").await.unwrap().is_some(), "a pod that has ended holds it too");
    pods.delete("p", &DeleteParams::default()).await.unwrap();
    server.collect_all();
    assert!(claims.get_opt("data").await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_finalizer_that_was_applied_is_taken_off_by_an_apply() {
    let (_, client) = lab();
    let api = maps(&client);
    let intent = |all: Value| {
        Patch::Apply(
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one", "finalizers": all}}),
        )
    };
    let params = PatchParams::apply("alpha").force();
    api.patch("one", &params, &intent(json!(["lab.test/hold"]))).await.unwrap();
    api.delete("one", &DeleteParams::default()).await.unwrap();
    let last = api.patch("one", &params, &intent(json!([]))).await.unwrap();
    assert!(last.finalizers().is_empty());
    assert!(api.get_opt("one").await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_collection_is_deleted_by_its_labels() {
    let (_, client) = lab();
    let api = maps(&client);
    create(&api, "a", json!({"labels": {"go": "yes"}})).await;
    create(&api, "b", json!({})).await;
    api.delete_collection(&DeleteParams::default(), &kube::api::ListParams::default().labels("go=yes"))
        .await
        .unwrap();
    assert_eq!(there(&client).await, ["b"]);
}

use crate::{lab, map, maps, of, refusal};
use holdfast_testkit::Verb;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    batch::v1::Job,
    coordination::v1::Lease,
    core::v1::{Event as CoreEvent, Namespace, PersistentVolumeClaim, Pod, Secret},
    storage::v1::StorageClass,
};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::events::{Event, EventType, Recorder},
};
use serde_json::{Value, json};
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn a_created_object_gets_uid_time_version_and_manager() {
    let (server, client) = lab();
    tokio::time::advance(Duration::from_secs(5)).await;
    let made = maps(&client).create(&PostParams::default(), &map("one", json!({"k": "v"}))).await.unwrap();
    assert_eq!(made.namespace().as_deref(), Some("lab"));
    assert_eq!(made.uid().unwrap().len(), 36);
    assert_eq!(made.creation_timestamp().unwrap().0.to_string(), "2026-03-01T10:00:05Z");
    assert_eq!(made.resource_version().unwrap(), server.revision().to_string());
    assert_eq!(made.metadata.generation, None);
    let managers = made.managed_fields();
    assert_eq!(managers[0].manager.as_deref(), Some("tester"));
    assert_eq!(managers[0].operation.as_deref(), Some("Update"));
    let write = &server.writes()[0];
    assert_eq!(
        (write.verb, write.name.as_str(), write.who.as_str(), write.code),
        (Verb::Create, "one", "tester", 201)
    );
}

#[tokio::test(start_paused = true)]
async fn two_servers_with_one_seed_give_the_same_uids() {
    let mut uids = Vec::new();
    for _ in 0..2 {
        let (_, client) = lab();
        let made = maps(&client).create(&PostParams::default(), &map("one", json!({}))).await.unwrap();
        uids.push(made.uid());
    }
    assert_eq!(uids[0], uids[1]);
}

#[tokio::test(start_paused = true)]
async fn a_generated_name_is_the_prefix_and_five_more() {
    let (_, client) = lab();
    let body = of(json!({"metadata": {"generateName": "run-"}}));
    let made = maps(&client).create(&PostParams::default(), &body).await.unwrap();
    assert!(made.name_any().starts_with("run-") && made.name_any().len() == 9, "{}", made.name_any());
}

#[tokio::test(start_paused = true)]
async fn names_are_required_unique_and_well_formed() {
    let (_, client) = lab();
    let api = maps(&client);
    let create = |body: Value| {
        let api = api.clone();
        async move { refusal(api.create(&PostParams::default(), &of(body)).await) }
    };
    api.create(&PostParams::default(), &map("one", json!({}))).await.unwrap();
    let taken = create(json!({"metadata": {"name": "one"}})).await;
    assert_eq!((taken.code, taken.reason.as_str()), (409, "AlreadyExists"));
    assert_eq!(taken.message, "configmaps \"one\" already exists");
    assert_eq!(taken.details.unwrap().kind, "configmaps");
    let unnamed = create(json!({"metadata": {}})).await;
    assert_eq!((unnamed.code, unnamed.reason.as_str()), (422, "Invalid"));
    assert!(unnamed.message.contains("metadata.name: Required value: name or generateName is required"));
    let odd = create(json!({"metadata": {"name": "One"}})).await;
    assert!(odd.message.contains("a lowercase RFC 1123 subdomain"), "{}", odd.message);
    let elsewhere = create(json!({"metadata": {"name": "a", "namespace": "other"}})).await;
    assert_eq!(elsewhere.code, 400);
    let versioned = create(json!({"metadata": {"name": "a", "resourceVersion": "1"}})).await;
    assert_eq!(versioned.code, 500);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_not_found() {
    let (_, client) = lab();
    let gone = refusal(maps(&client).get("gone").await);
    assert_eq!((gone.code, gone.reason.as_str()), (404, "NotFound"));
    assert_eq!(gone.message, "configmaps \"gone\" not found");
    assert_eq!(gone.details.unwrap().name, "gone");
    let away: Api<Lease> = Api::namespaced(client, "nowhere");
    let lease = of(json!({"metadata": {"name": "l"}}));
    let gone = refusal(away.create(&PostParams::default(), &lease).await);
    assert_eq!(gone.message, "namespaces \"nowhere\" not found");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_made_in_a_namespace_that_is_going() {
    let (server, client) = lab();
    maps(&client).create(&PostParams::default(), &map("one", json!({}))).await.unwrap();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.delete("lab", &Default::default()).await.unwrap();
    let refused = refusal(maps(&client).create(&PostParams::default(), &map("two", json!({}))).await);
    assert_eq!((refused.code, refused.reason.as_str()), (403, "Forbidden"));
    assert!(refused.message.contains("because it is being terminated"));
    assert_eq!(refused.details.unwrap().causes[0].reason, "NamespaceTerminating");
    server.collect_all();
    assert!(maps(&client).get_opt("one").await.unwrap().is_none());
    assert!(namespaces.get_opt("lab").await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_replace_with_an_old_version_conflicts() {
    let (_, client) = lab();
    let api = maps(&client);
    let first = api.create(&PostParams::default(), &map("one", json!({"a": "1"}))).await.unwrap();
    let mut newer = first.clone();
    newer.data.as_mut().unwrap().insert("a".into(), "2".into());
    api.replace("one", &PostParams::default(), &newer).await.unwrap();
    let conflict = refusal(api.replace("one", &PostParams::default(), &newer).await);
    assert_eq!((conflict.code, conflict.reason.as_str()), (409, "Conflict"));
    assert_eq!(
        conflict.message,
        "Operation cannot be fulfilled on configmaps \"one\": the object has been modified; please apply your changes to the latest version and try again"
    );
}

#[tokio::test(start_paused = true)]
async fn a_replace_of_a_successor_conflicts_by_uid() {
    let (_, client) = lab();
    let api = maps(&client);
    let first = api.create(&PostParams::default(), &map("one", json!({}))).await.unwrap();
    api.delete("one", &Default::default()).await.unwrap();
    api.create(&PostParams::default(), &map("one", json!({}))).await.unwrap();
    let conflict = refusal(api.replace("one", &PostParams::default(), &first).await);
    assert!(conflict.is_conflict() && conflict.message.contains("UID in precondition"), "{conflict:?}");
}

#[tokio::test(start_paused = true)]
async fn a_write_that_changes_nothing_makes_no_revision() {
    let (server, client) = lab();
    let api = maps(&client);
    let first = api.create(&PostParams::default(), &map("one", json!({"a": "1"}))).await.unwrap();
    let before = server.revision();
    api.replace("one", &PostParams::default(), &first).await.unwrap();
    let same = Patch::Merge(json!({"data": {"a": "1"}}));
    api.patch("one", &PatchParams::default(), &same).await.unwrap();
    assert_eq!(server.revision(), before);
    assert!(server.writes()[1..].iter().all(|w| !w.changed));
}

#[tokio::test(start_paused = true)]
async fn leases_need_a_version_to_be_replaced_and_a_put_creates_them() {
    let (_, client) = lab();
    let api: Api<Lease> = Api::namespaced(client, "lab");
    let lease: Lease = of(json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "a"}}));
    let made = api.replace("l", &PostParams::default(), &lease).await.unwrap();
    let bare = refusal(api.replace("l", &PostParams::default(), &lease).await);
    assert!(
        bare.message.contains("metadata.resourceVersion: Invalid value: 0: must be specified for an update")
    );
    api.delete("l", &Default::default()).await.unwrap();
    // With the uid of one that is gone, it is not made anew.
    assert!(refusal(api.replace("l", &PostParams::default(), &made).await).is_conflict());
}

#[tokio::test(start_paused = true)]
async fn a_merge_patch_removes_with_null_and_honours_version_and_uid() {
    let (_, client) = lab();
    let api = maps(&client);
    let made = api.create(&PostParams::default(), &map("one", json!({"a": "1", "b": "1"}))).await.unwrap();
    let params = PatchParams::default();
    let patched =
        api.patch("one", &params, &Patch::Merge(json!({"data": {"a": null, "c": "3"}}))).await.unwrap();
    assert_eq!(serde_json::to_value(&patched.data).unwrap(), json!({"b": "1", "c": "3"}));
    let old = json!({"metadata": {"resourceVersion": made.resource_version()}, "data": {"d": "4"}});
    assert!(refusal(api.patch("one", &params, &Patch::Merge(old)).await).is_conflict());
    let other = json!({"metadata": {"uid": "00000000-0000-4000-8000-000000000000"}, "data": {"d": "4"}});
    let refused = refusal(api.patch("one", &params, &Patch::Merge(other)).await);
    // Not a conflict: a patch has no preconditions, the uid is a field that cannot be changed.
    assert_eq!((refused.code, refused.reason.as_str()), (422, "Invalid"));
    assert!(refused.message.contains("metadata.uid: Invalid value"), "{}", refused.message);
}

#[tokio::test(start_paused = true)]
async fn a_json_patch_tests_before_it_changes() {
    let (_, client) = lab();
    let api = maps(&client);
    api.create(&PostParams::default(), &map("one", json!({"a": "1"}))).await.unwrap();
    let patch = |expected: &str| -> Patch<()> {
        let operations = json!([{"op": "test", "path": "/data/a", "value": expected},
            {"op": "replace", "path": "/data/a", "value": "2"}]);
        Patch::Json(serde_json::from_value(operations).unwrap())
    };
    let refused = refusal(api.patch("one", &PatchParams::default(), &patch("9")).await);
    assert_eq!((refused.code, refused.reason.as_str()), (422, "Invalid"));
    let patched = api.patch("one", &PatchParams::default(), &patch("1")).await.unwrap();
    assert_eq!(patched.data.unwrap()["a"], "2");
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_changes_nothing() {
    let (server, client) = lab();
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let before = server.revision();
    maps(&client).create(&params, &map("one", json!({}))).await.unwrap();
    assert_eq!(server.revision(), before);
    assert!(maps(&client).get_opt("one").await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn generation_counts_the_spec_and_nothing_else() {
    let (_, client) = lab();
    let api: Api<StatefulSet> = Api::namespaced(client, "lab");
    let set: StatefulSet = of(json!({"metadata": {"name": "s"}, "spec": {"serviceName": "s",
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i:1"}]}}},
        "status": {"replicas": 7}}));
    let made = api.create(&PostParams::default(), &set).await.unwrap();
    assert_eq!(made.metadata.generation, Some(1));
    assert_eq!(made.status.unwrap().replicas, 0, "the status is not created");
    assert_eq!(made.spec.unwrap().pod_management_policy.as_deref(), Some("OrderedReady"));
    let merge = |body: Value| Patch::Merge(body);
    let params = PatchParams::default();
    let labelled =
        api.patch("s", &params, &merge(json!({"metadata": {"labels": {"x": "y"}}}))).await.unwrap();
    assert_eq!(labelled.metadata.generation, Some(1));
    let scaled = api
        .patch("s", &params, &merge(json!({"spec": {"replicas": 3}, "status": {"replicas": 9}})))
        .await
        .unwrap();
    assert_eq!(scaled.metadata.generation, Some(2));
    assert_eq!(scaled.status.unwrap().replicas, 0, "nor written through the object itself");
    let told = api
        .patch_status("s", &params, &merge(json!({"spec": {"replicas": 5}, "status": {"replicas": 2}})))
        .await
        .unwrap();
    assert_eq!((told.metadata.generation, told.status.unwrap().replicas), (Some(2), 2));
    assert_eq!(told.spec.unwrap().replicas, Some(3), "and the spec not through the status");
    let frozen = merge(json!({"spec": {"serviceName": "other"}}));
    assert_eq!(refusal(api.patch("s", &params, &frozen).await).code, 422);
}

#[tokio::test(start_paused = true)]
async fn a_job_gets_the_selector_and_labels_of_its_uid() {
    let (_, client) = lab();
    let api: Api<Job> = Api::namespaced(client, "lab");
    let job: Job = of(json!({"metadata": {"name": "j"}, "spec": {"template": {"spec": {
        "restartPolicy": "Never", "containers": [{"name": "c", "image": "i:1"}]}}}}));
    let made = api.create(&PostParams::default(), &job).await.unwrap();
    let uid = made.uid().unwrap();
    let spec = made.spec.unwrap();
    assert_eq!(spec.selector.unwrap().match_labels.unwrap()["batch.kubernetes.io/controller-uid"], uid);
    assert_eq!(spec.template.metadata.unwrap().labels.unwrap()["job-name"], "j");
    assert_eq!((spec.backoff_limit, spec.completions), (Some(6), Some(1)));
}

#[tokio::test(start_paused = true)]
async fn a_claim_gets_the_default_class_and_grows_only_where_it_may() {
    let (_, client) = lab();
    let classes: Api<StorageClass> = Api::all(client.clone());
    let class = |name: &str, expands: bool| -> StorageClass {
        of(json!({"metadata": {"name": name,
            "annotations": {"storageclass.kubernetes.io/is-default-class": (name == "plain").to_string()}},
            "provisioner": "p", "allowVolumeExpansion": expands}))
    };
    classes.create(&PostParams::default(), &class("plain", false)).await.unwrap();
    classes.create(&PostParams::default(), &class("elastic", true)).await.unwrap();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client, "lab");
    let claim = |name: &str, class: Option<&str>| -> PersistentVolumeClaim {
        of(json!({"metadata": {"name": name}, "spec": {"storageClassName": class,
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1024Mi"}}}}))
    };
    let made = claims.create(&PostParams::default(), &claim("a", None)).await.unwrap();
    let spec = made.spec.unwrap();
    assert_eq!(spec.storage_class_name.as_deref(), Some("plain"));
    assert_eq!(spec.resources.unwrap().requests.unwrap()["storage"].0, "1Gi", "written canonically");
    claims.create(&PostParams::default(), &claim("b", Some("elastic"))).await.unwrap();
    let params = PatchParams::default();
    let bound = Patch::Merge(json!({"status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}}));
    let more = Patch::Merge(json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}));
    for name in ["a", "b"] {
        claims.patch_status(name, &params, &bound).await.unwrap();
    }
    let refused = refusal(claims.patch("a", &params, &more).await);
    assert!(refused.is_forbidden() && refused.message.contains("must support resize"), "{refused:?}");
    claims.patch("b", &params, &more).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_secret_folds_its_plain_text() {
    let (_, client) = lab();
    let api: Api<Secret> = Api::namespaced(client, "lab");
    let secret: Secret = of(json!({"metadata": {"name": "s"}, "stringData": {"k": "v"}}));
    let made = api.create(&PostParams::default(), &secret).await.unwrap();
    assert_eq!(made.data.unwrap()["k"].0, b"v");
    assert_eq!(made.type_.as_deref(), Some("Opaque"));
    assert!(made.string_data.is_none());
}

#[tokio::test(start_paused = true)]
async fn events_are_the_same_in_both_versions() {
    let (server, client) = lab();
    let made = maps(&client).create(&PostParams::default(), &map("one", json!({}))).await.unwrap();
    let recorder = Recorder::new(client.clone(), "operator".into());
    let event = Event {
        type_: EventType::Warning,
        reason: "Odd".into(),
        note: Some("look".into()),
        action: "Looking".into(),
        secondary: None,
    };
    let about = kube::Resource::object_ref(&made, &());
    recorder.publish(&event, &about).await.unwrap();
    recorder.publish(&event, &about).await.unwrap();
    let events: Api<CoreEvent> = Api::namespaced(client, "lab");
    let by_uid = kube::api::ListParams::default()
        .fields(&format!("involvedObject.uid={},type=Warning", made.uid().unwrap()));
    let found = events.list(&by_uid).await.unwrap().items;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].message.as_deref(), Some("look"));
    assert_eq!(found[0].series.as_ref().unwrap().count, Some(2));
    assert_eq!(server.writes().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_pod_cannot_change_its_containers() {
    let (_, client) = lab();
    let pods: Api<Pod> = Api::namespaced(client, "lab");
    let pod: Pod =
        of(json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}));
    let made = pods.create(&PostParams::default(), &pod).await.unwrap();
    assert_eq!(made.status.unwrap().phase.as_deref(), Some("Pending"));
    let params = PatchParams::default();
    let image =
        Patch::Merge(json!({"spec": {"containers": [{"name": "c", "image": "i:2", "command": ["x"]}]}}));
    assert_eq!(refusal(pods.patch("p", &params, &image).await).code, 422);
    let report = Patch::Merge(json!({"metadata": {"labels": {"role": "primary"}}}));
    assert_eq!(pods.patch("p", &params, &report).await.unwrap().labels()["role"], "primary");
}

#[tokio::test(start_paused = true)]
async fn wrong_types_are_refused_before_anything_else() {
    let (_, client) = lab();
    let body = kube::core::DynamicObject::new(
        "one",
        &kube::core::ApiResource::erase::<k8s_openapi::api::core::v1::ConfigMap>(&()),
    )
    .data(json!({"data": "text"}));
    let api: Api<kube::core::DynamicObject> = Api::namespaced_with(
        client,
        "lab",
        &kube::core::ApiResource::erase::<k8s_openapi::api::core::v1::ConfigMap>(&()),
    );
    let refused = refusal(api.create(&PostParams::default(), &body).await);
    assert_eq!((refused.code, refused.reason.as_str()), (400, "BadRequest"));
}

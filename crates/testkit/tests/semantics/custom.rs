use crate::{lab, of, refusal};
use holdfast_core::{Backup, Database};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    core::{ApiResource, DynamicObject},
};
use serde_json::{Value, json};

fn ours() -> (holdfast_testkit::Server, Client, Api<Database>) {
    let (server, client) = lab();
    server.register_holdfast().unwrap();
    let api = Api::namespaced(client.clone(), "lab");
    (server, client, api)
}

fn spec() -> Value {
    json!({"engine": "PostgreSQL", "version": "17", "storage": {"size": "1Gi"}})
}

/// As any JSON, past the types.
async fn create(client: &Client, spec: Value) -> Result<DynamicObject, kube::Error> {
    let resource = ApiResource::erase::<Database>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), "lab", &resource);
    let object = DynamicObject::new("ledger", &resource).data(json!({ "spec": spec }));
    api.create(&PostParams::default(), &object).await
}

async fn refused(client: &Client, change: impl FnOnce(&mut Value)) -> String {
    let mut spec = spec();
    change(&mut spec);
    let status = refusal(create(client, spec).await);
    assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"), "{status:?}");
    status.message
}

#[tokio::test(start_paused = true)]
async fn defaults_are_filled_in_and_the_status_says_that_nothing_was_seen() {
    let (_, client, api) = ours();
    let made = create(&client, spec()).await.unwrap();
    assert_eq!(made.metadata.generation, Some(1));
    assert_eq!(made.data["spec"]["instances"], 3);
    assert_eq!(made.data["spec"]["failover"]["ttlSeconds"], 6);
    assert_eq!(made.data["spec"]["postgresql"]["initdb"]["encoding"], "UTF8");
    assert_eq!(made.data["status"], json!({"observedGeneration": -1}));
    assert_eq!(api.get("ledger").await.unwrap().spec.instances, 3);
}

#[tokio::test(start_paused = true)]
async fn unknown_fields_are_dropped_or_refused_when_that_is_asked_for() {
    let (_, client, api) = ours();
    let mut odd = spec();
    odd["sise"] = 1.into();
    let made = create(&client, odd).await.unwrap();
    assert_eq!(made.data["spec"].get("sise"), None);
    let strict = PatchParams {
        field_validation: Some(kube::api::ValidationDirective::Strict),
        ..PatchParams::default()
    };
    let status = refusal(api.patch("ledger", &strict, &Patch::Merge(json!({"spec": {"sise": 1}}))).await);
    // Of a patch it is the patch that is invalid, not the request.
    assert_eq!(status.code, 422);
    assert!(
        status.message.contains("strict decoding error: unknown field \"spec.sise\""),
        "{}",
        status.message
    );
    let apply = json!({"apiVersion": "holdfast.dev/v1alpha1", "kind": "Database", "metadata": {"name": "ledger"}, "spec": {"sise": 1}});
    let status = refusal(api.patch("ledger", &PatchParams::apply("x").force(), &Patch::Apply(&apply)).await);
    assert!(status.message.contains(".spec.sise: field not declared in schema"), "{}", status.message);
}

#[tokio::test(start_paused = true)]
async fn the_schema_refuses_with_the_fields_name() {
    let (_, client, _) = ours();
    let message = refused(&client, |s| s["engine"] = "Other".into()).await;
    assert!(message.starts_with("Database.holdfast.dev \"ledger\" is invalid: "), "{message}");
    assert!(
        message.contains("spec.engine: Unsupported value: \"Other\": supported values: \"PostgreSQL\""),
        "{message}"
    );
    let message = refused(&client, |s| s["instances"] = "three".into()).await;
    assert!(message.contains("spec.instances: Invalid value: \"string\": spec.instances in body must be of type integer: \"string\""), "{message}");
    let message = refused(&client, |s| {
        s.as_object_mut().unwrap().remove("storage");
    })
    .await;
    assert!(message.contains("spec.storage: Required value"), "{message}");
    let message = refused(&client, |s| s["failover"] = json!({"ttlSeconds": 1})).await;
    assert!(message.contains("spec.failover.ttlSeconds: Invalid value: 1: spec.failover.ttlSeconds in body should be greater than or equal to 3"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn rules_are_evaluated() {
    let (_, client, _) = ours();
    let message = refused(&client, |s| {
        s["instances"] = 1.into();
        s["durability"] = json!({"mode": "Required"});
    })
    .await;
    assert!(message.contains("spec: Invalid value: spec.durability"), "{message}");
    let message = refused(&client, |s| s["storage"]["size"] = "1Mi".into()).await;
    assert!(message.contains("spec.storage.size: Invalid value: "), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_rule_about_a_change_sees_the_old_value() {
    let (_, client, api) = ours();
    create(&client, spec()).await.unwrap();
    let params = PatchParams::default();
    let smaller = Patch::Merge(json!({"spec": {"storage": {"size": "512Mi"}}}));
    assert_eq!(refusal(api.patch("ledger", &params, &smaller).await).code, 422);
    let larger = Patch::Merge(json!({"spec": {"storage": {"size": "2Gi"}}}));
    let grown = api.patch("ledger", &params, &larger).await.unwrap();
    assert_eq!(grown.metadata.generation, Some(2));
    let version = Patch::Merge(json!({"spec": {"version": "16"}}));
    assert_eq!(refusal(api.patch("ledger", &params, &version).await).code, 422);
}

#[tokio::test(start_paused = true)]
async fn the_status_is_written_apart() {
    let (server, client, api) = ours();
    create(&client, spec()).await.unwrap();
    let body = |status: Value| {
        Patch::Apply(json!({"apiVersion": "holdfast.dev/v1alpha1", "kind": "Database",
            "metadata": {"name": "ledger", "labels": {"not": "here"}}, "spec": {"instances": 5}, "status": status}))
    };
    let ready = json!({"type": "Ready", "status": "True", "reason": "Up", "message": "m",
        "lastTransitionTime": "2026-03-01T10:00:00Z"});
    let params = PatchParams::apply("database-operator").force();
    let told = api
        .patch_status("ledger", &params, &body(json!({"observedGeneration": 1, "conditions": [ready]})))
        .await
        .unwrap();
    assert_eq!((told.metadata.generation, told.spec.instances), (Some(1), 3));
    assert!(told.labels().is_empty());
    let other = json!({"type": "Consistent", "status": "True", "reason": "R", "message": "m",
        "lastTransitionTime": "2026-03-01T10:00:00Z"});
    let params = PatchParams::apply("someone-else").force();
    let both = api.patch_status("ledger", &params, &body(json!({"conditions": [other]}))).await.unwrap();
    let conditions = both.status.unwrap().conditions;
    assert_eq!(conditions.iter().map(|c| c.type_.as_str()).collect::<Vec<_>>(), ["Ready", "Consistent"]);
    let before = server.revision();
    api.patch("ledger", &PatchParams::default(), &Patch::Merge(json!({"status": {"phase": "Nonsense"}})))
        .await
        .unwrap();
    assert_eq!(server.revision(), before, "through the object itself it cannot be written");
}

#[tokio::test(start_paused = true)]
async fn an_immutable_spec_stays_and_metadata_moves() {
    let (_, client, _) = ours();
    let api: Api<Backup> = Api::namespaced(client, "lab");
    let backup: Backup =
        of(json!({"apiVersion": "holdfast.dev/v1alpha1", "kind": "Backup", "metadata": {"name": "b"},
        "spec": {"databaseRef": {"name": "ledger"}}}));
    api.create(&PostParams::default(), &backup).await.unwrap();
    let params = PatchParams::default();
    let other = Patch::Merge(json!({"spec": {"databaseRef": {"name": "other"}}}));
    assert_eq!(refusal(api.patch("b", &params, &other).await).code, 422);
    let policy = Patch::Merge(json!({"spec": {"deletionPolicy": "Delete"}}));
    assert_eq!(api.patch("b", &params, &policy).await.unwrap().metadata.generation, Some(2));
    let labels = Patch::Merge(json!({"metadata": {"finalizers": ["holdfast.dev/x"], "labels": {"a": "b"}}}));
    assert_eq!(api.patch("b", &params, &labels).await.unwrap().metadata.generation, Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_put_of_a_custom_object_needs_its_version() {
    let (_, client, api) = ours();
    let made = create(&client, spec()).await.unwrap();
    let mut object = api.get("ledger").await.unwrap();
    object.metadata.resource_version = None;
    let status = refusal(api.replace("ledger", &PostParams::default(), &object).await);
    assert_eq!(
        status.message,
        "databases.holdfast.dev \"ledger\" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update"
    );
    object.metadata.resource_version = made.resource_version();
    api.replace("ledger", &PostParams::default(), &object).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn discovery_names_the_kinds_that_are_served() {
    let (server, client) = lab();
    let version = "holdfast.dev/v1alpha1";
    let status = refusal(client.list_api_group_resources(version).await);
    // The real server answers plain text here too, so there is no reason to go by.
    assert_eq!((status.code, status.message.as_str()), (404, "404 page not found"));
    server.register_holdfast().unwrap();
    let list = client.list_api_group_resources(version).await.unwrap();
    let names: Vec<&str> = list.resources.iter().map(|r| r.name.as_str()).collect();
    assert!(names.contains(&"databases") && names.contains(&"restores/status"), "{names:?}");
    assert!(client.apiserver_version().await.is_ok());
    assert!(server.register_holdfast().is_err(), "a kind is registered once");
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_an_object_is_all_said_at_once() {
    let (server, client) = lab();
    let crd = json!({"spec": {"group": "lab.test", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"spec": {"type": "object", "properties": {
                "name": {"type": "string", "maxLength": 5, "pattern": "^[a-z]+$"},
                "word": {"type": "string", "minLength": 2, "pattern": "^[a-z]+$"},
                "tags": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["key"],
                    "items": {"type": "object", "required": ["key"], "properties": {"key": {"type": "string"},
                        "value": {"type": "string", "x-kubernetes-validations": [
                            {"rule": "self == oldSelf", "message": "a tag stays"}]}}}}}}}}}}]}});
    server.register(&crd).unwrap();
    let resource = ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk("lab.test", "v1", "Thing"));
    let api: Api<DynamicObject> = Api::namespaced_with(client, "lab", &resource);
    let thing = |spec: Value| DynamicObject::new("t", &resource).data(json!({ "spec": spec }));
    let status =
        refusal(api.create(&PostParams::default(), &thing(json!({"name": "Toolong", "word": "ODD"}))).await);
    assert!(
        status.message.contains("spec.name: Too long: may not be more than 5 bytes"),
        "{}",
        status.message
    );
    assert!(status.message.contains("some validation rules were not checked"), "{}", status.message);
    assert!(status.message.contains("spec.word in body should match '^[a-z]+$'"), "{}", status.message);
    assert!(
        !status.message.contains("spec.name in body"),
        "of one text the first fault is said: {}",
        status.message
    );
    let causes = status.details.unwrap().causes;
    assert!(causes.iter().any(|c| c.reason == "FieldValueTooLong" && c.field == "spec.name"));
    let twice = thing(json!({"tags": [{"key": "a"}, {"key": "a"}]}));
    let status = refusal(api.create(&PostParams::default(), &twice).await);
    assert!(status.message.contains("spec.tags[1]: Duplicate value: {\"key\":\"a\"}"), "{}", status.message);

    let tagged = thing(json!({"tags": [{"key": "a", "value": "1"}, {"key": "b", "value": "2"}]}));
    api.create(&PostParams::default(), &tagged).await.unwrap();
    let merge = |tags: Value| Patch::Merge(json!({"spec": {"tags": tags}}));
    let params = PatchParams::default();
    let moved = json!([{"key": "b", "value": "2"}, {"key": "c", "value": "new"}]);
    api.patch("t", &params, &merge(moved))
        .await
        .expect("items are told apart by their keys, not by their places");
    let changed = json!([{"key": "b", "value": "3"}]);
    let status = refusal(api.patch("t", &params, &merge(changed)).await);
    assert!(
        status.message.contains("spec.tags[0].value: Invalid value: \"3\": a tag stays"),
        "{}",
        status.message
    );
}

#[tokio::test(start_paused = true)]
async fn an_empty_map_that_is_applied_makes_the_next_write_one_too() {
    let (server, client, api) = ours();
    create(&client, spec()).await.unwrap();
    let nothing = Patch::Merge(json!({}));
    let hand = PatchParams { field_manager: Some("hand".into()), ..PatchParams::default() };
    let revision = |object: Result<Database, kube::Error>| object.unwrap().resource_version();
    let settled = revision(api.patch("ledger", &hand, &nothing).await);
    assert_eq!(revision(api.patch("ledger", &hand, &nothing).await), settled);
    let apply = |annotations: Value| {
        Patch::Apply(json!({"apiVersion": "holdfast.dev/v1alpha1", "kind": "Database",
            "metadata": {"name": "ledger", "annotations": annotations}}))
    };
    let alpha = PatchParams::apply("alpha");
    let emptied = api.patch("ledger", &alpha, &apply(json!({}))).await;
    assert!(emptied.as_ref().unwrap().annotations().is_empty());
    let emptied = revision(emptied);
    let next = revision(api.patch("ledger", &hand, &nothing).await);
    assert_ne!(next, emptied, "what is stored is not what is shown");
    assert_eq!(revision(api.patch("ledger", &hand, &nothing).await), next);
    // What nobody else owns goes whole.
    api.patch("ledger", &alpha, &apply(json!({"note": "x"}))).await.unwrap();
    let bare =
        json!({"apiVersion": "holdfast.dev/v1alpha1", "kind": "Database", "metadata": {"name": "ledger"}});
    let gone = revision(api.patch("ledger", &alpha, &Patch::Apply(bare)).await);
    let before = server.revision();
    assert_eq!(revision(api.patch("ledger", &hand, &nothing).await), gone);
    assert_eq!(server.revision(), before);
}

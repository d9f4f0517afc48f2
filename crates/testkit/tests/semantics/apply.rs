use crate::{lab, maps, of, refusal};
use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::ConfigMap};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use std::time::Duration;

fn intent(data: Value) -> Patch<Value> {
    Patch::Apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}, "data": data}))
}

async fn apply(api: &Api<ConfigMap>, manager: &str, data: Value) -> Result<ConfigMap, kube::Error> {
    api.patch("one", &PatchParams::apply(manager), &intent(data)).await
}

#[tokio::test(start_paused = true)]
async fn an_apply_creates_then_changes_then_rests() {
    let (server, client) = lab();
    let api = maps(&client);
    apply(&api, "alpha", json!({"a": "1", "b": "2"})).await.unwrap();
    let second = apply(&api, "alpha", json!({"a": "1"})).await.unwrap();
    assert_eq!(serde_json::to_value(second.data).unwrap(), json!({"a": "1"}));
    let before = server.revision();
    tokio::time::advance(Duration::from_secs(60)).await;
    apply(&api, "alpha", json!({"a": "1"})).await.unwrap();
    assert_eq!(server.revision(), before, "a repeated apply is no write");
    let codes: Vec<u16> = server.writes().iter().map(|w| w.code).collect();
    assert_eq!(codes, [201, 200, 200]);
}

#[tokio::test(start_paused = true)]
async fn a_conflict_is_refused_with_its_cause_and_forced_through() {
    let (_, client) = lab();
    let api = maps(&client);
    apply(&api, "alpha", json!({"a": "1"})).await.unwrap();
    let conflict = refusal(apply(&api, "beta", json!({"a": "2"})).await);
    assert!(conflict.is_conflict());
    assert_eq!(conflict.message, "Apply failed with 1 conflict: conflict with \"alpha\": .data.a");
    let cause = &conflict.details.unwrap().causes[0];
    assert_eq!((cause.reason.as_str(), cause.field.as_str()), ("FieldManagerConflict", ".data.a"));
    let params = PatchParams::apply("beta").force();
    let forced = api.patch("one", &params, &intent(json!({"a": "2"}))).await.unwrap();
    let managers: Vec<_> = forced.managed_fields().iter().filter_map(|m| m.manager.as_deref()).collect();
    assert_eq!(managers, ["beta"], "who owns nothing any more is not named");
}

#[tokio::test(start_paused = true)]
async fn a_field_changed_by_an_update_is_put_back_by_force_only() {
    let (_, client) = lab();
    let api = maps(&client);
    apply(&api, "alpha", json!({"a": "1"})).await.unwrap();
    let by_hand = PatchParams { field_manager: Some("hand".into()), ..PatchParams::default() };
    api.patch("one", &by_hand, &Patch::Merge(json!({"data": {"a": "9"}}))).await.unwrap();
    let conflict = refusal(apply(&api, "alpha", json!({"a": "1"})).await);
    assert!(conflict.message.contains("conflict with \"hand\" using v1: .data.a"), "{}", conflict.message);
    let back =
        api.patch("one", &PatchParams::apply("alpha").force(), &intent(json!({"a": "1"}))).await.unwrap();
    assert_eq!(back.data.unwrap()["a"], "1");
}

#[tokio::test(start_paused = true)]
async fn status_and_object_have_owners_of_their_own() {
    let (_, client) = lab();
    let api: Api<StatefulSet> = Api::namespaced(client, "lab");
    let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "s"},
        "spec": {"replicas": 2, "serviceName": "s", "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}});
    let params = PatchParams::apply("alpha").force();
    api.patch("s", &params, &Patch::Apply(&set)).await.unwrap();
    let status = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "s"},
        "status": {"replicas": 2, "conditions": [{"type": "Up", "status": "True"}]}});
    let told = api.patch_status("s", &params, &Patch::Apply(&status)).await.unwrap();
    assert_eq!(
        told.spec.as_ref().unwrap().replicas,
        Some(2),
        "the spec is not dropped by an apply of the status"
    );
    let doors: Vec<_> = told.managed_fields().iter().map(|m| m.subresource.clone()).collect();
    assert_eq!(doors, [None, Some("status".to_string())]);
    let again = api.patch("s", &params, &Patch::Apply(&set)).await.unwrap();
    assert_eq!(again.status.unwrap().conditions.unwrap().len(), 1, "nor the status by one of the object");
    let gone = refusal(api.patch_status("t", &params, &Patch::Apply(&of::<Value>(
        json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "t"}, "status": {"replicas": 1}})))).await);
    assert_eq!(gone.code, 404, "a status creates nothing");
}

#[tokio::test(start_paused = true)]
async fn an_operators_apply_stays_quiet_though_the_server_filled_in_defaults() {
    let (server, client) = lab();
    let api: Api<StatefulSet> = Api::namespaced(client, "lab");
    let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "s"},
        "spec": {"serviceName": "s", "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {
                "containers": [{"name": "c", "image": "i:1", "resources": {"requests": {"memory": "1024Mi"}},
                    "ports": [{"containerPort": 80, "name": "http"}], "readinessProbe": {"httpGet": {"port": 80}}}],
                "volumes": [{"name": "v", "configMap": {"name": "m"}}, {"name": "e", "emptyDir": {}}]}}}});
    let params = PatchParams::apply("alpha").force();
    let made = api.patch("s", &params, &Patch::Apply(&set)).await.unwrap();
    let before = server.revision();
    let again = api.patch("s", &params, &Patch::Apply(&set)).await.unwrap();
    assert_eq!(server.revision(), before);
    assert_eq!(made.metadata.generation, again.metadata.generation);
}

#[tokio::test(start_paused = true)]
async fn an_apply_names_its_manager_its_version_and_no_uid_of_a_gone_object() {
    let (_, client) = lab();
    let api = maps(&client);
    let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one", "uid": "u-1"}});
    let refused = refusal(api.patch("one", &PatchParams::apply("alpha"), &Patch::Apply(&body)).await);
    assert!(refused.is_conflict(), "{refused:?}");
    assert!(
        refused.message.contains(
            "uid mismatch: the provided object specified uid u-1, and no existing object was found"
        )
    );
    let body = json!({"apiVersion": "v2", "kind": "ConfigMap", "metadata": {"name": "one"}});
    let refused = refusal(api.patch("one", &PatchParams::apply("alpha"), &Patch::Apply(&body)).await);
    assert_eq!(refused.code, 400);
}

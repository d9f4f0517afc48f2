use super::{
    managers::{Writer, apply, read, update, write},
    set::Set,
    topology::Topology,
};
use serde_json::{Value, json};

fn writer(name: &'static str) -> Writer<'static> {
    Writer { name, api_version: "v1", subresource: "", time: "2026-01-01T00:00:00Z", reset: &[] }
}

/// Applies, and writes the new managers into the result.
fn applied(
    kind: &str,
    live: &Value,
    config: Value,
    manager: &'static str,
    force: bool,
) -> Result<Value, String> {
    let topology = Topology::built_in(kind);
    let (mut object, managers) =
        apply(live, &config, &empty(), &topology, &writer(manager), force).map_err(|r| r.message)?;
    write(&mut object, managers);
    Ok(object)
}

fn updated(kind: &str, old: &Value, new: Value, manager: &'static str) -> Value {
    let managers = update(old, &new, &Topology::built_in(kind), &writer(manager));
    let mut new = new;
    write(&mut new, managers);
    new
}

fn fields(object: &Value, manager: &str) -> Value {
    read(object).iter().find(|m| m.name == manager).map_or(Value::Null, |m| m.fields.encode())
}

fn empty() -> Value {
    json!({"metadata": {}})
}

#[test]
fn sets_are_written_as_kubernetes_writes_them() {
    let pod = json!({"metadata": {"labels": {"a": "1"}, "finalizers": ["x/y"]},
        "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}],
            "nodeSelector": {"a": "b"}, "tolerations": [{"key": "k"}]}});
    let set = Set::of(&pod, &Topology::built_in("Pod"));
    let encoded = json!({
        "f:metadata": {"f:labels": {"f:a": {}}, "f:finalizers": {"v:\"x/y\"": {}}},
        "f:spec": {
            "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:image": {},
                "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}},
            "f:nodeSelector": {}, "f:tolerations": {}
        }
    });
    assert_eq!(set.encode(), encoded);
    assert_eq!(Set::decode(&encoded), set);
}

#[test]
fn fields_that_a_manager_no_longer_names_are_removed() {
    let one = applied("ConfigMap", &empty(), json!({"data": {"a": "1", "b": "2"}}), "alpha", false).unwrap();
    let two = applied("ConfigMap", &one, json!({"data": {"b": "2"}}), "alpha", false).unwrap();
    assert_eq!(two["data"], json!({"b": "2"}));
    let three = applied("ConfigMap", &two, json!({}), "alpha", false).unwrap();
    assert_eq!(three.get("data"), None);
    assert_eq!(three["metadata"].get("managedFields"), None);
}

#[test]
fn a_field_that_another_manager_also_applied_stays() {
    let one = applied("ConfigMap", &empty(), json!({"data": {"a": "1"}}), "alpha", false).unwrap();
    let two = applied("ConfigMap", &one, json!({"data": {"a": "1", "b": "2"}}), "beta", false).unwrap();
    let three = applied("ConfigMap", &two, json!({}), "alpha", false).unwrap();
    assert_eq!(three["data"], json!({"a": "1", "b": "2"}));
    assert_eq!(fields(&three, "alpha"), Value::Null);
}

#[test]
fn a_conflict_names_manager_and_field_and_force_takes_over() {
    let one = applied("ConfigMap", &empty(), json!({"data": {"a": "1", "b": "1"}}), "alpha", false).unwrap();
    let refused = applied("ConfigMap", &one, json!({"data": {"a": "2"}}), "beta", false).unwrap_err();
    assert_eq!(refused, "Apply failed with 1 conflict: conflict with \"alpha\": .data.a");
    let refused =
        applied("ConfigMap", &one, json!({"data": {"a": "2", "b": "2"}}), "beta", false).unwrap_err();
    assert_eq!(refused, "Apply failed with 2 conflicts: conflicts with \"alpha\":\n- .data.a\n- .data.b");
    let forced = applied("ConfigMap", &one, json!({"data": {"a": "2"}}), "beta", true).unwrap();
    assert_eq!(forced["data"]["a"], "2");
    assert_eq!(fields(&forced, "alpha"), json!({"f:data": {"f:b": {}}}));
    assert_eq!(fields(&forced, "beta"), json!({"f:data": {"f:a": {}}}));
}

#[test]
fn an_update_takes_the_fields_that_it_changes() {
    let one = applied("ConfigMap", &empty(), json!({"data": {"a": "1", "b": "1"}}), "alpha", false).unwrap();
    let mut new = one.clone();
    new["data"]["a"] = "9".into();
    let two = updated("ConfigMap", &one, new, "editor");
    assert_eq!(fields(&two, "alpha"), json!({"f:data": {"f:b": {}}}));
    assert_eq!(fields(&two, "editor"), json!({"f:data": {"f:a": {}}}));
    let refused = applied("ConfigMap", &two, json!({"data": {"a": "1"}}), "alpha", false).unwrap_err();
    assert!(refused.contains("conflict with \"editor\" using v1"), "{refused}");
}

#[test]
fn lists_that_are_maps_merge_by_their_keys() {
    let condition = |name: &str, status: &str| json!({"type": name, "status": status});
    let one = applied(
        "StatefulSet",
        &empty(),
        json!({"status": {"conditions": [condition("A", "True")]}}),
        "alpha",
        true,
    )
    .unwrap();
    let two = applied(
        "StatefulSet",
        &one,
        json!({"status": {"conditions": [condition("B", "True")]}}),
        "beta",
        true,
    )
    .unwrap();
    assert_eq!(two["status"]["conditions"], json!([condition("A", "True"), condition("B", "True")]));
    let three = applied(
        "StatefulSet",
        &two,
        json!({"status": {"conditions": [condition("A", "False")]}}),
        "alpha",
        true,
    )
    .unwrap();
    assert_eq!(three["status"]["conditions"], json!([condition("A", "False"), condition("B", "True")]));
    let four = applied("StatefulSet", &three, json!({"status": {}}), "beta", true).unwrap();
    assert_eq!(four["status"]["conditions"], json!([condition("A", "False")]));
}

#[test]
fn an_item_goes_with_the_fields_that_nobody_owned_in_it() {
    let one = applied(
        "Pod",
        &empty(),
        json!({"spec": {"containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]}}),
        "alpha",
        true,
    )
    .unwrap();
    // A default of the server, which no manager owns.
    let mut defaulted = one.clone();
    defaulted["spec"]["containers"][1]["imagePullPolicy"] = "Always".into();
    let two = applied(
        "Pod",
        &defaulted,
        json!({"spec": {"containers": [{"name": "a", "image": "i"}]}}),
        "alpha",
        true,
    )
    .unwrap();
    assert_eq!(two["spec"]["containers"], json!([{"name": "a", "image": "i"}]));
}

#[test]
fn atomic_lists_are_replaced_as_a_whole() {
    let rules = |verb: &str| json!({"rules": [{"verbs": [verb]}]});
    let one = applied("Role", &empty(), rules("get"), "alpha", false).unwrap();
    assert!(applied("Role", &one, rules("list"), "beta", false).unwrap_err().ends_with(": .rules"));
    let two = applied("Role", &one, rules("list"), "alpha", false).unwrap();
    assert_eq!(two["rules"], json!([{"verbs": ["list"]}]));
}

#[test]
fn finalizers_are_a_set_and_each_writer_takes_off_only_its_own() {
    let with = |all: Value| json!({"metadata": {"finalizers": all}});
    let one = applied("", &empty(), with(json!(["a/x"])), "alpha", true).unwrap();
    let two = applied("", &one, with(json!(["b/y"])), "beta", true).unwrap();
    assert_eq!(two["metadata"]["finalizers"], json!(["a/x", "b/y"]));
    let three = applied("", &two, with(json!([])), "alpha", true).unwrap();
    assert_eq!(three["metadata"]["finalizers"], json!(["b/y"]));
}

#[test]
fn a_custom_schema_says_what_its_lists_are() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "checks": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "items": {"type": "object", "properties": {"name": {"type": "string"}, "sql": {"type": "string"}}}},
        "hosts": {"type": "array", "x-kubernetes-list-type": "atomic", "items": {"type": "string"}},
        "limits": {"type": "object", "additionalProperties": {"type": "object", "properties": {"n": {"type": "integer"}}}}
    }}}});
    let object = json!({"metadata": {"labels": {"l": "v"}}, "spec": {"checks": [{"name": "c", "sql": "s"}],
        "hosts": ["h"], "limits": {"cpu": {"n": 1}}}});
    assert_eq!(
        Set::of(&object, &Topology::custom(&schema)).encode(),
        json!({"f:metadata": {"f:labels": {"f:l": {}}}, "f:spec": {
            "f:checks": {"k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:sql": {}}},
            "f:hosts": {}, "f:limits": {"f:cpu": {".": {}, "f:n": {}}}}})
    );
}

#[test]
fn an_apply_that_repeats_itself_changes_nothing_not_even_the_time() {
    let config = json!({"data": {"a": "1"}});
    let one = applied("ConfigMap", &empty(), config.clone(), "alpha", false).unwrap();
    let later = Writer { time: "2027-01-01T00:00:00Z", ..writer("alpha") };
    let (mut two, managers) =
        apply(&one, &config, &empty(), &Topology::built_in("ConfigMap"), &later, false).unwrap();
    write(&mut two, managers);
    assert_eq!(two, one);
}

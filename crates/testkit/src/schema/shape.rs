//! What the API server does to a custom object before it validates it: nulls go, unknown fields go, defaults come. Pure.

use serde_json::{Map, Value};

/// Drops unknown fields, and returns the paths of what was dropped.
pub(crate) fn prune(schema: &Value, object: &mut Value) -> Vec<String> {
    let mut dropped = Vec::new();
    prune_at(schema, object, "", &mut dropped);
    dropped.sort();
    dropped
}

fn prune_at(schema: &Value, value: &mut Value, path: &str, dropped: &mut Vec<String>) {
    if schema["x-kubernetes-preserve-unknown-fields"] == true {
        return;
    }
    match value {
        Value::Object(fields) => {
            if schema["additionalProperties"].is_object() {
                for (name, field) in fields.iter_mut() {
                    prune_at(&schema["additionalProperties"], field, &join(path, name), dropped);
                }
            } else if schema["additionalProperties"] != true {
                let properties = schema["properties"].as_object();
                fields.retain(|name, _| {
                    let root = path.is_empty() && ["apiVersion", "kind", "metadata"].contains(&name.as_str());
                    let known = root || properties.is_some_and(|p| p.contains_key(name));
                    if !known {
                        dropped.push(join(path, name));
                    }
                    known
                });
                for (name, field) in fields.iter_mut() {
                    // The metadata of the object is read by its own type.
                    if path.is_empty() && name == "metadata" {
                        continue;
                    }
                    if let Some(schema) = properties.and_then(|p| p.get(name)) {
                        prune_at(schema, field, &join(path, name), dropped);
                    }
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                prune_at(&schema["items"], item, &format!("{path}[{index}]"), dropped);
            }
        }
        _ => {}
    }
}

pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.into() } else { format!("{path}.{name}") }
}

/// Said of an item that is there twice.
pub(crate) const TWICE: &str = "duplicate entries for key";

/// What server-side apply holds against a body: fields that the schema does not have, and values of other types.
pub(crate) fn untyped(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    if value.is_null() || schema["x-kubernetes-preserve-unknown-fields"] == true {
        return;
    }
    let mut wrong = |wanted: &str| found.push(format!("{path}: expected {wanted}, got {value}"));
    match (schema["type"].as_str().unwrap_or_default(), value) {
        _ if schema["x-kubernetes-int-or-string"] == true => {}
        ("string", Value::String(_)) | ("boolean", Value::Bool(_)) => {}
        // A text of a certain form may be any plain value.
        ("string", Value::Bool(_) | Value::Number(_))
            if schema.get("format").is_some_and(|f| f != "byte") => {}
        ("integer" | "number", Value::Number(_)) => {}
        ("string", _) => wrong("string"),
        ("boolean", _) => wrong("boolean"),
        ("integer" | "number", _) => wrong("numeric (int or float)"),
        ("array", Value::Array(items)) => {
            let mut seen: Vec<String> = Vec::new();
            for (index, item) in items.iter().enumerate() {
                let element = match element(schema, index, item) {
                    Ok(element) => element,
                    // Of the items after it nothing is known.
                    Err(why) => return found.push(format!("{path}: element {index}: {why}")),
                };
                if seen.contains(&element) {
                    found.push(format!("{path}: {TWICE} {element}"));
                }
                untyped(&schema["items"], item, &format!("{path}{element}"), found);
                seen.push(element);
            }
        }
        ("array", _) => wrong("list"),
        ("object", Value::Object(fields)) => {
            for (name, field) in fields {
                // The metadata of the object is read by its own type.
                let root = path.is_empty() && ["apiVersion", "kind", "metadata"].contains(&name.as_str());
                let path = format!("{path}.{name}");
                match schema["properties"].get(name) {
                    _ if root => {}
                    Some(property) => untyped(property, field, &path, found),
                    None if schema["additionalProperties"].is_object() => {
                        untyped(&schema["additionalProperties"], field, &path, found);
                    }
                    None => found.push(format!("{path}: field not declared in schema")),
                }
            }
        }
        ("object", _) => wrong("map"),
        _ => {}
    }
}

/// An item in a path: by its keys, by itself, or by its place. Errors: it lacks a key.
fn element(schema: &Value, index: usize, item: &Value) -> Result<String, String> {
    let plain = |value: &Value| value.to_string();
    if schema["x-kubernetes-list-type"] == "set" {
        return Ok(format!("[={}]", plain(item)));
    }
    let keys = super::validate::map_keys(schema);
    if keys.is_empty() {
        return Ok(format!("[{index}]"));
    }
    let mut named = Vec::new();
    for key in keys {
        let default = schema["items"]["properties"][key].get("default");
        let Some(value) = item.get(key).or(default) else {
            return Err(format!(
                "associative list with keys has an element that omits key field {key:?} (and doesn't have default value)"
            ));
        };
        named.push(format!("{key}={}", plain(value)));
    }
    Ok(format!("[{}]", named.join(",")))
}

/// Drops nulls of fields that are not nullable: to defaults and rules they are absent.
pub(crate) fn drop_nulls(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let of = |name: &str| -> Option<&Value> {
                schema["properties"]
                    .get(name)
                    .or_else(|| Some(&schema["additionalProperties"]).filter(|s| s.is_object()))
            };
            fields.retain(|name, field| {
                !field.is_null() || of(name).is_none_or(|schema| schema["nullable"] == true)
            });
            for (name, field) in fields.iter_mut() {
                if let Some(schema) = of(name) {
                    drop_nulls(schema, field);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| drop_nulls(&schema["items"], item)),
        _ => {}
    }
}

/// Fills in defaults, from the outside in: a default object gets the defaults of its own fields.
pub(crate) fn fill(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let empty = Map::new();
            let properties = schema["properties"].as_object().unwrap_or(&empty);
            for (name, property) in properties {
                if let Some(default) = property.get("default")
                    && fields.get(name).is_none_or(|v| v.is_null() && property["nullable"] != true)
                {
                    fields.insert(name.clone(), default.clone());
                }
            }
            for (name, field) in fields.iter_mut() {
                if let Some(property) = properties.get(name) {
                    fill(property, field);
                } else if schema["additionalProperties"].is_object() {
                    fill(&schema["additionalProperties"], field);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| fill(&schema["items"], item)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Value {
        json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "pool": {"type": "object", "default": {}, "properties": {"size": {"type": "integer", "default": 4}}},
            "tags": {"type": "object", "additionalProperties": {"type": "object",
                "properties": {"on": {"type": "boolean", "default": true}}}},
            "maybe": {"type": "string", "nullable": true},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}
        }}}})
    }

    #[test]
    fn unknown_fields_go_and_are_named() {
        let mut object = json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "a"}, "oops": 1,
            "spec": {"pool": {"size": 1, "sise": 2}, "tags": {"t": {"off": 1}}, "free": {"any": 1}}});
        let dropped = prune(&schema(), &mut object);
        assert_eq!(dropped, ["oops", "spec.pool.sise", "spec.tags.t.off"]);
        assert_eq!(object["spec"], json!({"pool": {"size": 1}, "tags": {"t": {}}, "free": {"any": 1}}));
        assert_eq!(object["metadata"]["name"], "a");
    }

    #[test]
    fn defaults_reach_into_defaulted_objects_and_maps() {
        let mut object = json!({"spec": {"tags": {"t": {}}}});
        fill(&schema(), &mut object);
        assert_eq!(object["spec"], json!({"pool": {"size": 4}, "tags": {"t": {"on": true}}}));
    }

    #[test]
    fn a_null_is_absent_unless_it_may_be_null() {
        let mut object = json!({"spec": {"pool": null, "maybe": null}});
        drop_nulls(&schema(), &mut object);
        assert_eq!(object["spec"], json!({"maybe": null}));
    }
}

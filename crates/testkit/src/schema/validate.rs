//! Checks an object against the structural part of its schema. Pure.
//!
//! What did not change is not checked again (ratcheting): a stricter CRD must not lock up the objects that are there.

use super::shape::join;
use crate::status::Fault;
use regex::Regex;
use serde_json::{Value, json};
use std::collections::HashMap;

type Patterns = HashMap<String, Regex>;

pub(crate) fn structure(
    schema: &Value,
    object: &Value,
    old: Option<&Value>,
    patterns: &Patterns,
    faults: &mut Vec<Fault>,
) {
    at(schema, object, old, "", patterns, faults);
}

fn at(
    schema: &Value,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    patterns: &Patterns,
    faults: &mut Vec<Fault>,
) {
    if old == Some(value) {
        return;
    }
    let body = |why: String| Fault::invalid(path, value, &format!("{path} in body {why}"));
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    let wanted = if schema["x-kubernetes-int-or-string"] == true {
        (!value.is_string() && !value.is_i64() && !value.is_u64()).then_some("integer,string")
    } else {
        schema["type"].as_str().filter(|wanted| !is_a(value, wanted))
    };
    if schema["format"] == "date-time" && !value.is_string() && !value.is_null() {
        // The format is held against the format that values of a type have by themselves; lists escape both.
        let is = match value {
            Value::Number(n) if n.is_f64() => "float64",
            Value::Number(_) => "int64",
            _ => "",
        };
        if !value.is_array() {
            let why = format!("{path} in body must be of type date-time: {is:?}");
            faults.push(Fault::wrong_type(path, &json!(is), &why));
        }
    } else if let Some(wanted) = wanted {
        let is = json!(type_of(value));
        let why = format!("{path} in body must be of type {wanted}: {is}");
        faults.push(Fault::wrong_type(path, &is, &why));
    }
    if let Some(values) = schema["enum"].as_array()
        && !values.contains(value)
    {
        faults.push(Fault::not_supported(path, value, values));
    }
    match value {
        Value::String(text) => {
            let length = text.chars().count() as u64;
            // The first of these that fails is said.
            if let Some(most) = schema["maxLength"].as_u64().filter(|most| length > *most) {
                let message = format!("Too long: may not be more than {most} bytes");
                faults.push(Fault { reason: "FieldValueTooLong", field: path.into(), message });
            } else if let Some(least) = schema["minLength"].as_u64().filter(|least| length < *least) {
                faults.push(body(format!("should be at least {least} chars long")));
            } else if let Some(pattern) = schema["pattern"].as_str()
                && !patterns.get(pattern).is_some_and(|regex| regex.is_match(text))
            {
                faults.push(body(format!("should match '{pattern}'")));
            }
            if schema["format"] == "date-time" && text.parse::<jiff::Timestamp>().is_err() {
                let why = format!("{path} in body must be of type date-time: {value}");
                faults.push(Fault::wrong_type(path, value, &why));
            }
        }
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            let bound = |key: &str| schema[key].as_f64().map(|bound| (bound, &schema[key]));
            if let Some((_, least)) = bound("minimum").filter(|(least, _)| number < *least) {
                faults.push(body(format!("should be greater than or equal to {least}")));
            }
            if let Some((_, most)) = bound("maximum").filter(|(most, _)| number > *most) {
                faults.push(body(format!("should be less than or equal to {most}")));
            }
        }
        Value::Array(items) => {
            sizes(schema, items.len(), ("maxItems", "minItems", "items"), path, value, faults);
            let keys = map_keys(schema);
            duplicates(schema, items, &keys, path, faults);
            for (index, item) in items.iter().enumerate() {
                // Only the items of a map keep their identity from one version of a list to the next.
                let before = old.and_then(Value::as_array).filter(|_| !keys.is_empty());
                let before =
                    before.and_then(|all| all.iter().find(|o| keys.iter().all(|key| o[*key] == item[*key])));
                at(&schema["items"], item, before, &format!("{path}[{index}]"), patterns, faults);
            }
        }
        Value::Object(fields) => {
            sizes(
                schema,
                fields.len(),
                ("maxProperties", "minProperties", "properties"),
                path,
                value,
                faults,
            );
            for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if !fields.contains_key(name) {
                    faults.push(Fault::required(&join(path, name), ""));
                }
            }
            for (name, field) in fields {
                let schema = match schema["properties"].get(name) {
                    Some(schema) => schema,
                    None if schema["additionalProperties"].is_object() => &schema["additionalProperties"],
                    None => continue,
                };
                let before = old.and_then(|o| o.get(name));
                at(schema, field, before, &join(path, name), patterns, faults);
            }
        }
        Value::Bool(_) | Value::Null => {}
    }
}

fn sizes(
    schema: &Value,
    count: usize,
    (most, least, what): (&str, &str, &str),
    path: &str,
    value: &Value,
    faults: &mut Vec<Fault>,
) {
    let count = count as u64;
    if let Some(most) = schema[most].as_u64().filter(|most| count > *most) {
        let message = format!("Too many: {count}: must have at most {most} items");
        faults.push(Fault { reason: "FieldValueTooMany", field: path.into(), message });
    }
    if let Some(least) = schema[least].as_u64().filter(|least| count < *least) {
        let why = format!("{path} in body should have at least {least} {what}");
        faults.push(Fault::invalid(path, value, &why));
    }
}

/// The keys of a list that is a map; none when it is not.
pub(crate) fn map_keys(schema: &Value) -> Vec<&str> {
    if schema["x-kubernetes-list-type"] != "map" {
        return Vec::new();
    }
    let keys = schema["x-kubernetes-list-map-keys"].as_array();
    keys.into_iter().flatten().filter_map(Value::as_str).collect()
}

fn duplicates(schema: &Value, items: &[Value], keys: &[&str], path: &str, faults: &mut Vec<Fault>) {
    if !keys.is_empty()
        && let Some(index) = items.iter().position(|item| !item.is_object() && !item.is_null())
    {
        let why = "must be an object for an array of list-type map";
        faults.push(Fault::invalid(&format!("{path}[{index}]"), &items[index], why));
        return;
    }
    let mut seen: HashMap<String, u32> = HashMap::new();
    for (index, item) in items.iter().enumerate() {
        let identity: Value = if schema["x-kubernetes-list-type"] == "set" {
            item.clone()
        } else if keys.is_empty() {
            return;
        } else {
            let given = keys.iter().filter_map(|key| Some(((*key).to_string(), item.get(*key)?.clone())));
            given.collect()
        };
        let times = seen.entry(identity.to_string()).or_default();
        *times += 1;
        // However often it is there, it is said once.
        if *times == 2 {
            let message = format!("Duplicate value: {identity}");
            let field = format!("{path}[{index}]");
            faults.push(Fault { reason: "FieldValueDuplicate", field, message });
        }
    }
}

fn is_a(value: &Value, wanted: &str) -> bool {
    match wanted {
        // A number with more digits than an int64 has is read as a float, and beyond 2^53 - 1 a float is no integer.
        "integer" => {
            value.is_i64()
                || value.as_f64().is_some_and(|n| n.fract() == 0.0 && n.abs() <= 9_007_199_254_740_991.0)
        }
        "number" => value.is_number(),
        other => type_of(value) == other,
    }
}

pub(crate) fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if !n.is_i64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

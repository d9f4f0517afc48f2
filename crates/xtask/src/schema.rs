//! What an OpenAPI schema of a CRD must be like. Pure.

use serde_json::{Map, Value, json};

/// Brings a derived schema into the form that is shipped.
///
/// - `nullable` goes: the API server then drops nulls before it defaults and validates, so that to CEL a null is absent.
/// - Whole numbers are written as such, not as 3.0.
/// - A list without a type is atomic, as the API server would take it anyway.
pub fn normalize(schema: &mut Value) {
    each(schema, "", &mut |_, node| {
        node.remove("nullable");
        if node.get("type") == Some(&json!("array")) && !node.contains_key("x-kubernetes-list-type") {
            node.insert("x-kubernetes-list-type".into(), json!("atomic"));
        }
        for key in ["minimum", "maximum"] {
            let whole = node.get(key).and_then(Value::as_f64).filter(|n| n.fract() == 0.0 && n.abs() < 9e15);
            if let Some(whole) = whole {
                node.insert(key.into(), json!(whole as i64));
            }
        }
    });
}

/// Removes all defaults: an observation that nobody made is absent, not zero.
pub fn without_defaults(schema: &mut Value) {
    each(schema, "", &mut |_, node| {
        node.remove("default");
    });
}

/// Why a schema cannot be shipped; empty when it can.
pub fn problems(root: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut root = root.clone();
    each(&mut root, "", &mut |path, node| {
        let mut wrong =
            |what: &str| found.push(format!("{}: {what}", if path.is_empty() { "." } else { path }));
        for forbidden in [
            "$ref",
            "oneOf",
            "anyOf",
            "allOf",
            "not",
            "definitions",
            "nullable",
            "x-kubernetes-preserve-unknown-fields",
            "x-kubernetes-embedded-resource",
        ] {
            if node.contains_key(forbidden) {
                wrong(&format!("has {forbidden}"));
            }
        }
        let type_ = node.get("type").and_then(Value::as_str);
        let int_or_string = node.get("x-kubernetes-int-or-string") == Some(&json!(true));
        if type_.is_none() && !int_or_string {
            wrong("has no type");
        }
        if node.contains_key("properties") && node.contains_key("additionalProperties") {
            wrong("has properties and additionalProperties");
        }
        let in_spec = path.starts_with(".spec");
        let bounded = |key: &str| node.contains_key(key);
        match type_ {
            Some("array") if in_spec && !bounded("maxItems") => wrong("is a list without maxItems"),
            Some("object") if in_spec && bounded("additionalProperties") && !bounded("maxProperties") => {
                wrong("is a map without maxProperties");
            }
            Some("object")
                if !bounded("additionalProperties") && !bounded("properties") && path != ".metadata" =>
            {
                wrong("is an object without fields");
            }
            Some("string") if in_spec && !bounded("maxLength") && !bounded("enum") => {
                wrong("is a string without maxLength");
            }
            Some("array") if !bounded("items") => wrong("is a list without items"),
            _ => {}
        }
        if in_spec && int_or_string && !bounded("maxLength") {
            wrong("is a quantity without maxLength");
        }
        if let (Some(default), Some(values)) =
            (node.get("default"), node.get("enum").and_then(Value::as_array))
            && !values.contains(default)
        {
            wrong(&format!("has the default {default}, which its enum does not list"));
        }
        if node.get("required").and_then(Value::as_array).is_some_and(|required| {
            required.iter().filter_map(Value::as_str).any(|field| {
                node.get("properties").and_then(|p| p.get(field)).is_some_and(|p| p.get("default").is_some())
            })
        }) {
            wrong("requires a field that has a default");
        }
        let documented = node.get("description").is_some();
        let element = path.ends_with("[]") || path.ends_with("{}");
        if in_spec && !documented && !element {
            wrong("has no description");
        }
        for rule in node.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
            match rule.get("message").and_then(Value::as_str) {
                Some(message) if message.len() > 2048 => wrong("has a message that is too long"),
                Some(_) => {}
                None => wrong("has a rule without a message"),
            }
        }
        if let Some(default) = node.get("default")
            && let Err(why) = admits(node, default)
        {
            wrong(&format!("has a default that it would refuse: {why}"));
        }
    });
    found
}

/// Whether a schema admits a value: types, unknown fields, required fields, enums and bounds of numbers and strings.
/// Enough for defaults; CEL is the API server's.
fn admits(node: &Map<String, Value>, value: &Value) -> Result<(), String> {
    if let Some(values) = node.get("enum").and_then(Value::as_array)
        && !values.contains(value)
    {
        return Err(format!("{value} is not in its enum"));
    }
    match (node.get("type").and_then(Value::as_str), value) {
        (Some("object"), Value::Object(fields)) => {
            let Some(properties) = node.get("properties").and_then(Value::as_object) else { return Ok(()) };
            for (name, field) in fields {
                let Some(schema) = properties.get(name).and_then(Value::as_object) else {
                    return Err(format!("{name} is unknown"));
                };
                admits(schema, field).map_err(|why| format!("{name}: {why}"))?;
            }
            let required = node.get("required").and_then(Value::as_array).into_iter().flatten();
            match required.filter_map(Value::as_str).find(|name| !fields.contains_key(*name)) {
                Some(name) => Err(format!("{name} is missing")),
                None => Ok(()),
            }
        }
        (Some("integer"), Value::Number(number)) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            let above = node.get("minimum").and_then(Value::as_f64).is_none_or(|min| number >= min);
            let below = node.get("maximum").and_then(Value::as_f64).is_none_or(|max| number <= max);
            if above && below { Ok(()) } else { Err(format!("{value} is out of range")) }
        }
        (Some("string"), Value::String(text)) => {
            let count = u64::try_from(text.chars().count()).unwrap_or(u64::MAX);
            let long = node.get("minLength").and_then(Value::as_u64).is_none_or(|min| count >= min);
            let short = node.get("maxLength").and_then(Value::as_u64).is_none_or(|max| count <= max);
            if long && short { Ok(()) } else { Err(format!("{value} is too long or too short")) }
        }
        (Some("boolean"), Value::Bool(_)) | (Some("array"), Value::Array(_)) => Ok(()),
        (type_, value) => Err(format!("{value} is not of type {}", type_.unwrap_or("int-or-string"))),
    }
}

/// Visits a schema and all schemas in it, with their paths (`.spec.checks[].name`, `.spec.parameters{}`).
fn each(schema: &mut Value, path: &str, visit: &mut impl FnMut(&str, &mut Map<String, Value>)) {
    let Some(node) = schema.as_object_mut() else { return };
    visit(path, node);
    if let Some(properties) = node.get_mut("properties").and_then(Value::as_object_mut) {
        for (name, property) in properties {
            each(property, &format!("{path}.{name}"), visit);
        }
    }
    if let Some(items) = node.get_mut("items") {
        each(items, &format!("{path}[]"), visit);
    }
    if let Some(values) = node.get_mut("additionalProperties") {
        each(values, &format!("{path}{{}}"), visit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(spec: Value) -> Value {
        json!({"type": "object", "properties": {"spec": {"type": "object", "description": "d", "properties": {"field": spec}}}})
    }

    #[test]
    fn a_bounded_and_documented_schema_has_no_problems() {
        let good = of(
            json!({"type": "array", "description": "d", "maxItems": 3, "items": {"type": "string", "maxLength": 5}}),
        );
        assert_eq!(problems(&good), Vec::<String>::new());
    }

    #[test]
    fn each_problem_is_found_where_it_is() {
        for (spec, want) in [
            (json!({"type": "string", "description": "d"}), "string without maxLength"),
            (
                json!({"type": "array", "description": "d", "items": {"type": "boolean"}}),
                "list without maxItems",
            ),
            (
                json!({"type": "object", "description": "d", "additionalProperties": {"type": "boolean"}}),
                "map without maxProperties",
            ),
            (json!({"description": "d"}), "has no type"),
            (json!({"type": "boolean"}), "has no description"),
            (json!({"type": "boolean", "description": "d", "anyOf": []}), "has anyOf"),
            (json!({"type": "integer", "description": "d", "minimum": 1, "default": 0}), "would refuse"),
            (
                json!({"type": "string", "description": "d", "enum": ["A"], "default": "B"}),
                "enum does not list",
            ),
            (
                json!({"type": "boolean", "description": "d", "x-kubernetes-validations": [{"rule": "self"}]}),
                "rule without a message",
            ),
        ] {
            let problems = problems(&of(spec));
            assert!(
                problems.iter().any(|p| p.starts_with(".spec.field: ") && p.contains(want)),
                "{want}: {problems:?}"
            );
        }
    }

    #[test]
    fn normalizing_drops_nullable_and_writes_whole_numbers() {
        let mut schema = of(json!({"type": "integer", "nullable": true, "minimum": 1.0, "maximum": 2.5}));
        normalize(&mut schema);
        let field = &schema["properties"]["spec"]["properties"]["field"];
        assert_eq!(*field, json!({"type": "integer", "minimum": 1, "maximum": 2.5}));
    }
}

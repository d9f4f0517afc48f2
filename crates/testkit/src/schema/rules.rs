//! The CEL rules of a schema. Pure. Each rule is run by the crate that kube itself uses; which old value a rule sees, and
//! which failures are tolerated because nothing changed there, is decided here, as the API server does.

use super::{shape::join, validate::map_keys};
use crate::status::Fault;
use kube_cel::{CompiledSchema, ErrorKind, Validator, compile_schema};
use serde_json::Value;
use std::collections::BTreeMap;

/// The rules of one node of a schema, and of those below it.
#[derive(Debug)]
pub(crate) struct Rules {
    /// This node's schema with its own rules and nobody else's.
    here: Option<CompiledSchema>,
    keys: Vec<String>,
    /// The messages of this node's rules.
    messages: BTreeMap<String, String>,
    /// The node's type.
    of: String,
    /// Messages of rules that take the value for a time zone: what evaluates them here does not know zones.
    zones: Vec<String>,
    properties: BTreeMap<String, Rules>,
    items: Option<Box<Rules>>,
    additional: Option<Box<Rules>>,
}

impl Rules {
    /// Errors: rules that do not compile.
    pub fn compile(schema: &Value) -> Result<Self, String> {
        let here = if schema["x-kubernetes-validations"].is_array() {
            let mut compiled = compile_schema(schema);
            if let Some(error) = compiled.compilation_errors().first() {
                return Err(format!("a CEL rule does not compile: {error:?}"));
            }
            for child in compiled.properties.values_mut() {
                silence(child);
            }
            for child in [&mut compiled.items, &mut compiled.additional_properties].into_iter().flatten() {
                silence(child);
            }
            Some(compiled)
        } else {
            None
        };
        let mut properties = BTreeMap::new();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            properties.insert(name.clone(), Self::compile(property)?);
        }
        let child = |key: &str| -> Result<Option<Box<Self>>, String> {
            let child = Some(&schema[key]).filter(|s| s.is_object());
            child.map(|s| Self::compile(s).map(Box::new)).transpose()
        };
        Ok(Self {
            here,
            zones: schema["x-kubernetes-validations"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|rule| rule["rule"].as_str().is_some_and(|text| text.contains(".getHours(self)")))
                .map(|rule| rule["message"].as_str().unwrap_or_default().trim().to_string())
                .collect(),
            messages: schema["x-kubernetes-validations"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|rule| {
                    Some((rule["rule"].as_str()?.trim().into(), rule["message"].as_str()?.trim().into()))
                })
                .collect(),
            of: schema["type"].as_str().unwrap_or_default().into(),
            keys: map_keys(schema).into_iter().map(String::from).collect(),
            properties,
            items: child("items")?,
            additional: child("additionalProperties")?,
        })
    }

    /// What the rules hold against an object. `old`: what it replaces.
    pub fn faults(&self, object: &Value, old: Option<&Value>) -> Vec<Fault> {
        let mut faults = Vec::new();
        self.walk(&Validator::new(), object, old, "", &mut faults);
        faults
    }

    fn walk(
        &self,
        validator: &Validator,
        value: &Value,
        old: Option<&Value>,
        path: &str,
        faults: &mut Vec<Fault>,
    ) {
        let before = faults.len();
        if let Some(here) = &self.here
            && let Err(errors) = validator.validate_compiled(here, value, old)
        {
            for error in errors.into_vec() {
                // What did not change is not held against an update, unless the rule is about the change.
                if old == Some(value) && !error.rule.contains("oldSelf") {
                    continue;
                }
                let mut field = format!("{path}{}", error.field_path);
                if field.is_empty() {
                    field = "<nil>".into();
                }
                if error.kind != ErrorKind::ValidationFailure {
                    // A rule that cannot be evaluated refuses the object.
                    let rule = error.rule.trim();
                    let rule = self.messages.get(rule).map_or(rule, String::as_str);
                    let why = format!("{} evaluating rule: {rule}", unevaluated(&error.message));
                    faults.push(Fault::invalid(&field, &self.of.as_str().into(), &why));
                    continue;
                }
                let message = error.message.clone();
                faults.push(if value.is_object() || value.is_array() {
                    Fault::without_value(&field, &message)
                } else {
                    Fault::invalid(&field, value, &message)
                });
            }
        }
        if let Some(zone) = value.as_str().filter(|_| faults.len() == before && old != Some(value))
            && jiff::tz::TimeZone::get(zone).is_err()
        {
            for message in &self.zones {
                let why = format!("unknown time zone {zone} evaluating rule: {message}");
                faults.push(Fault::invalid(path, &"string".into(), &why));
            }
        }
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    let rules = self.properties.get(name).or(self.additional.as_deref());
                    if let Some(rules) = rules {
                        let old = old.and_then(|o| o.get(name));
                        rules.walk(validator, field, old, &join(path, name), faults);
                    }
                }
            }
            Value::Array(items) => {
                let Some(rules) = &self.items else { return };
                for (index, item) in items.iter().enumerate() {
                    let same = |o: &&Value| self.keys.iter().all(|key| o[key] == item[key]);
                    let old = old.and_then(Value::as_array).filter(|_| !self.keys.is_empty());
                    let old = old.and_then(|all| all.iter().find(same));
                    rules.walk(validator, item, old, &format!("{path}[{index}]"), faults);
                }
            }
            _ => {}
        }
    }
}

/// Why a rule could not be evaluated, as the server says it where it is known.
fn unevaluated(why: &str) -> &str {
    if why.contains("function 'quantity'") && why.contains("no numeric value") {
        return "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
    }
    let start = why.find("Error executing").unwrap_or_default();
    &why[start..]
}

/// Takes all rules out, and leaves the types.
fn silence(schema: &mut CompiledSchema) {
    schema.validations.clear();
    for child in schema.properties.values_mut() {
        silence(child);
    }
    for child in [&mut schema.items, &mut schema.additional_properties].into_iter().flatten() {
        silence(child);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unchanged_parts_are_tolerated_and_changes_are_compared() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object",
            "properties": {"size": {"type": "integer"}, "class": {"type": "string",
                "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "class is immutable"}]}},
            "x-kubernetes-validations": [{"rule": "self.size < 5", "message": "too big"}]}}});
        let rules = Rules::compile(&schema).unwrap();
        let object = |size: i64, class: &str| json!({"spec": {"size": size, "class": class}});
        let texts = |new: Value, old: Option<Value>| -> Vec<String> {
            let faults = rules.faults(&new, old.as_ref());
            faults.into_iter().map(|f| format!("{}: {}", f.field, f.message)).collect()
        };
        assert_eq!(texts(object(4, "a"), None), Vec::<String>::new());
        assert_eq!(texts(object(9, "a"), None), ["spec: Invalid value: too big"]);
        assert_eq!(texts(object(9, "a"), Some(object(9, "a"))), Vec::<String>::new());
        assert_eq!(
            texts(object(4, "b"), Some(object(4, "a"))),
            ["spec.class: Invalid value: \"b\": class is immutable"]
        );
    }

    #[test]
    fn a_rule_that_cannot_be_evaluated_refuses_the_object() {
        let rule =
            json!([{"rule": "quantity(self.size).isGreaterThan(quantity('1'))", "message": "too small"}]);
        let rules =
            Rules::compile(&json!({"type": "object", "properties": {"size": {"type": "string"}}, "x-kubernetes-validations": rule}))
                .unwrap();
        let faults = rules.faults(&json!({"size": "@much"}), None);
        let [fault] = faults.as_slice() else { panic!("{faults:?}") };
        assert!(
            fault.message.starts_with("Invalid value: \"object\": quantities must match"),
            "{}",
            fault.message
        );
        assert!(fault.message.ends_with("evaluating rule: too small"), "{}", fault.message);
    }

    #[test]
    fn a_rule_that_does_not_compile_is_named() {
        let schema =
            json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.(", "message": "m"}]});
        assert!(Rules::compile(&schema).unwrap_err().contains("does not compile"));
    }
}

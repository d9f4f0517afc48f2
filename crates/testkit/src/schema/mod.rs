//! Custom kinds: what their CustomResourceDefinition says. Pure.

pub(crate) mod rules;
pub(crate) mod shape;
pub(crate) mod validate;

use crate::status::Fault;
use regex::Regex;
use serde_json::Value;
use std::collections::HashMap;

/// One version of a CustomResourceDefinition, ready for use.
pub(crate) struct Custom {
    pub group: String,
    pub version: String,
    pub plural: String,
    pub kind: String,
    pub namespaced: bool,
    pub status: bool,
    /// The whole object's OpenAPI schema.
    pub schema: Value,
    /// Where the scale subresource finds the wanted and the actual number of replicas.
    scale: Vec<String>,
    rules: rules::Rules,
    patterns: HashMap<String, Regex>,
}

impl std::fmt::Debug for Custom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Custom({}.{}/{})", self.plural, self.group, self.version)
    }
}

impl Custom {
    /// The storage version of a CRD. Errors: it is none, a pattern or a CEL rule of it does not compile.
    pub fn new(crd: &Value) -> Result<Self, String> {
        let text = |at: &str| -> Result<String, String> {
            let found = crd.pointer(at).and_then(Value::as_str);
            found.map(String::from).ok_or_else(|| format!("the CustomResourceDefinition has no {at}"))
        };
        let versions = crd.pointer("/spec/versions").and_then(Value::as_array);
        let version = versions
            .into_iter()
            .flatten()
            .find(|v| v["storage"] == true)
            .ok_or("the CustomResourceDefinition has no storage version")?;
        let schema = version
            .pointer("/schema/openAPIV3Schema")
            .ok_or("the CustomResourceDefinition has no schema")?
            .clone();
        let mut patterns = HashMap::new();
        compile_patterns(&schema, &mut patterns)?;
        let rules = rules::Rules::compile(&schema)?;
        Ok(Self {
            group: text("/spec/group")?,
            version: version["name"].as_str().unwrap_or_default().into(),
            plural: text("/spec/names/plural")?,
            kind: text("/spec/names/kind")?,
            namespaced: crd["spec"]["scope"] != "Cluster",
            status: version.pointer("/subresources/status").is_some(),
            scale: ["specReplicasPath", "statusReplicasPath"]
                .iter()
                .filter_map(|path| version["subresources"]["scale"][*path].as_str().map(String::from))
                .collect(),
            schema,
            rules,
            patterns,
        })
    }

    /// All that the schema and its rules hold against an object. `old`: what it replaces. `blocked`: something else is so wrong
    /// that the rules are not evaluated. `status`: only its status is written.
    pub fn faults(&self, object: &Value, old: Option<&Value>, blocked: bool, status: bool) -> Vec<Fault> {
        let mut faults = Vec::new();
        validate::structure(&self.schema, object, old, &self.patterns, &mut faults);
        for fault in faults.iter_mut().filter(|_| status) {
            // Through its own door the status is looked at by itself, and fields are named from there.
            if let Some(inner) = fault.field.strip_prefix("status.") {
                let (whole, part) = (format!("{} in body", fault.field), format!("{inner} in body"));
                fault.message = fault.message.replace(&whole, &part);
            }
        }
        faults.extend(self.scale.get(usize::from(status)).and_then(|path| scaled(object, path)));
        if blocked || faults.iter().any(Fault::blocks_rules) {
            faults.push(Fault::unchecked());
        } else {
            faults.extend(self.rules.faults(object, old));
        }
        faults
    }
}

/// What is wrong with the number that the scale subresource shows.
fn scaled(object: &Value, path: &str) -> Option<Fault> {
    let value = object.pointer(&path.replace('.', "/"))?;
    let why = match value.as_i64() {
        None => format!("{path} accessor error: {value} is no int64"),
        Some(n) if n < 0 => "should be a non-negative integer".into(),
        Some(n) if n > i64::from(i32::MAX) => format!("should be less than or equal to {}", i32::MAX),
        Some(_) => return None,
    };
    let shown = Value::from(value.as_i64().unwrap_or_default());
    Some(Fault::invalid(path, &shown, &why))
}

fn compile_patterns(schema: &Value, into: &mut HashMap<String, Regex>) -> Result<(), String> {
    if let Some(pattern) = schema["pattern"].as_str() {
        let regex = Regex::new(pattern).map_err(|e| format!("pattern {pattern:?}: {e}"))?;
        into.insert(pattern.into(), regex);
    }
    for child in schema["properties"].as_object().into_iter().flat_map(|p| p.values()) {
        compile_patterns(child, into)?;
    }
    for key in ["items", "additionalProperties"] {
        if schema[key].is_object() {
            compile_patterns(&schema[key], into)?;
        }
    }
    Ok(())
}

//! What the CustomResourceDefinitions say of each field. Pure.

use super::{path::Path, strings};
use serde_json::{Map, Value, json};

/// The kinds, and the definitions that are deployed.
const DEFINITIONS: [(&str, &str); 5] = [
    ("Database", include_str!("../../../../deploy/crds/databases.holdfast.dev.yaml")),
    ("BackupStore", include_str!("../../../../deploy/crds/backupstores.holdfast.dev.yaml")),
    ("BackupSchedule", include_str!("../../../../deploy/crds/backupschedules.holdfast.dev.yaml")),
    ("Backup", include_str!("../../../../deploy/crds/backups.holdfast.dev.yaml")),
    ("Restore", include_str!("../../../../deploy/crds/restores.holdfast.dev.yaml")),
];

/// The kinds, in the order in which they are tried.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    DEFINITIONS.iter().map(|(kind, _)| *kind)
}

/// The schema of a kind's spec. Errors: there is no such kind, or its definition cannot be read.
pub fn spec(kind: &str) -> Result<Value, String> {
    let (_, text) =
        DEFINITIONS.iter().find(|(k, _)| *k == kind).ok_or_else(|| format!("there is no kind {kind}"))?;
    let crd: Value = serde_saphyr::from_str(text).map_err(|e| format!("{kind}: {e}"))?;
    let at = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
    crd.pointer(at).cloned().ok_or_else(|| format!("the definition of {kind} has no {at}"))
}

/// A field that the schema knows.
#[derive(Clone, Debug)]
pub struct Field<'a> {
    /// Where it is.
    pub path: Path,
    /// What it must be like.
    pub schema: &'a Value,
    /// A rule forbids to change it later.
    pub immutable: bool,
}

/// All fields of a spec, parents first: also items of lists and values of maps, of which a few keys stand for all.
pub fn fields(spec: &Value) -> Vec<Field<'_>> {
    let mut all = Vec::new();
    let root = Field { path: Path::fields("spec"), schema: spec, immutable: false };
    below(&root, &mut all);
    all
}

fn below<'a>(field: &Field<'a>, all: &mut Vec<Field<'a>>) {
    let schema = field.schema;
    let mut add = |child: Field<'a>| {
        all.push(child.clone());
        below(&child, all);
    };
    for (name, of) in schema["properties"].as_object().into_iter().flatten() {
        let fixed =
            |rule: &str| rule.trim() == "self == oldSelf" || rule.contains(&format!("oldSelf.{name}"));
        let here = rules(schema).any(|r| r.contains(&format!("oldSelf.{name}")) && fixed(r));
        let itself = rules(of).any(|r| r.trim() == "self == oldSelf");
        add(Field { path: field.path.field(name), schema: of, immutable: field.immutable || here || itself });
    }
    if schema["items"].is_object() {
        add(Field { path: field.path.item(0), schema: &schema["items"], immutable: field.immutable });
    }
    if schema["additionalProperties"].is_object() {
        for key in strings::keys(&field.path.to_string()) {
            add(Field {
                path: field.path.field(key),
                schema: &schema["additionalProperties"],
                immutable: field.immutable,
            });
        }
    }
}

/// The CEL rules of one node.
fn rules(schema: &Value) -> impl Iterator<Item = &str> {
    schema["x-kubernetes-validations"].as_array().into_iter().flatten().filter_map(|r| r["rule"].as_str())
}

/// The fields of which exactly one may be set, as the rules of a node say it.
pub fn alternatives(schema: &Value) -> Vec<String> {
    // Each is counted so: (has(self.volume) ? 1 : 0) + …
    const COUNTED: &str = " ? 1 : 0";
    let one_of = rules(schema).find(|r| r.matches(COUNTED).count() > 1 && r.contains("== 1"));
    let parts = one_of.into_iter().flat_map(|rule| rule.split("has(self.").skip(1));
    let names = parts.filter_map(|part| part.split_once(')').map(|(name, _)| name.to_string()));
    names.collect()
}

/// Puts a value somewhere. What is missing on the way is made as the schema wants it, and the other alternatives go.
pub fn place(spec: &Value, object: &mut Value, path: &Path, value: Value) {
    use super::path::Step;
    let (mut schema, mut here) = (spec, Path::fields("spec"));
    let Some(steps) = path.steps().get(1..) else { return };
    for step in steps {
        if here.get(object).is_none_or(Value::is_null) {
            here.set(object, sample(schema, &here));
        }
        match step {
            Step::Field(name) => {
                let others = alternatives(schema);
                if others.contains(name) {
                    others.iter().filter(|o| *o != name).for_each(|o| here.field(o).remove(object));
                }
                here = here.field(name);
                let known = schema["properties"].get(name);
                schema = known.unwrap_or(&schema["additionalProperties"]);
            }
            Step::Item(index) => {
                here = here.item(*index);
                schema = &schema["items"];
            }
        }
    }
    path.set(object, value);
}

/// Something small that the schema accepts.
pub fn sample(schema: &Value, path: &Path) -> Value {
    if let Some(default) = schema.get("default") {
        return default.clone();
    }
    if let Some(first) = schema["enum"].get(0) {
        return first.clone();
    }
    match schema["type"].as_str() {
        Some("integer") => schema["minimum"].as_i64().unwrap_or(1).max(1).into(),
        Some("boolean") => true.into(),
        Some("array") => json!([sample(&schema["items"], &path.item(0))]),
        Some("object") => {
            let mut wanted: Vec<String> = schema["required"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|n| n.as_str().map(String::from))
                .collect();
            wanted.extend(alternatives(schema).into_iter().take(1));
            let of = |name: String| {
                let value = sample(&schema["properties"][&name], &path.field(&name));
                (name, value)
            };
            Value::Object(wanted.into_iter().map(of).collect::<Map<_, _>>())
        }
        _ => strings::sample(&path.to_string()).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_depth_is_walked() {
        let schema = spec("Database").unwrap();
        let all = fields(&schema);
        let find = |path: &str| all.iter().find(|f| f.path.to_string() == path);
        for path in [
            "spec.storage.size",
            "spec.postgresql.initdb.walSegmentSizeMB",
            "spec.placement.tolerations[0].tolerationSeconds",
            "spec.imagePullSecrets[0].name",
            "spec.resources.limits.memory",
            "spec.postgresql.parameters.work_mem",
        ] {
            assert!(find(path).is_some(), "{path}");
        }
        let fixed = |path: &str| find(path).unwrap().immutable;
        assert!(fixed("spec.engine") && fixed("spec.storage.storageClassName") && fixed("spec.version"));
        assert!(fixed("spec.postgresql.initdb.locale"), "it lies in what is fixed");
        assert!(!fixed("spec.storage.size") && !fixed("spec.storage") && !fixed("spec.instances"));
    }

    #[test]
    fn runs_are_fixed_except_for_what_they_say() {
        for (kind, free) in [("Backup", "spec.deletionPolicy"), ("Restore", "spec.approve")] {
            let schema = spec(kind).unwrap();
            for field in fields(&schema) {
                let path = field.path.to_string();
                assert_eq!(field.immutable, path != free, "{kind} {path}");
            }
        }
    }

    #[test]
    fn what_is_missing_on_the_way_is_made_and_other_alternatives_go() {
        let schema = spec("Restore").unwrap();
        let mut object = json!({"spec": {"databaseRef": {"name": "orders"}}});
        place(&schema, &mut object, &Path::fields("spec.pointInTime.xid"), json!("7"));
        assert_eq!(object["spec"]["pointInTime"], json!({"xid": "7"}));
        assert_eq!(alternatives(&schema["properties"]["pointInTime"]).len(), 5);
        let schema = spec("Database").unwrap();
        let mut object = json!({"spec": {}});
        place(&schema, &mut object, &Path::fields("spec.archive.maxLagSeconds"), json!(9));
        assert_eq!(object["spec"]["archive"], json!({"maxLagSeconds": 9, "storeRef": {"name": "main"}}));
    }
}

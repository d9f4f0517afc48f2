//! Fields that do not go together, and exclusive fields together or all left out. Pure.

use super::{
    path::Path,
    schema::{Field, alternatives, sample},
};
use serde_json::{Value, json};

/// Merge patches of `spec` for things that only together are wrong, or only together make a hard change.
pub fn combined(kind: &str) -> Vec<(&'static str, &'static str, Value)> {
    match kind {
        "Database" => vec![
            (
                "spec.durability",
                "required-alone",
                json!({"instances": 1, "durability": {"mode": "Required"}}),
            ),
            (
                "spec.durability",
                "preferred-alone",
                json!({"instances": 1, "durability": {"mode": "Preferred"}}),
            ),
            (
                "spec.durability",
                "asynchronous-alone",
                json!({"instances": 1, "durability": {"mode": "Asynchronous", "standbys": 8}}),
            ),
            ("spec.durability", "too-many-standbys", json!({"durability": {"standbys": 3}})),
            ("spec.durability", "undecided-alone", json!({"instances": 1, "durability": null})),
            (
                "spec.instances",
                "two-with-two-standbys",
                json!({"instances": 2, "durability": {"standbys": 2}}),
            ),
            ("spec.instances", "more-and-stopped", json!({"instances": 5, "stopped": true})),
            ("spec.instances", "fewer-and-larger", json!({"instances": 2, "storage": {"size": "20Gi"}})),
            (
                "spec.stopped",
                "with-another-image",
                json!({"stopped": true, "image": "registry.example/nowhere:1"}),
            ),
            (
                "spec.archive",
                "none-and-asynchronous",
                json!({"archive": null, "durability": {"mode": "Asynchronous"}}),
            ),
            (
                "spec.resources",
                "requests-above-limits",
                json!({"resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}}),
            ),
            (
                "spec.resources",
                "buffers-above-memory",
                json!({"resources": {"requests": {"memory": "256Mi"}, "limits": {"memory": "256Mi"}},
                    "postgresql": {"parameters": {"shared_buffers": "8GB"}}}),
            ),
            (
                "spec.placement",
                "nowhere-to-go",
                json!({"placement": {"antiAffinity": "Required", "nodeSelector": {"disktype": "none"}}}),
            ),
            (
                "spec.instances",
                "more-than-nodes",
                json!({"instances": 9, "placement": {"antiAffinity": "Required"}}),
            ),
            (
                "spec.placement.tolerations",
                "value-with-exists",
                json!({"placement": {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}}),
            ),
            (
                "spec.placement.tolerations",
                "seconds-without-noexecute",
                json!({"placement": {"tolerations": [{"key": "a", "effect": "NoSchedule", "tolerationSeconds": 5}]}}),
            ),
            (
                "spec.placement.tolerations",
                "no-key-with-equal",
                json!({"placement": {"tolerations": [{"operator": "Equal", "value": "b"}]}}),
            ),
        ],
        "BackupSchedule" => vec![
            ("spec.retention", "neither", json!({"retention": {"days": null, "last": null}})),
            ("spec.suspend", "and-immediate", json!({"suspend": true, "immediate": true})),
            (
                "spec.jitterSeconds",
                "above-deadline",
                json!({"jitterSeconds": 86400, "startingDeadlineSeconds": 10}),
            ),
        ],
        _ => Vec::new(),
    }
}

/// For each place where exactly one of several fields may be set: each two of them, and none.
pub fn exclusive(field: &Field<'_>) -> Vec<(Path, String, Value)> {
    let names = alternatives(field.schema);
    let mut all = Vec::new();
    for (index, one) in names.iter().enumerate() {
        for other in names.iter().skip(index + 1) {
            let value = [one, other]
                .into_iter()
                .map(|name| {
                    let path = field.path.field(name);
                    (name.clone(), sample(&field.schema["properties"][name], &path))
                })
                .collect();
            all.push((field.path.clone(), format!("both {one}+{other}"), Value::Object(value)));
        }
    }
    if !names.is_empty() {
        let none = names.iter().map(|name| (name.clone(), Value::Null)).collect();
        all.push((field.path.clone(), format!("neither {}", names.join("+")), Value::Object(none)));
    }
    all
}

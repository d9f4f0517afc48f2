//! The CustomResourceDefinitions, from the types in holdfast-core. Pure.

use crate::{files::Generated, schema};
use anyhow::{Context, Result, bail, ensure};
use holdfast_core::{Backup, BackupSchedule, BackupStore, Database, Restore};
use kube::CustomResourceExt;
use serde_json::{Value, json};

/// Larger ones do not fit into the annotation of `kubectl apply`.
const LIMIT: usize = 256 * 1024;

/// All CRDs, with the operator that each comes with.
pub fn all() -> Result<Vec<(&'static str, Value)>> {
    [
        ("database-operator", serde_json::to_value(Database::crd())?),
        ("backup-scheduler-operator", serde_json::to_value(BackupStore::crd())?),
        ("backup-scheduler-operator", serde_json::to_value(Backup::crd())?),
        ("backup-scheduler-operator", serde_json::to_value(BackupSchedule::crd())?),
        ("restore-operator", serde_json::to_value(Restore::crd())?),
    ]
    .into_iter()
    .map(|(operator, crd)| Ok((operator, finished(crd)?)))
    .collect()
}

/// A CRD as it is shipped: the derived one with normalised schema and the status default. Errors: it breaks a rule.
pub fn finished(mut crd: Value) -> Result<Value> {
    let name = crd.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_string();
    let versions = crd
        .pointer_mut("/spec/versions")
        .and_then(Value::as_array_mut)
        .with_context(|| format!("{name} has no versions"))?;
    for version in versions {
        let root = version
            .pointer_mut("/schema/openAPIV3Schema")
            .with_context(|| format!("{name} has no schema"))?;
        schema::normalize(root);
        // For `kubectl explain`: what the kind is, not how its type came about.
        root["description"] = root["properties"]["spec"]["description"].clone();
        root["properties"]["spec"]["description"] = json!("What is wanted.");
        schema::without_defaults(
            root.pointer_mut("/properties/status").with_context(|| format!("{name} has no status"))?,
        );
        // Tools that wait (kstatus, and so Flux, Argo CD and kubectl wait) must not take an object that no operator has
        // seen for one that is done.
        root["properties"]["status"]["default"] = json!({ "observedGeneration": -1 });
        let problems = schema::problems(root);
        ensure!(problems.is_empty(), "{name}:\n  {}", problems.join("\n  "));
        ensure!(version.pointer("/subresources/status").is_some(), "{name} has no status subresource");
    }
    let names = &crd["spec"]["names"];
    ensure!(names["categories"] == json!(["holdfast"]), "{name} is not in category holdfast");
    ensure!(names["shortNames"].as_array().is_some_and(|n| n.len() == 1), "{name} needs one short name");
    Ok(crd)
}

/// The files: each CRD in deploy/crds, and once more beside the operator that it comes with, because kustomize reads no
/// file outside of its folder.
pub fn files() -> Result<Vec<Generated>> {
    let mut files = Vec::new();
    let mut of_operator: Vec<(&str, String)> = Vec::new();
    for (operator, crd) in all()? {
        let name = crd.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let text = yaml(&crd)?;
        if text.len() >= LIMIT {
            bail!("{name} has {} bytes; at most {LIMIT} are allowed", text.len());
        }
        files.push(Generated { path: format!("deploy/crds/{name}.yaml"), text: format!("{HEADER}{text}") });
        match of_operator.iter_mut().find(|(o, _)| *o == operator) {
            Some((_, all)) => all.push_str(&format!("---\n{text}")),
            None => of_operator.push((operator, text)),
        }
    }
    for (operator, text) in of_operator {
        files.push(Generated {
            path: format!("deploy/{operator}/base/crds.yaml"),
            text: format!("{HEADER}{text}"),
        });
    }
    Ok(files)
}

const HEADER: &str =
    "# Generated from crates/core by `cargo run -p xtask -- crds`: change the types there, not this file.\n";

fn yaml(value: &Value) -> Result<String> {
    let mut text = serde_saphyr::to_string(value).context("cannot write YAML")?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec_of(kind: &str) -> Value {
        let all = all().unwrap();
        let crd = all.iter().find(|(_, crd)| crd["spec"]["names"]["kind"] == kind).unwrap();
        crd.1.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec").unwrap().clone()
    }

    #[test]
    fn the_tree_holds_what_the_code_says() {
        let project = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        crate::files::check(&project, &files().unwrap()).unwrap();
    }

    #[test]
    fn a_written_crd_reads_back_the_same() {
        for (_, crd) in all().unwrap() {
            let back: Value = serde_saphyr::from_str(&yaml(&crd).unwrap()).unwrap();
            assert_eq!(back, crd);
        }
    }

    #[test]
    fn defaults_are_what_users_are_told() {
        let database = spec_of("Database");
        for (path, want) in [
            ("/properties/instances/default", json!(3)),
            ("/properties/deletionPolicy/default", json!("Retain")),
            ("/properties/stopped/default", json!(false)),
            ("/properties/failover/default", json!({"ttlSeconds": 6})),
            ("/properties/postgresql/properties/superuser/default", json!("Disabled")),
            ("/properties/postgresql/properties/initdb/properties/walSegmentSizeMB/default", json!(16)),
            ("/properties/postgresql/default/database", json!("app")),
            ("/properties/postgresql/default/initdb/encoding", json!("UTF8")),
        ] {
            assert_eq!(database.pointer(path), Some(&want), "{path}");
        }
        let backup = spec_of("Backup");
        assert_eq!(backup.pointer("/properties/compression/default/level"), Some(&json!(3)));
        assert_eq!(backup.pointer("/properties/method/default"), Some(&json!("Physical")));
        assert_eq!(spec_of("Restore").pointer("/properties/approve/default"), Some(&json!(true)));
        let schedule = spec_of("BackupSchedule");
        assert_eq!(schedule.pointer("/properties/timeZone/default"), Some(&json!("Etc/UTC")));
        assert_eq!(schedule.pointer("/properties/template/default/method"), Some(&json!("Physical")));
    }

    #[test]
    fn a_database_scales_by_its_instances() {
        let all = all().unwrap();
        assert_eq!(
            all[0].1.pointer("/spec/versions/0/subresources/scale"),
            Some(
                &json!({"specReplicasPath": ".spec.instances", "statusReplicasPath": ".status.instances.ready",
                "labelSelectorPath": ".status.selector"})
            )
        );
    }

    #[test]
    fn every_status_says_that_nothing_was_observed_yet() {
        for (_, crd) in all().unwrap() {
            let status = crd.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/status").unwrap();
            assert_eq!(status["default"], json!({"observedGeneration": -1}));
            assert_eq!(status.get("required"), None);
        }
    }
}

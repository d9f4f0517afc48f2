//! The kinds that are compared, and for each what its objects look like.

use super::{bodies, dice::Dice, schema};
use crate::cluster::project;
use serde_json::{Value, json};
use std::sync::OnceLock;

/// The group under which the project's kinds are installed a second time: operators that run in the cluster must not
/// answer to these objects.
pub const GROUP: &str = "conformance.holdfast.dev";

/// A kind.
pub struct Kind {
    /// Group; empty for the core group.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Plural name.
    pub plural: &'static str,
    /// Whether there is a status subresource.
    pub status: bool,
    /// Good bodies without metadata; the first is the plainest.
    pub samples: Vec<Value>,
    /// Changes: where, and what to put there, good and bad.
    pub edits: Vec<(&'static str, Vec<Value>)>,
    /// Changes of the status.
    pub status_edits: Vec<(&'static str, Vec<Value>)>,
    /// Field selectors that are worth trying.
    pub selectors: &'static [&'static str],
    /// The definition, for the project's own kinds.
    pub definition: Option<Value>,
}

impl Kind {
    /// `group/version`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.into() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The path of the collection in a namespace, or of all namespaces.
    pub fn path(&self, namespace: &str) -> String {
        let root =
            if self.group.is_empty() { "/api/v1".into() } else { format!("/apis/{}", self.api_version()) };
        format!("{root}/namespaces/{namespace}/{}", self.plural)
    }

    /// The schema of the whole object, for the project's own kinds.
    pub fn schema(&self) -> Option<&Value> {
        self.definition.as_ref()?.pointer("/spec/versions/0/schema/openAPIV3Schema")
    }

    /// A change: a path of field names, and what is put there; null takes it away.
    pub fn edit(&self, dice: &mut Dice, status: bool) -> (Vec<String>, Value) {
        if let Some(schema) = self.schema() {
            return schema::edit(dice, schema, if status { "status" } else { "spec" });
        }
        let edits = if status { &self.status_edits } else { &self.edits };
        if edits.is_empty() {
            return (vec!["metadata".into(), "annotations".into(), "note".into()], json!("plain"));
        }
        let (path, values) = dice.pick(edits);
        let path = path.split('/').filter(|p| !p.is_empty()).map(|p| p.replace('~', "/")).collect();
        (path, dice.pick(values).clone())
    }
}

fn definition(plural: &str) -> Option<Value> {
    let path = project().join(format!("deploy/crds/{plural}.holdfast.dev.yaml"));
    let mut definition: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).ok()?).ok()?;
    definition["metadata"]["name"] = format!("{plural}.{GROUP}").into();
    definition["spec"]["group"] = GROUP.into();
    // `kubectl get holdfast` is to show the real ones.
    for field in ["categories", "shortNames"] {
        definition["spec"]["names"].as_object_mut()?.remove(field);
    }
    Some(definition)
}

fn own(kind: &'static str, plural: &'static str, samples: Vec<Value>) -> Kind {
    Kind {
        group: GROUP,
        version: "v1alpha1",
        kind,
        plural,
        status: true,
        samples: samples.into_iter().map(|spec| json!({ "spec": spec })).collect(),
        edits: Vec::new(),
        status_edits: Vec::new(),
        selectors: &["metadata.name=one", "metadata.name!=one", "spec.engine=x"],
        definition: definition(plural),
    }
}

/// How many of [`all`] come from a CustomResourceDefinition; they come first.
pub const CUSTOM: usize = 5;

/// All kinds.
pub fn all() -> &'static [Kind] {
    static ALL: OnceLock<Vec<Kind>> = OnceLock::new();
    ALL.get_or_init(|| {
        let database = json!({"engine": "PostgreSQL", "version": "17", "storage": {"size": "1Gi"}});
        let reference = json!({"databaseRef": {"name": "orders"}});
        let mut kinds = vec![
            own(
                "Database",
                "databases",
                vec![
                    database,
                    json!({"engine": "PostgreSQL", "version": "16", "instances": 5, "storage": {"size": "2Gi", "storageClassName": "fast"},
                        "durability": {"mode": "Required", "standbys": 2}, "archive": {"storeRef": {"name": "main"}},
                        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": 1024}},
                        "placement": {"spreadZones": true, "tolerations": [{"key": "db", "operator": "Exists"}]},
                        "postgresql": {"pgHba": ["local all all trust"], "parameters": {"work_mem": "8MB"}},
                        "imagePullSecrets": [{"name": "pull"}]}),
                ],
            ),
            own(
                "BackupStore",
                "backupstores",
                vec![
                    json!({"volume": {"claimName": "backups"}}),
                    json!({"s3": {"bucket": "b", "prefix": "prod/eu", "endpoint": "https://s3.example:9000"}, "maxParallelBackups": 4}),
                ],
            ),
            own(
                "BackupSchedule",
                "backupschedules",
                vec![
                    json!({"databaseRef": {"name": "orders"}, "schedule": "30 2 * * *"}),
                    json!({"databaseRef": {"name": "orders"}, "schedule": "@daily", "timeZone": "Europe/Paris", "retention": {"days": 3}}),
                ],
            ),
            own(
                "Backup",
                "backups",
                vec![
                    reference.clone(),
                    json!({"databaseRef": {"name": "orders"}, "compression": {"algorithm": "None"}, "deletionPolicy": "Delete"}),
                ],
            ),
            own(
                "Restore",
                "restores",
                vec![
                    reference,
                    json!({"databaseRef": {"name": "orders"}, "pointInTime": {"time": "2020-11-21T09:13:00Z"},
                        "checks": [{"name": "rows", "sql": "select 1", "expect": "1"}]}),
                ],
            ),
        ];
        kinds.extend(bodies::built_in());
        kinds
    })
}

/// The place of a kind in [`all`].
pub fn place(kind: &str) -> usize {
    all().iter().position(|k| k.kind == kind).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_projects_kinds_come_first_and_have_a_schema() {
        let with = |k: &&Kind| k.schema().is_some();
        assert_eq!(all().iter().take_while(with).count(), CUSTOM);
        assert_eq!(all().iter().filter(with).count(), CUSTOM);
        assert_eq!(all()[place("Lease")].path("n"), "/apis/coordination.k8s.io/v1/namespaces/n/leases");
    }
}

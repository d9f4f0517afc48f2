//! What each operator's ServiceAccount may do, and above all what it may not: the API server is asked, not the manifests read.

use super::server::install;
use crate::{
    SYSTEM,
    cluster::{Cluster, project},
    runner::Scene,
};
use anyhow::{Context, Result, bail};
use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    core::v1::ServiceAccount,
};
use kube::api::PostParams;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

/// Group, resource (with subresource), verbs.
type Rule = (&'static str, &'static str, &'static [&'static str]);

const GROUP: &str = "holdfast.dev";
const READ: &[&str] = &["get", "list", "watch"];

/// What none of them may do.
const NEVER: &[Rule] = &[
    ("", "secrets", &["get", "list", "watch", "update", "patch", "deletecollection"]),
    ("", "pods/exec", &["create", "get"]),
    ("", "pods/attach", &["create", "get"]),
    ("", "pods/portforward", &["create", "get"]),
    ("", "pods/ephemeralcontainers", &["patch", "update"]),
    ("", "serviceaccounts/token", &["create"]),
    ("", "nodes", &["patch", "update", "delete"]),
    ("", "namespaces", &["create", "delete", "patch"]),
    ("", "users", &["impersonate"]),
    ("", "groups", &["impersonate"]),
    ("", "serviceaccounts", &["impersonate"]),
    ("", "persistentvolumes", &["create", "delete", "patch", "update"]),
    (
        "rbac.authorization.k8s.io",
        "clusterroles",
        &["create", "update", "patch", "delete", "escalate", "bind"],
    ),
    ("rbac.authorization.k8s.io", "clusterrolebindings", &["create", "update", "patch", "delete"]),
    ("rbac.authorization.k8s.io", "roles", &["escalate", "bind"]),
    ("apiextensions.k8s.io", "customresourcedefinitions", &["create", "update", "patch", "delete"]),
    (
        "admissionregistration.k8s.io",
        "validatingwebhookconfigurations",
        &["create", "update", "patch", "delete"],
    ),
    ("*", "*", &["*"]),
    // Nobody edits another's spec, and what users own is not theirs to remove.
    (GROUP, "databases", &["delete", "deletecollection"]),
    (GROUP, "backupstores", &["create", "delete", "deletecollection"]),
    (GROUP, "restores", &["create", "delete", "deletecollection"]),
];

/// The database operator.
pub async fn database_operator(scene: Scene) -> Result<()> {
    let must: &[Rule] = &[
        (GROUP, "databases", READ),
        (GROUP, "databases/status", &["patch"]),
        (GROUP, "backupstores", READ),
        ("apps", "statefulsets", &["get", "list", "watch", "create", "patch", "delete"]),
        ("", "services", &["create", "patch"]),
        ("", "configmaps", &["create", "patch"]),
        ("", "serviceaccounts", &["create", "patch"]),
        ("", "secrets", &["create", "delete"]),
        ("", "pods", &["get", "list", "watch", "delete"]),
        ("", "persistentvolumeclaims", &["get", "list", "watch", "create", "patch", "delete"]),
        ("rbac.authorization.k8s.io", "roles", &["create", "patch"]),
        ("rbac.authorization.k8s.io", "rolebindings", &["create", "patch"]),
        ("discovery.k8s.io", "endpointslices", &["create"]),
        ("policy", "poddisruptionbudgets", &["create", "patch"]),
        // Deleted with the volumes that it speaks of, when deletionPolicy is Delete.
        ("coordination.k8s.io", "leases", &["get", "list", "watch", "delete"]),
        ("events.k8s.io", "events", &["create", "patch"]),
    ];
    let never: &[Rule] = &[
        (GROUP, "restores", &["get", "list", "watch", "patch", "update"]),
        (GROUP, "backups", &["create", "delete", "patch", "update"]),
        (GROUP, "backupschedules", &["create", "delete", "patch", "update"]),
        (GROUP, "backupstores", &["patch", "update"]),
        ("batch", "jobs", &["deletecollection"]),
    ];
    check(&scene.cluster, "database-operator", must, never).await
}

/// The backup-scheduler operator.
pub async fn backup_scheduler_operator(scene: Scene) -> Result<()> {
    let must: &[Rule] = &[
        (GROUP, "backups", &["get", "list", "watch", "create", "patch", "delete"]),
        (GROUP, "backups/status", &["patch"]),
        (GROUP, "backupschedules", READ),
        (GROUP, "backupschedules/status", &["patch"]),
        (GROUP, "backupstores", READ),
        (GROUP, "backupstores/status", &["patch"]),
        (GROUP, "databases", READ),
        (GROUP, "databases/status", &["patch"]),
        ("apps", "statefulsets", &["get"]),
        ("batch", "jobs", &["get", "list", "watch", "create", "delete"]),
        ("", "pods", READ),
        ("coordination.k8s.io", "leases", &["get", "create", "delete"]),
        ("events.k8s.io", "events", &["create", "patch"]),
    ];
    let never: &[Rule] = &[
        ("", "secrets", &["create", "delete"]),
        ("", "pods", &["create", "delete", "patch", "update"]),
        ("", "persistentvolumeclaims", &["create", "delete", "patch", "update"]),
        ("apps", "statefulsets", &["create", "delete", "patch", "update"]),
        ("", "services", &["create", "delete", "patch", "update"]),
        ("", "configmaps", &["create", "delete", "patch", "update"]),
        ("rbac.authorization.k8s.io", "roles", &["create", "delete", "patch", "update"]),
        (GROUP, "databases", &["create", "patch", "update"]),
        (GROUP, "restores", &["patch", "update"]),
    ];
    check(&scene.cluster, "backup-scheduler-operator", must, never).await
}

/// The restore operator.
pub async fn restore_operator(scene: Scene) -> Result<()> {
    let must: &[Rule] = &[
        (GROUP, "restores", &["get", "list", "watch", "patch"]),
        (GROUP, "restores/status", &["patch"]),
        (GROUP, "databases", &["get", "list", "watch", "create"]),
        (GROUP, "backups", &["get", "list", "watch", "create"]),
        (GROUP, "backupstores", &["get"]),
        ("batch", "jobs", &["get", "list", "watch", "create", "delete"]),
        ("", "pods", READ),
        ("", "persistentvolumeclaims", &["get", "list", "watch", "create", "patch", "delete"]),
        ("coordination.k8s.io", "leases", &["get", "create", "delete"]),
        ("events.k8s.io", "events", &["create", "patch"]),
    ];
    let never: &[Rule] = &[
        ("", "secrets", &["create", "delete"]),
        ("", "pods", &["create", "delete", "patch", "update"]),
        ("apps", "statefulsets", &["create", "delete", "patch", "update"]),
        ("", "services", &["create", "delete", "patch", "update"]),
        ("rbac.authorization.k8s.io", "roles", &["create", "delete", "patch", "update"]),
        (GROUP, "databases", &["patch", "update"]),
        (GROUP, "databases/status", &["patch", "update"]),
        (GROUP, "backups", &["delete", "patch", "update"]),
        (GROUP, "backupschedules", &["create", "delete", "patch", "update"]),
    ];
    check(&scene.cluster, "restore-operator", must, never).await
}

static GRANTED: OnceCell<()> = OnceCell::const_new();

/// Without deployed operators the permissions of deploy/ are applied, so that this needs an API server only.
async fn grant(cluster: &Cluster) -> Result<()> {
    if cluster.api::<ServiceAccount>(SYSTEM).get_opt("database-operator").await?.is_some() {
        return Ok(());
    }
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}});
    cluster.kubectl_with(&["apply", "--server-side", "-f", "-"], Some(&namespace.to_string())).await?;
    for operator in ["database-operator", "backup-scheduler-operator", "restore-operator"] {
        let folder = project().join("deploy").join(operator).join("base").display().to_string();
        let listed = cluster.kubectl(&["apply", "-k", &folder, "--dry-run=client", "-o", "json"]).await?;
        let list: Value = serde_json::from_str(&listed)?;
        let wanted = ["ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"];
        for item in list["items"].as_array().context("kubectl lists no items")? {
            if wanted.iter().any(|k| item["kind"] == **k) {
                cluster.kubectl_with(&["apply", "--server-side", "-f", "-"], Some(&item.to_string())).await?;
            }
        }
    }
    Ok(())
}

async fn check(cluster: &Cluster, account: &str, must: &[Rule], never: &[Rule]) -> Result<()> {
    install(cluster).await?;
    GRANTED.get_or_try_init(|| grant(cluster)).await?;
    let found = cluster.api::<ServiceAccount>(SYSTEM).get_opt(account).await?;
    found.with_context(|| format!("there is no ServiceAccount {SYSTEM}/{account}"))?;
    let mut wrong = Vec::new();
    for (rules, expected) in [(must, true), (never, false), (NEVER, false)] {
        for (group, resource, verbs) in rules {
            for verb in *verbs {
                if allowed(cluster, account, group, resource, verb).await? != expected {
                    let word = if expected { "may not" } else { "may" };
                    let group = if group.is_empty() { String::new() } else { format!(".{group}") };
                    wrong.push(format!("it {word} {verb} {resource}{group}"));
                }
            }
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("{account}:\n  {}", wrong.join("\n  "))
}

/// Asks for a namespace that has nothing to do with the operators: that is where databases are.
async fn allowed(cluster: &Cluster, account: &str, group: &str, resource: &str, verb: &str) -> Result<bool> {
    let (resource, subresource) = match resource.split_once('/') {
        Some((resource, sub)) => (resource, Some(sub.to_string())),
        None => (resource, None),
    };
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{SYSTEM}:{account}")),
            groups: Some(
                [
                    "system:serviceaccounts",
                    &format!("system:serviceaccounts:{SYSTEM}"),
                    "system:authenticated",
                ]
                .map(String::from)
                .to_vec(),
            ),
            resource_attributes: Some(ResourceAttributes {
                namespace: Some("shop".into()),
                group: Some(group.into()),
                resource: Some(resource.into()),
                subresource,
                verb: Some(verb.into()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let api = cluster.cluster_api::<SubjectAccessReview>();
    let answer = api.create(&PostParams::default(), &review).await.context("SubjectAccessReview")?;
    Ok(answer.status.is_some_and(|s| s.allowed))
}

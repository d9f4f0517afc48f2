//! What the agents may do: ServiceAccount, Role, RoleBinding. Pure.

use crate::{plan::children, validate::ValidatedDatabase};
use holdfast_core::names;
use k8s_openapi::api::{
    core::v1::ServiceAccount,
    rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject},
};

/// The pods' ServiceAccount.
pub fn service_account(db: &ValidatedDatabase) -> ServiceAccount {
    let mut metadata = children::meta(db, db.name.as_str().into());
    let annotations = &db.spec.service_account.annotations;
    metadata.annotations = (!annotations.is_empty()).then(|| annotations.clone());
    ServiceAccount { metadata, ..ServiceAccount::default() }
}

fn rule(group: &str, resource: &str, objects: Vec<String>, verbs: &[&str]) -> PolicyRule {
    PolicyRule {
        api_groups: Some(vec![group.into()]),
        resources: Some(vec![resource.into()]),
        resource_names: (!objects.is_empty()).then_some(objects),
        verbs: verbs.iter().map(|v| (*v).to_string()).collect(),
        ..PolicyRule::default()
    }
}

/// The agents' Role. `pods` is how many ordinals may exist: also those that a scale down is about to end, which still say
/// so on their own pod. Only creating a Lease cannot be bound to a name: Kubernetes does not know it at that time.
pub fn role(db: &ValidatedDatabase, pods: i32) -> Role {
    let name = db.name.as_str();
    Role {
        metadata: children::meta(db, name.into()),
        rules: Some(vec![
            rule(
                "coordination.k8s.io",
                "leases",
                vec![names::lease_primary(name)],
                &["get", "list", "watch", "update", "patch"],
            ),
            rule("coordination.k8s.io", "leases", Vec::new(), &["create"]),
            rule(
                "discovery.k8s.io",
                "endpointslices",
                vec![names::service_rw(name)],
                &["get", "list", "watch", "update"],
            ),
            rule("", "configmaps", vec![names::config_map(name)], &["get", "list", "watch"]),
            rule("", "pods", (0..pods).map(|i| names::pod(name, i)).collect(), &["get", "patch"]),
        ]),
    }
}

/// Gives the Role to the ServiceAccount.
pub fn role_binding(db: &ValidatedDatabase) -> RoleBinding {
    let name = db.name.as_str();
    RoleBinding {
        metadata: children::meta(db, name.into()),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".into(),
            kind: "Role".into(),
            name: name.into(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".into(),
            name: name.into(),
            namespace: Some(db.namespace.clone()),
            ..Subject::default()
        }]),
    }
}

//! PodDisruptionBudget: one instance at a time may be drained. Pure.

use crate::{
    plan::{children, services::instance_selector},
    validate::ValidatedDatabase,
};
use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

/// The budget. None for a single instance: it would only make its node undrainable.
pub fn budget(db: &ValidatedDatabase, instances: i32) -> Option<PodDisruptionBudget> {
    (instances > 1).then(|| PodDisruptionBudget {
        metadata: children::meta(db, db.name.as_str().into()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(LabelSelector {
                match_labels: Some(instance_selector(db.name.as_str())),
                ..LabelSelector::default()
            }),
            // A broken instance must not keep its node from being drained.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".into()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    })
}

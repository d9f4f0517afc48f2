//! Holdfast's objects as tests handle them: apply from JSON, read conditions, wait for conditions.

use crate::{
    MANAGER,
    cluster::Cluster,
    wait::{Hopeless, Seen, wait_for},
};
use anyhow::{Context, Result, anyhow};
use holdfast_core::{Backup, BackupSchedule, BackupStore, Database, Restore, conditions};
use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PropagationPolicy},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{fmt::Debug, time::Duration};

/// A kind of Holdfast's.
pub trait Kind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + DeserializeOwned
    + Debug
    + serde::Serialize
    + 'static
{
    /// Its conditions.
    fn conditions(&self) -> &[Condition];
    /// Its observed generation.
    fn observed(&self) -> Option<i64>;
}

macro_rules! kind {
    ($($kind:ty),*) => {$(
        impl Kind for $kind {
            fn conditions(&self) -> &[Condition] {
                self.status.as_ref().map_or(&[], |s| s.conditions.as_slice())
            }
            fn observed(&self) -> Option<i64> {
                self.status.as_ref().and_then(|s| s.observed_generation)
            }
        }
    )*};
}
kind!(Database, BackupStore, Backup, BackupSchedule, Restore);

/// Applies an object with this spec, as a user would.
pub async fn apply<K: Kind>(cluster: &Cluster, namespace: &str, name: &str, spec: &Value) -> Result<K> {
    let body = json!({
        "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": {"name": name}, "spec": spec,
    });
    let parameters = PatchParams::apply(MANAGER).force();
    let api: Api<K> = cluster.api(namespace);
    let applied = api.patch(name, &parameters, &Patch::Apply(&body)).await;
    applied.with_context(|| format!("applying {} {name}", K::kind(&())))
}

/// Changes fields by a merge patch; null removes.
pub async fn merge<K: Kind>(cluster: &Cluster, namespace: &str, name: &str, patch: &Value) -> Result<K> {
    let api: Api<K> = cluster.api(namespace);
    let patched = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
    patched.with_context(|| format!("patching {} {name}", K::kind(&())))
}

/// Deletes an object and waits until it is gone.
pub async fn delete<K: Kind>(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    how: PropagationPolicy,
    limit: Duration,
) -> Result<()> {
    let api: Api<K> = cluster.api(namespace);
    let parameters = DeleteParams { propagation_policy: Some(how), ..DeleteParams::default() };
    api.delete(name, &parameters).await.with_context(|| format!("deleting {} {name}", K::kind(&())))?;
    wait_for(&format!("{} {name} to be gone", K::kind(&())), limit, || async {
        Ok(match api.get_opt(name).await? {
            None => Seen::Yes(()),
            Some(left) => Seen::NotYet(format!("it is there with finalizers {:?}", left.finalizers())),
        })
    })
    .await
}

/// All conditions in one line.
pub fn describe<K: Kind>(object: &K) -> String {
    let conditions = object.conditions().iter().map(|c| {
        format!(
            "{}={} {}{}{}",
            c.type_,
            c.status,
            c.reason,
            if c.message.is_empty() { "" } else { ": " },
            c.message
        )
    });
    let all: Vec<String> = conditions.collect();
    if all.is_empty() { "no conditions".into() } else { all.join("; ") }
}

/// Finds a condition that speaks of the object's present generation.
pub fn current<'a, K: Kind>(object: &'a K, type_: &str) -> Option<&'a Condition> {
    let found = conditions::find(object.conditions(), type_)?;
    (found.observed_generation == object.meta().generation).then_some(found)
}

/// Whether a condition is True for the present generation.
pub fn holds<K: Kind>(object: &K, type_: &str) -> bool {
    current(object, type_).is_some_and(|c| c.status == "True")
}

/// Waits until a condition has a status for the present generation, and returns the object.
pub async fn condition<K: Kind>(
    api: &Api<K>,
    name: &str,
    type_: &str,
    status: &str,
    limit: Duration,
) -> Result<K> {
    let what = format!("{} {name} to be {type_}={status}", K::kind(&()));
    wait_for(&what, limit, || async {
        let object = api.get(name).await?;
        Ok(match current(&object, type_) {
            Some(c) if c.status == status => Seen::Yes(object),
            _ => Seen::NotYet(describe(&object)),
        })
    })
    .await
}

/// Waits until a run (Backup, Restore) succeeded; fails at once when it says that it has failed for good.
pub async fn succeeded<K: Kind>(api: &Api<K>, name: &str, limit: Duration) -> Result<K> {
    let what = format!("{} {name} to succeed", K::kind(&()));
    wait_for(&what, limit, || async {
        let object = api.get(name).await?;
        if holds(&object, conditions::types::SUCCEEDED) {
            return Ok(Seen::Yes(object));
        }
        let failed = current(&object, conditions::types::SUCCEEDED).is_some_and(|c| c.status == "False");
        if failed && holds(&object, conditions::types::STALLED) {
            return Err(anyhow!(Hopeless(describe(&object))));
        }
        Ok(Seen::NotYet(describe(&object)))
    })
    .await
}

/// Waits until an object says `Stalled=True` and returns that condition.
pub async fn stalled<K: Kind>(api: &Api<K>, name: &str, limit: Duration) -> Result<Condition> {
    let object = condition(api, name, conditions::types::STALLED, "True", limit).await?;
    let found = current(&object, conditions::types::STALLED).cloned();
    found.context("the condition is gone again")
}

//! Puts our finalizer on an object or takes it off. Touches metadata.finalizers only.

use holdfast_core::names;
use holdfast_runtime::apply::bounded;
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::fmt::Debug;

/// Puts the finalizer on, or takes it off. The resourceVersion is a precondition: others write to the same list.
///
/// Errors: the API refuses, for instance because the object was changed meanwhile. An object that is gone is no error.
pub async fn set<K>(api: &Api<K>, object: &K, wanted: bool) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let mut all: Vec<&str> =
        object.finalizers().iter().map(String::as_str).filter(|f| *f != names::FINALIZER).collect();
    if wanted {
        all.push(names::FINALIZER);
    }
    let patch = json!({"metadata": {"resourceVersion": object.resource_version(), "finalizers": all}});
    gone_is_fine(bounded(api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch))).await)
}

/// Takes one owner off an object, and leaves the others. Touches metadata.ownerReferences only.
///
/// Errors: as of [`set`].
pub async fn disown<K>(api: &Api<K>, object: &K, owner_uid: &str) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let others: Vec<_> = object.owner_references().iter().filter(|o| o.uid != owner_uid).collect();
    let patch =
        json!({"metadata": {"resourceVersion": object.resource_version(), "ownerReferences": others}});
    gone_is_fine(bounded(api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch))).await)
}

fn gone_is_fine<K>(result: Result<K, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

//! Writes to the Kubernetes API, each with a deadline. Touches the one object it is given.

use kube::{
    Api, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt::Debug, future::Future, time::Duration};

/// How long one write may take. A reconcile has room for a few of them.
pub const DEADLINE: Duration = Duration::from_secs(15);

/// Server-side apply with force: this manager owns exactly the fields in `object`, and drops those it no longer names.
///
/// Fills apiVersion and kind. With a uid it is meant for that very object: on another one of the name, or on none, it is a conflict.
///
/// Errors: the object has no name, the API refuses it, or no answer within [`DEADLINE`].
pub async fn apply<K>(api: &Api<K>, manager: &str, object: &K) -> Result<K, kube::Error>
where
    K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + Debug,
{
    let mut body = serde_json::to_value(object).map_err(kube::Error::SerdeError)?;
    let name = object.meta().name.clone().unwrap_or_default();
    if let Some(meta) = body.get_mut("metadata").and_then(serde_json::Value::as_object_mut) {
        // What the server fills in is not ours to apply; managedFields would even be refused.
        for field in ["managedFields", "resourceVersion", "creationTimestamp", "generation", "selfLink"] {
            meta.remove(field);
        }
    }
    apply_json(api, manager, &name, &body).await
}

/// Server-side apply with force of a partial intent: only the fields in `body`. Fills apiVersion, kind and the name. A uid in it is a
/// precondition, as of [`apply`].
///
/// Errors: the API refuses it, or no answer within [`DEADLINE`].
pub async fn apply_json<K>(
    api: &Api<K>,
    manager: &str,
    name: &str,
    body: &serde_json::Value,
) -> Result<K, kube::Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug,
{
    let intent = typed::<K>(name, body);
    bounded(api.patch(name, &PatchParams::apply(manager).force(), &Patch::Apply(&intent))).await
}

/// Creates an object. `None`: one of that name is there already; it is the caller's to find out whose.
///
/// Errors: the API refuses it, or no answer within [`DEADLINE`] (then the object may exist).
pub async fn create<K>(api: &Api<K>, object: &K) -> Result<Option<K>, kube::Error>
where
    K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + Debug,
{
    match bounded(api.create(&PostParams::default(), object)).await {
        Ok(created) => Ok(Some(created)),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Deletes the very object with this uid. `false`: it is gone already, or another one bears the name now.
///
/// Errors: the API refuses it, or no answer within [`DEADLINE`].
pub async fn delete<K>(
    api: &Api<K>,
    name: &str,
    uid: &str,
    propagation: PropagationPolicy,
) -> Result<bool, kube::Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug,
{
    let params = DeleteParams {
        propagation_policy: Some(propagation),
        preconditions: Some(Preconditions { uid: Some(uid.into()), resource_version: None }),
        ..DeleteParams::default()
    };
    match bounded(api.delete(name, &params)).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(false),
        // Another one bears the name, or somebody was in the way: only the first is as good as done.
        Err(kube::Error::Api(status)) if status.is_conflict() => match bounded(api.get_opt(name)).await? {
            Some(there) if there.meta().uid.as_deref() == Some(uid) => Err(kube::Error::Api(status)),
            _ => Ok(false),
        },
        Err(error) => Err(error),
    }
}

/// Server-side apply of `{status}` on the status subresource of the very object that was seen: this manager owns exactly the fields in
/// `status`.
///
/// It is conditional on the version that was seen, because the API server ignores a uid in a custom resource's status: without
/// it the end of an object could be told to its successor of the same name. When the same object was changed since by somebody else,
/// which says nothing against our fields, its newest version is taken.
///
/// Errors: the object is gone or another one bears its name (a conflict), the API refuses it, or no answer within [`DEADLINE`].
pub async fn status<K, S>(api: &Api<K>, manager: &str, seen: &K, status: &S) -> Result<K, kube::Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug,
    S: Serialize,
{
    /// So often somebody else may be faster.
    const TRIES: usize = 4;
    let status = serde_json::to_value(status).map_err(kube::Error::SerdeError)?;
    let seen = seen.meta();
    let name = seen.name.clone().unwrap_or_default();
    let params = PatchParams::apply(manager).force();
    let mut version = seen.resource_version.clone();
    bounded(async {
        let mut tries = 1;
        loop {
            let body = serde_json::json!({"metadata": {"resourceVersion": version}, "status": status});
            let intent = typed::<K>(&name, &body);
            match api.patch_status(&name, &params, &Patch::Apply(&intent)).await {
                Err(kube::Error::Api(status)) if status.is_conflict() && tries < TRIES => {
                    match api.get_metadata_opt(&name).await? {
                        Some(there) if there.metadata.uid == seen.uid => {
                            version = there.metadata.resource_version;
                            tries += 1;
                        }
                        _ => return Err(kube::Error::Api(status)),
                    }
                }
                other => return other,
            }
        }
    })
    .await
}

/// Whether the object that a write with a uid was meant for is no longer there, or another one bears its name: the API server then
/// says that the uid is immutable, or that there is a conflict.
pub fn misses(status: &kube::core::Status) -> bool {
    status.is_not_found() || status.is_conflict() || other_uid(status)
}

fn other_uid(status: &kube::core::Status) -> bool {
    status.is_invalid() && status.message.contains("metadata.uid: Invalid value")
}

/// Whether the API server will say the same again: the request itself is what it does not take. For a person to know.
pub fn refuses(status: &kube::core::Status) -> bool {
    /// What the server says, with code 500 and no reason, of an applied object that it cannot read as its kind.
    const UNREADABLE: [&str; 4] =
        ["failed to create typed", "failed to convert", "quantities must match", "unable to parse quantity"];
    let unreadable = || UNREADABLE.iter().any(|words| status.message.contains(words));
    // That another object bears the name by now is seen at the next look.
    let invalid = status.is_invalid() && !other_uid(status);
    status.is_forbidden() || invalid || status.code == 400 || (status.code == 500 && unreadable())
}

/// Whether this was refused because the namespace is being deleted: nothing can be made there any more, and nobody is to be told.
pub fn namespace_ends(status: &kube::core::Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.is_forbidden() && causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// What the API server says of a request that it will refuse again, for a condition; `None`: trying again may help, or the
/// namespace ends.
pub fn refusal(error: &kube::Error) -> Option<&str> {
    match error {
        kube::Error::Api(status) if refuses(status) && !namespace_ends(status) => Some(&status.message),
        _ => None,
    }
}

/// Any call to the API, with [`DEADLINE`]. Reads of an observe step use it too.
///
/// Errors: the call's own, or [`kube::Error::Service`] when the time is up.
pub async fn bounded<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    within(DEADLINE, call).await
}

/// Any call to the API, with a deadline of its own.
///
/// Errors: the call's own, or [`kube::Error::Service`] when the time is up.
pub async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, kube::Error> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result,
        Err(_) => Err(kube::Error::Service(
            format!("no answer from the Kubernetes API within {} s", limit.as_secs_f64()).into(),
        )),
    }
}

/// The body with apiVersion, kind and metadata.name, which server-side apply demands.
fn typed<K: Resource<DynamicType = ()>>(name: &str, body: &serde_json::Value) -> serde_json::Value {
    let mut intent = body.clone();
    if let Some(object) = intent.as_object_mut() {
        object.insert("apiVersion".into(), K::api_version(&()).into());
        object.insert("kind".into(), K::kind(&()).into());
        let meta = object.entry("metadata").or_insert_with(|| serde_json::json!({}));
        if let Some(meta) = meta.as_object_mut() {
            meta.insert("name".into(), name.into());
        }
    }
    intent
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    #[test]
    fn an_intent_carries_its_type_and_name() {
        let body = serde_json::json!({"metadata": {"labels": {"a": "b"}}, "data": {"k": "v"}});
        let intent = typed::<ConfigMap>("orders-config", &body);
        assert_eq!(
            intent,
            serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"k": "v"},
                "metadata": {"labels": {"a": "b"}, "name": "orders-config"}})
        );
    }

    #[test]
    fn what_the_api_server_will_refuse_again_is_told_from_a_bad_moment() {
        let said = |code: u16, reason: &str, message: &str| kube::core::Status {
            code,
            reason: reason.into(),
            message: message.into(),
            ..kube::core::Status::default()
        };
        let quantity =
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
        for status in [
            said(403, "Forbidden", "exceeded quota"),
            said(422, "Invalid", "spec.replicas: Invalid value"),
            said(400, "BadRequest", "cannot be handled as a Job"),
            said(500, "", quantity),
            said(
                500,
                "",
                "failed to create typed patch object (shop/orders; apps/v1, Kind=StatefulSet): .spec.x: expected numeric",
            ),
        ] {
            assert!(refuses(&status), "{status:?}");
        }
        for status in [
            said(500, "InternalError", "Internal error occurred: etcdserver: request timed out"),
            said(500, "", "etcdserver: leader changed"),
            said(503, "ServiceUnavailable", "apiserver is shutting down"),
            said(409, "Conflict", "the object has been modified"),
            said(429, "TooManyRequests", "slow down"),
        ] {
            assert!(!refuses(&status), "{status:?}");
        }
    }

    #[tokio::test]
    async fn a_call_that_never_answers_ends() {
        let result: Result<(), _> = within(Duration::from_millis(20), std::future::pending()).await;
        assert!(result.unwrap_err().to_string().contains("0.02 s"));
    }
}

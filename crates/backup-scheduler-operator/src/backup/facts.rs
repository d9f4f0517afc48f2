//! What must be looked up right before an attempt begins, because no cache holds it. Reads only.

use crate::context::Context;
use holdfast_core::{
    Restore, conditions,
    conditions::types,
    names::{self, LABEL_DATABASE, LABEL_OPERATION_TOKEN},
};
use holdfast_runtime::apply::bounded;
use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod};
use kube::{ResourceExt, api::ListParams};

/// What was looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Image of the database's pods. From the StatefulSet, so that there is no second catalogue of images.
    pub image: Option<String>,
    /// A pod that still works under an operation on this database.
    pub pod: Option<String>,
    /// A Restore that works on this database, or has not cleaned up yet.
    pub restore: Option<String>,
}

/// Looks them up. Errors: the name of what could not be read, and why.
pub async fn gather(
    ctx: &Context,
    namespace: &str,
    database: &str,
) -> Result<Facts, (&'static str, kube::Error)> {
    let set = bounded(ctx.api::<StatefulSet>(namespace).get_opt(database)).await;
    let set = set.map_err(|e| ("get the StatefulSet", e))?;
    let image = set
        .and_then(|s| s.spec?.template.spec)
        .and_then(|pod| pod.containers.into_iter().find(|c| c.name == "postgres").and_then(|c| c.image));
    let workers =
        ListParams::default().labels(&format!("{LABEL_DATABASE}={database},{LABEL_OPERATION_TOKEN}"));
    let pods = bounded(ctx.api::<Pod>(namespace).list(&workers)).await.map_err(|e| ("list pods", e))?;
    let pod = pods.items.iter().find(|p| is_live(p)).map(ResourceExt::name_any);
    let restores = restores(ctx, namespace).await?;
    let restore = restores.iter().find(|r| works_on(r, database)).map(ResourceExt::name_any);
    Ok(Facts { image, pod, restore })
}

/// The Restores of a namespace; none where that kind is not installed.
pub async fn restores(ctx: &Context, namespace: &str) -> Result<Vec<Restore>, (&'static str, kube::Error)> {
    match bounded(ctx.api::<Restore>(namespace).list(&ListParams::default())).await {
        Ok(list) => Ok(list.items),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Vec::new()),
        Err(error) => Err(("list Restores", error)),
    }
}

fn is_live(pod: &Pod) -> bool {
    !matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Whether a Restore fills, or is about to replace, this database: it holds its finalizer exactly so long.
fn works_on(restore: &Restore, database: &str) -> bool {
    let target = restore.spec.database_ref.as_ref().map(|r| &r.name);
    let target = target.or(restore.spec.new_database.as_ref().map(|n| &n.name));
    target.is_some_and(|t| t == database) && restore.finalizers().iter().any(|f| f == names::FINALIZER)
}

/// Whether a Restore may still read from the store.
pub fn is_unfinished(restore: &Restore) -> bool {
    let conditions = restore.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let over = conditions::is_true(conditions, types::SUCCEEDED)
        || conditions::is_false(conditions, types::SUCCEEDED);
    !over || restore.finalizers().iter().any(|f| f == names::FINALIZER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn restore(spec: serde_json::Value, finalizers: &[&str], status: serde_json::Value) -> Restore {
        serde_json::from_value(json!({
            "apiVersion": "holdfast.dev/v1alpha1", "kind": "Restore",
            "metadata": {"name": "undo", "namespace": "shop", "finalizers": finalizers}, "spec": spec, "status": status
        }))
        .unwrap()
    }

    #[test]
    fn a_restore_is_in_the_way_while_it_holds_its_finalizer() {
        let spec = json!({"databaseRef": {"name": "orders"}});
        assert!(works_on(&restore(spec.clone(), &[names::FINALIZER], json!({})), "orders"));
        assert!(
            !works_on(&restore(spec.clone(), &[], json!({})), "orders"),
            "a dry run does not stop backups"
        );
        assert!(!works_on(&restore(spec, &[names::FINALIZER], json!({})), "orders-eu"));
    }

    #[test]
    fn an_unfinished_restore_may_still_read() {
        let spec = json!({"databaseRef": {"name": "orders"}});
        let over = |status: &str| {
            json!({"conditions": [{"type": "Succeeded", "status": status, "reason": "x", "message": "",
                "lastTransitionTime": "2026-11-21T00:00:00Z"}]})
        };
        assert!(is_unfinished(&restore(spec.clone(), &[], over("Unknown"))));
        assert!(!is_unfinished(&restore(spec.clone(), &[], over("False"))));
        assert!(is_unfinished(&restore(spec, &[names::FINALIZER], over("True"))));
    }
}

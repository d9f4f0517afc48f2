//! Writes the status of a BackupStore, and tells of its changes. Touches only that.

use crate::{
    context::Context,
    store::{observe::Observed, plan::Plan},
};
use holdfast_core::{BackupStore, conditions, conditions::types, names::managers};
use holdfast_runtime::apply;
use kube::ResourceExt;

/// The status could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the status of the BackupStore")]
pub struct Error(#[source] kube::Error);

/// Writes the plan's status, if it says something new.
pub async fn write(ctx: &Context, observed: &Observed, plan: &Plan) -> Result<(), Error> {
    let store = &observed.store;
    if store.status.as_ref() == Some(&plan.status) {
        return Ok(());
    }
    let api = ctx.api::<BackupStore>(&store.namespace().unwrap_or_default());
    apply::status(&api, managers::BACKUP, store.as_ref(), &plan.status).await.map_err(Error)?;
    let old = store.status.as_ref().and_then(|s| conditions::find(&s.conditions, types::READY));
    if let Some(new) = conditions::find(&plan.status.conditions, types::READY)
        && old.is_none_or(|o| o.status != new.status || o.reason != new.reason)
    {
        match new.status.as_str() {
            "True" => ctx.events.normal(store.as_ref(), &new.reason, "Probe", &new.message).await,
            "False" => ctx.events.warning(store.as_ref(), &new.reason, "Probe", &new.message).await,
            _ => {}
        }
    }
    Ok(())
}

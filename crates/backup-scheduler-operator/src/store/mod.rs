//! BackupStore: whether a store can be used, found out by a worker that writes, reads back and deletes an object.

pub mod apply;
pub mod observe;
pub mod plan;
pub mod status;

use crate::context::Context;
use holdfast_core::BackupStore;
use kube::runtime::controller::Action;
use std::sync::Arc;

/// Why a reconcile of a BackupStore failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something could not be read.
    #[error(transparent)]
    Observe(#[from] observe::Error),
    /// Something could not be written.
    #[error(transparent)]
    Apply(#[from] apply::Error),
    /// The status could not be written.
    #[error(transparent)]
    Status(#[from] status::Error),
}

/// Brings one BackupStore a step further. Asks the API server for nothing while there is nothing to do.
pub async fn reconcile(store: Arc<BackupStore>, ctx: Arc<Context>) -> Result<Action, Error> {
    if store.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let now = ctx.now();
    let cached = observe::cached(&ctx, store, now).await?;
    let plan = plan::plan(&cached, now);
    if plan.is_nothing(&cached) {
        return Ok(Action::requeue(plan.again));
    }
    // The cache may be old: what is written rests on what is there now.
    let Some(observed) = observe::live(&ctx, &cached.store, now).await? else {
        return Ok(Action::await_change());
    };
    let plan = plan::plan(&observed, now);
    let again = plan.again;
    status::write(&ctx, &observed, &plan).await?;
    let mut said = plan.clone();
    if let Err(error) = apply::apply(&ctx, &observed, plan).await {
        if let Some(words) = error.refusal() {
            said.status = plan::refused(&said.status, &words, observed.store.metadata.generation, now);
            status::write(&ctx, &observed, &said).await?;
        }
        return Err(error.into());
    }
    Ok(Action::requeue(again))
}

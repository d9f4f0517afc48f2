//! Reads a BackupStore, the Jobs of its probes and what the newest one says. Writes nothing.

use crate::{
    cache,
    context::Context,
    jobs::{self, PROBE, Seen},
    store::plan,
};
use holdfast_core::BackupStore;
use holdfast_runtime::apply::bounded;
use k8s_openapi::{api::batch::v1::Job, jiff::Timestamp};
use kube::{ResourceExt, api::ListParams};
use std::sync::Arc;

/// A read that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct Error {
    what: &'static str,
    #[source]
    source: kube::Error,
}

/// What is observed of a BackupStore.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The store.
    pub store: Arc<BackupStore>,
    /// Jobs of its probes.
    pub jobs: Vec<Arc<Job>>,
    /// What the current probe says, if there is one.
    pub seen: Option<Seen>,
}

/// From the cache, apart from the pods of a probe that is over or slow.
pub async fn cached(ctx: &Context, store: Arc<BackupStore>, now: Timestamp) -> Result<Observed, Error> {
    let (namespace, uid) = (store.namespace().unwrap_or_default(), store.uid().unwrap_or_default());
    let jobs = cache::filter(&ctx.caches.jobs, &namespace, |j| jobs::is_for(j, PROBE, &uid));
    complete(ctx, store, jobs, now).await
}

/// From the API. `None`: the store is gone.
pub async fn live(ctx: &Context, store: &BackupStore, now: Timestamp) -> Result<Option<Observed>, Error> {
    let (namespace, uid) = (store.namespace().unwrap_or_default(), store.uid().unwrap_or_default());
    let fail = |what| move |source| Error { what, source };
    let found = bounded(ctx.api::<BackupStore>(&namespace).get_opt(&store.name_any())).await;
    let Some(store) =
        found.map_err(fail("get the BackupStore"))?.filter(|s| s.uid().as_deref() == Some(&uid))
    else {
        return Ok(None);
    };
    let by_label = ListParams::default().labels(&jobs::selector(PROBE, &uid));
    let list =
        bounded(ctx.api::<Job>(&namespace).list(&by_label)).await.map_err(fail("list the probes' Jobs"))?;
    let jobs = list.items.into_iter().map(Arc::new).collect();
    complete(ctx, Arc::new(store), jobs, now).await.map(Some)
}

async fn complete(
    ctx: &Context,
    store: Arc<BackupStore>,
    jobs: Vec<Arc<Job>>,
    now: Timestamp,
) -> Result<Observed, Error> {
    let current = plan::current(&store, &jobs).cloned();
    let seen = match current {
        Some(job) => {
            let looked = jobs::look(ctx, &job, &store.spec, now).await;
            Some(looked.map_err(|source| Error { what: "read the probe's pods", source })?)
        }
        None => None,
    };
    Ok(Observed { store, jobs, seen })
}

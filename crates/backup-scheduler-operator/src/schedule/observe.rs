//! Reads a BackupSchedule, its Database, Backups, store and retention's Jobs. Writes nothing.

use crate::{
    backup, cache,
    context::Context,
    jobs::{self, RETENTION, Seen},
    schedule::retention,
};
use holdfast_core::{Backup, BackupSchedule, BackupStore, Database, names};
use holdfast_runtime::apply::bounded;
use k8s_openapi::{api::batch::v1::Job, jiff::Timestamp};
use kube::{Resource, ResourceExt, api::ListParams, core::NamespaceResourceScope};
use serde::de::DeserializeOwned;
use std::{collections::HashSet, fmt::Debug, sync::Arc};

/// A read that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct Error {
    what: &'static str,
    #[source]
    source: kube::Error,
}

/// What is observed of a BackupSchedule.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The schedule.
    pub schedule: Arc<BackupSchedule>,
    /// Its Database.
    pub database: Option<Arc<Database>>,
    /// All Backups of that Database, whoever made them.
    pub backups: Vec<Arc<Backup>>,
    /// All schedules of that Database, this one included.
    pub peers: Vec<Arc<BackupSchedule>>,
    /// The store that its Backups go to.
    pub store: Option<Arc<BackupStore>>,
    /// Jobs of its retention.
    pub jobs: Vec<Arc<Job>>,
    /// What the current one says.
    pub seen: Option<Seen>,
}

/// From the cache, apart from the pods of a retention Job that is over or slow.
pub async fn cached(ctx: &Context, schedule: Arc<BackupSchedule>, now: Timestamp) -> Result<Observed, Error> {
    let (namespace, uid) = (schedule.namespace().unwrap_or_default(), schedule.uid().unwrap_or_default());
    let name = schedule.spec.database_ref.name.clone();
    let mut observed = Observed {
        database: cache::get(&ctx.caches.databases, &namespace, &name),
        backups: cache::backups_of(&ctx.caches.backups, &namespace, &name),
        peers: cache::filter(&ctx.caches.schedules, &namespace, |s| s.spec.database_ref.name == name),
        store: None,
        jobs: cache::filter(&ctx.caches.jobs, &namespace, |j| jobs::is_for(j, RETENTION, &uid)),
        seen: None,
        schedule,
    };
    observed.store = retention::store_of(&observed.schedule, &observed)
        .and_then(|s| cache::get(&ctx.caches.stores, &namespace, &s));
    look(ctx, &mut observed, now).await?;
    Ok(observed)
}

/// From the API. `None`: the schedule is gone.
pub async fn live(
    ctx: &Context,
    schedule: &BackupSchedule,
    now: Timestamp,
) -> Result<Option<Observed>, Error> {
    let (namespace, uid) = (schedule.namespace().unwrap_or_default(), schedule.uid().unwrap_or_default());
    let Some(schedule) =
        get::<BackupSchedule>(ctx, &namespace, &schedule.name_any(), "get the BackupSchedule").await?
    else {
        return Ok(None);
    };
    if schedule.uid().as_deref() != Some(&uid) {
        return Ok(None);
    }
    let name = schedule.spec.database_ref.name.clone();
    let backups = backups(ctx, &namespace, &name).await?;
    let ours = |s: &mut BackupSchedule| s.spec.database_ref.name == name;
    let peers =
        list::<BackupSchedule>(ctx, &namespace, ListParams::default(), "list BackupSchedules", ours).await?;
    let ours = ListParams::default().labels(&jobs::selector(RETENTION, &uid));
    let mut observed = Observed {
        database: get::<Database>(ctx, &namespace, &name, "get the Database").await?,
        backups,
        peers,
        store: None,
        jobs: list::<Job>(ctx, &namespace, ours, "list retention's Jobs", |_| true).await?,
        seen: None,
        schedule,
    };
    if let Some(store) = retention::store_of(&observed.schedule, &observed) {
        observed.store = get::<BackupStore>(ctx, &namespace, &store, "get the BackupStore").await?;
    }
    look(ctx, &mut observed, now).await?;
    Ok(Some(observed))
}

/// The Backups of a Database, without those of its neighbours: a namespace may hold thousands. Most carry their Database's
/// label; those that people made may have none, or somebody else's.
async fn backups(ctx: &Context, namespace: &str, database: &str) -> Result<Vec<Arc<Backup>>, Error> {
    let what = "list Backups";
    // An error would mean that nobody limits this any more.
    let turn = ctx.lists.acquire().await.ok();
    let mut found = Vec::new();
    for labels in selectors(database) {
        let ours = |b: &mut Backup| {
            backup::lighten(b);
            b.spec.database_ref.name == database
        };
        found
            .extend(list::<Backup>(ctx, namespace, ListParams::default().labels(&labels), what, ours).await?);
    }
    drop(turn);
    let listed: HashSet<String> = found.iter().map(|b| b.name_any()).collect();
    let known = cache::filter(&ctx.caches.backups, namespace, |b| *b.digest().database == *database);
    for other in known.iter().map(|b| b.name_any()).filter(|name| !listed.contains(name)) {
        if let Some(backup) = get::<Backup>(ctx, namespace, &other, "get a Backup").await? {
            let mut backup = Arc::unwrap_or_clone(backup);
            backup::lighten(&mut backup);
            found.push(Arc::new(backup));
        }
    }
    Ok(found)
}

/// Label selectors that together find the Backups of a Database, apart from those that carry another one's label.
fn selectors(database: &str) -> Vec<String> {
    /// The longest value that a label can have; a Database's name is shorter, a reference need not be.
    const LONGEST: usize = 63;
    let unlabelled = format!("!{}", names::LABEL_DATABASE);
    let labelled = format!("{}={database}", names::LABEL_DATABASE);
    (database.len() <= LONGEST).then_some(labelled).into_iter().chain([unlabelled]).collect()
}

async fn look(ctx: &Context, observed: &mut Observed, now: Timestamp) -> Result<(), Error> {
    if let (Some(job), Some(store)) =
        (retention::current(&observed.schedule, &observed.jobs), &observed.store)
    {
        let seen = jobs::look(ctx, job, &store.spec, now).await;
        observed.seen = Some(seen.map_err(|source| Error { what: "read the worker's pods", source })?);
    }
    Ok(())
}

async fn get<K>(
    ctx: &Context,
    namespace: &str,
    name: &str,
    what: &'static str,
) -> Result<Option<Arc<K>>, Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let found = bounded(ctx.api::<K>(namespace).get_opt(name)).await;
    Ok(found.map_err(|source| Error { what, source })?.map(Arc::new))
}

/// The objects that fit, a page at a time: a namespace may hold thousands of Backups.
async fn list<K>(
    ctx: &Context,
    namespace: &str,
    mut params: ListParams,
    what: &'static str,
    mut fits: impl FnMut(&mut K) -> bool,
) -> Result<Vec<Arc<K>>, Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let api = ctx.api::<K>(namespace);
    let mut found = Vec::new();
    params.limit = Some(500);
    loop {
        let page = bounded(api.list(&params)).await.map_err(|source| Error { what, source })?;
        for mut object in page.items {
            if fits(&mut object) {
                found.push(Arc::new(object));
            }
        }
        params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if params.continue_token.is_none() {
            return Ok(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_label_can_have_is_not_asked_for() {
        assert_eq!(selectors("orders"), ["holdfast.dev/database=orders", "!holdfast.dev/database"]);
        // The API server would refuse the request, and the schedule would never say that there is no such Database.
        assert_eq!(selectors(&"o".repeat(64)), ["!holdfast.dev/database"]);
    }
}

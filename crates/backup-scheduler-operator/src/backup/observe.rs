//! Reads a Backup and everything its next step depends on. Writes nothing.

use crate::{
    backup::{
        facts::{self, Facts},
        is_final, plan,
    },
    cache,
    context::Context,
    jobs::{self, BACKUP, REMOVAL, Seen},
};
use holdfast_core::{Backup, BackupSchedule, BackupStore, Database, crd::DeletionPolicy, names};
use holdfast_runtime::apply::bounded;
use k8s_openapi::{
    api::{batch::v1::Job, coordination::v1::Lease, core::v1::Namespace},
    jiff::Timestamp,
};
use kube::{Api, Resource, ResourceExt, api::ListParams, core::NamespaceResourceScope};
use serde::de::DeserializeOwned;
use std::{fmt::Debug, sync::Arc};

/// A read that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct Error {
    what: &'static str,
    #[source]
    source: kube::Error,
}

/// What is observed of a Backup.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The Backup.
    pub backup: Arc<Backup>,
    /// Its Database.
    pub database: Option<Arc<Database>>,
    /// Its store.
    pub store: Option<Arc<BackupStore>>,
    /// The database's operation Lease, whoever holds it.
    pub lease: Option<Arc<Lease>>,
    /// Jobs of its attempts.
    pub jobs: Vec<Arc<Job>>,
    /// What the newest attempt says.
    pub seen: Option<Seen>,
    /// Running Jobs of other Backups that write to the same store.
    pub busy: usize,
    /// What only a look right before the start can tell; none as long as that is not known.
    pub facts: Option<Facts>,
    /// What a deletion depends on; none as long as that is not known.
    pub removal: Option<Removal>,
}

/// What the deletion of a Backup depends on.
#[derive(Clone, Debug, Default)]
pub struct Removal {
    /// No Job can run in this namespace any more.
    pub namespace_ends: bool,
    /// A BackupSchedule with deletionPolicy Retain that owns this Backup and is being deleted: its name.
    pub kept_by: Option<String>,
    /// A Restore that may still read this backup: its name.
    pub pinned_by: Option<String>,
    /// Jobs that remove the data.
    pub jobs: Vec<Arc<Job>>,
    /// What the newest of them says.
    pub seen: Option<Seen>,
}

impl Observed {
    /// The store that the Backup goes to, or went to.
    pub fn store_name(&self) -> Option<String> {
        store_name(&self.backup, self.database.as_deref())
    }
}

fn store_name(backup: &Backup, database: Option<&Database>) -> Option<String> {
    let written = backup.status.as_ref().and_then(|s| s.store.as_ref());
    let archive = database.and_then(|d| d.spec.archive.as_ref()).map(|a| &a.store_ref);
    // A Backup without a store of its own follows the Database until it has begun, and stays with that from then on.
    backup.spec.store_ref.as_ref().or(written).or(archive).map(|r| r.name.clone())
}

fn of_kind<'a>(jobs: impl Iterator<Item = &'a Arc<Job>>, purpose: &str, uid: &str) -> Vec<Arc<Job>> {
    let mut own: Vec<_> = jobs.filter(|j| jobs::is_for(j, purpose, uid)).cloned().collect();
    own.sort_by_key(|j| jobs::number(j));
    own
}

fn busy<'a>(jobs: impl Iterator<Item = &'a Arc<Job>>, store: Option<&str>, uid: &str) -> usize {
    jobs.filter(|j| {
        let labels = j.labels();
        labels.get(jobs::LABEL_PURPOSE).is_some_and(|p| p == BACKUP)
            && labels.get(jobs::LABEL_STORE).map(String::as_str) == store
            && labels.get(jobs::LABEL_FOR).is_some_and(|u| u != uid)
            && jobs::ended_at(j).is_none()
    })
    .count()
}

/// From the cache, apart from the pods of an attempt that is over or slow.
pub async fn cached(ctx: &Context, backup: Arc<Backup>, now: Timestamp) -> Result<Observed, Error> {
    let (namespace, uid) = (backup.namespace().unwrap_or_default(), backup.uid().unwrap_or_default());
    let name = &backup.spec.database_ref.name;
    let database = cache::get(&ctx.caches.databases, &namespace, name);
    let store = store_name(&backup, database.as_deref());
    let all = cache::filter(&ctx.caches.jobs, &namespace, |_| true);
    let mut observed = Observed {
        store: store.as_ref().and_then(|s| cache::get(&ctx.caches.stores, &namespace, s)),
        lease: cache::get(&ctx.caches.leases, &namespace, &names::lease_operation(name)),
        jobs: of_kind(all.iter(), BACKUP, &uid),
        busy: busy(all.iter(), store.as_deref(), &uid),
        seen: None,
        facts: None,
        removal: None,
        database,
        backup,
    };
    look(ctx, &mut observed, now).await?;
    Ok(observed)
}

/// From the API. `None`: the Backup is gone.
pub async fn live(ctx: &Context, backup: &Backup, now: Timestamp) -> Result<Option<Observed>, Error> {
    let (namespace, uid) = (backup.namespace().unwrap_or_default(), backup.uid().unwrap_or_default());
    let Some(backup) = get::<Backup>(ctx, &namespace, &backup.name_any(), "get the Backup").await? else {
        return Ok(None);
    };
    if backup.uid().as_deref() != Some(&uid) {
        return Ok(None);
    }
    let name = backup.spec.database_ref.name.clone();
    let database = get::<Database>(ctx, &namespace, &name, "get the Database").await?;
    let store = store_name(&backup, database.as_deref());
    let found = match &store {
        Some(store) => get::<BackupStore>(ctx, &namespace, store, "get the BackupStore").await?,
        None => None,
    };
    let of_ours = ListParams::default().labels(&format!("{} in ({BACKUP},{REMOVAL})", jobs::LABEL_PURPOSE));
    let list = bounded(ctx.api::<Job>(&namespace).list(&of_ours)).await;
    let list = list.map_err(|source| Error { what: "list Jobs", source })?;
    let all: Vec<_> = list.items.into_iter().map(Arc::new).collect();
    let mut observed = Observed {
        store: found,
        lease: get::<Lease>(ctx, &namespace, &names::lease_operation(&name), "get the operation Lease")
            .await?,
        jobs: of_kind(all.iter(), BACKUP, &uid),
        busy: busy(all.iter(), store.as_deref(), &uid),
        seen: None,
        facts: None,
        removal: None,
        database,
        backup,
    };
    look(ctx, &mut observed, now).await?;
    let backup = &observed.backup;
    if backup.metadata.deletion_timestamp.is_some() {
        if backup.finalizers().iter().any(|f| f == names::FINALIZER) {
            observed.removal = Some(removal(ctx, &observed, of_kind(all.iter(), REMOVAL, &uid), now).await?);
        }
    } else if !is_final(backup)
        && observed.database.is_some()
        && !matches!(observed.seen, Some(Seen::Running))
    {
        let facts = facts::gather(ctx, &namespace, &name).await;
        observed.facts = Some(facts.map_err(|(what, source)| Error { what, source })?);
    }
    Ok(Some(observed))
}

async fn look(ctx: &Context, observed: &mut Observed, now: Timestamp) -> Result<(), Error> {
    if is_final(&observed.backup) || observed.backup.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let attempts = plan::attempts(observed);
    let Some(job) = observed.jobs.iter().find(|j| jobs::number(j) == attempts) else { return Ok(()) };
    let store = observed.store.as_ref().map(|s| s.spec.clone()).unwrap_or_else(nowhere);
    let seen = jobs::look(ctx, job, &store, now).await;
    observed.seen = Some(seen.map_err(|source| Error { what: "read the worker's pods", source })?);
    Ok(())
}

/// Stands for a store that was deleted meanwhile: its Job still has a result.
fn nowhere() -> holdfast_core::BackupStoreSpec {
    holdfast_core::BackupStoreSpec { volume: None, s3: None, max_parallel_backups: 1 }
}

async fn removal(ctx: &Context, o: &Observed, jobs: Vec<Arc<Job>>, now: Timestamp) -> Result<Removal, Error> {
    let backup = &o.backup;
    let namespace = backup.namespace().unwrap_or_default();
    let seen = match (jobs.last(), &o.store) {
        (Some(job), Some(store)) => {
            let seen = jobs::look(ctx, job, &store.spec, now).await;
            Some(seen.map_err(|source| Error { what: "read the worker's pods", source })?)
        }
        _ => None,
    };
    let mut kept_by = None;
    for owner in backup.owner_references().iter().filter(|o| o.kind == "BackupSchedule") {
        let schedule = get::<BackupSchedule>(ctx, &namespace, &owner.name, "get the BackupSchedule").await?;
        kept_by = schedule
            .filter(|s| {
                s.uid().as_deref() == Some(&owner.uid)
                    && s.metadata.deletion_timestamp.is_some()
                    && s.spec.deletion_policy == DeletionPolicy::Retain
            })
            .map(|s| s.name_any())
            .or(kept_by);
    }
    let restores = facts::restores(ctx, &namespace).await.map_err(|(what, source)| Error { what, source })?;
    let uid = backup.uid().unwrap_or_default();
    let pinned_by = restores.iter().filter(|r| facts::is_unfinished(r)).find_map(|r| {
        let by_name = r
            .spec
            .source
            .as_ref()
            .and_then(|s| s.backup_ref.as_ref())
            .is_some_and(|b| b.name == backup.name_any());
        let by_plan = r.status.as_ref().and_then(|s| s.plan.as_ref()).is_some_and(|p| p.backup == uid);
        (by_name || by_plan).then(|| r.name_any())
    });
    Ok(Removal { namespace_ends: namespace_ends(ctx, &namespace).await, kept_by, pinned_by, jobs, seen })
}

/// Whether a namespace is being deleted. Without the right to read namespaces it is taken not to be; the deletion's bound
/// then ends the wait.
pub async fn namespace_ends(ctx: &Context, namespace: &str) -> bool {
    match bounded(Api::<Namespace>::all(ctx.client.clone()).get_opt(namespace)).await {
        Ok(found) => found.is_none_or(|n| n.metadata.deletion_timestamp.is_some()),
        Err(error) => {
            tracing::debug!(error = %error, "cannot read the namespace");
            false
        }
    }
}

/// An object by name; none also where its kind is not installed.
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

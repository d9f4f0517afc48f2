//! The loop: watches that fill the caches and wake Databases, and the five steps of a reconcile.

use crate::{
    apply::{self, Applied, ApplyError, CloneNews},
    metrics::Metrics,
    observe::{self, Caches, ObserveError, Observed},
    packed::{Child, Kept, PackedDatabase},
    plan::{self, Facts, Finalizer, clones, growth, growth::Refusal, trouble},
    status,
    validate::{Settings, validate},
};
use futures::{StreamExt, TryStreamExt, channel::mpsc::UnboundedSender};
use holdfast_core::{Database, DatabaseStatus, names, names::managers};
use holdfast_runtime::{
    cache::{Cache, News, cache},
    operator::{self, Process},
    packed::{Keep, Object, Packed},
};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, Resource, ResourceExt,
    core::NamespaceResourceScope,
    runtime::{
        Controller, WatchStreamExt,
        controller::Action,
        reflector::{self, ObjectRef, Store},
        watcher::{self, watcher},
    },
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// A Database is looked at so often even when nothing seems to happen: a watch may have lost something.
const RESYNC: Duration = Duration::from_secs(300);
/// While something is on its way: events nearly always come first.
const SOON: Duration = Duration::from_secs(2);
/// While pods start: their trouble must show within ten seconds.
const STARTING: Duration = Duration::from_secs(3);
/// While pods have been missing for long.
const MISSING: Duration = Duration::from_secs(15);
/// BackupStores may not exist in this cluster: the others do not wait for them for longer.
const STORES: Duration = Duration::from_secs(10);

/// Objects in a page of a list.
const PAGE: u32 = 100;

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something could not be read.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// Something could not be written.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The status could not be written.
    #[error("cannot write the status")]
    Status(#[source] kube::Error),
}

/// What this process remembers of a Database. Losing it costs a few requests.
#[derive(Default)]
struct Memory {
    secrets_ensured: Option<Timestamp>,
    /// Since when instances, by uid, report an error.
    errors_since: BTreeMap<String, Timestamp>,
    /// Since when no commit ends.
    commits_wait_since: Option<Timestamp>,
    /// Sizes that the API server refused, by uid of the claim.
    refusals: BTreeMap<String, Refusal>,
    /// The status written last, and the version of the object that it was written over: until the watch shows a newer one
    /// the cache is behind.
    written: Option<(Option<String>, DatabaseStatus)>,
}

struct Context {
    client: Client,
    settings: Settings,
    caches: Caches,
    process: Process,
    metrics: Metrics,
    memory: Mutex<HashMap<Key, Memory>>,
}

impl Context {
    fn memory(&self) -> MutexGuard<'_, HashMap<Key, Memory>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets Databases that are gone.
    fn forget(&self) {
        let there = |key: &Key| self.caches.databases.get(key).is_some();
        self.memory().retain(|key, _| there(key));
        self.metrics.retain(|namespace, name| there(&ObjectRef::new(name).within(namespace)));
    }
}

/// Runs the controller until the process is told to end.
pub async fn run(process: Process, settings: Settings) {
    let metrics = match Metrics::new(&process.metrics.registry) {
        Ok(metrics) => metrics,
        Err(error) => {
            tracing::error!(%error, "cannot register the metrics");
            return;
        }
    };
    let (triggers, triggered) = futures::channel::mpsc::unbounded();
    let (databases, databases_writer) = reflector::store();
    let users = databases.clone();
    let caches = Caches {
        stateful_sets: child(&process, "StatefulSets", &triggers),
        pods: child(&process, "Pods", &triggers),
        claims: child(&process, "PersistentVolumeClaims", &triggers),
        leases: child(&process, "Leases", &triggers),
        config_maps: child(&process, "ConfigMaps", &triggers),
        services: child(&process, "Services", &triggers),
        endpoint_slices: child(&process, "EndpointSlices", &triggers),
        budgets: child(&process, "PodDisruptionBudgets", &triggers),
        service_accounts: child(&process, "ServiceAccounts", &triggers),
        roles: child(&process, "Roles", &triggers),
        role_bindings: child(&process, "RoleBindings", &triggers),
        stores: keep(&process, "watch of BackupStores", &triggers, operator::watching(), move |news| {
            users_of(&users, news.namespace, news.name)
        }),
        databases: databases.clone(),
    };

    // Nothing may be decided from half of what there is.
    if !ready(&caches).await {
        return;
    }
    if tokio::time::timeout(STORES, caches.stores.ready()).await.is_err() {
        tracing::info!("no BackupStores can be seen: archives wait until they can");
    }

    let context = Arc::new(Context {
        client: process.client.clone(),
        settings,
        caches,
        process: process.clone(),
        metrics,
        memory: Mutex::default(),
    });
    let gone = Arc::clone(&context);
    let stream = watcher(process.api::<PackedDatabase>(), operator::watching().page_size(PAGE))
        .default_backoff()
        .reflect(databases_writer)
        .inspect_ok(move |event| {
            if matches!(event, watcher::Event::Delete(_) | watcher::Event::InitDone) {
                gone.forget();
            }
        })
        .touched_objects();
    let controller = Controller::for_stream(stream, databases).reconcile_on(triggered);
    operator::drive(controller, "database", &process, context, reconcile).await;
}

/// Waits until every cache of children has been filled. `false`: a watch has ended, which ends the process.
async fn ready(caches: &Caches) -> bool {
    let filled = tokio::try_join!(
        caches.stateful_sets.ready(),
        caches.pods.ready(),
        caches.claims.ready(),
        caches.leases.ready(),
        caches.config_maps.ready(),
        caches.services.ready(),
        caches.endpoint_slices.ready(),
        caches.budgets.ready(),
        caches.service_accounts.ready(),
        caches.roles.ready(),
        caches.role_bindings.ready(),
    );
    filled.is_ok()
}

/// A reference to a Database, as the controller's own cache knows it.
type Key = ObjectRef<PackedDatabase>;

/// Caches objects of one kind in the background: those that `config` selects. `whom` says which Databases a change concerns.
fn keep<K>(
    process: &Process,
    what: &'static str,
    triggers: &UnboundedSender<Key>,
    config: watcher::Config,
    whom: impl Fn(&News<'_, Child>) -> Vec<Key> + Send + 'static,
) -> Cache<K, Kept>
where
    K: Object + Resource<Scope = NamespaceResourceScope>,
    Kept: Keep<K, Digest = Child>,
{
    let (cache, mut filler) = cache();
    // Small pages: a page is in memory twice while it is read.
    let stream = watcher(process.api::<Packed<K, Kept>>(), config.page_size(PAGE)).default_backoff();
    let (told, triggers) = (process.clone(), triggers.clone());
    process.background(what, async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => filler.take(event, |news| {
                    if !is_news(&news) {
                        return;
                    }
                    for database in whom(&news) {
                        // The receiver is gone only when the process ends.
                        let _ = triggers.unbounded_send(database);
                    }
                }),
                Err(error) if operator::expired(&error) => {
                    tracing::debug!(what, "a watch was too old and is begun again");
                }
                Err(error) => {
                    told.watch_failed(what);
                    tracing::warn!(
                        what,
                        error = %error,
                        "a watch failed and is begun again; if it says Forbidden, apply the operator's deploy folder"
                    );
                }
            }
        }
    });
    cache
}

/// Whether somebody has to be woken.
fn is_news(news: &News<'_, Child>) -> bool {
    let essence = |digest: Option<&Child>| digest.and_then(|child| child.essence);
    news.now.is_none() || essence(news.now).is_none() || essence(news.before) != essence(news.now)
}

/// Caches children of one kind in the background: objects with a Database's label.
fn child<K>(process: &Process, what: &'static str, triggers: &UnboundedSender<Key>) -> Cache<K, Kept>
where
    K: Object + Resource<Scope = NamespaceResourceScope>,
    Kept: Keep<K, Digest = Child>,
{
    keep(process, what, triggers, operator::watching().labels(names::LABEL_DATABASE), |news| {
        // Also the one that it belonged to before its label changed.
        let mut databases: Vec<&str> = [news.before, news.now]
            .into_iter()
            .flatten()
            .filter_map(|child| child.database.as_deref())
            .collect();
        databases.dedup();
        databases.into_iter().map(|name| ObjectRef::new(name).within(news.namespace)).collect()
    })
}

/// The Databases that archive to a store.
fn users_of(databases: &Store<PackedDatabase>, namespace: &str, store: &str) -> Vec<Key> {
    let users = databases.state_filter(|database| {
        database.meta().namespace.as_deref() == Some(namespace) && database.digest().as_deref() == Some(store)
    });
    users.iter().map(|database| ObjectRef::from_obj(database.as_ref())).collect()
}

async fn reconcile(database: Arc<PackedDatabase>, context: Arc<Context>) -> Result<Action, Error> {
    let now = context.process.now();
    let key = ObjectRef::from_obj(database.as_ref());
    let Some(database) = database.unpack().map(Arc::new) else { return Ok(Action::await_change()) };
    let mut observed = observe::cached(&context.caches, database);
    remember(&context, &key, &mut observed, now);
    let questions = clones::questions(&observed, now);
    if !questions.is_empty() {
        let namespace = observed.database.namespace().unwrap_or_default();
        observed.clone_words = observe::words(&context.client, &namespace, &questions).await;
    }

    let valid = validate(&observed.database, &context.settings);
    let mut plan = plan::plan(&observed, valid.as_ref(), &context.settings, now);
    if plan.needs_live_view {
        observed = observe::live(&context.client, observed).await?;
        plan = plan::plan(&observed, valid.as_ref(), &context.settings, now);
    }
    if plan.facts.deleting && plan.finalizer == Finalizer::Leave && observed.database.finalizers().is_empty()
    {
        return Ok(Action::await_change());
    }
    let (facts, last, waits) =
        (plan.facts.clone(), plan.finalizer == Finalizer::Remove, plan.waits_for_others());
    let applied = apply::apply(&context.client, &observed.database, valid.as_ref().ok(), plan, now).await;
    if facts.deleting && last && applied.is_ok() {
        return Ok(Action::await_change());
    }
    if applied.as_ref().is_err_and(ApplyError::namespace_ends) {
        return Ok(Action::requeue(RESYNC));
    }
    if applied.as_ref().is_ok_and(|a| a.secrets) {
        context.memory().entry(key.clone()).or_default().secrets_ensured = Some(now);
    }
    observed.refusals = growth::standing(&facts.asks, &observed.refusals);
    if let Ok(applied) = &applied {
        observed.refusals.extend(applied.refusals.clone());
    }
    context.memory().entry(key.clone()).or_default().refusals = observed.refusals.clone();
    report(&context, &key, &observed, &facts, &applied, now).await?;
    applied?;
    Ok(Action::requeue(again(&observed, &facts, waits, now)))
}

/// Adds what only this process knows.
fn remember(context: &Context, key: &Key, observed: &mut Observed, now: Timestamp) {
    let mut memory = context.memory();
    let memory = memory.entry(key.clone()).or_default();
    let failing = observed.instances.iter().filter(|i| !i.report.error.is_empty());
    memory.errors_since =
        failing.map(|i| (i.uid.clone(), memory.errors_since.get(&i.uid).copied().unwrap_or(now))).collect();
    observed.errors_since = memory.errors_since.clone();
    let waits = status::commits::waiting(observed).is_some();
    memory.commits_wait_since = waits.then(|| memory.commits_wait_since.unwrap_or(now));
    observed.commits_wait_since = memory.commits_wait_since;
    observed.secrets_ensured = memory.secrets_ensured;
    observed.refusals = memory.refusals.clone();
    if let Some((version, status)) = &memory.written
        && *version == observed.database.resource_version()
    {
        // The cache does not show our own last write yet. Without this, conditions would get their times anew.
        let mut database = (*observed.database).clone();
        database.status = Some(status.clone());
        observed.database = Arc::new(database);
    } else {
        memory.written = None;
    }
}

/// Status, events, metrics.
async fn report(
    context: &Context,
    key: &Key,
    observed: &Observed,
    facts: &Facts,
    applied: &Result<Applied, ApplyError>,
    now: Timestamp,
) -> Result<(), Error> {
    let database = observed.database.as_ref();
    let (namespace, name) = (database.namespace().unwrap_or_default(), database.name_any());
    let problem = match applied {
        Ok(_) => match growth::refused(&facts.asks, &observed.refusals, &database.spec.storage.size) {
            Some(problem) => Some(problem),
            None => {
                let questions = trouble::questions(observed, facts, now);
                let words = observe::words(&context.client, &namespace, &questions).await;
                trouble::diagnose(observed, facts, &words, now)
                    .or_else(|| trouble::store_missing(database, facts.store_found))
            }
        },
        Err(error) => match error.problem() {
            Some(problem) => Some(problem),
            // Trying again may help: until then the status stays as it is.
            None => return Ok(()),
        },
    };
    let ensured = observed.secrets_ensured.is_some() || applied.as_ref().is_ok_and(|a| a.secrets);
    let status = status::status(observed, facts, problem.as_ref(), ensured, now);
    let mut old = database.status.clone().unwrap_or_default();
    old.recoverable = None;
    let failed_over = status::failed_over(&old, &status);
    context.metrics.record(&namespace, &name, &status, failed_over);
    if status != old {
        let api: Api<Database> = Api::namespaced(context.client.clone(), &namespace);
        holdfast_runtime::apply::status(&api, managers::DATABASE, database, &status)
            .await
            .map_err(Error::Status)?;
        let written = Some((database.resource_version(), status.clone()));
        context.memory().entry(key.clone()).or_default().written = written;
    }
    let events = &context.process.events;
    if let Ok(applied) = applied {
        if applied.created {
            let note = format!("made StatefulSet {name} with {} pod(s)", facts.replicas);
            events.normal(database, "Created", "Create", &note).await;
        }
        if let Some((pod, why)) = &applied.replaced {
            events.normal(database, "Restarting", "Update", &format!("pod {pod} is restarted: {why}")).await;
        }
    }
    for news in applied.iter().flat_map(|applied| &applied.clones) {
        match news {
            CloneNews::Begun(note) => events.normal(database, "VolumeCloning", "Scale", note).await,
            CloneNews::Failed(note) => events.warning(database, "VolumeCloneFailed", "Scale", note).await,
        }
    }
    for news in status::news(&old, &status) {
        if news.warning {
            events.warning(database, &news.reason, news.action, &news.note).await;
        } else {
            events.normal(database, &news.reason, news.action, &news.note).await;
        }
    }
    Ok(())
}

/// When to look again, whatever happens.
fn again(observed: &Observed, facts: &Facts, waits: bool, now: Timestamp) -> Duration {
    /// For so long a pod counts as starting, seconds.
    const START: i64 = 60;
    if waits {
        return SOON;
    }
    if facts.pending || facts.deleting {
        return SOON * 2;
    }
    // Whether commits that wait still do so is looked at when it would be told, although nothing changes then.
    let soon = |since: Timestamp| now.as_second() - since.as_second() < trouble::PATIENCE_SECONDS;
    if observed.commits_wait_since.is_some_and(soon) {
        return STARTING;
    }
    // A growth that fails in the driver changes nothing that is watched but the claim's events; a refusal changes nothing at all.
    let quiet = match (observed.refusals.is_empty(), facts.growing.is_empty()) {
        (true, true) => RESYNC,
        (true, false) => MISSING,
        (false, _) => Duration::from_secs(growth::RETRY_SECONDS.unsigned_abs()),
    };
    let ready = observed.instances.iter().filter(|i| i.ready).count();
    if i32::try_from(ready).unwrap_or(i32::MAX) >= facts.replicas {
        return if observed.errors_since.is_empty() { quiet } else { MISSING };
    }
    let new = |since: &Timestamp| now.as_second() - since.as_second() < START;
    let starting = observed.instances.iter().any(|i| !i.ready && i.age(now) < START)
        || observed.errors_since.values().any(new);
    let missing = observed.instances.len() < usize::try_from(facts.replicas).unwrap_or(0);
    if starting || missing { STARTING } else { MISSING }
}

//! Reads everything that one Restore's next step depends on, live: a cache may still show what a step has just changed. Only reads.

use crate::{Context, validate};
use holdfast_core::{
    Backup, BackupStore, Database, Restore, ids, names,
    pods::{self, WorkerState},
    wire::WorkerResult,
};
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        batch::v1::Job,
        coordination::v1::Lease,
        core::v1::{PersistentVolumeClaim, Pod},
    },
    jiff::Timestamp,
};
use kube::{Api, Resource, ResourceExt, api::ListParams, core::NamespaceResourceScope};
use serde::de::DeserializeOwned;
use std::{fmt::Debug, time::Duration};

/// Deadline of one read.
const DEADLINE: Duration = Duration::from_secs(15);
/// Label that Kubernetes puts on a Job's pods.
const LABEL_JOB: &str = "batch.kubernetes.io/job-name";

/// Why the world could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused.
    #[error("reading {what} failed: {source}")]
    Read {
        /// What was read.
        what: &'static str,
        /// Its answer.
        #[source]
        source: kube::Error,
    },
    /// The API server did not answer in time.
    #[error("reading {0} took longer than {DEADLINE:?}")]
    Late(&'static str),
}

/// A worker Job of this Restore.
#[derive(Clone, Debug, PartialEq)]
pub struct SeenWorker {
    /// Name of the Job.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// When it was made.
    pub created: Timestamp,
    /// When it was over, as far as the Job says.
    pub ended: Option<Timestamp>,
    /// It is being deleted.
    pub deleting: bool,
    /// What it says.
    pub state: WorkerState,
}

/// A pod of a worker that may still run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LivePod {
    /// Name.
    pub name: String,
    /// Its Job.
    pub job: String,
    /// Token of the operation that it works under.
    pub token: Option<String>,
}

/// What is known of the full backup that follows a restore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FollowUp {
    /// It does not exist.
    Missing,
    /// It exists.
    Exists,
    /// There is no such kind in this cluster, or it may not be read: nothing to do.
    #[default]
    NoKind,
}

/// Everything that the next step depends on.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The run.
    pub restore: Restore,
    /// The Database that it works on.
    pub database: Option<Database>,
    /// With newDatabase: the Database that the data comes from, when it still runs here.
    pub source_database: Option<Database>,
    /// The Backup that spec.source.backupRef names.
    pub backup: Option<Backup>,
    /// The store to read from.
    pub store: Option<BackupStore>,
    /// The operation Lease of the Database.
    pub lease: Option<Lease>,
    /// Volumes that carry the Database's label.
    pub claims: Vec<PersistentVolumeClaim>,
    /// Worker Jobs of this Restore.
    pub workers: Vec<SeenWorker>,
    /// Worker pods of the Database that may still run, this Restore's and others'.
    pub pods: Vec<LivePod>,
    /// Image of the StatefulSet's container `postgres`, with the version of the Database that it belongs to.
    pub image: Option<(String, String)>,
    /// The full backup that follows.
    pub follow_up: FollowUp,
    /// What the API server said, to this process, of an object that it refuses: the last one that this run wanted to make.
    pub refused: Option<String>,
}

impl Observed {
    /// uid of the run.
    pub fn uid(&self) -> &str {
        self.restore.metadata.uid.as_deref().unwrap_or_default()
    }

    /// Name of the volume that this run fills.
    pub fn claim_name(&self) -> String {
        names::claim(&ids::data_set(self.uid()), validate::target(&self.restore.spec), 0)
    }

    /// The volume that this run fills.
    pub fn claim(&self) -> Option<&PersistentVolumeClaim> {
        let name = self.claim_name();
        self.claims.iter().find(|c| c.name_any() == name)
    }

    /// Reads the world; None when the Restore is gone.
    pub async fn read(context: &Context, restore: &Restore) -> Result<Option<Self>, Error> {
        let client = &context.process.client;
        let namespace = restore.namespace().unwrap_or_default();
        let reader = Reader { client, namespace: &namespace };
        let Some(restore) = reader.get::<Restore>("the Restore", &restore.name_any()).await? else {
            return Ok(None);
        };
        let target = validate::target(&restore.spec).to_string();
        let in_place = validate::in_place(&restore.spec);
        let uid = restore.metadata.uid.clone().unwrap_or_default();

        let database = reader.get::<Database>("the Database", &target).await?;
        let backup_ref = restore.spec.source.as_ref().and_then(|s| s.backup_ref.clone());
        let backup = match backup_ref {
            Some(r) => reader.get_if_kind::<Backup>("the Backup", &r.name).await?,
            None => None,
        };
        let store = match validate::store_name(&restore.spec, database.as_ref(), backup.as_ref()) {
            Some(name) => reader.get_if_kind::<BackupStore>("the BackupStore", &name).await?,
            None => None,
        };
        let source_name = backup
            .as_ref()
            .map(|b| b.spec.database_ref.name.clone())
            .or_else(|| local_source(&restore, &namespace))
            .filter(|_| !in_place);
        let source_database = match &source_name {
            Some(name) => reader.get::<Database>("the source Database", name).await?,
            None => None,
        };
        let runs = if in_place { database.as_ref() } else { source_database.as_ref() };
        let image = match runs {
            Some(of) => {
                let set = reader.get::<StatefulSet>("the StatefulSet", &of.name_any()).await?;
                set.as_ref().and_then(postgres_image).map(|image| (image, of.spec.version.clone()))
            }
            None => None,
        };
        let lease = match in_place {
            true => reader.get::<Lease>("the operation Lease", &names::lease_operation(&target)).await?,
            false => None,
        };
        let of_database = format!("{}={target}", names::LABEL_DATABASE);
        let claims = reader.list::<PersistentVolumeClaim>("volumes", &of_database).await?;
        let workers_of = format!("{of_database},{}=worker", names::LABEL_COMPONENT);
        // Jobs before pods: a Job that is over then never looks as if its pod had vanished.
        let jobs = reader.list::<Job>("worker Jobs", &workers_of).await?;
        let all_pods = reader.list::<Pod>("worker pods", &workers_of).await?;
        let workers = jobs.iter().filter(|j| owned_by(*j, &uid)).map(|j| seen(j, &all_pods)).collect();
        let follow_up = if in_place || database.is_some() {
            reader.follow_up(&crate::desired::follow_up_name(&restore)).await
        } else {
            FollowUp::NoKind
        };
        let pods = all_pods.iter().filter_map(live).collect();
        let refused = context.refused().get(&uid).cloned();
        Ok(Some(Self {
            refused,
            restore,
            database,
            source_database,
            backup,
            store,
            lease,
            claims,
            workers,
            pods,
            image,
            follow_up,
        }))
    }
}

/// Name of the Database that spec.source.database means, when it means one of this namespace.
fn local_source(restore: &Restore, namespace: &str) -> Option<String> {
    let named = restore.spec.source.as_ref()?.database.as_ref()?;
    let here = named.namespace.as_deref().unwrap_or(namespace) == namespace;
    here.then(|| named.name.clone())
}

fn owned_by<K: Resource>(object: &K, uid: &str) -> bool {
    object.meta().owner_references.iter().flatten().any(|o| o.uid == uid)
}

fn postgres_image(set: &StatefulSet) -> Option<String> {
    let pod = set.spec.as_ref()?.template.spec.as_ref()?;
    pod.containers.iter().find(|c| c.name == "postgres")?.image.clone()
}

fn job_of(pod: &Pod) -> String {
    pod.labels().get(LABEL_JOB).cloned().unwrap_or_default()
}

fn live(pod: &Pod) -> Option<LivePod> {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    let token = pod.labels().get(names::LABEL_OPERATION_TOKEN).cloned();
    (!matches!(phase, "Succeeded" | "Failed")).then(|| LivePod {
        name: pod.name_any(),
        job: job_of(pod),
        token,
    })
}

fn seen(job: &Job, pods: &[Pod]) -> SeenWorker {
    let name = job.name_any();
    let own: Vec<Pod> = pods.iter().filter(|p| job_of(p) == name).cloned().collect();
    let mut over = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let over = over.rfind(|c| c.status == "True" && matches!(c.type_.as_str(), "Complete" | "Failed"));
    let mut state = pods::worker_state(job, &own);
    if over.is_some() && matches!(state, WorkerState::Running(_)) {
        // Its pod was removed before anybody read its answer, with a drained node, say.
        state = WorkerState::Ended(WorkerResult::Failed {
            reason: "ResultLost".into(),
            message: "the worker's pod is gone, and its answer with it".into(),
            permanent: false,
        });
    }
    SeenWorker {
        uid: job.uid().unwrap_or_default(),
        created: job.creation_timestamp().map(|t| t.0).unwrap_or_default(),
        ended: over.and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0),
        deleting: job.metadata.deletion_timestamp.is_some(),
        state,
        name,
    }
}

struct Reader<'a> {
    client: &'a kube::Client,
    namespace: &'a str,
}

impl Reader<'_> {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), self.namespace)
    }

    async fn get<K>(&self, what: &'static str, name: &str) -> Result<Option<K>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let api = self.api::<K>();
        let answer =
            tokio::time::timeout(DEADLINE, api.get_opt(name)).await.map_err(|_| Error::Late(what))?;
        answer.map_err(|source| Error::Read { what, source })
    }

    /// As `get`, where the kind belongs to an operator that may not be installed: a kind that is unknown has no objects.
    async fn get_if_kind<K>(&self, what: &'static str, name: &str) -> Result<Option<K>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        match self.get::<K>(what, name).await {
            Err(Error::Read { source: kube::Error::Api(s), .. }) if s.is_not_found() => Ok(None),
            other => other,
        }
    }

    async fn list<K>(&self, what: &'static str, selector: &str) -> Result<Vec<K>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let (api, parameters) = (self.api::<K>(), ListParams::default().labels(selector));
        let answer =
            tokio::time::timeout(DEADLINE, api.list(&parameters)).await.map_err(|_| Error::Late(what))?;
        Ok(answer.map_err(|source| Error::Read { what, source })?.items)
    }

    /// A list tells a missing kind (404) from a missing object, which a get does not.
    async fn follow_up(&self, name: &str) -> FollowUp {
        let (api, parameters) =
            (self.api::<Backup>(), ListParams::default().fields(&format!("metadata.name={name}")));
        match tokio::time::timeout(DEADLINE, api.list(&parameters)).await {
            Ok(Ok(found)) if found.items.is_empty() => FollowUp::Missing,
            Ok(Ok(_)) => FollowUp::Exists,
            Ok(Err(error)) => {
                tracing::debug!(%error, "Backups cannot be read: no backup follows the restore");
                FollowUp::NoKind
            }
            Err(_) => FollowUp::NoKind,
        }
    }
}

//! The objects that a Restore makes. Pure: every name comes from the Restore's uid, so a step done twice is done once.

use crate::{
    observe::Observed,
    validate::{self, Blocked, Settings, blocked},
};
use holdfast_core::{
    Backup, BackupSpec, Database, DatabaseSpec, Restore, RestoreStatus,
    crd::{LocalRef, database::DurabilityMode},
    ids, names,
    pods::{self, Worker},
    quantity::units,
    wire::{Connection, HistoryPath, Target, WorkerJob},
};
use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements},
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use kube::{Resource, ResourceExt};
use std::collections::BTreeMap;

/// Annotation of a volume: uid of the Restore that fills it.
pub const ANNOTATION_RESTORE: &str = "holdfast.dev/restore";
/// Annotation of a volume made for a new Database: that Database's spec, decided once and kept where a crash cannot lose it.
pub const ANNOTATION_DATABASE_SPEC: &str = "holdfast.dev/database-spec";
/// Annotation of a Database that a Restore made: uid of that Restore.
pub const ANNOTATION_RESTORED_BY: &str = "holdfast.dev/restored-by";
/// Seconds that a plan may take: it lists the store and waits for one WAL segment.
const PLAN_SECONDS: i64 = 900;
/// A pace, in bytes a second, that every restore beats; its Job's last-resort deadline follows from it.
const SLOWEST: i64 = 2 << 20;
/// Seconds of that deadline for what does not depend on size, and for each WAL segment.
const RESTORE_SECONDS: i64 = 4 * 3600;
const SEGMENT_SECONDS: i64 = 10;

/// What a worker Job is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Find out whether the restore is possible.
    Plan,
    /// Fill the volume.
    Restore,
}

impl Purpose {
    /// Name of the Job of an attempt, counted from 1.
    pub fn job_name(self, uid: &str, attempt: u32) -> String {
        let step = match self {
            Self::Plan => "plan",
            Self::Restore => "restore",
        };
        format!("hfr-{}", ids::short(&format!("{step}-{attempt}"), uid))
    }
}

/// Name of the full backup that follows a restore, at most 60 characters.
pub fn follow_up_name(restore: &Restore) -> String {
    let (name, uid) = (restore.name_any(), restore.uid().unwrap_or_default());
    if name.len() + "-base".len() <= 60 {
        format!("{name}-base")
    } else {
        format!("{}-base", ids::short("base", &uid))
    }
}

/// The Job that makes the plan.
pub fn plan_job(
    settings: &Settings,
    o: &Observed,
    source: &validate::Source,
    target: Target,
    attempt: u32,
) -> Result<Job, serde_json::Error> {
    let namespace = o.restore.namespace().unwrap_or_default();
    let connection = o.database.as_ref().filter(|d| {
        let said = d.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        let serves = holdfast_core::conditions::serves(said);
        // The source's own WAL: switching that of another database brings nothing nearer.
        serves
            && validate::in_place(&o.restore.spec)
            && validate::source_database(&o.restore.spec).is_none_or(|s| s == d.name_any())
    });
    let connection = connection.map(|d| {
        let host = names::rw_host(&d.name_any(), &namespace);
        Connection {
            host: host.clone(),
            primary_host: host,
            app_database: d.spec.postgresql.database.clone(),
        }
    });
    let connects_to = connection.as_ref().map(|_| validate::target(&o.restore.spec));
    let job =
        WorkerJob::Plan { store: source.store.clone(), source: source.plan.clone(), target, connection };
    let mut worker = worker(settings, o, Purpose::Plan, attempt, &namespace, &job, &source.store);
    worker.image = &settings.agent_image;
    worker.connects_to = connects_to;
    worker.deadline_seconds = Some(PLAN_SECONDS);
    pods::worker_job(&worker)
}

/// What the restore worker needs to be told beside the plan.
#[derive(Clone, Debug)]
pub struct Filling<'a> {
    /// Where the backup is.
    pub history: HistoryPath,
    /// Image of the database.
    pub image: &'a str,
    /// Spec of the Database that will run on the volume.
    pub database: &'a DatabaseSpec,
    /// The moment.
    pub target: Target,
    /// Token of the operation, in place.
    pub token: Option<&'a str>,
}

/// The Job that fills the volume.
pub fn restore_job(
    settings: &Settings,
    o: &Observed,
    source: &validate::Source,
    filling: &Filling<'_>,
    attempt: u32,
) -> Result<Job, serde_json::Error> {
    let namespace = o.restore.namespace().unwrap_or_default();
    let plan = o.restore.status.clone().unwrap_or_default().plan.unwrap_or_default();
    let uid = o.uid();
    let job = WorkerJob::Restore {
        store: source.store.clone(),
        history: filling.history.clone(),
        follows: validate::history_location(&plan.follows),
        backup_uid: plan.backup,
        timeline: u32::try_from(plan.timeline).unwrap_or(1),
        target: filling.target.clone(),
        data_set: ids::data_set(uid),
        new_history: HistoryPath {
            namespace: namespace.clone(),
            database: validate::target(&o.restore.spec).into(),
            system_identifier: filling.history.system_identifier.clone(),
            history: ids::history(uid),
        },
        database_uid: o.database.as_ref().and_then(|d| d.uid()).unwrap_or_default(),
        checks: o.restore.spec.checks.clone(),
        app_database: filling.database.postgresql.database.clone(),
    };
    let claim = o.claim_name();
    let mut worker = worker(settings, o, Purpose::Restore, attempt, &namespace, &job, &source.store);
    worker.image = filling.image;
    worker.image_pull_secrets = &filling.database.image_pull_secrets;
    worker.claim = Some(&claim);
    worker.token = filling.token;
    worker.deadline_seconds =
        Some(RESTORE_SECONDS + plan.bytes / SLOWEST + plan.wal_segments * SEGMENT_SECONDS);
    worker.resources = filling.database.resources.clone();
    pods::worker_job(&worker)
}

fn worker<'a>(
    settings: &'a Settings,
    o: &'a Observed,
    purpose: Purpose,
    attempt: u32,
    namespace: &'a str,
    job: &'a WorkerJob,
    store: &'a holdfast_core::BackupStoreSpec,
) -> Worker<'a> {
    let runs = o.database.as_ref().or(o.source_database.as_ref());
    Worker {
        name: purpose.job_name(o.uid(), attempt),
        namespace,
        database: Some(validate::target(&o.restore.spec)),
        owner: o.restore.controller_owner_ref(&()).unwrap_or_default(),
        image: "",
        agent_image: &settings.agent_image,
        image_pull_secrets: runs.map(|d| d.spec.image_pull_secrets.as_slice()).unwrap_or_default(),
        job,
        store,
        connects_to: None,
        claim: None,
        token: None,
        deadline_seconds: None,
        resources: None,
    }
}

/// The volume to fill, labelled `seed`.
pub fn claim(
    o: &Observed,
    database: &DatabaseSpec,
    size: i64,
    keep_spec: bool,
) -> Result<PersistentVolumeClaim, serde_json::Error> {
    let uid = o.uid();
    let target = validate::target(&o.restore.spec);
    let mut labels = names::labels(target);
    labels.insert(names::LABEL_DATA_SET.into(), ids::data_set(uid));
    labels.insert(names::LABEL_DATA_SET_STATE.into(), names::STATE_SEED.into());
    labels.insert(names::LABEL_HISTORY.into(), ids::history(uid));
    let mut annotations = BTreeMap::from([(ANNOTATION_RESTORE.to_string(), uid.to_string())]);
    if keep_spec {
        annotations.insert(ANNOTATION_DATABASE_SPEC.into(), serde_json::to_string(database)?);
    }
    Ok(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(o.claim_name()),
            namespace: o.restore.namespace(),
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([(
                    "storage".to_string(),
                    quantity(size, &database.storage.size),
                )])),
                ..VolumeResourceRequirements::default()
            }),
            storage_class_name: database.storage.storage_class_name.clone(),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    })
}

/// `size` as a quantity; as the spec spells it when it means the same.
fn quantity(size: i64, spelled: &Quantity) -> Quantity {
    if units(&spelled.0) == Some(size) { spelled.clone() } else { Quantity(size.to_string()) }
}

/// Bytes that the data needs on a volume, with room for what recovery adds.
pub fn needed(plan_bytes: i64) -> i64 {
    let mebibyte = 1 << 20;
    let bytes = plan_bytes + plan_bytes / 10 + 64 * mebibyte;
    (bytes + mebibyte - 1) / mebibyte * mebibyte
}

/// The spec of a new Database: the source's, with what spec.newDatabase.overrides says, and room for the data.
pub fn new_spec(restore: &Restore, from: &DatabaseSpec, plan_bytes: i64) -> DatabaseSpec {
    let mut spec = from.clone();
    let overrides = restore.spec.new_database.clone().unwrap_or_default().overrides;
    if let Some(instances) = overrides.instances {
        spec.instances = instances;
        // Durability that these instances cannot keep would be refused; the default for their number is decided anew.
        let kept = spec.durability.as_ref().is_some_and(|d| match d.mode {
            DurabilityMode::Asynchronous => true,
            DurabilityMode::Preferred | DurabilityMode::Required => d.standbys < instances,
        });
        if !kept {
            spec.durability = None;
        }
    }
    if let Some(storage) = overrides.storage {
        spec.storage = storage;
    }
    if let Some(resources) = overrides.resources {
        spec.resources = Some(resources);
    }
    if let Some(placement) = overrides.placement {
        spec.placement = placement;
    }
    if let Some(durability) = overrides.durability {
        spec.durability = Some(durability);
    }
    if let Some(postgresql) = overrides.postgresql {
        spec.postgresql.parameters = postgresql.parameters;
    }
    let least = needed(plan_bytes);
    if units(&spec.storage.size.0).is_none_or(|size| size < least) {
        spec.storage.size = Quantity(format!("{}Mi", least >> 20));
    }
    spec.stopped = false;
    spec
}

/// The new Database.
pub fn database(restore: &Restore, spec: DatabaseSpec) -> Database {
    let mut database = Database::new(validate::target(&restore.spec), spec);
    database.metadata.namespace = restore.namespace();
    database.metadata.annotations =
        Some(BTreeMap::from([(ANNOTATION_RESTORED_BY.to_string(), restore.uid().unwrap_or_default())]));
    database
}

/// The full backup that follows: the new history has none yet, so nothing on it could be restored.
pub fn follow_up(restore: &Restore) -> Result<Backup, serde_json::Error> {
    let database_ref = LocalRef { name: validate::target(&restore.spec).into() };
    // Through serde, so that every other field has the default that a user would get.
    let spec: BackupSpec = serde_json::from_value(serde_json::json!({"databaseRef": database_ref}))?;
    let mut backup = Backup::new(&follow_up_name(restore), spec);
    backup.metadata.namespace = restore.namespace();
    backup.metadata.labels = Some(names::labels(&database_ref.name));
    Ok(backup)
}

/// Image for the server that replays.
pub fn image(settings: &Settings, o: &Observed, spec: &DatabaseSpec) -> Result<String, Blocked> {
    let running =
        o.image.as_ref().filter(|(_, version)| *version == spec.version).map(|(image, _)| image.clone());
    let catalogue = settings.images.get(&spec.version).cloned();
    let spelled = spec.image.clone();
    // In place the very image that wrote the data; for a new Database the one that it will run.
    let found = if validate::in_place(&o.restore.spec) {
        running.or(spelled).or(catalogue)
    } else {
        spelled.or(catalogue).or(running)
    };
    match found {
        Some(image) => Ok(image),
        None => blocked(
            "ImageUnknown",
            format!(
                "no image for PostgreSQL {}: neither a running Database nor the operator's image catalogue names one",
                spec.version
            ),
        ),
    }
}

/// The status without what a dry run does not know yet.
pub fn plan_of(status: &RestoreStatus) -> Option<(&holdfast_core::crd::restore::RestorePlan, HistoryPath)> {
    let plan = status.plan.as_ref()?;
    Some((plan, validate::history_location(&plan.location)?))
}

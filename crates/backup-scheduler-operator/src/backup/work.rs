//! The Jobs of a Backup: what its workers are told. Pure.

use crate::{
    backup::{observe::Observed, plan, removal::history_of},
    jobs::{self, BACKUP, REMOVAL},
};
use holdfast_core::{
    Database,
    crd::backup::BackupTarget,
    ids, names,
    pods::{Worker, worker_job},
    wire::{Connection, HistoryPath, WorkerJob},
};
use k8s_openapi::api::batch::v1::Job;
use kube::{Resource, ResourceExt};

/// A worker that removes data has so many seconds, its pod's start included.
const REMOVAL_DEADLINE: i64 = 600;
/// A removal's Job goes by itself after so many seconds, should nobody be there to remove it: the store owns it, not the
/// Backup, which is being deleted.
const REMOVAL_TTL: i32 = 3600;

/// Why a Job cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something that the plan had found is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// It cannot be told to the worker.
    #[error("cannot write down what the worker is to do")]
    Write(#[from] serde_json::Error),
}

/// Name of an attempt's Job.
pub fn attempt_name(uid: &str, number: i64) -> String {
    format!("hfb-{}", ids::short(&format!("backup-{number}"), uid))
}

/// Name of a removal's Job.
pub fn removal_name(uid: &str, number: i64) -> String {
    format!("hfd-{}", ids::short(&format!("removal-{number}"), uid))
}

/// The host to read from: the ready standby that is least behind, else the primary.
pub fn host(database: &Database, target: BackupTarget) -> String {
    let (name, namespace) = (database.name_any(), database.namespace().unwrap_or_default());
    let primary = names::rw_host(&name, &namespace);
    if target == BackupTarget::Primary {
        return primary;
    }
    let Some(status) = &database.status else { return primary };
    status
        .members
        .iter()
        // One on another timeline is about to be rewound or cloned anew.
        .filter(|m| m.ready && m.role == "Replica" && (m.timeline.is_none() || m.timeline == status.timeline))
        .min_by_key(|m| (m.lag_bytes.unwrap_or(i64::MAX), m.name.clone()))
        .map_or(primary, |m| names::pod_host(&name, &namespace, &m.name))
}

/// The Job of an attempt.
pub fn attempt(o: &Observed, number: i64, agent_image: &str) -> Result<Job, Error> {
    let backup = &o.backup;
    let uid = backup.uid().ok_or(Error::Missing("the Backup's uid"))?;
    let namespace = backup.namespace().ok_or(Error::Missing("the Backup's namespace"))?;
    let database = o.database.as_deref().ok_or(Error::Missing("the Database"))?;
    let store = o.store.as_deref().ok_or(Error::Missing("the BackupStore"))?;
    let image =
        o.facts.as_ref().and_then(|f| f.image.as_deref()).ok_or(Error::Missing("the database's image"))?;
    let token = plan::held(o).ok_or(Error::Missing("the operation Lease"))?;
    let status = database.status.clone().unwrap_or_default();
    let name = database.name_any();
    let work = WorkerJob::Backup {
        store: store.spec.clone(),
        connection: Connection {
            host: host(database, backup.spec.target),
            primary_host: names::rw_host(&name, &namespace),
            app_database: database.spec.postgresql.database.clone(),
        },
        history: HistoryPath {
            namespace: namespace.clone(),
            database: name.clone(),
            system_identifier: status.system_identifier.ok_or(Error::Missing("the system identifier"))?,
            history: status.history.ok_or(Error::Missing("the history"))?,
        },
        backup_uid: uid.clone(),
        backup_name: backup.name_any(),
        schedule: backup.labels().get(names::LABEL_SCHEDULE).cloned(),
        database_uid: database.uid().unwrap_or_default(),
        database_spec: serde_json::to_value(&database.spec)?,
        compression: backup.spec.compression.clone(),
        max_bytes_per_second: backup.spec.max_bytes_per_second,
        progress_deadline_seconds: backup.spec.progress_deadline_seconds,
    };
    let mut job = worker_job(&Worker {
        name: attempt_name(&uid, number),
        namespace: &namespace,
        database: Some(&name),
        owner: backup.controller_owner_ref(&()).ok_or(Error::Missing("the Backup's uid"))?,
        image,
        agent_image,
        image_pull_secrets: &database.spec.image_pull_secrets,
        job: &work,
        store: &store.spec,
        connects_to: Some(&name),
        claim: None,
        token: Some(token),
        deadline_seconds: None,
        resources: None,
    })?;
    jobs::mark(&mut job, BACKUP, &store.name_any(), &uid, number);
    Ok(job)
}

/// The Job that removes a Backup's data.
pub fn removal(o: &Observed, number: i64, agent_image: &str) -> Result<Job, Error> {
    let backup = &o.backup;
    let uid = backup.uid().ok_or(Error::Missing("the Backup's uid"))?;
    let store = o.store.as_deref().ok_or(Error::Missing("the BackupStore"))?;
    let location = backup.status.as_ref().and_then(|s| s.backup_location.as_deref()).unwrap_or_default();
    let history = history_of(location).ok_or(Error::Missing("status.backupLocation"))?;
    let work = WorkerJob::DeleteBackup { store: store.spec.clone(), history, backup_uid: uid.clone() };
    let mut job = worker_job(&Worker {
        name: removal_name(&uid, number),
        namespace: &backup.namespace().ok_or(Error::Missing("the Backup's namespace"))?,
        database: Some(&backup.spec.database_ref.name),
        owner: store.controller_owner_ref(&()).ok_or(Error::Missing("the BackupStore's uid"))?,
        image: agent_image,
        agent_image,
        image_pull_secrets: &[],
        job: &work,
        store: &store.spec,
        connects_to: None,
        claim: None,
        token: None,
        deadline_seconds: Some(REMOVAL_DEADLINE),
        resources: None,
    })?;
    if let Some(spec) = &mut job.spec {
        spec.ttl_seconds_after_finished = Some(REMOVAL_TTL);
    }
    jobs::mark(&mut job, REMOVAL, &store.name_any(), &uid, number);
    Ok(job)
}

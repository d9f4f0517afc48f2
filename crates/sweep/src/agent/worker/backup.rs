//! A backup: the data of the primary at its end, with the WAL that leads there.

use super::{SIZE, WORK, Worker, failed};
use crate::agent::store;
use holdfast_archive::{
    HistoryFolder,
    manifest::{self, Manifest},
};
use holdfast_core::{
    crd::backup::PostgresqlBackup,
    wire::{Connection, HistoryPath, WorkerJob, WorkerResult},
};
use holdfast_postgresql::Lsn;
use std::time::Duration;
use tokio::time::sleep;

impl Worker<'_> {
    /// Does the job, if no earlier attempt has come to its end.
    pub async fn back_up(
        &self,
        job: &WorkerJob,
        place: &str,
        connection: &Connection,
        history: &HistoryPath,
        patience: Duration,
    ) -> Result<WorkerResult, WorkerResult> {
        let WorkerJob::Backup {
            backup_uid,
            backup_name,
            schedule,
            database_uid,
            database_spec,
            compression,
            ..
        } = job
        else {
            return Err(failed("InvalidJob", "this is no order for a backup", true));
        };
        let host = &connection.host;
        let from = self.reach(host).await;
        let from = from.and_then(|key| self.agents.with(|world| world.data(&key).cloned()));
        let Some(from) = from else {
            return Err(failed("DatabaseUnreachable", format!("{host} does not answer"), false));
        };
        let (found, wanted) = (&from.system_identifier, &history.system_identifier);
        if found != wanted {
            let text = format!("{host} has system identifier {found}, not {wanted}");
            return Err(failed("OtherSystemIdentifier", text, false));
        }
        let primary = self.primary(&connection.primary_host).await?;
        let (start_time, number) = (self.now(), self.agents.with(|world| world.number()));
        self.agents.with(|world| world.switch(&primary, start_time));
        let start = self.agents.with(|world| world.data(&primary).map(|d| (d.timeline(), d.end)));
        sleep(WORK).await;
        let primary = self.primary(&connection.primary_host).await?;
        let stop_time = self.now();
        let end = self.agents.with(|world| {
            let data = world.data_mut(&primary)?;
            data.commit(number, "", stop_time);
            let copy = data.clone();
            world.switch(&primary, stop_time);
            Some((copy, world.store_of(&primary)))
        });
        let (Some((begin, start)), Some((data, archive))) = (start, end) else {
            return Err(failed("DatabaseUnreachable", "the primary ended meanwhile", false));
        };
        if begin != data.timeline() {
            let text = format!("the timeline changed from {begin} to {} during the backup", data.timeline());
            return Err(failed("TimelineChanged", text, false));
        }
        if archive != Some((place.to_string(), history.clone())) {
            sleep(patience).await;
            return Err(failed("WalNotArchived", "the backup's WAL did not come to the store", false));
        }
        let part = |name: &str| manifest::Part {
            name: name.into(),
            plain_bytes: SIZE,
            stored_bytes: SIZE / 4,
            ..manifest::Part::default()
        };
        let manifest = Manifest {
            format_version: manifest::FORMAT,
            history: history.clone(),
            database_uid: database_uid.clone(),
            database_spec: database_spec.clone(),
            backup_name: backup_name.clone(),
            backup_uid: backup_uid.clone(),
            schedule: schedule.clone(),
            server_version: format!("{}.4", database_spec["version"].as_str().unwrap_or("17")),
            timeline: data.timeline(),
            start_lsn: Lsn(start.0 + 0x28),
            stop_lsn: data.end,
            start_time,
            stop_time,
            wal_segment_size: self.agents.with(|world| {
                let config = world.members.get(&primary).map(|m| m.config.wal_segment_size_mb);
                u64::try_from(config.unwrap_or(16)).unwrap_or(16) << 20
            }),
            compression: compression.algorithm,
            parts: vec![part("000000.tar.zst")],
            backup_manifest: part("backup_manifest"),
            settings: manifest::Settings::default(),
            size: SIZE,
            stored_size: SIZE / 4,
            verified: manifest::Verified::ReadAgain,
        };
        self.agents.with(|world| {
            let store = world.stores.entry(place.into()).or_default();
            let place = store.places.entry(store::key(history)).or_default();
            place.backups.insert(backup_uid.clone(), (manifest.clone(), data));
        });
        Ok(told(&manifest))
    }
}

/// The answer.
pub fn told(manifest: &Manifest) -> WorkerResult {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    WorkerResult::BackedUp {
        location: HistoryFolder::new(&manifest.history).base(&manifest.backup_uid),
        size: number(manifest.size),
        stored_size: number(manifest.stored_size),
        backup_time: manifest.stop_time.to_string(),
        postgresql: PostgresqlBackup {
            system_identifier: manifest.history.system_identifier.clone(),
            timeline: i64::from(manifest.timeline),
            start_lsn: manifest.start_lsn.to_string(),
            stop_lsn: manifest.stop_lsn.to_string(),
            server_version: manifest.server_version.clone(),
        },
    }
}

//! The window of time that a Database can be restored to: field `status.recoverable`, which this operator writes and
//! nobody else. Touches only that field.

use crate::{backup::succeeded, cache, context::Context};
use holdfast_core::{Backup, Database, crd::database::Recoverable, names::managers};
use holdfast_runtime::apply;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{ResourceExt, runtime::controller::Action};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// The field is written at most once in so many seconds: the archive moves all the time.
const PAUSE: i64 = 60;

/// The field could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write status.recoverable of the Database")]
pub struct Error(#[source] kube::Error);

/// What a reconcile is given.
pub struct Windows {
    ctx: Arc<Context>,
    /// When the field was written last, by the Database's uid. Lost at a restart, which costs one early write.
    written: Mutex<HashMap<String, Timestamp>>,
}

impl Windows {
    /// Nothing written yet.
    pub fn new(ctx: Arc<Context>) -> Self {
        Self { ctx, written: Mutex::default() }
    }
}

/// The window: from the oldest backup of this very data to what is known to be archived.
fn window<'a>(database: &Database, backups: impl Iterator<Item = &'a Backup>) -> Option<Recoverable> {
    let status = database.status.as_ref()?;
    let identifier = status.system_identifier.as_deref()?;
    let times: Vec<Timestamp> = backups
        .filter(|b| succeeded(b) && b.metadata.deletion_timestamp.is_none())
        .filter_map(|b| b.status.as_ref())
        .filter(|s| s.postgresql.as_ref().is_some_and(|p| p.system_identifier == identifier))
        .filter_map(|s| Some(s.backup_time.as_ref()?.0))
        .collect();
    let earliest = times.iter().min()?;
    let archived = status.archive.as_ref().and_then(|a| a.last_archived_time.as_ref()).map(|t| t.0);
    let latest = times.iter().max().copied().max(archived);
    Some(Recoverable { earliest: Some(Time(*earliest)), latest: latest.map(Time) })
}

#[derive(Debug, PartialEq)]
enum Decision {
    Nothing,
    Later(i64),
    Write,
}

fn decide(
    current: Option<&Recoverable>,
    wanted: Option<&Recoverable>,
    written: Option<Timestamp>,
    now: Timestamp,
) -> Decision {
    if current == wanted {
        return Decision::Nothing;
    }
    // A narrower window is told at once: nobody should count on what is gone.
    let narrower = match (current, wanted) {
        (Some(_), None) => true,
        (Some(old), Some(new)) => old.earliest < new.earliest,
        _ => false,
    };
    let left = written.map_or(0, |t| PAUSE - now.duration_since(t).as_secs());
    if left > 0 && !narrower { Decision::Later(left) } else { Decision::Write }
}

/// Keeps one Database's window true.
pub async fn reconcile(database: Arc<Database>, windows: Arc<Windows>) -> Result<Action, Error> {
    if database.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let ctx = &windows.ctx;
    let (namespace, name) = (database.namespace().unwrap_or_default(), database.name_any());
    let backups = cache::backups_of(&ctx.caches.backups, &namespace, &name);
    let wanted = window(&database, backups.iter().map(AsRef::as_ref));
    let current = database.status.as_ref().and_then(|s| s.recoverable.as_ref());
    let (uid, now) = (database.uid().unwrap_or_default(), ctx.now());
    let written = windows.written.lock().unwrap_or_else(PoisonError::into_inner).get(&uid).copied();
    match decide(current, wanted.as_ref(), written, now) {
        Decision::Nothing => Ok(Action::await_change()),
        Decision::Later(seconds) => Ok(Action::requeue(Duration::from_secs(seconds.unsigned_abs()))),
        Decision::Write => {
            let body = match &wanted {
                Some(window) => serde_json::json!({"recoverable": window}),
                None => serde_json::json!({}),
            };
            let api = ctx.api::<Database>(&namespace);
            apply::status(&api, managers::BACKUP, database.as_ref(), &body).await.map_err(Error)?;
            let mut all = windows.written.lock().unwrap_or_else(PoisonError::into_inner);
            // Old entries say nothing any more.
            all.retain(|_, time| now.duration_since(*time).as_secs() < 2 * PAUSE);
            all.insert(uid, now);
            Ok(Action::requeue(Duration::from_secs(PAUSE.unsigned_abs())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn database(archived: Option<&str>) -> Database {
        serde_json::from_value(json!({"apiVersion": "holdfast.dev/v1alpha1", "kind": "Database",
            "metadata": {"name": "orders", "namespace": "shop", "uid": "db-1"},
            "spec": {"engine": "PostgreSQL", "version": "17", "storage": {"size": "1Gi"}},
            "status": {"systemIdentifier": "7501", "archive": {"lastArchivedTime": archived}}}))
        .unwrap()
    }

    fn backup(time: &str, identifier: &str, succeeded: &str) -> Backup {
        serde_json::from_value(json!({"apiVersion": "holdfast.dev/v1alpha1", "kind": "Backup",
            "metadata": {"name": "b"}, "spec": {"databaseRef": {"name": "orders"}},
            "status": {"backupTime": time, "postgresql": {"systemIdentifier": identifier, "timeline": 1, "startLSN": "0/1",
                "stopLSN": "0/2", "serverVersion": "17.11"},
                "conditions": [{"type": "Succeeded", "status": succeeded, "reason": "x", "message": "",
                    "lastTransitionTime": "2026-11-21T00:00:00Z"}]}}))
        .unwrap()
    }

    #[test]
    fn the_window_goes_from_the_oldest_good_backup_of_this_data_to_what_is_archived() {
        let backups = [
            backup("2026-11-18T02:00:00Z", "7000", "True"),
            backup("2026-11-19T02:00:00Z", "7501", "False"),
            backup("2026-11-20T02:00:00Z", "7501", "True"),
            backup("2026-11-21T02:00:00Z", "7501", "True"),
        ];
        let window_of = |archived, count| window(&database(archived), backups.iter().take(count));
        let text = |w: Option<Recoverable>| {
            w.map(|w| (w.earliest.unwrap().0.to_string(), w.latest.unwrap().0.to_string()))
        };
        let both = |a: &str, b: &str| Some((a.to_string(), b.to_string()));
        assert_eq!(
            text(window_of(Some("2026-11-21T09:14:02Z"), 4)),
            both("2026-11-20T02:00:00Z", "2026-11-21T09:14:02Z")
        );
        assert_eq!(text(window_of(None, 4)), both("2026-11-20T02:00:00Z", "2026-11-21T02:00:00Z"));
        assert_eq!(window_of(Some("2026-11-21T09:14:02Z"), 2), None);
    }

    #[test]
    fn it_is_written_when_it_moved_and_not_too_often() {
        let of = |from, to| Recoverable { earliest: Some(Time(at(from))), latest: Some(Time(at(to))) };
        let (old, new, narrow) = (of(100, 200), of(100, 260), of(150, 260));
        assert_eq!(decide(Some(&old), Some(&old), None, at(1_000)), Decision::Nothing);
        assert_eq!(decide(Some(&old), Some(&new), None, at(1_000)), Decision::Write);
        assert_eq!(decide(Some(&old), Some(&new), Some(at(990)), at(1_000)), Decision::Later(50));
        assert_eq!(decide(Some(&old), Some(&new), Some(at(940)), at(1_000)), Decision::Write);
        assert_eq!(decide(Some(&old), Some(&narrow), Some(at(990)), at(1_000)), Decision::Write);
        assert_eq!(decide(Some(&old), None, Some(at(990)), at(1_000)), Decision::Write);
        assert_eq!(decide(None, None, None, at(1_000)), Decision::Nothing);
    }
}

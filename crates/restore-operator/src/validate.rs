//! Reads a Restore and what it refers to once, into types that cannot be wrong. Touches nothing.

use crate::observe::Observed;
use holdfast_core::{
    BackupStoreSpec, Database, DatabaseSpec, RestoreSpec,
    conditions::{self, types},
    quantity,
    wire::{HistoryPath, PlanSource, Target},
};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use std::collections::BTreeMap;

/// Environment variable with the image of the agent.
const AGENT_IMAGE: &str = "HOLDFAST_AGENT_IMAGE";
/// Environment variable with the database images by major version, JSON.
const POSTGRES_IMAGES: &str = "HOLDFAST_POSTGRES_IMAGES";

/// What the operator is told at its start.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Image of the agent.
    pub agent_image: String,
    /// Database images by major version; needed only for a Database that has no pods to learn it from.
    pub images: BTreeMap<String, String>,
}

impl Settings {
    /// Reads the environment. What is missing becomes a condition of the Restore that needs it, not a crash of all.
    pub fn from_environment() -> Self {
        let images = std::env::var(POSTGRES_IMAGES).unwrap_or_default();
        let images = if images.is_empty() {
            BTreeMap::new()
        } else {
            serde_json::from_str(&images).unwrap_or_else(|error| {
                tracing::error!(%error, "{POSTGRES_IMAGES} is not a JSON object of images by major version; it is ignored");
                BTreeMap::new()
            })
        };
        Self { agent_image: std::env::var(AGENT_IMAGE).unwrap_or_default(), images }
    }
}

/// Something that a Restore needs is not there. It goes on by itself when it comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// CamelCase.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

/// Makes a [`Blocked`].
pub fn blocked<T>(reason: &'static str, message: String) -> Result<T, Blocked> {
    Err(Blocked { reason, message })
}

/// Name of the Database that the Restore works on.
pub fn target(spec: &RestoreSpec) -> &str {
    let new = || spec.new_database.as_ref().map(|n| n.name.as_str());
    spec.database_ref.as_ref().map(|d| d.name.as_str()).or_else(new).unwrap_or_default()
}

/// Whether an existing Database is restored in place.
pub fn in_place(spec: &RestoreSpec) -> bool {
    spec.database_ref.is_some()
}

/// Name of the Database that spec.source.database names, when it names one.
pub fn source_database(spec: &RestoreSpec) -> Option<&str> {
    Some(spec.source.as_ref()?.database.as_ref()?.name.as_str())
}

/// Name of the store to read from, as far as it is known.
pub fn store_name(
    spec: &RestoreSpec,
    database: Option<&Database>,
    backup: Option<&holdfast_core::Backup>,
) -> Option<String> {
    let source = spec.source.as_ref();
    if let Some(named) = source.and_then(|s| s.database.as_ref()) {
        return Some(named.store_ref.name.clone());
    }
    if source.is_some_and(|s| s.backup_ref.is_some()) {
        let backup = backup?;
        let used = backup.status.as_ref().and_then(|s| s.store.as_ref());
        return used.or(backup.spec.store_ref.as_ref()).map(|s| s.name.clone());
    }
    database?.spec.archive.as_ref().map(|a| a.store_ref.name.clone())
}

/// Where the data comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// The store.
    pub store: BackupStoreSpec,
    /// What to look for in it.
    pub plan: PlanSource,
}

/// Finds out where the data comes from. `ready`: the store must also have answered its last probe.
pub fn source(o: &Observed, ready: bool) -> Result<Source, Blocked> {
    let spec = &o.restore.spec;
    let plan = plan_source(o)?;
    let Some(name) = store_name(spec, o.database.as_ref(), o.backup.as_ref()) else {
        return blocked(
            "NoArchive",
            format!(
                "Database {} has no spec.archive: name spec.source.backupRef or spec.source.database",
                target(spec)
            ),
        );
    };
    let Some(store) = &o.store else {
        return blocked("StoreNotFound", format!("BackupStore {name} does not exist in this namespace"));
    };
    let said = store.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    if ready && !conditions::is_true(said, types::READY) {
        let why = conditions::find(said, types::READY).map(|c| format!("{}: {}", c.reason, c.message));
        let why =
            why.unwrap_or_else(|| "it was not probed yet; does the backup-scheduler operator run?".into());
        return blocked("StoreNotReady", format!("BackupStore {name} is not Ready: {why}"));
    }
    Ok(Source { store: store.spec.clone(), plan })
}

fn plan_source(o: &Observed) -> Result<PlanSource, Blocked> {
    let spec = &o.restore.spec;
    let namespace = o.restore.namespace().unwrap_or_default();
    let source = spec.source.clone().unwrap_or_default();
    if let Some(named) = source.database {
        if let Some(id) = named.system_identifier.as_ref().filter(|id| id.parse::<u64>().is_err()) {
            return blocked(
                "SystemIdentifierInvalid",
                format!(
                    "spec.source.database.systemIdentifier {id:?} is no system identifier, a number such as \
                     7501000000000000001; leave it out where only one database bore the name"
                ),
            );
        }
        return Ok(PlanSource::Database {
            namespace: named.namespace.unwrap_or(namespace),
            database: named.name,
            system_identifier: named.system_identifier,
        });
    }
    if let Some(backup_ref) = source.backup_ref {
        let name = &backup_ref.name;
        let Some(backup) = &o.backup else {
            return blocked(
                "BackupNotFound",
                format!(
                    "Backup {name} (spec.source.backupRef) does not exist; with spec.source.database its data can be found in the store"
                ),
            );
        };
        let status = backup.status.clone().unwrap_or_default();
        if !conditions::is_true(&status.conditions, types::SUCCEEDED) {
            return blocked(
                "BackupNotSucceeded",
                format!("Backup {name} (spec.source.backupRef) has not succeeded"),
            );
        }
        let location = status.backup_location.unwrap_or_default();
        let Some((path, backup_uid)) = backup_location(&location) else {
            return blocked(
                "BackupLocationUnknown",
                format!(
                    "Backup {name} has status.backupLocation \"{location}\", which is no place in a store"
                ),
            );
        };
        return Ok(PlanSource::Backup { path, backup_uid });
    }
    let Some(database) = &o.database else { return blocked("DatabaseNotFound", no_database(spec)) };
    let status = database.status.clone().unwrap_or_default();
    match (status.system_identifier, status.history) {
        (Some(system_identifier), Some(history)) if !system_identifier.is_empty() && !history.is_empty() => {
            let database = database.name_any();
            Ok(PlanSource::History { path: HistoryPath { namespace, database, system_identifier, history } })
        }
        _ => blocked(
            "HistoryUnknown",
            format!(
                "Database {} has no status.systemIdentifier and status.history yet: name spec.source.database",
                target(spec)
            ),
        ),
    }
}

/// What to say when the Database of spec.databaseRef is not there.
pub fn no_database(spec: &RestoreSpec) -> String {
    format!(
        "Database {} (spec.databaseRef) does not exist; spec.newDatabase restores into one that does not exist",
        target(spec)
    )
}

/// Reads `…/<namespace>/<database>/<system identifier>/<history>/base/<uid>`, whatever stands before it.
pub fn backup_location(location: &str) -> Option<(HistoryPath, String)> {
    let parts: Vec<&str> = location.trim_end_matches('/').split('/').collect();
    let [.., namespace, database, system_identifier, history, "base", uid] = parts.as_slice() else {
        return None;
    };
    let path = history_of([namespace, database, system_identifier, history])?;
    (!uid.is_empty()).then(|| (path, uid.to_string()))
}

/// Reads `<namespace>/<database>/<system identifier>/<history>`, as status.plan.location spells it.
pub fn history_location(location: &str) -> Option<HistoryPath> {
    match location.split('/').collect::<Vec<_>>().as_slice() {
        [namespace, database, system_identifier, history] => {
            history_of([namespace, database, system_identifier, history])
        }
        _ => None,
    }
}

fn history_of(parts: [&str; 4]) -> Option<HistoryPath> {
    let [namespace, database, system_identifier, history] = parts.map(str::to_string);
    let whole = parts.iter().all(|p| !p.is_empty()) && system_identifier.bytes().all(|b| b.is_ascii_digit());
    whole.then_some(HistoryPath { namespace, database, system_identifier, history })
}

/// The other way round.
pub fn location_of(path: &HistoryPath) -> String {
    format!("{}/{}/{}/{}", path.namespace, path.database, path.system_identifier, path.history)
}

/// The moment to go back to. Fails on a time that cannot be read or that has not come yet.
pub fn moment(spec: &RestoreSpec, now: Timestamp) -> Result<Target, (&'static str, String)> {
    let Some(point) = &spec.point_in_time else { return Ok(Target::Latest) };
    if let Some(time) = &point.time {
        let parsed: Timestamp = time.parse().map_err(|e| {
            ("TargetInvalid", format!("spec.pointInTime.time {time} is no RFC 3339 time with an offset: {e}"))
        })?;
        if parsed > now {
            return Err((
                "TargetInFuture",
                format!("spec.pointInTime.time {time} has not come yet; leave it out for the latest"),
            ));
        }
        return Ok(Target::Time(time.clone()));
    }
    if let Some(lsn) = &point.lsn {
        return Ok(Target::Lsn(lsn.clone()));
    }
    if let Some(xid) = &point.xid {
        return Ok(Target::Xid(xid.clone()));
    }
    if let Some(name) = &point.name {
        return Ok(Target::Name(name.clone()));
    }
    Ok(if point.backup_end == Some(true) { Target::BackupEnd } else { Target::Latest })
}

/// Quantities of spec.newDatabase.overrides that no pod or volume could have. Errors: a sentence that names the field.
pub fn overrides(spec: &RestoreSpec) -> Result<(), String> {
    const PATH: &str = "spec.newDatabase.overrides";
    let Some(new) = &spec.new_database else { return Ok(()) };
    if let Some(storage) = &new.overrides.storage {
        quantity::size(&format!("{PATH}.storage.size"), &storage.size).map_err(|wrong| wrong.to_string())?;
    }
    if let Some(resources) = &new.overrides.resources {
        quantity::resources(&format!("{PATH}.resources"), resources).map_err(|wrong| wrong.to_string())?;
    }
    Ok(())
}

/// The same of the spec that a Database has, or will have: the worker gets its resources.
pub fn resources(spec: &DatabaseSpec) -> Result<(), String> {
    match &spec.resources {
        Some(resources) => {
            quantity::resources("spec.resources", resources).map_err(|wrong| wrong.to_string())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_read_with_and_without_what_stands_before_it() {
        let bare = "shop/orders/7501000000000000001/d1234567/base/0b5a";
        let (path, uid) = backup_location(bare).unwrap();
        assert_eq!(
            (path.namespace.as_str(), path.database.as_str(), uid.as_str()),
            ("shop", "orders", "0b5a")
        );
        assert_eq!(path.system_identifier, "7501000000000000001");
        assert_eq!(backup_location(&format!("s3://bucket/prod/{bare}/")), Some((path.clone(), uid)));
        assert_eq!(history_location(&location_of(&path)), Some(path));
        for wrong in
            ["", "orders/7501/d1/base/0b5a", "shop/orders/x/d1/base/0b5a", "shop/orders/7501/d1/wal/0b5a"]
        {
            assert_eq!(backup_location(wrong), None, "{wrong}");
        }
    }
}

//! Databases, histories and backups, from the store alone. Touches the store.

use crate::{
    HistoryFolder, Store, StoreError,
    manifest::Manifest,
    wal::{self, ForkPoint, Link, WalListing},
};
use holdfast_core::wire::HistoryPath;
use holdfast_postgresql::Lsn;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// More restores in a row than anybody makes: a longer chain of parents is a circle.
const LONGEST_CHAIN: usize = 100;

/// Why the store's content cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// `history.json` cannot be read, so the parents are not known.
    #[error("{location} cannot be read: {why}")]
    Unreadable {
        /// Where it lies.
        location: String,
        /// Why not.
        why: String,
    },
    /// The store's words.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CatalogueError {
    /// CamelCase, for a condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "HistoryUnreadable",
            Self::Store(error) => error.reason,
        }
    }

    /// Whether trying again cannot help before something is put right by hand.
    pub fn permanent(&self) -> bool {
        match self {
            Self::Unreadable { .. } => true,
            Self::Store(error) => error.permanent,
        }
    }
}

/// Where a history left its parent: content of `history.json`. A history that began with initdb has no such file, or an empty object in it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// The parent.
    pub parent: HistoryPath,
    /// The parent's timeline at the fork.
    pub timeline: u32,
    /// Where: the position at which replay of the parent's WAL ended.
    pub lsn: Lsn,
    /// Segment size, bytes.
    #[serde(default = "default_segment_size")]
    pub wal_segment_size: u64,
}

fn default_segment_size() -> u64 {
    holdfast_postgresql::wal::DEFAULT_SEGMENT_SIZE
}

impl Origin {
    /// As the limit of the parent's WAL.
    pub fn fork(&self) -> ForkPoint {
        ForkPoint { timeline: self.timeline, lsn: self.lsn, segment_size: self.wal_segment_size }
    }
}

/// Parts without a manifest: a backup that runs, or what is left of one that died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// The backup's uid.
    pub uid: String,
    /// When the first object came.
    pub oldest: Timestamp,
    /// When the last object came.
    pub newest: Timestamp,
}

/// Everything that the store holds of one history.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    /// Where it lies.
    pub path: HistoryPath,
    /// Where it left its parent; None: it has none.
    pub origin: Option<Origin>,
    /// Whole backups, ordered by stop time.
    pub backups: Vec<Manifest>,
    /// Parts without a manifest.
    pub unfinished: Vec<Unfinished>,
    /// Backups whose manifest cannot be used, with the reason. They count for nothing and are never removed.
    pub unreadable: Vec<(String, String)>,
    /// The WAL.
    pub wal: WalListing,
}

impl History {
    /// When something last came: WAL, or a backup's end. None: nothing ever did.
    pub fn last_activity(&self) -> Option<Timestamp> {
        let wal = self.wal.objects.iter().map(|o| o.modified).max();
        let backup = self.backups.last().map(|b| b.stop_time);
        let part = self.unfinished.iter().map(|u| u.newest).max();
        wal.max(backup).max(part)
    }
}

/// Namespaces and names of all databases in a store.
///
/// # Errors
/// What the store says.
pub async fn databases(store: &Store) -> Result<Vec<(String, String)>, StoreError> {
    let mut found = Vec::new();
    for namespace in store.list_folders("").await? {
        for database in store.list_folders(&namespace).await? {
            found.push((namespace.clone(), database));
        }
    }
    Ok(found)
}

/// Paths of all histories of a database, over all its system identifiers.
///
/// # Errors
/// What the store says.
pub async fn histories(
    store: &Store,
    namespace: &str,
    database: &str,
) -> Result<Vec<HistoryPath>, StoreError> {
    let mut found = Vec::new();
    let top = format!("{namespace}/{database}");
    for system_identifier in store.list_folders(&top).await? {
        for history in store.list_folders(&format!("{top}/{system_identifier}")).await? {
            found.push(HistoryPath {
                namespace: namespace.into(),
                database: database.into(),
                system_identifier: system_identifier.clone(),
                history,
            });
        }
    }
    Ok(found)
}

/// The history of a database that was written to last, if there is any; with a system identifier only among those of that system.
///
/// # Errors
/// What the store says.
pub async fn written_last(
    store: &Store,
    namespace: &str,
    database: &str,
    system_identifier: Option<&str>,
) -> Result<Option<HistoryPath>, CatalogueError> {
    let mut newest: Option<(Timestamp, HistoryPath)> = None;
    for path in histories(store, namespace, database).await? {
        if system_identifier.is_some_and(|wanted| wanted != path.system_identifier) {
            continue;
        }
        let Some(time) = history(store, &path).await?.last_activity() else { continue };
        if newest.as_ref().is_none_or(|(known, _)| time > *known) {
            newest = Some((time, path));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

/// Everything that the store holds of one history.
///
/// # Errors
/// What the store says; an unreadable `history.json`.
pub async fn history(store: &Store, path: &HistoryPath) -> Result<History, CatalogueError> {
    let folder = HistoryFolder::new(path);
    let mut found = History {
        path: path.clone(),
        origin: origin(store, &folder).await?,
        backups: Vec::new(),
        unfinished: Vec::new(),
        unreadable: Vec::new(),
        // Before the backups: a backup that is listed then had all its WAL before, so the two agree.
        wal: wal::listing(store, &folder).await?,
    };
    let bases = folder.bases();
    let mut objects: BTreeMap<String, Vec<crate::store::Object>> = BTreeMap::new();
    for object in store.list(&bases).await? {
        let inside = object.key.strip_prefix(&bases).and_then(|k| k.trim_start_matches('/').split_once('/'));
        let Some((uid, _)) = inside else { continue };
        objects.entry(uid.to_string()).or_default().push(object);
    }
    for (uid, objects) in objects {
        let key = folder.manifest(&uid);
        if !objects.iter().any(|o| o.key == key) {
            let times = || objects.iter().map(|o| o.modified);
            if let (Some(oldest), Some(newest)) = (times().min(), times().max()) {
                found.unfinished.push(Unfinished { uid, oldest, newest });
            }
            continue;
        }
        match store.find(&key).await? {
            // Removed since the listing.
            None => {}
            Some(bytes) => match Manifest::parse(&bytes) {
                Ok(manifest) if manifest.backup_uid == uid => found.backups.push(manifest),
                Ok(manifest) => {
                    found.unreadable.push((uid, format!("it names backup {}", manifest.backup_uid)))
                }
                Err(error) => found.unreadable.push((uid, error.to_string())),
            },
        }
    }
    found.backups.sort_by_key(|b| b.stop_time);
    Ok(found)
}

/// Where a history left its parent; None: it has none.
///
/// # Errors
/// What the store says; an unreadable `history.json`.
pub async fn origin(store: &Store, folder: &HistoryFolder) -> Result<Option<Origin>, CatalogueError> {
    let key = folder.lineage();
    let Some(bytes) = store.find(&key).await? else { return Ok(None) };
    let unreadable = |e: serde_json::Error| CatalogueError::Unreadable {
        location: store.location(&key),
        why: e.to_string(),
    };
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(unreadable)?;
    if value.get("parent").is_none_or(serde_json::Value::is_null) {
        return Ok(None);
    }
    serde_json::from_value(value).map(Some).map_err(unreadable)
}

/// Writes where a history left its parent. May be repeated with the same content.
///
/// # Errors
/// `AlreadyExists` when the history has another origin already; what the store says.
pub async fn record_origin(
    store: &Store,
    folder: &HistoryFolder,
    origin: &Origin,
) -> Result<(), CatalogueError> {
    let key = folder.lineage();
    let bytes = serde_json::to_vec(origin)
        .map_err(|e| CatalogueError::Unreadable { location: store.location(&key), why: e.to_string() })?;
    store.put_same(&key, bytes.into()).await?;
    Ok(())
}

/// Says of a history that it has no parent, unless something is said of it already: a restore records its origin first.
///
/// # Errors
/// What the store says.
pub async fn record_beginning(store: &Store, folder: &HistoryFolder) -> Result<(), StoreError> {
    let key = folder.lineage();
    if store.find(&key).await?.is_some() {
        return Ok(());
    }
    match store.put_new(&key, "{\"parent\":null}".into()).await {
        Err(error) if !error.already_exists() => Err(error),
        _ => Ok(()),
    }
}

/// A history and its ancestors, each up to the fork: where [`wal::fetch`] looks.
///
/// # Errors
/// What the store says; an unreadable `history.json`; a circle of parents.
pub async fn chain(store: &Store, path: &HistoryPath) -> Result<Vec<Link>, CatalogueError> {
    let mut links = vec![Link::whole(path)];
    loop {
        let Some(last) = links.last() else { return Ok(links) };
        let Some(origin) = origin(store, &last.folder).await? else { return Ok(links) };
        if links.len() >= LONGEST_CHAIN {
            let location = store.location(&last.folder.lineage());
            return Err(CatalogueError::Unreadable { location, why: "its parents form a circle".into() });
        }
        let until = narrowed(origin.fork(), last.until);
        links.push(Link { folder: HistoryFolder::new(&origin.parent), until: Some(until) });
    }
}

/// What is allowed by both: a grandparent's WAL counts only as far as the way to the child leads through it.
fn narrowed(fork: ForkPoint, limit: Option<ForkPoint>) -> ForkPoint {
    let Some(limit) = limit else { return fork };
    ForkPoint { timeline: fork.timeline.min(limit.timeline), lsn: fork.lsn.min(limit.lsn), ..fork }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(history: &str) -> HistoryPath {
        HistoryPath {
            namespace: "shop".into(),
            database: "orders".into(),
            system_identifier: "7501".into(),
            history: history.into(),
        }
    }

    async fn put(store: &Store, key: &str, text: impl Into<bytes::Bytes>) {
        store.put(key, text.into()).await.unwrap();
    }

    #[tokio::test]
    async fn tells_whole_backups_from_unfinished_and_unreadable_ones() {
        let temporary = tempfile::tempdir().unwrap();
        let store = Store::at(temporary.path()).unwrap();
        let folder = HistoryFolder::new(&path("d1"));
        for (uid, time) in [("late", "2026-11-21T02:00:00Z"), ("early", "2026-11-20T02:00:00Z")] {
            let mut manifest = crate::manifest::tests::backup(uid, 1, "0/2000028", "0/2000100", time);
            manifest.history = path("d1");
            put(&store, &folder.part(uid, "000000.tar.zst"), "x").await;
            put(&store, &folder.manifest(uid), serde_json::to_vec(&manifest).unwrap()).await;
        }
        put(&store, &folder.part("half", "000000.tar.zst"), "x").await;
        put(&store, &folder.manifest("odd"), "{").await;
        put(&store, &folder.wal(&"000000010000000000000002".parse().unwrap()), "x").await;
        let found = history(&store, &path("d1")).await.unwrap();
        let uids: Vec<&str> = found.backups.iter().map(|b| b.backup_uid.as_str()).collect();
        assert_eq!(uids, ["early", "late"]);
        assert_eq!(found.unfinished.len(), 1);
        assert_eq!(found.unreadable[0].0, "odd");
        assert_eq!(found.wal.objects.len(), 1);
        assert_eq!(databases(&store).await.unwrap(), [("shop".to_string(), "orders".to_string())]);
        assert_eq!(histories(&store, "shop", "orders").await.unwrap(), [path("d1")]);
        assert_eq!(written_last(&store, "shop", "orders", None).await.unwrap(), Some(path("d1")));
        assert_eq!(written_last(&store, "shop", "orders", Some("1")).await.unwrap(), None);
    }

    #[tokio::test]
    async fn follows_parents_and_notices_a_circle() {
        let temporary = tempfile::tempdir().unwrap();
        let store = Store::at(temporary.path()).unwrap();
        let link = async |child: &str, parent: &str, timeline, lsn| {
            let origin = Origin { parent: path(parent), timeline, lsn: Lsn(lsn), wal_segment_size: 16 << 20 };
            record_origin(&store, &HistoryFolder::new(&path(child)), &origin).await
        };
        link("d3", "d2", 1, 100).await.unwrap();
        link("d3", "d2", 1, 100).await.unwrap();
        assert!(link("d3", "d1", 1, 100).await.is_err());
        link("d2", "d1", 2, 300).await.unwrap();
        put(&store, &HistoryFolder::new(&path("d1")).lineage(), "{}").await;
        let links = chain(&store, &path("d3")).await.unwrap();
        assert_eq!(links.len(), 3);
        // d3 left d2 before d2 left d1: of d1 only what lies before both counts.
        assert_eq!(links[2].until, Some(ForkPoint { timeline: 1, lsn: Lsn(100), segment_size: 16 << 20 }));
        link("c1", "c2", 1, 1).await.unwrap();
        link("c2", "c1", 1, 1).await.unwrap();
        assert!(chain(&store, &path("c1")).await.is_err());
    }
}

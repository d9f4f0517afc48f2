//! WAL files in and out. Touches the store and the files that PostgreSQL names.
//!
//! Memory: the compressed form of what goes into the store, 32 MiB for all calls at once or one file; see [`flow`].

mod flow;

use crate::{HistoryFolder, Store, StoreError};
use holdfast_core::wire::HistoryPath;
use holdfast_postgresql::{
    Lsn,
    history::TimelineHistory,
    wal::{SegmentName, WalFile},
};
use jiff::Timestamp;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Zstd level for WAL: it has to keep up with a busy primary on one core.
const LEVEL: i32 = 1;
/// Bytes of a segment's beginning that tell whose it is.
const HEADER: usize = 40;
/// PostgreSQL's limits for a segment.
const SMALLEST_SEGMENT: u64 = 1024 * 1024;
const LARGEST_SEGMENT: u64 = 1024 * 1024 * 1024;

/// Why a WAL file did not get where it should.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The name is not one that PostgreSQL gives to a file of its WAL.
    #[error(transparent)]
    Name(#[from] holdfast_postgresql::wal::InvalidName),
    /// A file on this side cannot be read or written.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The store holds other content under this name. It is never overwritten: one of the two comes from another line of data.
    #[error(
        "{location} holds other content than {path}: two servers write to this history, or the archive is damaged"
    )]
    DifferentContent {
        /// Where the other content lies.
        location: String,
        /// The file on this side.
        path: PathBuf,
    },
    /// A file on this side is not the segment that its name says.
    #[error("{path} is not the segment that its name says: {why}")]
    NotThisSegment {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// An object in the store is not what its name says.
    #[error("{location} is damaged: {why}")]
    Damaged {
        /// Where it lies.
        location: String,
        /// What is wrong with it.
        why: String,
    },
    /// The store's words.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl WalError {
    /// CamelCase, for a condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Name(_) => "InvalidName",
            Self::File { .. } => "FileFailed",
            Self::DifferentContent { .. } => "DifferentContent",
            Self::NotThisSegment { .. } => "NotThisSegment",
            Self::Damaged { .. } => "Damaged",
            Self::Store(error) => error.reason,
        }
    }

    fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |error| Self::File { path, error }
    }
}

/// What [`push`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is in the store now.
    Stored,
    /// It was there before, with the same content.
    AlreadyThere,
}

/// Where a history was left for the next one: WAL after this belongs to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForkPoint {
    /// Timeline at the fork.
    pub timeline: u32,
    /// Position of the fork.
    pub lsn: Lsn,
    /// Segment size, bytes.
    pub segment_size: u64,
}

impl ForkPoint {
    /// Whether a file of the parent belongs to the lineage that goes on after the fork.
    ///
    /// The segment with the fork itself does: its first part is common, and PostgreSQL stops there by the timeline's history.
    pub fn allows(&self, file: &WalFile) -> bool {
        match file {
            WalFile::History(timeline) => *timeline <= self.timeline,
            WalFile::Segment(s) | WalFile::Partial(s) | WalFile::Backup(_, s) => {
                s.timeline <= self.timeline && s.start(self.segment_size) <= self.lsn
            }
        }
    }
}

/// One history to look for WAL in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its folder.
    pub folder: HistoryFolder,
    /// Only up to here; None: all of it.
    pub until: Option<ForkPoint>,
}

impl Link {
    /// A history with all its WAL.
    pub fn whole(path: &HistoryPath) -> Self {
        Self { folder: HistoryFolder::new(path), until: None }
    }

    fn allows(&self, file: &WalFile) -> bool {
        self.until.is_none_or(|until| until.allows(file))
    }
}

/// Puts a file into the store under the name that PostgreSQL gives it. May be repeated: the same content is [`Pushed::AlreadyThere`].
///
/// # Errors
/// [`WalError::DifferentContent`] when the store holds something else; [`WalError::NotThisSegment`] when a segment is too short or is
/// from another place or system; what the store and the file system say.
pub async fn push(
    store: &Store,
    folder: &HistoryFolder,
    name: &str,
    path: &Path,
) -> Result<Pushed, WalError> {
    let file: WalFile = name.parse()?;
    let key = folder.wal(&file);
    let (begins, size) = flow::look(path, HEADER).await?;
    check(&file, &begins, size, &folder.path().system_identifier)
        .map_err(|why| WalError::NotThisSegment { path: path.into(), why })?;
    // A standby archives what the primary has archived already: then the question is cheaper than the answer.
    if store.head(&key).await?.is_some() {
        return compare(store, &key, path).await;
    }
    let packed = flow::pack(path, size, compressed(&file)).await?;
    match store.put_pieces_new(&key, packed.pieces.clone()).await {
        Ok(()) => Ok(Pushed::Stored),
        Err(error) if error.already_exists() => {
            drop(packed);
            compare(store, &key, path).await
        }
        Err(error) => Err(error.into()),
    }
}

async fn compare(store: &Store, key: &str, path: &Path) -> Result<Pushed, WalError> {
    let file = path.to_path_buf();
    match flow::read(store, key, move |stored| flow::same(stored, &file)).await {
        Ok(true) => Ok(Pushed::AlreadyThere),
        Ok(false) | Err(WalError::Damaged { .. }) => {
            Err(WalError::DifferentContent { location: store.location(key), path: path.into() })
        }
        Err(error) => Err(error),
    }
}

/// Fetches a file from the first history of the chain that has it, under a name of its own first and renamed when it is whole:
/// PostgreSQL never sees a short file. False: no history has it.
///
/// # Errors
/// [`WalError::Damaged`] when an object is not the segment that its name says; what the store and the file system say.
pub async fn fetch(store: &Store, chain: &[Link], name: &str, destination: &Path) -> Result<bool, WalError> {
    let file: WalFile = name.parse()?;
    for link in chain.iter().filter(|link| link.allows(&file)) {
        let key = link.folder.wal(&file);
        let mut temporary = destination.as_os_str().to_owned();
        temporary.push(".holdfast");
        let temporary = PathBuf::from(temporary);
        let to = temporary.clone();
        let written = flow::read(store, &key, move |stored| flow::write(stored, &to, HEADER)).await;
        let checked = written.and_then(|(begins, size)| {
            check(&file, &begins, size, &link.folder.path().system_identifier)
                .map_err(|why| WalError::Damaged { location: store.location(&key), why })
        });
        match checked {
            Ok(()) => {}
            Err(WalError::Store(error)) if error.not_found() => continue,
            Err(error) => {
                // Best effort: it has a name that PostgreSQL does not look for.
                let _ = tokio::fs::remove_file(&temporary).await;
                return Err(error);
            }
        }
        tokio::fs::rename(&temporary, destination).await.map_err(WalError::file(destination))?;
        return Ok(true);
    }
    Ok(false)
}

/// The lineage of a timeline, from its `.history` file. Timeline 1 has none and needs none.
///
/// # Errors
/// [`WalError::Damaged`] when the file is missing or unreadable; what the store says.
pub async fn lineage(store: &Store, chain: &[Link], timeline: u32) -> Result<TimelineHistory, WalError> {
    if timeline <= 1 {
        return Ok(TimelineHistory::root(timeline));
    }
    let file = WalFile::History(timeline);
    for link in chain.iter().filter(|link| link.allows(&file)) {
        let key = link.folder.wal(&file);
        let damaged = |why: String| WalError::Damaged { location: store.location(&key), why };
        if let Some(bytes) = store.find(&key).await? {
            let text = String::from_utf8(bytes.to_vec()).map_err(|e| damaged(e.to_string()))?;
            return TimelineHistory::parse(timeline, &text).map_err(|e| damaged(e.to_string()));
        }
    }
    let location = chain.first().map(|l| store.location(&l.folder.wal(&file))).unwrap_or_default();
    Err(WalError::Damaged {
        location,
        why: "it is missing, so the lineage of its timeline is not known".into(),
    })
}

fn compressed(file: &WalFile) -> bool {
    matches!(file, WalFile::Segment(_) | WalFile::Partial(_))
}

/// Whether a file that begins like this can be the segment that the name says: its size and, as far as there is one, its first page's header
/// (`XLogLongPageHeaderData` in `src/include/access/xlog_internal.h`).
fn check(file: &WalFile, begins: &[u8], size: u64, system_identifier: &str) -> Result<(), String> {
    let (WalFile::Segment(name) | WalFile::Partial(name)) = file else { return Ok(()) };
    if !size.is_power_of_two() || !(SMALLEST_SEGMENT..=LARGEST_SEGMENT).contains(&size) {
        return Err(format!("{size} bytes is no size of a segment"));
    }
    if begins.len() < HEADER {
        return Err(format!("{} bytes of its header are there", begins.len()));
    }
    let number = |at: usize, length: usize| {
        begins[at..at + length].iter().rev().fold(0_u64, |all, byte| (all << 8) | u64::from(*byte))
    };
    const LONG_HEADER: u64 = 2;
    if number(0, 2) == 0 || number(2, 2) & LONG_HEADER == 0 {
        return Ok(());
    }
    let (address, system, segment_size) = (Lsn(number(8, 8)), number(24, 8), number(32, 4));
    if segment_size != size {
        return Err(format!("{size} bytes, while its header says {segment_size}"));
    }
    if address != name.start(size) {
        return Err(format!("its header says that it begins at {address}"));
    }
    if system.to_string() != system_identifier {
        return Err(format!("its header says system identifier {system}, not {system_identifier}"));
    }
    Ok(())
}

/// One WAL file in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalObject {
    /// Its key.
    pub key: String,
    /// What it is.
    pub file: WalFile,
    /// Bytes stored.
    pub size: u64,
    /// When it came, by the store's clock.
    pub modified: Timestamp,
}

/// The WAL of one history as the store lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WalListing {
    /// Everything that is a WAL file, ordered by key.
    pub objects: Vec<WalObject>,
}

impl WalListing {
    /// Whole segments with the time they came, ordered by timeline and position.
    pub fn segments(&self) -> BTreeMap<SegmentName, Timestamp> {
        self.objects
            .iter()
            .filter_map(|o| match o.file {
                WalFile::Segment(name) => Some((name, o.modified)),
                _ => None,
            })
            .collect()
    }

    /// Timelines that have a `.history` file, ordered.
    pub fn histories(&self) -> Vec<u32> {
        let mut found: Vec<u32> = self
            .objects
            .iter()
            .filter_map(|o| match o.file {
                WalFile::History(timeline) => Some(timeline),
                _ => None,
            })
            .collect();
        found.sort_unstable();
        found
    }
}

/// Lists the WAL of a history. What is not a WAL file is left out, so it is neither counted nor ever removed.
///
/// # Errors
/// What the store says.
pub async fn listing(store: &Store, folder: &HistoryFolder) -> Result<WalListing, StoreError> {
    let objects = store.list(&folder.wals()).await?;
    let known = objects.into_iter().filter_map(|o| {
        let file = folder.wal_file(&o.key)?;
        Some(WalObject { file, key: o.key, size: o.size, modified: o.modified })
    });
    Ok(WalListing { objects: known.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSTEM: u64 = 7_501_234_567_890_123_456;
    const SIZE: usize = 1024 * 1024;
    const NAME: &str = "000000010000000000000005";

    fn path(history: &str) -> HistoryPath {
        HistoryPath {
            namespace: "shop".into(),
            database: "orders".into(),
            system_identifier: SYSTEM.to_string(),
            history: history.into(),
        }
    }

    /// A segment with the header that PostgreSQL writes.
    fn segment(name: &str, system: u64, fill: u8) -> Vec<u8> {
        let name: SegmentName = name.parse().unwrap();
        let mut bytes = vec![fill; SIZE];
        bytes[..40].fill(0);
        bytes[0..4].copy_from_slice(&[0x16, 0xD1, 2, 0]);
        bytes[8..16].copy_from_slice(&name.start(SIZE as u64).0.to_le_bytes());
        bytes[24..32].copy_from_slice(&system.to_le_bytes());
        bytes[32..36].copy_from_slice(&(SIZE as u32).to_le_bytes());
        bytes
    }

    struct World {
        folder: tempfile::TempDir,
        store: Store,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::at(&folder.path().join("store")).unwrap();
            Self { folder, store }
        }

        fn file(&self, name: &str, content: &[u8]) -> PathBuf {
            let path = self.folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        }

        async fn push(&self, history: &str, name: &str, content: &[u8]) -> Result<Pushed, WalError> {
            let file = self.file("pushed", content);
            push(&self.store, &HistoryFolder::new(&path(history)), name, &file).await
        }
    }

    #[tokio::test]
    async fn pushing_again_is_fine_and_other_content_is_refused() {
        let world = World::new();
        let content = segment(NAME, SYSTEM, 1);
        assert_eq!(world.push("d1", NAME, &content).await.unwrap(), Pushed::Stored);
        assert_eq!(world.push("d1", NAME, &content).await.unwrap(), Pushed::AlreadyThere);
        let other = world.push("d1", NAME, &segment(NAME, SYSTEM, 2)).await.unwrap_err();
        assert_eq!(other.reason(), "DifferentContent");
        for (name, text) in
            [("00000002.history", "1\t0/5\tx\n"), ("000000010000000000000005.00000028.backup", "START")]
        {
            assert_eq!(world.push("d1", name, text.as_bytes()).await.unwrap(), Pushed::Stored);
            assert_eq!(world.push("d1", name, text.as_bytes()).await.unwrap(), Pushed::AlreadyThere);
        }
        let listing = listing(&world.store, &HistoryFolder::new(&path("d1"))).await.unwrap();
        assert_eq!(listing.objects.len(), 3);
        assert_eq!(listing.histories(), [2]);
        assert_eq!(listing.segments().len(), 1);
    }

    #[tokio::test]
    async fn a_short_file_and_a_segment_of_another_place_or_system_are_not_archived() {
        let world = World::new();
        for bad in [
            vec![0; 100],
            vec![0; SIZE + 8192],
            segment("000000010000000000000006", SYSTEM, 0),
            segment(NAME, 1, 0),
        ] {
            assert_eq!(world.push("d1", NAME, &bad).await.unwrap_err().reason(), "NotThisSegment");
        }
        assert_eq!(world.push("d1", "archive_status", b"").await.unwrap_err().reason(), "InvalidName");
    }

    #[tokio::test]
    async fn fetches_whole_files_or_nothing() {
        let world = World::new();
        let content = segment(NAME, SYSTEM, 3);
        world.push("d1", NAME, &content).await.unwrap();
        let destination = world.folder.path().join("RECOVERYXLOG");
        let chain = [Link::whole(&path("d1"))];
        assert!(fetch(&world.store, &chain, NAME, &destination).await.unwrap());
        assert_eq!(std::fs::read(&destination).unwrap(), content);
        let missing = world.folder.path().join("missing");
        assert!(!fetch(&world.store, &chain, "000000010000000000000006", &missing).await.unwrap());
        assert!(!missing.exists());
        // A truncated object must not become a short file.
        let key = HistoryFolder::new(&path("d1")).wal(&NAME.parse().unwrap());
        let whole = world.store.get(&key).await.unwrap();
        world.store.put(&key, whole.slice(..whole.len() / 2)).await.unwrap();
        assert_eq!(fetch(&world.store, &chain, NAME, &missing).await.unwrap_err().reason(), "Damaged");
        assert!(!missing.exists());
        // Neither must one that was cut and compressed well.
        world.store.put(&key, zstd::encode_all(&content[..4096], 1).unwrap().into()).await.unwrap();
        assert_eq!(fetch(&world.store, &chain, NAME, &missing).await.unwrap_err().reason(), "Damaged");
        assert!(!missing.exists());
    }

    #[tokio::test]
    async fn looks_in_the_child_first_and_in_the_parent_only_up_to_the_fork() {
        let world = World::new();
        let (fork, after, other) =
            ("000000010000000000000005", "000000010000000000000006", "000000020000000000000005");
        for name in [fork, after, other] {
            world.push("parent", name, &segment(name, SYSTEM, 1)).await.unwrap();
        }
        world.push("parent", "00000002.history", b"1\t0/5\tby the parent\n").await.unwrap();
        world.push("child", "00000002.history", b"1\t0/500010\tby the child\n").await.unwrap();
        let until = ForkPoint { timeline: 1, lsn: Lsn(5 * SIZE as u64 + 16), segment_size: SIZE as u64 };
        let parent = Link { folder: HistoryFolder::new(&path("parent")), until: Some(until) };
        let chain = [Link::whole(&path("child")), parent];
        let to = world.folder.path().join("to");
        assert!(fetch(&world.store, &chain, fork, &to).await.unwrap());
        assert!(!fetch(&world.store, &chain, after, &to).await.unwrap());
        assert!(!fetch(&world.store, &chain, other, &to).await.unwrap());
        assert_eq!(lineage(&world.store, &chain, 2).await.unwrap().forks[0].until, Lsn(0x500010));
        assert!(lineage(&world.store, &chain[1..], 2).await.is_err());
        assert_eq!(lineage(&world.store, &chain, 1).await.unwrap(), TimelineHistory::root(1));
    }
}

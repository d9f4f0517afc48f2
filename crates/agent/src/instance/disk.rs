//! Room on the volume: measured on a thread of its own, which also keeps the reserve file. What it means is decided in
//! `holdfast_postgresql::disk`; what follows for the server in `guard`.
//!
//! A volume that hangs stops only this thread: the main loop goes on with what was measured last.

use super::shared::Shared;
use crate::state::{data_directory, sync_folder};
use anyhow::Context;
use holdfast_core::report::{VolumeReport, VolumeStage};
use holdfast_postgresql::disk::{Reserve, Situation, Volume, decide, size};
use nix::{fcntl::posix_fallocate, sys::statvfs::statvfs};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};
use tokio::sync::{Notify, oneshot};

/// How often a volume with ample room is measured.
const CALM: Duration = Duration::from_secs(1);
/// How often any other: between two looks nothing may get from the threshold to the end.
const TENSE: Duration = Duration::from_millis(50);
/// How often the WAL is added up: a look at each of its files.
const WAL: Duration = Duration::from_secs(2);
/// How long a reserve that found no room is not tried again: some quotas are not in what the filesystem says it has.
const MAKE_AGAIN: Duration = Duration::from_secs(30);
/// What was lowest in this period and the one before counts as recent.
const RECENT: Duration = Duration::from_secs(5);
/// How long the main loop waits for a fresh look.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is known of the volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// As measured last.
    pub volume: Volume,
    /// What that means.
    pub stage: VolumeStage,
    /// Least that was available in the last seconds, bytes: a server that found no room leaves some when it ends.
    pub lowest: u64,
    /// Size of the reserve file, bytes.
    pub reserve: u64,
    /// This look gave the reserve free.
    pub released: bool,
    /// Size for settings that are derived from it: it ignores what some filesystems vary by, so that the server is not told to
    /// read its configuration at every turn.
    pub steady_capacity: u64,
}

struct Order {
    down: bool,
    reply: oneshot::Sender<Known>,
}

/// Handle of the thread.
#[derive(Clone)]
pub struct Disk {
    orders: mpsc::Sender<Order>,
    known: Arc<Mutex<Known>>,
    turned: Arc<Notify>,
}

impl Disk {
    /// Starts measuring. `segment`: bytes of a WAL segment.
    pub fn start(volume: &Path, segment: u64, shared: Shared) -> anyhow::Result<Self> {
        let (orders, receiver) = mpsc::channel::<Order>();
        let (known, turned) = (Arc::new(Mutex::new(Known::default())), Arc::new(Notify::new()));
        let disk = Self { orders, known: known.clone(), turned: turned.clone() };
        let mut keeper = Keeper::new(volume, segment, Box::new(space));
        let work = move || {
            loop {
                let pause = if keeper.stage == VolumeStage::Ample { CALM } else { TENSE };
                let order = match receiver.recv_timeout(pause) {
                    Ok(order) => Some(order),
                    Err(mpsc::RecvTimeoutError::Timeout) => None,
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                };
                let before = keeper.stage;
                match keeper.look(order.as_ref().is_some_and(|o| o.down)) {
                    Ok(now) => {
                        shared.volume_is(report(&now));
                        if let Ok(mut known) = known.lock() {
                            *known = now;
                        }
                        if now.stage != before || now.released {
                            turned.notify_one();
                        }
                        if let Some(order) = order {
                            let _ = order.reply.send(now);
                        }
                    }
                    Err(error) => keeper.complain(&error),
                }
            }
        };
        std::thread::Builder::new().name("disk".into()).spawn(work).context("starting the disk's thread")?;
        Ok(disk)
    }

    /// What was measured last.
    pub fn known(&self) -> Known {
        self.known.lock().map(|k| *k).unwrap_or_default()
    }

    /// Measures now. `down`: the server does not run; what recovery needs is then given free. Bounded: a volume that does not
    /// answer is as it was.
    pub async fn look(&self, down: bool) -> Known {
        let (reply, answer) = oneshot::channel();
        if self.orders.send(Order { down, reply }).is_err() {
            return self.known();
        }
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(known)) => known,
            _ => Known { released: false, ..self.known() },
        }
    }

    /// Waits until something changed that the main loop should know at once.
    pub async fn turned(&self) {
        self.turned.notified().await;
    }
}

fn report(now: &Known) -> VolumeReport {
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    VolumeReport {
        capacity_bytes: signed(now.volume.capacity),
        available_bytes: signed(now.volume.available),
        wal_bytes: signed(now.volume.wal),
        stage: now.stage,
    }
}

/// Size of a path's filesystem and what this user may still write to it.
type Space = Box<dyn Fn(&Path) -> io::Result<(u64, u64)> + Send>;

fn space(path: &Path) -> io::Result<(u64, u64)> {
    let found = statvfs(path)?;
    let unit = found.fragment_size();
    Ok((unit.saturating_mul(found.blocks()), unit.saturating_mul(found.blocks_available())))
}

/// What the thread remembers.
struct Keeper {
    volume: PathBuf,
    segment: u64,
    space: Space,
    stage: VolumeStage,
    /// What the log says.
    told: VolumeStage,
    /// The reserve cannot be made, and not for lack of room.
    impossible: bool,
    /// When it last found no room.
    failed: Option<Instant>,
    /// Least that was available since then, and in the period before.
    lowest: (Instant, u64, u64),
    wal: Option<(Instant, u64)>,
    steady_capacity: u64,
    complained: bool,
}

impl Keeper {
    fn new(volume: &Path, segment: u64, space: Space) -> Self {
        Self {
            volume: volume.into(),
            segment,
            space,
            // Whoever was here before may have refused writes and given the reserve free: without one this must be earned.
            stage: if reserve_size(volume) == 0 { VolumeStage::Full } else { VolumeStage::Ample },
            told: VolumeStage::Ample,
            impossible: false,
            failed: None,
            lowest: (Instant::now(), u64::MAX, u64::MAX),
            wal: None,
            steady_capacity: 0,
            complained: false,
        }
    }

    fn complain(&mut self, error: &io::Error) {
        // Once: a volume that is gone says so twenty times a second.
        if !std::mem::replace(&mut self.complained, true) {
            tracing::error!(%error, "the volume's free space cannot be measured");
        }
    }

    fn measure(&mut self) -> io::Result<Volume> {
        let (capacity, available) = (self.space)(&self.volume)?;
        let wal = match self.wal {
            Some((at, bytes)) if at.elapsed() < WAL => bytes,
            _ => {
                let bytes = wal_bytes(&data_directory(&self.volume).join("pg_wal"));
                self.wal = Some((Instant::now(), bytes));
                bytes
            }
        };
        if capacity.abs_diff(self.steady_capacity) > self.steady_capacity / 10 {
            self.steady_capacity = capacity;
        }
        if self.lowest.0.elapsed() > RECENT {
            self.lowest = (Instant::now(), u64::MAX, self.lowest.1);
        }
        self.lowest.1 = self.lowest.1.min(available);
        self.complained = false;
        Ok(Volume { capacity, available, wal, segment: self.segment })
    }

    /// Measures, and does with the reserve what follows from it.
    fn look(&mut self, down: bool) -> io::Result<Known> {
        let (mut known, reserve) = self.judge(down)?;
        if reserve != Reserve::Keep {
            match reserve {
                Reserve::Release => {
                    release(&self.volume)?;
                    tracing::warn!(bytes = known.reserve, "the volume is full: the reserve was given free");
                }
                Reserve::Make(bytes) => self.make(bytes),
                Reserve::Keep => {}
            }
            // What is available has changed with it.
            known = Known { released: reserve == Reserve::Release, ..self.judge(down)?.0 };
        }
        self.tell(&known);
        Ok(known)
    }

    fn judge(&mut self, down: bool) -> io::Result<(Known, Reserve)> {
        let volume = self.measure()?;
        let reserve = reserve_size(&self.volume);
        let (stage, next) =
            decide(&Situation { volume, was: self.stage, reserve, impossible: self.impossible, down });
        self.stage = stage;
        let (steady_capacity, lowest) = (self.steady_capacity, self.lowest.1.min(self.lowest.2));
        Ok((Known { volume, stage, lowest, reserve, released: false, steady_capacity }, next))
    }

    fn make(&mut self, bytes: u64) {
        if self.failed.is_some_and(|at| at.elapsed() < MAKE_AGAIN) {
            return;
        }
        match make(&self.volume, bytes) {
            Ok(()) => {
                self.failed = None;
                tracing::info!(bytes, "room is held back for a full volume");
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::StorageFull
                        | io::ErrorKind::QuotaExceeded
                        | io::ErrorKind::Interrupted
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::StaleNetworkFileHandle
                ) =>
            {
                self.failed = Some(Instant::now());
                tracing::warn!(%error, bytes, "no room could be held back for a full volume");
            }
            Err(error) => {
                self.impossible = true;
                tracing::error!(%error, "no room can be held back on this volume: when it is full a person must make some");
            }
        }
    }

    fn tell(&mut self, now: &Known) {
        let old = std::mem::replace(&mut self.told, now.stage);
        let (available, capacity) = (size(now.volume.available), size(now.volume.capacity));
        match (old, now.stage) {
            (VolumeStage::Full, VolumeStage::Full) => {}
            (_, VolumeStage::Full) => tracing::error!(available, capacity, "disk full"),
            (VolumeStage::Full, _) => tracing::info!(available, capacity, "the volume has room again"),
            (VolumeStage::Ample, VolumeStage::Low) => {
                tracing::warn!(available, capacity, "the volume is nearly full: let spec.storage.size grow")
            }
            _ => {}
        }
    }
}

fn reserve_file(volume: &Path) -> PathBuf {
    volume.join("agent").join("reserve")
}

fn reserve_size(volume: &Path) -> u64 {
    fs::metadata(reserve_file(volume)).map_or(0, |m| m.len())
}

/// Allocates the reserve for good: a sparse file would hold nothing back.
fn make(volume: &Path, bytes: u64) -> io::Result<()> {
    let length = i64::try_from(bytes).map_err(io::Error::other)?;
    let work = || {
        fs::create_dir_all(volume.join("agent"))?;
        let file =
            fs::OpenOptions::new().create(true).truncate(false).write(true).open(reserve_file(volume))?;
        posix_fallocate(&file, 0, length)?;
        file.sync_all()
    };
    work().inspect_err(|_| {
        // Part of a reserve takes room and is of no use.
        let _ = fs::remove_file(reserve_file(volume));
    })
}

/// Gives it free, and waits until the filesystem has: some keep deleted blocks until their journal is written.
pub fn release(volume: &Path) -> io::Result<()> {
    match fs::remove_file(reserve_file(volume)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    sync_folder(&volume.join("agent")).map_err(io::Error::other)
}

fn wal_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries.flatten().filter_map(|e| e.metadata().ok()).filter(fs::Metadata::is_file).map(|m| m.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        os::unix::fs::MetadataExt,
        sync::atomic::{AtomicU64, Ordering},
    };

    const MIB: u64 = 1 << 20;

    /// A volume of 960 MiB where data takes so many MiB.
    fn keeper(folder: &Path) -> (Keeper, Arc<AtomicU64>) {
        fs::create_dir_all(folder.join("agent")).unwrap();
        let data = Arc::new(AtomicU64::new(100));
        let inside = data.clone();
        let space = move |path: &Path| {
            let used = inside.load(Ordering::SeqCst) * MIB + reserve_size(path);
            Ok((960 * MIB, (960 * MIB).saturating_sub(used)))
        };
        (Keeper::new(folder, 16 * MIB, Box::new(space)), data)
    }

    #[test]
    fn a_real_filesystem_is_measured() {
        let folder = tempfile::tempdir().unwrap();
        let (capacity, available) = space(folder.path()).unwrap();
        assert!(available <= capacity && capacity > MIB);
        assert!(space(&folder.path().join("missing")).is_err());
    }

    #[test]
    fn the_reserve_is_allocated_and_not_only_long() {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path(), 3 * MIB).unwrap();
        let found = fs::metadata(reserve_file(folder.path())).unwrap();
        assert_eq!(found.len(), 3 * MIB);
        assert!(found.blocks() * 512 >= 3 * MIB);
        make(folder.path(), 5 * MIB).unwrap();
        assert_eq!(reserve_size(folder.path()), 5 * MIB, "it grows with the volume");
        release(folder.path()).unwrap();
        release(folder.path()).unwrap();
        assert_eq!(reserve_size(folder.path()), 0);
    }

    #[test]
    fn a_volume_fills_is_given_its_reserve_and_gets_room_again() {
        let folder = tempfile::tempdir().unwrap();
        let (mut keeper, data) = keeper(folder.path());
        let first = keeper.look(false).unwrap();
        assert_eq!((first.stage, first.reserve), (VolumeStage::Ample, 64 * MIB));
        let mut at = |used: u64, down: bool| {
            data.store(used, Ordering::SeqCst);
            let known = keeper.look(down).unwrap();
            (known.stage, known.reserve / MIB, known.released)
        };
        assert_eq!(at(800, false), (VolumeStage::Low, 64, false));
        assert_eq!(at(870, false), (VolumeStage::Full, 64, false), "refused, and the reserve is still there");
        assert_eq!(at(890, false), (VolumeStage::Full, 0, true), "the next segment might not fit");
        assert_eq!(at(950, false), (VolumeStage::Full, 0, false));
        assert_eq!(at(830, false), (VolumeStage::Full, 0, false), "130 MiB are not enough for both");
        assert_eq!(at(720, false), (VolumeStage::Low, 64, false));
        assert_eq!(at(870, true), (VolumeStage::Full, 0, true), "a server that starts has recovery to do");
        let now = keeper.look(false).unwrap();
        assert_eq!(
            (now.volume.available / MIB, now.lowest / MIB),
            (90, 6),
            "how full it just was is not forgotten"
        );
    }

    #[test]
    fn without_a_reserve_a_new_process_does_not_accept_what_the_last_one_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (mut keeper, data) = keeper(folder.path());
        data.store(880, Ordering::SeqCst);
        assert_eq!(keeper.look(false).unwrap().stage, VolumeStage::Full);
        data.store(100, Ordering::SeqCst);
        assert_eq!(keeper.look(false).unwrap().stage, VolumeStage::Ample);
    }

    #[test]
    fn a_volume_that_cannot_hold_a_reserve_is_not_full_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let (mut keeper, _) = keeper(folder.path());
        fs::create_dir(reserve_file(folder.path())).unwrap();
        keeper.stage = VolumeStage::Full;
        // A folder has a size of its own; what matters is that the file cannot be made.
        assert_eq!(keeper.look(false).unwrap().stage, VolumeStage::Ample);
    }

    #[test]
    fn a_filesystem_that_varies_its_size_a_little_changes_no_setting() {
        let folder = tempfile::tempdir().unwrap();
        let size = Arc::new(AtomicU64::new(1000));
        let inside = size.clone();
        let space = move |_: &Path| Ok((inside.load(Ordering::SeqCst), 0));
        let mut keeper = Keeper::new(folder.path(), 16 * MIB, Box::new(space));
        let mut at = |now: u64| {
            size.store(now, Ordering::SeqCst);
            keeper.measure().unwrap();
            keeper.steady_capacity
        };
        assert_eq!([at(1000), at(1050), at(950), at(2000)], [1000, 1000, 1000, 2000]);
    }

    #[test]
    fn only_files_count_as_wal() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("000000010000000000000001"), [0; 4096]).unwrap();
        fs::create_dir(folder.path().join("archive_status")).unwrap();
        assert_eq!(wal_bytes(folder.path()), 4096);
        assert_eq!(wal_bytes(&folder.path().join("missing")), 0);
    }
}

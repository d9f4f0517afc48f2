//! The pool: a file with an XFS file system that holds every volume and snapshot, each a folder with its image and what is known of
//! it. Something new is made beside its place and renamed into it, so that a process which ends in between leaves nothing half done.

use crate::{
    device::{self, Mount},
    rules::{self, Kind},
    throttle::Throttles,
};
use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::OwnedMutexGuard;
use tonic::Status;

/// How long a call waits for the ones before it on the same volume.
const TURN: Duration = Duration::from_secs(60);
/// Below this many free bytes the pool counts as full for what is larger than the rest.
const NEARLY_FULL: i64 = 256 << 20;

/// What a volume's content was copied from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A snapshot's id.
    Snapshot(String),
    /// A volume's id.
    Volume(String),
}

/// A place where a node has a volume staged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staging {
    /// The node's name.
    pub node: String,
    /// The staging path.
    pub path: PathBuf,
    /// The access mode's number.
    pub mode: i32,
}

/// What is wrong with a volume because somebody asked for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Faults {
    /// The image is gone for good.
    pub lost: bool,
    /// The device went away; the next staging gets a new one.
    pub detached: bool,
    /// Takes no writes.
    pub read_only: bool,
    /// Bytes a second, in place of the class's.
    pub slow: Option<u64>,
    /// Devices that went away while in use: their file system is shut down, so that a new one does not have to wait for them.
    pub dead: Vec<String>,
}

/// What is known of a volume beside its image. Size and content are the image's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// The name it was made under: Kubernetes' PersistentVolume.
    pub name: String,
    /// Bytes.
    pub capacity: i64,
    /// The class's parameters.
    pub parameters: BTreeMap<String, String>,
    /// The only zone that it is in.
    pub zone: Option<String>,
    /// What it began with.
    pub source: Option<Source>,
    /// Where it was staged; those that are not mounted any more do not count.
    #[serde(default)]
    pub stagings: Vec<Staging>,
    /// What is wrong with it.
    #[serde(default)]
    pub faults: Faults,
}

/// What is known of a snapshot beside its image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// The name it was made under.
    pub name: String,
    /// The volume's id.
    pub volume: String,
    /// Bytes.
    pub size: i64,
    /// The volume's zone.
    pub zone: Option<String>,
    /// When the image was taken.
    pub taken: jiff::Timestamp,
}

/// The pool.
pub struct Pool {
    folder: PathBuf,
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Bounds on the devices' speed.
    pub throttles: Throttles,
}

/// An error that a caller cannot do anything about but try again.
pub fn internal(error: anyhow::Error) -> Status {
    let words = format!("{error:#}");
    if words.contains("No space left on device") {
        return Status::resource_exhausted(words);
    }
    Status::internal(words)
}

impl Pool {
    /// Mounts the pool below `folder`, made of `file` of this size, which is made if it is not there. What an earlier process
    /// mounted is taken over; devices of ours that nothing uses are detached.
    pub async fn open(folder: &Path, file: &Path, bytes: u64) -> Result<Arc<Self>> {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let folder = folder.canonicalize().with_context(|| format!("finding {}", folder.display()))?;
        let pool = Self { folder, locks: Mutex::default(), throttles: Throttles::new() };
        if !file.exists() {
            let new = file.with_extension("new");
            let _ = std::fs::remove_file(&new);
            device::set_size(&new, i64::try_from(bytes).context("the pool is too large")?)?;
            device::run(
                "mkfs.xfs",
                &[OsStr::new("-q"), "-K".as_ref(), "-m".as_ref(), "reflink=1".as_ref(), new.as_ref()],
            )
            .await?;
            std::fs::rename(&new, file).with_context(|| format!("naming {}", file.display()))?;
        }
        pool.mount(&file.canonicalize().with_context(|| format!("finding {}", file.display()))?).await?;
        for kind in [Kind::Volume, Kind::Snapshot] {
            std::fs::create_dir_all(pool.all(kind)).context("making the pool's folders")?;
        }
        pool.tidy().await?;
        Ok(Arc::new(pool))
    }

    async fn mount(&self, file: &Path) -> Result<()> {
        let at = self.folder.join("pool");
        let mounted = device::mounts()?.into_iter().rev().find(|mount| mount.path == at);
        let attached = device::loops_of(file)?.into_iter().find(|one| !one.leaving);
        match (&mounted, &attached) {
            (Some(mount), Some(one)) if mount.device == one.device => return Ok(()),
            (None, _) => {}
            _ => anyhow::bail!("something else is mounted at {}; unmount it", at.display()),
        }
        let path = match attached {
            Some(one) => one.path(),
            // Through the page cache: what reaches it counts as written, see below.
            None => device::run("losetup", &[OsStr::new("--find"), "--show".as_ref(), file.as_ref()])
                .await?
                .into(),
        };
        // Then a flush inside a volume ends in this machine's page cache and takes a tenth of a millisecond, not some. Nothing
        // here has to survive the machine's end.
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let cache = format!("/sys/block/{name}/queue/write_cache");
        std::fs::write(&cache, "write through").with_context(|| format!("writing {cache}"))?;
        // discard: what is deleted in the pool is given back to the disk below.
        device::mount(&path, &at, "nouuid,noatime,discard").await
    }

    /// Removes what an interrupted process began, and detaches devices that nothing uses.
    async fn tidy(&self) -> Result<()> {
        for kind in [Kind::Volume, Kind::Snapshot] {
            for entry in std::fs::read_dir(self.all(kind)).context("reading the pool")? {
                let entry = entry.context("reading the pool")?;
                if !rules::is_id(kind, &entry.file_name().to_string_lossy()) {
                    std::fs::remove_dir_all(entry.path())
                        .with_context(|| format!("removing {}", entry.path().display()))?;
                }
            }
        }
        let mounts = device::mounts()?;
        for one in device::loops()?.iter().filter(|one| one.file.starts_with(self.folder.join("pool"))) {
            self.throttles.adopt(&one.device);
            if !one.leaving && !mounts.iter().any(|mount| mount.device == one.device) {
                tracing::info!(device = one.name, file = %one.file.display(), "detaching a device that nothing uses");
                if let Err(error) = device::detach(one).await {
                    tracing::warn!(%error, "a device stays");
                }
            }
        }
        Ok(())
    }

    /// Waits for the turn of all these ids; in one order, so that no two calls wait for each other.
    pub async fn lock(&self, ids: &[&str]) -> Result<Vec<OwnedMutexGuard<()>>, Status> {
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let mut held = Vec::with_capacity(sorted.len());
        for id in sorted {
            let lock = {
                let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
                // Those that nobody holds or awaits are forgotten, or the table would grow with every id ever asked for.
                locks.retain(|_, lock| Arc::strong_count(lock) > 1);
                Arc::clone(locks.entry(id.to_string()).or_default())
            };
            let turn = tokio::time::timeout(TURN, lock.lock_owned()).await;
            held.push(turn.map_err(|_| {
                Status::aborted(format!("other calls have been busy with {id} for {} s", TURN.as_secs()))
            })?);
        }
        Ok(held)
    }

    fn all(&self, kind: Kind) -> PathBuf {
        self.folder.join("pool").join(match kind {
            Kind::Volume => "volumes",
            Kind::Snapshot => "snapshots",
        })
    }

    /// Where the file system of a volume is really mounted; all else are bind mounts of it. The device may be mounted only once.
    ///
    /// The path ends as the kubelet's own staging paths do (its CSI plug-in's makeDeviceMountPath): a kubelet refuses to unstage a
    /// volume as long as its device is mounted anywhere else, but for places that end so.
    pub fn real(&self, id: &str) -> PathBuf {
        let plugin = self.folder.join("mounts/plugins/kubernetes.io/csi").join(rules::DRIVER);
        plugin.join(rules::digest(id)).join("globalmount")
    }

    /// The image of a volume or snapshot.
    pub fn image(&self, kind: Kind, id: &str) -> PathBuf {
        self.all(kind).join(id).join("image")
    }

    fn read<T: DeserializeOwned>(&self, kind: Kind, id: &str) -> Result<Option<T>, Status> {
        if !rules::is_id(kind, id) {
            return Ok(None);
        }
        let file = self.all(kind).join(id).join("meta.json");
        match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .with_context(|| format!("reading {}", file.display()))
                .map_err(internal),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                Err(internal(anyhow::Error::new(error).context(format!("reading {}", file.display()))))
            }
        }
    }

    /// What is known of a volume, if there is one of this id.
    pub fn find(&self, id: &str) -> Result<Option<Volume>, Status> {
        self.read(Kind::Volume, id)
    }

    /// What is known of a volume.
    pub fn volume(&self, id: &str) -> Result<Volume, Status> {
        self.find(id)?.ok_or_else(|| Status::not_found(format!("there is no volume {id:?}")))
    }

    /// A volume that has its image.
    pub fn intact(&self, id: &str) -> Result<Volume, Status> {
        let volume = self.volume(id)?;
        if volume.faults.lost {
            return Err(Status::not_found(format!("the content of volume {id} ({}) is lost", volume.name)));
        }
        Ok(volume)
    }

    /// What is known of a snapshot, if there is one of this id.
    pub fn snapshot(&self, id: &str) -> Result<Option<Snapshot>, Status> {
        self.read(Kind::Snapshot, id)
    }

    fn list<T: DeserializeOwned>(&self, kind: Kind) -> Result<Vec<(String, T)>, Status> {
        let entries = std::fs::read_dir(self.all(kind)).context("reading the pool").map_err(internal)?;
        let mut ids: Vec<String> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        ids.sort();
        let mut found = Vec::new();
        for id in ids {
            if let Some(one) = self.read(kind, &id)? {
                found.push((id, one));
            }
        }
        Ok(found)
    }

    /// All volumes, sorted by id.
    pub fn volumes(&self) -> Result<Vec<(String, Volume)>, Status> {
        self.list(Kind::Volume)
    }

    /// All snapshots, sorted by id.
    pub fn snapshots(&self) -> Result<Vec<(String, Snapshot)>, Status> {
        self.list(Kind::Snapshot)
    }

    /// Writes what is known of a volume.
    pub fn save(&self, id: &str, volume: &Volume) -> Result<(), Status> {
        write(&self.all(Kind::Volume).join(id), volume).map_err(internal)
    }

    /// Makes something: an image of this size, empty or copied from another, and what is known of it.
    pub async fn make<T: Serialize>(
        &self,
        kind: Kind,
        id: &str,
        meta: &T,
        bytes: i64,
        source: Option<&Path>,
    ) -> Result<()> {
        let (place, new) = (self.all(kind).join(id), self.all(kind).join(format!("{id}.new")));
        if new.exists() {
            std::fs::remove_dir_all(&new).with_context(|| format!("removing {}", new.display()))?;
        }
        std::fs::create_dir(&new).with_context(|| format!("making {}", new.display()))?;
        let image = new.join("image");
        match source {
            Some(source) => {
                device::run("cp", &[OsStr::new("--reflink=always"), source.as_ref(), image.as_ref()]).await?;
                // Never cut: the source may have grown since somebody looked.
                let have =
                    std::fs::metadata(&image).with_context(|| format!("asking for {}", image.display()))?;
                device::set_size(&image, bytes.max(i64::try_from(have.len()).unwrap_or(bytes)))?;
            }
            None => device::make_file_system(&image, bytes).await?,
        }
        write(&new, meta)?;
        std::fs::rename(&new, &place).with_context(|| format!("naming {}", place.display()))
    }

    /// Removes a volume or snapshot: first out of sight, then its content.
    pub async fn remove(&self, kind: Kind, id: &str) -> Result<()> {
        ensure!(rules::is_id(kind, id), "{id} is no id");
        let (place, gone) = (self.all(kind).join(id), self.all(kind).join(format!("{id}.gone")));
        if gone.exists() {
            tokio::fs::remove_dir_all(&gone).await.with_context(|| format!("removing {}", gone.display()))?;
        }
        std::fs::rename(&place, &gone).with_context(|| format!("removing {}", place.display()))?;
        tokio::fs::remove_dir_all(&gone).await.with_context(|| format!("removing {}", gone.display()))
    }

    /// Free bytes.
    pub fn free(&self) -> Result<i64> {
        let stats =
            nix::sys::statvfs::statvfs(&self.folder.join("pool")).context("asking for the pool's room")?;
        let bytes = u128::from(stats.blocks_available()) * u128::from(stats.fragment_size());
        Ok(i64::try_from(bytes).unwrap_or(i64::MAX))
    }

    /// Refuses what would not find room. Volumes are thin, so that their sum may be more than the pool has; only when hardly
    /// anything is left is somebody told.
    pub fn room(&self, bytes: i64) -> Result<(), Status> {
        let free = self.free().map_err(internal)?;
        if free < NEARLY_FULL && free < bytes {
            let words = format!("the pool has {free} bytes left, {bytes} are asked for; delete volumes");
            return Err(Status::resource_exhausted(words));
        }
        Ok(())
    }

    /// The mounts of a volume's living device, and that device.
    pub fn attachment(&self, id: &str, volume: &Volume) -> Result<Option<(device::Loop, Vec<Mount>)>> {
        let loops = device::loops_of(&self.image(Kind::Volume, id))?;
        let alive = loops.into_iter().find(|one| !(one.leaving && volume.faults.dead.contains(&one.name)));
        let Some(one) = alive else { return Ok(None) };
        let mounts = device::mounts()?.into_iter().filter(|mount| mount.device == one.device).collect();
        Ok(Some((one, mounts)))
    }
}

fn write<T: Serialize>(folder: &Path, meta: &T) -> Result<()> {
    let (file, new) = (folder.join("meta.json"), folder.join("meta.json.new"));
    let text = serde_json::to_vec_pretty(meta).context("writing what is known")?;
    std::fs::write(&new, text).with_context(|| format!("writing {}", new.display()))?;
    std::fs::rename(&new, &file).with_context(|| format!("naming {}", file.display()))
}

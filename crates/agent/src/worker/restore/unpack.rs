//! Unpacks the parts of a backup into the data directory, several at once, in constant memory. Reads the store, writes below the data
//! directory and nowhere else.
//!
//! The reader takes what PostgreSQL writes into a tar stream (ustar: files and folders) and refuses anything else: a link, or a name
//! that leads out of the folder, has no business in a backup.

use super::RestoreError;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use holdfast_archive::{
    HistoryFolder, Store, StoreError,
    manifest::{Manifest, Part},
};
use holdfast_core::crd::backup::CompressionAlgorithm;
use sha2::{Digest, Sha256};
use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Component, Path, PathBuf},
    time::Duration,
};
use tokio::sync::mpsc;

/// Parts at once, whatever the number of cores: beyond that the volume is the limit.
const MOST_AT_ONCE: usize = 8;
/// Tries of one part.
const TRIES: u32 = 4;
/// Wait after the first failed try; doubled after each further one.
const PAUSE: Duration = Duration::from_secs(2);
/// Pieces that wait between the store and the one who unpacks.
const PIECES: usize = 4;
/// Bytes of a tar block.
const BLOCK: usize = 512;

/// Unpacks all parts.
pub async fn unpack(
    store: &Store,
    folder: &HistoryFolder,
    manifest: &Manifest,
    data: &Path,
) -> Result<(), RestoreError> {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let parts = manifest.parts.iter().map(|part| {
        let key = folder.part(&manifest.backup_uid, &part.name);
        async move {
            with_retries(store, &key, part, manifest.compression, data).await?;
            tracing::info!(part = part.name, bytes = part.plain_bytes, "unpacked");
            Ok::<_, RestoreError>(())
        }
    });
    let at_once = cores.clamp(2, MOST_AT_ONCE);
    futures::stream::iter(parts).buffer_unordered(at_once).try_collect::<Vec<_>>().await.map(|_| ())
}

async fn with_retries(
    store: &Store,
    key: &str,
    part: &Part,
    compression: CompressionAlgorithm,
    data: &Path,
) -> Result<(), RestoreError> {
    let mut pause = PAUSE;
    for attempt in 1.. {
        match one(store, key, part, compression, data).await {
            Err(RestoreError::Store(error)) if !error.permanent && attempt < TRIES => {
                tracing::warn!(part = part.name, attempt, "{error}; once more");
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            other => return other,
        }
    }
    Ok(())
}

/// One part: its bytes come from the store, a thread of its own hashes, decompresses and writes.
async fn one(
    store: &Store,
    key: &str,
    part: &Part,
    compression: CompressionAlgorithm,
    data: &Path,
) -> Result<(), RestoreError> {
    let mut pieces = Box::pin(store.stream(key).await?);
    let (give, take) = mpsc::channel::<Result<Bytes, StoreError>>(PIECES);
    let (data, part, key) = (data.to_path_buf(), part.clone(), key.to_string());
    let work = tokio::task::spawn_blocking(move || {
        let mut source = Source { take, rest: Bytes::new(), hash: Sha256::new(), bytes: 0, failed: None };
        let done = match compression {
            CompressionAlgorithm::Zstd => match zstd::Decoder::new(&mut source) {
                Ok(mut plain) => extract(&mut plain, &data),
                Err(error) => Err(Refused::Read(error)),
            },
            CompressionAlgorithm::None => extract(&mut source, &data),
        };
        source.verdict(done, &part, &key)
    });
    while let Some(piece) = pieces.next().await {
        let last = piece.is_err();
        // The other side has ended: its verdict says why.
        if give.send(piece).await.is_err() || last {
            break;
        }
    }
    drop(give);
    work.await.map_err(|lost| StoreError::new("UnpackFailed", lost.to_string(), false))?
}

/// Bytes of one object as they come, hashed on the way.
struct Source {
    take: mpsc::Receiver<Result<Bytes, StoreError>>,
    rest: Bytes,
    hash: Sha256,
    bytes: u64,
    failed: Option<StoreError>,
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.take.blocking_recv() {
                None => return Ok(0),
                Some(Ok(piece)) => {
                    self.hash.update(&piece);
                    self.bytes += piece.len() as u64;
                    self.rest = piece;
                }
                Some(Err(error)) => {
                    self.failed = Some(error);
                    return Err(io::Error::other("the store stopped answering"));
                }
            }
        }
        let length = buffer.len().min(self.rest.len());
        buffer[..length].copy_from_slice(&self.rest.split_to(length));
        Ok(length)
    }
}

impl Source {
    /// What became of the part. The store's own failure explains all others; after it comes a full volume, then damage.
    fn verdict(mut self, done: Result<(), Refused>, part: &Part, key: &str) -> Result<(), RestoreError> {
        if done.is_ok() {
            // What follows the end of the archive belongs to the object too.
            let mut rest = [0; 8192];
            while matches!(self.read(&mut rest), Ok(n) if n > 0) {}
        }
        if let Some(error) = self.failed {
            return Err(error.into());
        }
        match done {
            Err(Refused::Write(path, error)) => return Err(RestoreError::file(&path, &error)),
            Err(error) => return Err(RestoreError::BackupDamaged(format!("{key}: {error}"))),
            Ok(()) => {}
        }
        let found: String = self.hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        if self.bytes != part.stored_bytes || found != part.sha256 {
            let (bytes, wanted, sha256) = (self.bytes, part.stored_bytes, &part.sha256);
            return Err(RestoreError::BackupDamaged(format!(
                "{key} has {bytes} bytes with SHA-256 {found}, its manifest says {wanted} with {sha256}"
            )));
        }
        Ok(())
    }
}

/// Why an archive was not unpacked.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("it cannot be read: {0}")]
    Read(io::Error),
    #[error("{0}: {1}")]
    Write(PathBuf, io::Error),
    #[error("it is no tar archive: {0}")]
    NotTar(&'static str),
    #[error("it holds {0:?}, which is neither a file nor a folder inside the data directory")]
    Foreign(String),
}

/// Unpacks one tar archive.
fn extract(archive: &mut impl Read, data: &Path) -> Result<(), Refused> {
    let mut block = [0_u8; BLOCK];
    let mut copy = vec![0_u8; 256 * 1024];
    loop {
        if !fill(archive, &mut block)? {
            return Err(Refused::NotTar("it ends without an end"));
        }
        if block.iter().all(|b| *b == 0) {
            // The rest, so that a checksum at the end of the compressed stream is looked at.
            while archive.read(&mut copy).map_err(Refused::Read)? > 0 {}
            return Ok(());
        }
        let entry = Entry::read(&block)?;
        let path = inside(data, &entry.name).ok_or_else(|| Refused::Foreign(entry.name.clone()))?;
        let failed = |e: io::Error| Refused::Write(path.clone(), e);
        match entry.kind {
            b'5' => fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?,
            0 | b'0' => {
                if let Some(folder) = path.parent() {
                    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
                }
                let mut out = fs::OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(&path)
                    .map_err(failed)?;
                let mut left = entry.size;
                while left > 0 {
                    let length = usize::try_from(left).map_or(copy.len(), |l| l.min(copy.len()));
                    archive.read_exact(&mut copy[..length]).map_err(Refused::Read)?;
                    out.write_all(&copy[..length]).map_err(failed)?;
                    left -= length as u64;
                }
                let padding = (BLOCK - (entry.size % BLOCK as u64) as usize) % BLOCK;
                archive.read_exact(&mut block[..padding]).map_err(Refused::Read)?;
            }
            _ => return Err(Refused::Foreign(entry.name)),
        }
    }
}

/// Reads a whole block; false at a clean end.
fn fill(archive: &mut impl Read, block: &mut [u8; BLOCK]) -> Result<bool, Refused> {
    let mut have = 0;
    while have < BLOCK {
        match archive.read(&mut block[have..]).map_err(Refused::Read)? {
            0 if have == 0 => return Ok(false),
            0 => return Err(Refused::NotTar("it ends inside a header")),
            n => have += n,
        }
    }
    Ok(true)
}

/// The path of an entry below the data directory; None if it leads elsewhere.
fn inside(data: &Path, name: &str) -> Option<PathBuf> {
    let mut path = data.to_path_buf();
    for component in Path::new(name).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(part) => path.push(part),
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

struct Entry {
    name: String,
    size: u64,
    kind: u8,
}

impl Entry {
    fn read(block: &[u8; BLOCK]) -> Result<Self, Refused> {
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u64::from(*b) })
            .sum();
        if octal(&block[148..156]) != Some(sum) {
            return Err(Refused::NotTar("a header's checksum is wrong"));
        }
        let text = |range: std::ops::Range<usize>| {
            let bytes = &block[range];
            let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        };
        let prefix = if &block[257..262] == b"ustar" && block[345] != 0 {
            text(345..500) + "/"
        } else {
            String::new()
        };
        let name = prefix + &text(0..100);
        let size = octal(&block[124..136]).ok_or(Refused::NotTar("a header's size is no number"))?;
        Ok(Self { name, size, kind: block[156] })
    }
}

/// A number as tar writes it: octal digits, or with the highest bit set big-endian bytes.
fn octal(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        return field[1..].iter().try_fold(0_u64, |all, b| all.checked_mul(256)?.checked_add(u64::from(*b)));
    }
    let digits = field.iter().skip_while(|b| **b == b' ').take_while(|b| b.is_ascii_digit());
    digits.into_iter().try_fold(0_u64, |all, b| (*b < b'8').then(|| all * 8 + u64::from(b - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_core::wire::HistoryPath;

    /// One entry as PostgreSQL writes it.
    fn entry(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut block = [0_u8; BLOCK];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000600");
        block[124..136].copy_from_slice(format!("{:011o} ", content.len()).as_bytes());
        block[148..156].copy_from_slice(b"        ");
        block[156] = kind;
        block[257..263].copy_from_slice(b"ustar\0");
        let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut all = block.to_vec();
        all.extend(content);
        all.resize(all.len().next_multiple_of(BLOCK), 0);
        all
    }

    fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut all = entries.concat();
        all.extend([0; 2 * BLOCK]);
        all
    }

    #[test]
    fn files_and_folders_come_out_as_they_went_in() {
        let data = tempfile::tempdir().unwrap();
        let large: Vec<u8> = (0..700_001_u32).map(|i| i as u8).collect();
        let tar = archive(&[
            entry("base/", b'5', b""),
            entry("base/1/2619", b'0', &large),
            entry("./PG_VERSION", 0, b"17\n"),
            entry("pg_notify", b'5', b""),
            entry("empty", b'0', b""),
        ]);
        extract(&mut tar.as_slice(), data.path()).unwrap();
        assert_eq!(fs::read(data.path().join("base/1/2619")).unwrap(), large);
        assert_eq!(fs::read(data.path().join("PG_VERSION")).unwrap(), b"17\n");
        assert!(data.path().join("pg_notify").is_dir() && data.path().join("empty").exists());
    }

    #[test]
    fn what_leads_out_and_what_is_broken_is_refused() {
        let data = tempfile::tempdir().unwrap();
        let data = data.path().join("pgdata");
        fs::create_dir(&data).unwrap();
        for (name, kind) in [
            ("../evil", b'0'),
            ("/etc/evil", b'0'),
            ("base/../../evil", b'5'),
            ("link", b'2'),
            ("hard", b'1'),
        ] {
            let tar = archive(&[entry(name, kind, b"")]);
            assert!(matches!(extract(&mut tar.as_slice(), &data), Err(Refused::Foreign(_))), "{name}");
        }
        let tar = archive(&[entry("a", b'0', b"hello")]);
        for end in [0, 100, 512, 515, 1024] {
            assert!(extract(&mut &tar[..end], &data).is_err(), "cut at {end}");
        }
        let mut flipped = tar.clone();
        flipped[1] ^= 1;
        assert!(matches!(extract(&mut flipped.as_slice(), &data), Err(Refused::NotTar(_))));
        assert!(!data.parent().unwrap().join("evil").exists());
    }

    #[tokio::test]
    async fn a_part_that_is_not_what_its_manifest_says_is_refused() {
        let (folder, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Store::at(folder.path()).unwrap();
        let history = HistoryFolder::new(&HistoryPath {
            namespace: "shop".into(),
            database: "orders".into(),
            system_identifier: "7501".into(),
            history: "d1".into(),
        });
        let tar = archive(&[entry("PG_VERSION", b'0', b"17\n")]);
        let stored = zstd::encode_all(tar.as_slice(), 3).unwrap();
        let sha256: String = Sha256::digest(&stored).iter().map(|b| format!("{b:02x}")).collect();
        let part = Part {
            name: "000000.tar.zst".into(),
            stored_bytes: stored.len() as u64,
            sha256,
            ..Part::default()
        };
        let key = history.part("b-1", &part.name);
        store.put(&key, stored.clone().into()).await.unwrap();
        let zstd = CompressionAlgorithm::Zstd;
        one(&store, &key, &part, zstd, data.path()).await.unwrap();
        assert_eq!(fs::read(data.path().join("PG_VERSION")).unwrap(), b"17\n");
        let other = Part { sha256: "00".into(), ..part.clone() };
        assert!(matches!(
            one(&store, &key, &other, zstd, data.path()).await,
            Err(RestoreError::BackupDamaged(_))
        ));
        let short = stored[..stored.len() - 5].to_vec();
        store.put(&key, short.into()).await.unwrap();
        assert!(matches!(
            one(&store, &key, &part, zstd, data.path()).await,
            Err(RestoreError::BackupDamaged(_))
        ));
        store.delete(&key).await.unwrap();
        let gone = one(&store, &key, &part, zstd, data.path()).await;
        assert!(matches!(gone, Err(RestoreError::Store(e)) if e.not_found()));
    }
}

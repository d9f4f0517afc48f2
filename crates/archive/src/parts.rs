//! Turns a tar stream into the objects of a backup and reads them back. Touches the store.
//!
//! Bytes pass through: cut at file boundaries, hashed, compressed, hashed again, uploaded in pieces; then each part is read again from
//! the store while the next one is written. Nothing is staged on a disk.
//!
//! Memory, whatever the size of the database: at most [`PARTS_AT_ONCE`] parts are under way, of which usually one compresses:
//! `PARTS_AT_ONCE × 40 MiB` for uploads (see [`crate::store`]) plus `(workers + 2) × 8 MiB` for zstd at level 3, so about
//! 150 MiB with two workers. Higher levels have larger windows: at 19 about `workers × 90 MiB`.

use crate::{
    HistoryFolder, Store, StoreError,
    layout::part_name,
    manifest::Part,
    store::Upload,
    tarball::{Cutter, Event, PART_BYTES, TarError},
};
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use holdfast_core::crd::backup::{Compression, CompressionAlgorithm};
use sha2::{Digest, Sha256};
use std::{
    io::{self, Write},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::mpsc,
    task::JoinSet,
};

/// Parts under way at once: one that is written and one that is read back.
pub const PARTS_AT_ONCE: usize = 2;
/// Bytes taken from the stream at once.
const READ: usize = 256 * 1024;
/// Pieces that wait between two stages.
const PIECES: usize = 8;
/// PostgreSQL's label is a few lines.
const LONGEST_LABEL: usize = 64 * 1024;
/// The end of PostgreSQL's manifest, where it says which WAL is needed.
const MANIFEST_END: usize = 16 * 1024;

/// Why the objects of a backup did not come to be.
#[derive(Debug, thiserror::Error)]
pub enum PartsError {
    /// The stream cannot be read.
    #[error("reading the backup's stream: {0}")]
    Read(io::Error),
    /// Nothing came.
    #[error("no byte came from the database for {} s", .0.as_secs())]
    NoProgress(Duration),
    /// The stream is no tar.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// zstd.
    #[error("compressing: {0}")]
    Compress(io::Error),
    /// The store gives back other bytes than it was given.
    #[error("{location} was read back and is not what was written: {why}")]
    ReadBack {
        /// Where it lies.
        location: String,
        /// What differs.
        why: String,
    },
    /// A file that every backup has is missing, or too long to be it.
    #[error("the backup has no usable {0}")]
    NoFile(&'static str),
    /// The store's words.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another stage failed first.
    #[error("interrupted")]
    Interrupted,
}

impl PartsError {
    /// CamelCase, for a condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read(_) | Self::Interrupted => "StreamFailed",
            Self::NoProgress(_) => "NoProgress",
            Self::Tar(_) | Self::NoFile(_) => "StreamDamaged",
            Self::Compress(_) => "CompressionFailed",
            Self::ReadBack { .. } => "ReadBackFailed",
            Self::Store(error) => error.reason,
        }
    }

    /// Whether trying again cannot help before something is put right by hand.
    pub fn permanent(&self) -> bool {
        matches!(self, Self::Store(error) if error.permanent)
    }
}

/// What was written, all of it read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The parts in order.
    pub parts: Vec<Part>,
    /// PostgreSQL's own manifest.
    pub backup_manifest: Part,
    /// The end of it, which names the WAL that is needed.
    pub manifest_end: String,
    /// PostgreSQL's label.
    pub backup_label: String,
    /// Bytes of the stream.
    pub size: u64,
    /// Bytes of the parts in the store.
    pub stored_size: u64,
}

/// Writes the tar stream of `pg_basebackup` as the parts of a backup, and its `backup_manifest` once more on its own.
///
/// # Errors
/// The first thing that went wrong; what was uploaded by then stays, without a manifest, and counts for nothing.
pub async fn write(
    store: &Store,
    folder: &HistoryFolder,
    backup_uid: &str,
    compression: &Compression,
    stream: impl AsyncRead + Unpin,
    patience: Duration,
) -> Result<Written, PartsError> {
    let mut writer = Writer {
        store: store.clone(),
        folder: folder.clone(),
        uid: backup_uid.to_string(),
        compression: compression.clone(),
        begun: 0,
        current: None,
        tasks: JoinSet::new(),
        done: Vec::new(),
        label: Vec::new(),
        manifest: None,
        manifest_end: Vec::new(),
    };
    let mut cutter = Cutter::new(PART_BYTES, &["backup_label", "backup_manifest"]);
    let result = writer.pump(&mut cutter, stream, patience).await;
    let size = cutter.position();
    match result {
        Ok(()) => {}
        Err(error) => return Err(writer.give_up(error).await),
    }
    let mut events = Vec::new();
    if let Err(error) = cutter.finish(&mut events) {
        return Err(writer.give_up(error.into()).await);
    }
    for event in events {
        if let Err(error) = writer.take(event).await {
            return Err(writer.give_up(error).await);
        }
    }
    writer.finish(size).await
}

/// What a part's task is sent.
enum Piece {
    Data(Bytes),
    /// The part is whole. Without this its object must not come to be.
    End,
}

struct Writer {
    store: Store,
    folder: HistoryFolder,
    uid: String,
    compression: Compression,
    begun: usize,
    current: Option<mpsc::Sender<Piece>>,
    tasks: JoinSet<Result<(usize, Part), PartsError>>,
    done: Vec<(usize, Part)>,
    label: Vec<u8>,
    manifest: Option<(Upload, Sha256)>,
    manifest_end: Vec<u8>,
}

impl Writer {
    async fn pump(
        &mut self,
        cutter: &mut Cutter,
        mut stream: impl AsyncRead + Unpin,
        patience: Duration,
    ) -> Result<(), PartsError> {
        let mut events = Vec::new();
        loop {
            let mut buffer = BytesMut::with_capacity(READ);
            match tokio::time::timeout(patience, stream.read_buf(&mut buffer)).await {
                Err(_) => return Err(PartsError::NoProgress(patience)),
                Ok(Err(error)) => return Err(PartsError::Read(error)),
                Ok(Ok(0)) => return Ok(()),
                Ok(Ok(_)) => {}
            }
            cutter.push(buffer.freeze(), &mut events)?;
            for event in events.drain(..) {
                self.take(event).await?;
            }
        }
    }

    async fn take(&mut self, event: Event) -> Result<(), PartsError> {
        match event {
            Event::Begin => {
                while self.tasks.len() >= PARTS_AT_ONCE {
                    self.wait_for_one().await?;
                }
                let (sender, receiver) = mpsc::channel(PIECES);
                self.current = Some(sender);
                let number = self.begun;
                self.begun += 1;
                let name = part_name(number, self.compression.algorithm);
                let key = self.folder.part(&self.uid, &name);
                let (store, compression) = (self.store.clone(), self.compression.clone());
                self.tasks.spawn(async move {
                    let part = part(&store, &key, name, compression, receiver).await?;
                    Ok((number, part))
                });
            }
            Event::Data(data) => self.send(Piece::Data(data)).await?,
            Event::End => {
                self.send(Piece::End).await?;
                self.current = None;
            }
            Event::Watched { index: 0, data } => {
                self.label.extend_from_slice(&data);
                if self.label.len() > LONGEST_LABEL {
                    return Err(PartsError::NoFile("backup_label"));
                }
            }
            Event::Watched { data, .. } => {
                let (upload, hash) = match &mut self.manifest {
                    Some(manifest) => manifest,
                    None => {
                        let key = self.folder.backup_manifest(&self.uid);
                        self.manifest.insert((self.store.upload(&key).await?, Sha256::new()))
                    }
                };
                hash.update(&data);
                self.manifest_end.extend_from_slice(&data);
                let surplus = self.manifest_end.len().saturating_sub(MANIFEST_END);
                self.manifest_end.drain(..surplus);
                upload.write(data).await?;
            }
        }
        Ok(())
    }

    async fn send(&mut self, piece: Piece) -> Result<(), PartsError> {
        let Some(current) = &self.current else { return Err(PartsError::Interrupted) };
        if current.send(piece).await.is_ok() {
            return Ok(());
        }
        // The part's task has ended: its own error says why.
        self.current = None;
        while !self.tasks.is_empty() {
            self.wait_for_one().await?;
        }
        Err(PartsError::Interrupted)
    }

    async fn wait_for_one(&mut self) -> Result<(), PartsError> {
        match self.tasks.join_next().await {
            None => Ok(()),
            Some(Ok(result)) => {
                let (number, part) = result?;
                tracing::info!(part = %part.name, bytes = part.plain_bytes, stored = part.stored_bytes, "written and read back");
                self.done.push((number, part));
                Ok(())
            }
            Some(Err(lost)) => Err(StoreError::new("UploadFailed", lost.to_string(), false).into()),
        }
    }

    /// Ends all tasks, so that unfinished uploads are removed. Gives the error that began it.
    async fn give_up(mut self, error: PartsError) -> PartsError {
        self.current = None;
        if let Some((upload, _)) = self.manifest.take() {
            upload.abort().await;
        }
        while self.tasks.join_next().await.is_some() {}
        error
    }

    async fn finish(mut self, size: u64) -> Result<Written, PartsError> {
        while !self.tasks.is_empty() {
            if let Err(error) = self.wait_for_one().await {
                return Err(self.give_up(error).await);
            }
        }
        let Some((upload, hash)) = self.manifest.take() else {
            return Err(PartsError::NoFile("backup_manifest"));
        };
        let bytes = upload.finish().await?;
        let sha256 = hex(hash);
        let backup_manifest = Part {
            name: "backup_manifest".into(),
            plain_bytes: bytes,
            stored_bytes: bytes,
            sha256: sha256.clone(),
            plain_sha256: sha256,
        };
        let key = self.folder.backup_manifest(&self.uid);
        read_back(&self.store, &key, &backup_manifest).await?;
        if self.label.is_empty() {
            return Err(PartsError::NoFile("backup_label"));
        }
        self.done.sort_by_key(|(number, _)| *number);
        let parts: Vec<Part> = self.done.into_iter().map(|(_, part)| part).collect();
        Ok(Written {
            stored_size: parts.iter().map(|p| p.stored_bytes).sum(),
            parts,
            backup_manifest,
            manifest_end: String::from_utf8_lossy(&self.manifest_end).into_owned(),
            backup_label: String::from_utf8_lossy(&self.label).into_owned(),
            size,
        })
    }
}

/// One part: compressed on a thread of its own, uploaded, read back.
async fn part(
    store: &Store,
    key: &str,
    name: String,
    compression: Compression,
    plain: mpsc::Receiver<Piece>,
) -> Result<Part, PartsError> {
    let mut upload = store.upload(key).await?;
    let (sender, mut stored) = mpsc::channel::<Bytes>(PIECES);
    let worker = tokio::task::spawn_blocking(move || compress(plain, sender, &compression));
    let mut failed = None;
    while let Some(bytes) = stored.recv().await {
        if let Err(error) = upload.write(bytes).await {
            failed = Some(error);
            break;
        }
    }
    drop(stored);
    let compressed = match worker.await {
        Ok(result) => result,
        Err(lost) => Err(StoreError::new("UploadFailed", lost.to_string(), false).into()),
    };
    // A failed upload makes the compression fail too: it is the one to be told.
    let (plain_bytes, plain_sha256, sha256) = match (failed, compressed) {
        (None, Ok(compressed)) => compressed,
        (failed, compressed) => {
            upload.abort().await;
            return Err(failed.map(PartsError::from).or(compressed.err()).unwrap_or(PartsError::Interrupted));
        }
    };
    let stored_bytes = upload.finish().await?;
    let part = Part { name, plain_bytes, stored_bytes, sha256, plain_sha256 };
    read_back(store, key, &part).await?;
    Ok(part)
}

/// Runs on a thread of its own. Gives bytes and SHA-256 before, and SHA-256 after.
fn compress(
    mut plain: mpsc::Receiver<Piece>,
    sender: mpsc::Sender<Bytes>,
    compression: &Compression,
) -> Result<(u64, String, String), PartsError> {
    let mut sink = Sink { sender, pending: BytesMut::with_capacity(READ), hash: Sha256::new() };
    let (mut bytes, mut hash) = (0, Sha256::new());
    let mut feed = |out: &mut dyn Write| loop {
        match plain.blocking_recv() {
            Some(Piece::Data(data)) => {
                bytes += data.len() as u64;
                hash.update(&data);
                out.write_all(&data).map_err(PartsError::Compress)?;
            }
            Some(Piece::End) => return Ok(()),
            None => return Err(PartsError::Interrupted),
        }
    };
    match compression.algorithm {
        CompressionAlgorithm::None => feed(&mut sink)?,
        CompressionAlgorithm::Zstd => {
            let mut encoder =
                zstd::Encoder::new(&mut sink, compression.level).map_err(PartsError::Compress)?;
            encoder.include_checksum(true).map_err(PartsError::Compress)?;
            let workers = u32::try_from(compression.workers).unwrap_or(1);
            // One worker is this very thread: then zstd needs none of its own.
            encoder.multithread(if workers > 1 { workers } else { 0 }).map_err(PartsError::Compress)?;
            feed(&mut encoder)?;
            encoder.finish().map_err(PartsError::Compress)?;
        }
    }
    sink.flush().map_err(PartsError::Compress)?;
    Ok((bytes, hex(hash), hex(sink.hash)))
}

/// Where compressed bytes go: hashed and handed on in pieces of [`READ`].
struct Sink {
    sender: mpsc::Sender<Bytes>,
    pending: BytesMut,
    hash: Sha256,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= READ {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.pending, BytesMut::with_capacity(READ)).freeze();
        self.sender.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Reads an object again and compares size and SHA-256 with what was written.
///
/// # Errors
/// [`PartsError::ReadBack`] when it differs; what the store says.
pub async fn read_back(store: &Store, key: &str, part: &Part) -> Result<(), PartsError> {
    let mut stream = store.stream(key).await?;
    let (mut bytes, mut hash) = (0_u64, Sha256::new());
    while let Some(data) = stream.try_next().await? {
        bytes += data.len() as u64;
        hash.update(&data);
    }
    let differs = |why: String| PartsError::ReadBack { location: store.location(key), why };
    if bytes != part.stored_bytes {
        return Err(differs(format!("{bytes} bytes instead of {}", part.stored_bytes)));
    }
    let found = hex(hash);
    if found != part.sha256 {
        return Err(differs(format!("SHA-256 {found} instead of {}", part.sha256)));
    }
    Ok(())
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tarball::tests::{archive, member};
    use holdfast_core::wire::HistoryPath;

    const PATIENCE: Duration = Duration::from_secs(5);

    struct World {
        _temporary: tempfile::TempDir,
        store: Store,
        folder: HistoryFolder,
    }

    fn world() -> World {
        let temporary = tempfile::tempdir().unwrap();
        let store = Store::at(temporary.path()).unwrap();
        let folder = HistoryFolder::new(&HistoryPath {
            namespace: "shop".into(),
            database: "orders".into(),
            system_identifier: "7".into(),
            history: "d1".into(),
        });
        World { _temporary: temporary, store, folder }
    }

    fn stream() -> Vec<u8> {
        let mut noise = vec![0_u8; 3_000_000];
        let mut state = 1_u32;
        for byte in &mut noise {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (state >> 24) as u8;
        }
        archive(&[
            member("backup_label", b'0', b"START WAL LOCATION: 0/2000028\n"),
            member("base", b'5', b""),
            member("base/1", b'0', &noise),
            member("backup_manifest", b'0', b"{ \"WAL-Ranges\": [] }"),
        ])
    }

    async fn written(world: &World, compression: &Compression, stream: &[u8]) -> Result<Written, PartsError> {
        write(&world.store, &world.folder, "b1", compression, stream, PATIENCE).await
    }

    #[tokio::test]
    async fn a_stream_becomes_parts_that_unpack_to_it() {
        for (algorithm, workers) in [
            (CompressionAlgorithm::Zstd, 2),
            (CompressionAlgorithm::Zstd, 1),
            (CompressionAlgorithm::None, 1),
        ] {
            let world = world();
            let compression = Compression { algorithm, level: 3, workers };
            let stream = stream();
            let result = written(&world, &compression, &stream).await.unwrap();
            assert_eq!(result.size, stream.len() as u64);
            assert_eq!(result.backup_label, "START WAL LOCATION: 0/2000028\n");
            assert_eq!(result.manifest_end, "{ \"WAL-Ranges\": [] }");
            let [part] = &result.parts[..] else { panic!("one part") };
            let object = world.store.get(&world.folder.part("b1", &part.name)).await.unwrap();
            assert_eq!(object.len() as u64, part.stored_bytes);
            let plain = match algorithm {
                CompressionAlgorithm::Zstd => zstd::decode_all(&object[..]).unwrap(),
                CompressionAlgorithm::None => object.to_vec(),
            };
            assert_eq!(plain, stream);
            let manifest = world.store.get(&world.folder.backup_manifest("b1")).await.unwrap();
            assert_eq!(manifest, "{ \"WAL-Ranges\": [] }");
            read_back(&world.store, &world.folder.part("b1", &part.name), part).await.unwrap();
            let mut flipped = object.to_vec();
            flipped[100] ^= 1;
            world.store.put(&world.folder.part("b1", &part.name), flipped.into()).await.unwrap();
            let error =
                read_back(&world.store, &world.folder.part("b1", &part.name), part).await.unwrap_err();
            assert_eq!(error.reason(), "ReadBackFailed");
        }
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_leaves_no_part_that_looks_whole() {
        let world = world();
        let stream = stream();
        let error = written(&world, &Compression::default(), &stream[..1_000_000]).await.unwrap_err();
        assert_eq!(error.reason(), "StreamDamaged");
        assert!(world.store.list(&world.folder.bases()).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_stream_that_stands_still_is_given_up() {
        let world = world();
        let (mut sender, receiver) = tokio::io::duplex(1024);
        tokio::io::AsyncWriteExt::write_all(&mut sender, &[1; 100]).await.unwrap();
        let (compression, patience) = (Compression::default(), Duration::from_millis(50));
        let work = write(&world.store, &world.folder, "b1", &compression, receiver, patience);
        assert_eq!(work.await.unwrap_err().reason(), "NoProgress");
    }

    #[tokio::test]
    async fn a_backup_needs_its_label_and_its_manifest() {
        let world = world();
        let without = archive(&[member("backup_label", b'0', b"x")]);
        let error = written(&world, &Compression::default(), &without).await.unwrap_err();
        assert!(matches!(error, PartsError::NoFile("backup_manifest")), "{error}");
        let without = archive(&[member("backup_manifest", b'0', b"x")]);
        let error = written(&world, &Compression::default(), &without).await.unwrap_err();
        assert!(matches!(error, PartsError::NoFile("backup_label")), "{error}");
    }
}

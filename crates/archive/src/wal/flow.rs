//! WAL files on their way to and from the store, piece by piece: of a file only a few hundred KiB are in memory, and of what goes
//! into the store the compressed form, which one conditional request has to carry. Blocking work runs on threads for that.

use super::{LARGEST_SEGMENT, LEVEL, WalError};
use crate::{Store, StoreError};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};

/// Bytes that are read, written or kept together. Larger blocks the allocator takes from pages of 4 MiB, and keeps one of those for each
/// size and thread.
const PIECE: usize = 32 * 1024;
/// Pieces that wait between the store and whoever reads.
const WAITING: usize = 4;
/// MiB that the compressed forms of all files under way may take in this process; one larger than that goes alone.
const ROOM: u32 = 32;
static FREE: Semaphore = Semaphore::const_new(ROOM as usize);

/// The form of a file that the store keeps, and its share of the memory for that.
pub struct Packed {
    /// Its bytes in order.
    pub pieces: Vec<Bytes>,
    _share: Option<SemaphorePermit<'static>>,
}

fn mib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(ROOM).clamp(1, ROOM)
}

/// Reads a file of `size` bytes, compressed if so wanted.
pub async fn pack(path: &Path, size: u64, compressed: bool) -> Result<Packed, WalError> {
    // Before it is read nobody knows how small it becomes.
    let mut share = FREE.acquire_many(mib(size)).await.ok();
    let from = path.to_path_buf();
    let pieces = blocking(move || {
        let failed = WalError::file(&from);
        let work = || {
            let mut file = File::open(&from)?;
            if !compressed {
                let mut sink = Pieces::default();
                io::copy(&mut file, &mut sink)?;
                return Ok(sink.end());
            }
            let mut encoder = zstd::Encoder::new(Pieces::default(), LEVEL)?;
            // The checksum makes every reader, also a person's zstd, notice a flipped bit.
            encoder.include_checksum(true)?;
            // A file that became longer or shorter meanwhile is an error of the encoder's.
            encoder.set_pledged_src_size(Some(size))?;
            let mut buffer = vec![0; PIECE];
            loop {
                match fill(&mut file, &mut buffer)? {
                    0 => return Ok(encoder.finish()?.end()),
                    length => encoder.write_all(&buffer[..length])?,
                }
            }
        };
        work().map_err(failed)
    })
    .await?;
    let kept: usize = pieces.iter().map(Bytes::len).sum();
    if let Some(share) = &mut share {
        let too_much = mib(size).saturating_sub(mib(kept as u64));
        drop(share.split(too_much as usize));
    }
    Ok(Packed { pieces, _share: share })
}

/// What is written, as pieces of one size: a buffer that grows would be copied, and hold twice as much.
#[derive(Default)]
struct Pieces {
    full: Vec<Bytes>,
    last: BytesMut,
}

impl Pieces {
    fn end(mut self) -> Vec<Bytes> {
        if !self.last.is_empty() {
            self.full.push(self.last.freeze());
        }
        self.full
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.last.capacity() == 0 {
            self.last = BytesMut::with_capacity(PIECE);
        }
        let length = bytes.len().min(PIECE - self.last.len());
        self.last.extend_from_slice(&bytes[..length]);
        if self.last.len() == PIECE {
            self.full.push(std::mem::take(&mut self.last).freeze());
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why reading ended before its end.
pub enum Stopped {
    /// What is stored cannot be read.
    Stored(io::Error),
    /// Something on this side.
    Here(WalError),
}

impl From<WalError> for Stopped {
    fn from(error: WalError) -> Self {
        Self::Here(error)
    }
}

/// Hands what is stored under a key, decompressed, to `work`.
///
/// Errors: [`WalError::Damaged`] when it cannot be decompressed, what `work` and the store say.
pub async fn read<T: Send + 'static>(
    store: &Store,
    key: &str,
    work: impl FnOnce(&mut dyn Read) -> Result<T, Stopped> + Send + 'static,
) -> Result<T, WalError> {
    let mut pieces = store.stream(key).await?;
    let (give, take) = mpsc::channel(WAITING);
    let (compressed, location) = (key.ends_with(".zst"), store.location(key));
    let reading = tokio::task::spawn_blocking(move || {
        let mut source = Source { take, rest: Bytes::new(), failed: None };
        let done = if compressed {
            // One byte more than the largest segment is enough to know that it is none.
            zstd::Decoder::new(&mut source)
                .map_err(Stopped::Stored)
                .and_then(|plain| work(&mut plain.take(LARGEST_SEGMENT + 1)))
        } else {
            work(&mut source)
        };
        match (source.failed, done) {
            (Some(error), _) => Err(error.into()),
            (None, Ok(done)) => Ok(done),
            (None, Err(Stopped::Here(error))) => Err(error),
            (None, Err(Stopped::Stored(error))) => {
                Err(WalError::Damaged { location, why: error.to_string() })
            }
        }
    });
    while let Some(piece) = pieces.next().await {
        let last = piece.is_err();
        // The other side has ended: its result says why.
        if give.send(piece).await.is_err() || last {
            break;
        }
    }
    drop(give);
    reading.await.map_err(lost)?
}

/// Bytes of one object as they come.
struct Source {
    take: mpsc::Receiver<Result<Bytes, StoreError>>,
    rest: Bytes,
    failed: Option<StoreError>,
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.take.blocking_recv() {
                None => return Ok(0),
                Some(Ok(piece)) => self.rest = piece,
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

/// Reads until the buffer is full or nothing is left.
fn fill(from: &mut (impl Read + ?Sized), buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match from.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Whether what is stored is what the file holds.
pub fn same(stored: &mut dyn Read, path: &Path) -> Result<bool, Stopped> {
    let mut file = File::open(path).map_err(WalError::file(path))?;
    let (mut there, mut here) = (vec![0; PIECE], vec![0; PIECE]);
    loop {
        let length = fill(stored, &mut there).map_err(Stopped::Stored)?;
        let own = fill(&mut file, &mut here).map_err(WalError::file(path))?;
        if there[..length] != here[..own] {
            return Ok(false);
        }
        if length == 0 {
            return Ok(true);
        }
    }
}

/// Writes what is stored to a file. Gives how it begins, and its size.
pub fn write(stored: &mut dyn Read, path: &Path, beginning: usize) -> Result<(Vec<u8>, u64), Stopped> {
    let mut file = File::create(path).map_err(WalError::file(path))?;
    let mut buffer = vec![0; PIECE];
    let (mut begins, mut size) = (Vec::new(), 0);
    loop {
        let length = fill(stored, &mut buffer).map_err(Stopped::Stored)?;
        if length == 0 {
            return Ok((begins, size));
        }
        if size == 0 {
            begins = buffer[..length.min(beginning)].to_vec();
        }
        file.write_all(&buffer[..length]).map_err(WalError::file(path))?;
        size += length as u64;
    }
}

/// How a file begins, and its size.
pub async fn look(path: &Path, beginning: usize) -> Result<(Vec<u8>, u64), WalError> {
    let from = path.to_path_buf();
    blocking(move || {
        let failed = WalError::file(&from);
        let work = || {
            let mut file = File::open(&from)?;
            let mut begins = vec![0; beginning];
            let length = fill(&mut file, &mut begins)?;
            begins.truncate(length);
            Ok((begins, file.metadata()?.len()))
        };
        work().map_err(failed)
    })
    .await
}

fn lost(error: tokio::task::JoinError) -> WalError {
    StoreError::new("UploadFailed", error.to_string(), false).into()
}

pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, WalError> + Send + 'static,
) -> Result<T, WalError> {
    tokio::task::spawn_blocking(work).await.map_err(lost)?
}

//! `pg_basebackup` and its stream. Runs the program of the database's own image; its output goes through the archive crate into the store.

use super::{BackupError, Order, facts, facts::Facts};
use holdfast_archive::{
    HistoryFolder, Store,
    parts::{self, PartsError, Written},
};
use holdfast_core::{names, wire};
use std::{
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    pin::Pin,
    process::Stdio,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, ReadBuf},
    process::{Child, ChildStderr, Command},
};

/// What is kept of the program's words: the last of them say why it ended.
const WORDS: usize = 4096;
/// What of that goes into a message.
const SHOWN: usize = 700;
/// After its stream ended the program has only to say goodbye.
const GOODBYE: Duration = Duration::from_secs(60);
/// How PostgreSQL says that all is read and only its archive is missing.
const WAITS_FOR_ARCHIVE: &str = "waiting for required WAL segments to be archived";
/// A silence of the stream after which WAL is switched, at first and at most.
const NUDGE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Takes the backup into the store.
pub async fn take(
    store: &Store,
    folder: &HistoryFolder,
    order: &Order,
    facts: &Facts,
) -> Result<Written, BackupError> {
    let password = PasswordFile::write()?;
    let mut child = command(order, &password.0)
        .spawn()
        .map_err(|error| BackupError::ProgramMissing(error.to_string()))?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(BackupError::ProgramMissing("it has no output".into()));
    };
    let words = tokio::spawn(last_words(stderr));
    let silence = Silence::default();
    let stream = Watched { inner: stdout, silence: silence.clone() };
    let work = parts::write(store, folder, &order.backup_uid, &order.compression, stream, order.patience);
    // A standby ends a backup only when the segment with its end is archived, and only the primary can end a segment.
    let written = if facts.standby {
        tokio::select! {
            written = work => written,
            never = nudge(&order.connection.primary_host, &silence) => match never {},
        }
    } else {
        work.await
    };
    let status = end(&mut child, written.is_ok()).await;
    let words = tokio::time::timeout(GOODBYE, words).await.ok().and_then(Result::ok).unwrap_or_default();
    // A program that failed is the cause of whatever its stream looked like, unless it was ended from here.
    match (written, status) {
        (Ok(written), Ended::Well) => {
            if !words.is_empty() {
                tracing::info!(words, "pg_basebackup said");
            }
            Ok(written)
        }
        (_, Ended::Badly(status)) => Err(BackupError::Program { status, words }),
        (Err(PartsError::NoProgress(waited)), _) if words.contains(WAITS_FOR_ARCHIVE) => {
            Err(BackupError::ArchiveStuck { waited, words })
        }
        (Err(error), _) => Err(BackupError::Parts { error, words }),
        (Ok(_), Ended::Killed) => Err(BackupError::Program { status: "it did not end".into(), words }),
    }
}

fn command(order: &Order, password_file: &Path) -> Command {
    let mut command = Command::new("pg_basebackup");
    command.args(arguments(&order.connection.host, &order.backup_uid, order.max_bytes_per_second));
    command
        .env("PGPASSFILE", password_file)
        .env("PGSSLMODE", "verify-full")
        .env("PGSSLROOTCERT", Path::new(wire::TLS_FOLDER).join("ca.crt"))
        .env("PGCONNECT_TIMEOUT", "15")
        // Its words go into messages.
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

fn arguments(host: &str, label: &str, bytes_per_second: i64) -> Vec<String> {
    let port = names::PORT_POSTGRESQL.to_string();
    let fixed = [
        "-h",
        host,
        "-p",
        &port,
        "-U",
        names::REPLICATION_ROLE,
        "-w",
        "-D",
        "-",
        "-F",
        "tar",
        "-X",
        "none",
        "-c",
        "fast",
        "--manifest-checksums=SHA256",
        "-l",
        label,
    ];
    let mut all: Vec<String> = fixed.iter().map(ToString::to_string).collect();
    if bytes_per_second > 0 {
        // PostgreSQL takes 32 kB to 1 GB a second.
        let kilobytes = (bytes_per_second / 1024).clamp(32, 1024 * 1024);
        all.extend(["-r".into(), kilobytes.to_string()]);
    }
    all
}

/// How the program ended.
enum Ended {
    Well,
    Badly(String),
    /// It was ended from here.
    Killed,
}

async fn end(child: &mut Child, stream_is_whole: bool) -> Ended {
    // After a broken stream it may wait for something that never comes; if it failed by itself it has ended, or is about to.
    let limit = if stream_is_whole { GOODBYE } else { Duration::from_secs(2) };
    match tokio::time::timeout(limit, child.wait()).await {
        Ok(Ok(status)) if status.success() => Ended::Well,
        Ok(Ok(status)) => Ended::Badly(status.to_string()),
        Ok(Err(error)) => Ended::Badly(error.to_string()),
        Err(_) => {
            if let Err(error) = child.kill().await {
                tracing::warn!(%error, "pg_basebackup could not be ended");
            }
            Ended::Killed
        }
    }
}

/// Reads the program's words to their end and keeps the last.
async fn last_words(mut stderr: ChildStderr) -> String {
    let mut kept: Vec<u8> = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length) = stderr.read(&mut buffer).await {
        if length == 0 {
            break;
        }
        kept.extend_from_slice(&buffer[..length]);
        kept.drain(..kept.len().saturating_sub(WORDS));
    }
    shown(&String::from_utf8_lossy(&kept))
}

/// The end of a text on one line.
fn shown(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let surplus = line.chars().count().saturating_sub(SHOWN);
    if surplus == 0 { line } else { format!("…{}", line.chars().skip(surplus).collect::<String>()) }
}

/// The password in the form that PostgreSQL's programs read, for as long as it is needed.
struct PasswordFile(PathBuf);

impl PasswordFile {
    fn write() -> Result<Self, BackupError> {
        let source = Path::new(wire::REPLICATION_FOLDER).join("password");
        let failed = |path: &Path, e: io::Error| BackupError::Database(format!("{}: {e}", path.display()));
        let password = std::fs::read_to_string(&source).map_err(|e| failed(&source, e))?;
        let path = Path::new(wire::RUN_FOLDER).join("backup.pgpass");
        let written = std::fs::remove_file(&path).or_else(|e| match e.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(e),
        });
        let written = written.and_then(|()| {
            let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            io::Write::write_all(&mut &file, line(password.trim_end_matches('\n')).as_bytes())
        });
        written.map_err(|e| failed(&path, e))?;
        Ok(Self(path))
    }
}

impl Drop for PasswordFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A line of a password file: colons and backslashes are escaped.
fn line(password: &str) -> String {
    format!("*:*:*:{}:{}\n", names::REPLICATION_ROLE, password.replace('\\', "\\\\").replace(':', "\\:"))
}

/// Since when the stream has nothing to give; None while it does, or while nobody asks.
#[derive(Clone, Default)]
struct Silence(Arc<Mutex<Option<Instant>>>);

impl Silence {
    fn set(&self, silent: bool) {
        if let Ok(mut since) = self.0.lock() {
            *since = silent.then(|| since.unwrap_or_else(Instant::now));
        }
    }

    fn length(&self) -> Duration {
        self.0.lock().ok().and_then(|since| *since).map(|since| since.elapsed()).unwrap_or_default()
    }
}

/// A stream whose silence can be seen.
struct Watched<R> {
    inner: R,
    silence: Silence,
}

impl<R: AsyncRead + Unpin> AsyncRead for Watched<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_read(context, buffer);
        self.silence.set(result.is_pending());
        result
    }
}

/// Has the primary end its segment whenever the stream is silent, less and less often. Failures do not matter here: a primary that
/// cannot be asked ends its segment by itself after `archive_timeout`, or the stream's own deadline passes.
async fn nudge(primary: &str, silence: &Silence) -> std::convert::Infallible {
    let (first, longest) = NUDGE;
    let mut pause = first;
    loop {
        tokio::time::sleep(first).await;
        if silence.length() < pause {
            continue;
        }
        match facts::connect(primary).await {
            Ok(session) => {
                if let Err(error) = facts::switch_wal(&session).await {
                    tracing::warn!("{error}");
                }
            }
            Err(error) => tracing::warn!("{error}"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_argument_is_a_secret_and_the_rate_stays_within_postgresqls_limits() {
        let all = arguments("orders-1.orders-pods.shop.svc", "uid", 0);
        assert!(!all.contains(&"-r".to_string()));
        assert!(all.windows(2).any(|w| w == ["-X", "none"]));
        assert_eq!(arguments("h", "l", 1).last().unwrap(), "32");
        assert_eq!(arguments("h", "l", 10 << 20).last().unwrap(), "10240");
        assert_eq!(arguments("h", "l", i64::MAX).last().unwrap(), "1048576");
    }

    #[test]
    fn a_password_may_hold_what_separates_fields() {
        assert_eq!(line(r"a:b\c"), "*:*:*:holdfast_replication:a\\:b\\\\c\n");
    }

    #[test]
    fn the_last_words_are_shown_on_one_line() {
        assert_eq!(shown("pg_basebackup: error:\n  no\n"), "pg_basebackup: error: no");
        let long = "ä ".repeat(5000);
        assert_eq!(shown(&long).chars().count(), SHOWN + 1);
    }

    #[tokio::test]
    async fn silence_is_what_the_reader_waits_for_and_not_what_it_does_not_ask_for() {
        let (mut sender, receiver) = tokio::io::duplex(64);
        let silence = Silence::default();
        let mut watched = Watched { inner: receiver, silence: silence.clone() };
        assert_eq!(silence.length(), Duration::ZERO);
        let waiting = tokio::spawn(async move {
            let mut buffer = [0; 4];
            watched.read_exact(&mut buffer).await.unwrap();
        });
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert!(silence.length() >= Duration::from_millis(20));
        tokio::io::AsyncWriteExt::write_all(&mut sender, b"data").await.unwrap();
        waiting.await.unwrap();
        assert_eq!(silence.length(), Duration::ZERO);
    }
}

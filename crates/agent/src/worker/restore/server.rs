//! The server that replays: starts, listens to its words, stops. Runs PostgreSQL's programs on the restored data directory.

use super::{
    RestoreError,
    recovery::{self, Ended, Recovery},
};
use crate::state::write_durably;
use holdfast_core::wire;
use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// The server said nothing for so long: it is stuck. While it replays it names every file that it fetched.
const SILENCE: Duration = Duration::from_secs(1800);
/// How often it is asked whether it serves.
const POLL: Duration = Duration::from_millis(300);
/// How long a fast shutdown may take; a checkpoint of everything that was replayed is part of it.
const STOP: Duration = Duration::from_secs(900);
/// How long a connection over the local socket may take.
const CONNECT: Duration = Duration::from_secs(10);
/// Last words that are kept.
const WORDS: usize = 60;

#[derive(Default)]
struct Heard {
    lines: VecDeque<String>,
    ready: bool,
    last: Option<Instant>,
}

/// A server that runs. Dropped without [`Server::stop`] it is killed; its data directory is then thrown away.
pub struct Server {
    child: Child,
    heard: Arc<Mutex<Heard>>,
    listener: JoinHandle<()>,
}

impl Server {
    /// Starts it with these settings.
    pub fn start(data: &Path, recovery: &Recovery<'_>) -> Result<Self, RestoreError> {
        let run = Path::new(wire::RUN_FOLDER);
        for (name, text) in [
            ("restore.conf", "# All settings are on the command line.\n"),
            ("restore_hba.conf", recovery::HBA),
            ("restore_ident.conf", "\n"),
        ] {
            write_durably(&run.join(name), text.as_bytes())
                .map_err(|e| RestoreError::file(&run.join(name), &e))?;
        }
        let mut command = Command::new("postgres");
        command.arg("-D").arg(data).env("LC_ALL", "C").env("PGTZ", "UTC");
        for (name, value) in recovery::settings(recovery) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|e| RestoreError::program("postgres", &e))?;
        let heard = Arc::new(Mutex::new(Heard { last: Some(Instant::now()), ..Heard::default() }));
        let stderr = child.stderr.take();
        let listener = tokio::spawn({
            let heard = heard.clone();
            async move {
                let Some(stderr) = stderr else { return };
                let mut lines = BufReader::new(stderr).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    tracing::info!(program = "postgres", "{line}");
                    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                    heard.last = Some(Instant::now());
                    heard.ready |= line.contains(recovery::READY);
                    heard.lines.push_back(line);
                    if heard.lines.len() > WORDS {
                        heard.lines.pop_front();
                    }
                }
            }
        });
        Ok(Self { child, heard, listener })
    }

    /// Waits until it was promoted and serves. `Ok(Some(..))`: it ended instead, and why.
    pub async fn serves(&mut self) -> Result<Option<Ended>, RestoreError> {
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                // Its last words may still be in the pipe.
                let _ = timeout(Duration::from_secs(5), &mut self.listener).await;
                tracing::warn!(%status, "the server ended");
                let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
                return Ok(Some(recovery::ended(heard.lines.iter().cloned().collect::<Vec<_>>().as_slice())));
            }
            let (ready, last) = {
                let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
                (heard.ready, heard.last)
            };
            // Only after its own word: while it replays, each refused connection would add a line to its log.
            if ready
                && let Ok(session) = Session::open("postgres", "postgres").await
                && session.value("select pg_is_in_recovery()").await.ok().flatten().as_deref() == Some("f")
            {
                return Ok(None);
            }
            if last.is_some_and(|l| l.elapsed() > SILENCE) {
                return Err(RestoreError::NoProgress(SILENCE));
            }
            sleep(POLL).await;
        }
    }

    /// Stops it so that everything is on disk.
    pub async fn stop(mut self) -> Result<(), RestoreError> {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok());
        let Some(pid) = pid else { return Err(RestoreError::NotStopped("it had ended already".into())) };
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGINT)
            .map_err(|e| RestoreError::NotStopped(e.to_string()))?;
        match timeout(STOP, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(RestoreError::NotStopped(format!("it ended with {status}"))),
            Ok(Err(error)) => Err(RestoreError::NotStopped(error.to_string())),
            Err(_) => Err(RestoreError::NotStopped(format!("it did not end in {STOP:?}"))),
        }
    }
}

/// A session over the local socket.
pub struct Session {
    client: Client,
    task: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Session {
    /// Opens it as this role in this database.
    pub async fn open(user: &str, database: &str) -> Result<Self, RestoreError> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(wire::RUN_FOLDER).user(user).dbname(database).application_name("holdfast-restore");
        let connected = timeout(CONNECT, config.connect(NoTls)).await;
        let (client, connection) =
            connected.map_err(|_| RestoreError::LocalLate)?.map_err(RestoreError::Local)?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "local session ended");
            }
        });
        Ok(Self { client, task })
    }

    /// All rows as text; NULL is None.
    pub async fn rows(&self, sql: &str, limit: Duration) -> Result<Vec<Vec<Option<String>>>, RestoreError> {
        let answer = timeout(limit, self.client.simple_query(sql)).await;
        let answer = answer.map_err(|_| RestoreError::LocalLate)?.map_err(RestoreError::Local)?;
        let row = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|i| row.get(i).map(String::from)).collect())
            }
            _ => None,
        };
        Ok(answer.iter().filter_map(row).collect())
    }

    /// First column of the first row.
    pub async fn value(&self, sql: &str) -> Result<Option<String>, RestoreError> {
        let rows = self.rows(sql, CONNECT).await?;
        Ok(rows.into_iter().next().and_then(|r| r.into_iter().next()).flatten())
    }
}

/// Runs one of PostgreSQL's programs; gives what it printed, on failure its words.
pub async fn program(
    name: &'static str,
    arguments: &[&str],
    data: &Path,
    limit: Duration,
) -> Result<String, RestoreError> {
    let mut command = Command::new(name);
    command.args(arguments).arg(data).env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(limit, command.output()).await;
    let output =
        output.map_err(|_| RestoreError::NoProgress(limit))?.map_err(|e| RestoreError::program(name, &e))?;
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    if !output.status.success() {
        let said = format!("{} {}", words(&output.stderr), words(&output.stdout));
        return Err(RestoreError::Program { name, words: said.trim().chars().take(800).collect() });
    }
    Ok(words(&output.stdout))
}

/// Folder of the WAL in a data directory.
pub fn wal_folder(data: &Path) -> PathBuf {
    data.join("pg_wal")
}

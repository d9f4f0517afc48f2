//! WAL to and from the store. PostgreSQL's archive_command and restore_command are this binary (`wal-push`, `wal-fetch`),
//! which only asks this task, over a socket in the pod: one place knows the store and uploads ahead of the request.

use crate::state::data_directory;
use anyhow::Context;
use futures::{StreamExt, stream};
use holdfast_archive::{
    catalogue,
    layout::HistoryFolder,
    owner,
    store::Store,
    wal::{self, Link},
};
use holdfast_core::{
    report::ArchiveReport,
    wire::{self, AgentConfig, HistoryPath},
};
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::watch,
    time::timeout,
};

/// Segments uploaded at once.
const PARALLEL: usize = 4;
/// Limit for one request: PostgreSQL waits for its command, and a shutdown waits for PostgreSQL.
const DEADLINE: Duration = Duration::from_secs(120);
/// A standby leaves the upload to the primary for so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the commands ask.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
enum Request {
    Push { name: String, path: PathBuf },
    Fetch { name: String, path: PathBuf },
}

/// What they are told.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
enum Answer {
    Done,
    Missing,
    Failed(String),
}

fn socket() -> PathBuf {
    Path::new(wire::RUN_FOLDER).join("agent.sock")
}

async fn ask(request: &Request) -> anyhow::Result<Answer> {
    let stream = UnixStream::connect(socket()).await.context("the agent does not listen")?;
    let (reader, mut writer) = stream.into_split();
    writer.write_all(format!("{}\n", serde_json::to_string(request)?).as_bytes()).await?;
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line).await?;
    Ok(serde_json::from_str(&line)?)
}

/// `wal-push NAME PATH`: exit code for archive_command. Never above 125, which would end the server.
pub async fn push_command(name: String, path: PathBuf) -> i32 {
    command(Request::Push { name, path }).await
}

/// `wal-fetch NAME PATH`: exit code for restore_command: 0 fetched, 1 not there, 2 could not be found out.
pub async fn fetch_command(name: String, path: PathBuf) -> i32 {
    command(Request::Fetch { name, path }).await
}

async fn command(request: Request) -> i32 {
    match timeout(DEADLINE + Duration::from_secs(5), ask(&request)).await {
        Ok(Ok(Answer::Done)) => 0,
        Ok(Ok(Answer::Missing)) => 1,
        Ok(Ok(Answer::Failed(message))) => {
            eprintln!("{message}");
            2
        }
        Ok(Err(error)) => {
            eprintln!("{error:#}");
            3
        }
        Err(_) => {
            eprintln!("the agent did not answer in time");
            4
        }
    }
}

/// Files that PostgreSQL wants archived, in no order, each with the file that says so.
fn waiting(volume: &Path) -> Vec<(String, PathBuf)> {
    let wal = data_directory(volume).join("pg_wal");
    let Ok(entries) = std::fs::read_dir(wal.join("archive_status")) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|e| Some((e.file_name().to_str()?.strip_suffix(".ready")?.to_string(), e.path())))
        .filter(|(name, _)| {
            !name.ends_with(".history") || wal.join(name).metadata().is_ok_and(|m| m.len() > 0)
        })
        .collect()
}

/// For how long the oldest of them has been waiting; `None`: none does.
pub fn oldest_waiting(volume: &Path) -> Option<Duration> {
    let since = |(_, path): (String, PathBuf)| path.metadata().ok()?.modified().ok();
    let oldest = waiting(volume).into_iter().filter_map(since).min()?;
    Some(oldest.elapsed().unwrap_or_default())
}

/// The archiver of an instance.
pub struct Archiver {
    volume: PathBuf,
    config: watch::Receiver<AgentConfig>,
    /// Store, and the configuration that it was opened for.
    store: tokio::sync::Mutex<Option<(wire::ArchiveConfig, Store)>>,
    /// Uploaded ahead of the request.
    ahead: Mutex<HashSet<String>>,
    /// System identifier of the data, once known.
    identifier: Mutex<String>,
    owned: AtomicBool,
    primary: AtomicBool,
    closing: AtomicBool,
    report: Mutex<ArchiveReport>,
}

impl Archiver {
    /// The archiver for this volume.
    pub fn new(volume: &Path, config: watch::Receiver<AgentConfig>) -> Arc<Self> {
        Arc::new(Self {
            volume: volume.into(),
            config,
            store: tokio::sync::Mutex::new(None),
            ahead: Mutex::default(),
            identifier: Mutex::default(),
            owned: AtomicBool::new(false),
            primary: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            report: Mutex::default(),
        })
    }

    /// Tells it whose WAL this is, and whether this instance leads.
    pub fn know(&self, identifier: &str, primary: bool) {
        if let Ok(mut known) = self.identifier.lock()
            && *known != identifier
        {
            *known = identifier.to_string();
            self.owned.store(false, Ordering::SeqCst);
        }
        self.primary.store(primary, Ordering::SeqCst);
    }

    /// The pod is about to end: a store that does not answer must not hold the shutdown up.
    pub fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    /// How it goes; `None`: nothing is archived.
    pub fn report(&self) -> Option<ArchiveReport> {
        self.config.borrow().archive.as_ref()?;
        let mut report = self.report.lock().ok()?.clone();
        report.behind_segments = i64::try_from(self.ready().len()).unwrap_or(i64::MAX);
        Some(report)
    }

    /// Files that PostgreSQL wants archived, oldest first, timelines' histories before everything.
    fn ready(&self) -> Vec<String> {
        let mut names: Vec<String> = waiting(&self.volume).into_iter().map(|(name, _)| name).collect();
        names.sort_by_key(|n| (!n.ends_with(".history"), n.clone()));
        names
    }

    /// Serves the commands until the process ends.
    pub async fn serve(self: Arc<Self>) -> anyhow::Result<()> {
        let _ = std::fs::remove_file(socket());
        let listener = UnixListener::bind(socket()).context("listening for wal-push and wal-fetch")?;
        loop {
            let (stream, _) = listener.accept().await?;
            let archiver = self.clone();
            tokio::spawn(async move {
                let (reader, mut writer) = stream.into_split();
                let mut line = String::new();
                if BufReader::new(reader).read_line(&mut line).await.is_err() {
                    return;
                }
                let answer = match serde_json::from_str(&line) {
                    Ok(request) => timeout(DEADLINE, archiver.answer(request))
                        .await
                        .unwrap_or_else(|_| Answer::Failed("the store did not answer in time".into())),
                    Err(error) => Answer::Failed(error.to_string()),
                };
                if let Answer::Failed(message) = &answer {
                    tracing::warn!(%message, "archive");
                }
                let text = serde_json::to_string(&answer).unwrap_or_default();
                let _ = writer.write_all(format!("{text}\n").as_bytes()).await;
            });
        }
    }

    async fn answer(&self, request: Request) -> Answer {
        let result = match request {
            Request::Push { name, path } => self.push(&name, &self.absolute(&path)).await,
            Request::Fetch { name, path } => self.fetch(&name, &self.absolute(&path)).await,
        };
        result.unwrap_or_else(|error| Answer::Failed(format!("{error:#}")))
    }

    /// PostgreSQL names files relative to the data directory.
    fn absolute(&self, path: &Path) -> PathBuf {
        data_directory(&self.volume).join(path)
    }

    /// The store and the folder to write to; `None`: no archive is configured.
    async fn place(&self) -> anyhow::Result<Option<(Store, HistoryFolder, AgentConfig)>> {
        let config = self.config.borrow().clone();
        let Some(archive) = config.archive.clone() else { return Ok(None) };
        let identifier = self.identifier.lock().map(|i| i.clone()).unwrap_or_default();
        anyhow::ensure!(!identifier.is_empty(), "the system identifier is not known yet");
        let mut open = self.store.lock().await;
        let store = match &*open {
            Some((of, store)) if *of == archive => store.clone(),
            _ => {
                let store = Store::open(&archive.store).await?;
                *open = Some((archive, store.clone()));
                store
            }
        };
        let path = HistoryPath {
            namespace: config.namespace.clone(),
            database: config.database.clone(),
            system_identifier: identifier,
            history: config.history.clone(),
        };
        Ok(Some((store, HistoryFolder::new(&path), config)))
    }

    async fn push(&self, name: &str, path: &Path) -> anyhow::Result<Answer> {
        // A number that was left out, see `Postgres::allot`. Whoever has that timeline archives its history.
        if name.ends_with(".history") && std::fs::metadata(path)?.len() == 0 {
            return Ok(Answer::Done);
        }
        let Some((store, folder, config)) = self.place().await.inspect_err(|e| self.failed(e))? else {
            return Ok(Answer::Done);
        };
        if !self.primary.load(Ordering::SeqCst) {
            self.wait_for_primary(&store, &folder, name).await;
        }
        let result = self.push_to(&store, &folder, &config, name, path).await;
        match &result {
            Ok(()) => self.stored(name),
            Err(error) => self.failed(error),
        }
        result?;
        self.push_ahead(&store, &folder, name).await;
        Ok(Answer::Done)
    }

    async fn push_to(
        &self,
        store: &Store,
        folder: &HistoryFolder,
        config: &AgentConfig,
        name: &str,
        path: &Path,
    ) -> anyhow::Result<()> {
        if !self.owned.load(Ordering::SeqCst) {
            // Two databases must never write into one history, whatever their names are. The data set stands for the database:
            // its volumes keep it when the Database is deleted and made again, and goes on with the same history.
            owner::claim(store, folder, &config.data_set).await?;
            catalogue::record_beginning(store, folder).await?;
            self.owned.store(true, Ordering::SeqCst);
        }
        if self.ahead.lock().is_ok_and(|mut a| a.remove(name)) {
            return Ok(());
        }
        wal::push(store, folder, name, path).await?;
        Ok(())
    }

    /// Uploads the next ready files at once, so that one slow store round trip is not paid for each segment in turn.
    async fn push_ahead(&self, store: &Store, folder: &HistoryFolder, done: &str) {
        let known = self.ahead.lock().map(|a| a.clone()).unwrap_or_default();
        let next: Vec<String> =
            self.ready().into_iter().filter(|n| n != done && !known.contains(n)).take(PARALLEL).collect();
        if next.len() < 2 || self.closing.load(Ordering::SeqCst) {
            return;
        }
        let wal = data_directory(&self.volume).join("pg_wal");
        let results: Vec<_> = stream::iter(next)
            .map(|name| {
                let path = wal.join(&name);
                async move { (wal::push(store, folder, &name, &path).await, name) }
            })
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        for (result, name) in results {
            // A failure shows when PostgreSQL asks for that very file.
            if result.is_ok()
                && let Ok(mut ahead) = self.ahead.lock()
            {
                ahead.insert(name);
            }
        }
    }

    /// The primary uploads; its standbys only make sure. After a while they do it themselves.
    async fn wait_for_primary(&self, store: &Store, folder: &HistoryFolder, name: &str) {
        let Ok(file) = name.parse() else { return };
        let key = folder.wal(&file);
        let end = tokio::time::Instant::now() + PATIENCE;
        while tokio::time::Instant::now() < end && !self.closing.load(Ordering::SeqCst) {
            if matches!(store.head(&key).await, Ok(Some(_))) {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn fetch(&self, name: &str, path: &Path) -> anyhow::Result<Answer> {
        let Some((store, folder, _)) = self.place().await? else { return Ok(Answer::Missing) };
        let chain = [Link::whole(folder.path())];
        Ok(if wal::fetch(&store, &chain, name, path).await? { Answer::Done } else { Answer::Missing })
    }

    fn stored(&self, name: &str) {
        if let Ok(mut report) = self.report.lock() {
            report.error.clear();
            if name.len() == 24 {
                report.last_segment = name.to_string();
                report.last_archived_time = Timestamp::now().to_string();
            }
        }
    }

    fn failed(&self, error: &anyhow::Error) {
        if let Ok(mut report) = self.report.lock() {
            report.error = format!("{error:#}");
        }
    }

    /// After the server stopped: uploads what is left, bounded. `false`: something stayed behind, on the volume.
    pub async fn drain(&self, limit: Duration) -> bool {
        let work = async {
            let Ok(Some((store, folder, config))) = self.place().await else {
                return self.ready().is_empty();
            };
            let wal = data_directory(&self.volume).join("pg_wal");
            for name in self.ready() {
                if let Err(error) = self.push_to(&store, &folder, &config, &name, &wal.join(&name)).await {
                    tracing::warn!(%name, %error, "the archive's tail stays on the volume");
                    return false;
                }
                // As PostgreSQL's archiver would: it must not be offered again under another timeline's rules.
                let status = wal.join("archive_status");
                let _ = std::fs::rename(
                    status.join(format!("{name}.ready")),
                    status.join(format!("{name}.done")),
                );
            }
            true
        };
        timeout(limit, work).await.unwrap_or(false)
    }
}

//! `wal-fetch` in a restore worker: answers PostgreSQL's restore_command from the store, along a chain of histories.
//!
//! Exit codes are a contract with PostgreSQL: up to 125 means "there is no such file", upon which recovery ends and the server
//! promotes; above that the server stops. A store that does not answer must therefore never look like the end of the WAL.

use anyhow::Context;
use holdfast_archive::{
    HistoryFolder, Store,
    wal::{self, ForkPoint, Link, WalError},
};
use holdfast_core::{
    BackupStoreSpec,
    wire::{self, HistoryPath},
};
use holdfast_postgresql::Lsn;
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// The file is there.
pub const FETCHED: i32 = 0;
/// No history has it: recovery ends here.
pub const MISSING: i32 = 1;
/// It could not be found out, or what is there is damaged: the server must stop instead of promoting early.
pub const FATAL: i32 = 200;

/// Tries of one fetch before the server is stopped.
const TRIES: u32 = 5;
/// Wait after the first failed try; doubled after each further one.
const PAUSE: Duration = Duration::from_secs(2);

/// What `wal-fetch` is told: `fetch.json` in the run folder.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FetchConfig {
    /// The store.
    pub store: BackupStoreSpec,
    /// Histories to look in, the youngest first.
    pub chain: Vec<ChainLink>,
}

/// One history of the chain.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ChainLink {
    /// The history.
    pub history: HistoryPath,
    /// Only what was written before its child left it; None: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Until>,
}

/// Where a child left a history.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Until {
    /// Timeline at the fork.
    pub timeline: u32,
    /// Position of the fork.
    pub lsn: Lsn,
    /// Segment size, bytes.
    pub segment_size: u64,
}

/// Where the configuration lies.
pub fn file() -> PathBuf {
    Path::new(wire::RUN_FOLDER).join("fetch.json")
}

impl FetchConfig {
    /// As it is written for a chain of histories.
    pub fn new(store: &BackupStoreSpec, chain: &[Link]) -> Self {
        let link = |link: &Link| ChainLink {
            history: link.folder.path().clone(),
            until: link.until.map(|u| Until {
                timeline: u.timeline,
                lsn: u.lsn,
                segment_size: u.segment_size,
            }),
        };
        Self { store: store.clone(), chain: chain.iter().map(link).collect() }
    }

    /// The chain as the archive takes it.
    pub fn links(&self) -> Vec<Link> {
        let link = |link: &ChainLink| Link {
            folder: HistoryFolder::new(&link.history),
            until: link.until.map(|u| ForkPoint {
                timeline: u.timeline,
                lsn: u.lsn,
                segment_size: u.segment_size,
            }),
        };
        self.chain.iter().map(link).collect()
    }

    fn load() -> anyhow::Result<Self> {
        let path = file();
        let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))
    }
}

/// Whether trying again may help.
fn may_pass(error: &WalError) -> bool {
    matches!(error, WalError::Store(error) if !error.permanent)
}

/// Fetches one file for PostgreSQL. Gives the exit code of the command.
pub async fn run(name: &str, destination: &Path) -> i32 {
    // The store may speak TLS, and this command has not set anything up.
    holdfast_runtime::client::install_tls();
    match fetch(name, destination).await {
        Ok(true) => FETCHED,
        Ok(false) => MISSING,
        Err(error) => {
            // PostgreSQL's log shows it beside its own line about the command.
            eprintln!("fetching {name} failed: {error:#}");
            FATAL
        }
    }
}

async fn fetch(name: &str, destination: &Path) -> anyhow::Result<bool> {
    let config = FetchConfig::load()?;
    let links = config.links();
    let store = Store::open(&config.store).await?;
    let mut pause = PAUSE;
    let mut tries = 0;
    loop {
        tries += 1;
        match wal::fetch(&store, &links, name, destination).await {
            Ok(found) => return Ok(found),
            Err(error) if tries < TRIES && may_pass(&error) => {
                eprintln!("fetching {name}, try {tries}: {error}");
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_archive::StoreError;

    fn path(history: &str) -> HistoryPath {
        HistoryPath {
            namespace: "shop".into(),
            database: "orders".into(),
            system_identifier: "7501".into(),
            history: history.into(),
        }
    }

    #[test]
    fn a_chain_survives_the_file() {
        let fork = ForkPoint { timeline: 3, lsn: Lsn(0x5000060), segment_size: 16 << 20 };
        let chain = vec![
            Link::whole(&path("d2")),
            Link { folder: HistoryFolder::new(&path("d1")), until: Some(fork) },
        ];
        let store = BackupStoreSpec { volume: None, s3: None, max_parallel_backups: 2 };
        let text = serde_json::to_string(&FetchConfig::new(&store, &chain)).unwrap();
        let read: FetchConfig = serde_json::from_str(&text).unwrap();
        assert_eq!(read.links(), chain);
    }

    #[test]
    fn only_what_may_pass_is_tried_again_and_no_error_looks_like_the_end_of_the_wal() {
        assert!(may_pass(&StoreError::new("Unreachable", "no route", false).into()));
        assert!(!may_pass(&StoreError::new("AccessDenied", "no", true).into()));
        assert!(!may_pass(&WalError::Damaged { location: "x".into(), why: "short".into() }));
        const { assert!(FATAL > 125 && MISSING <= 125) };
    }
}

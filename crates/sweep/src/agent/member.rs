//! A running instance, as the others see it.

use holdfast_core::wire::AgentConfig;
use holdfast_postgresql::failover::{Promise, Record};
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Namespace and pod.
pub type Key = (String, String);

/// The server of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Process {
    /// None runs.
    #[default]
    Down,
    /// It begins.
    Starting,
    /// In recovery.
    Standby,
    /// Accepts writes.
    Primary,
}

/// The Lease as an instance has last seen it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// It was looked for at least once.
    pub known: bool,
    /// What it says.
    pub record: Option<Record>,
    /// Which version of it.
    pub version: u64,
    /// When it last changed.
    pub changed: Instant,
    /// Nonce of a holder whose container is known to be over.
    pub terminated: String,
}

impl Seen {
    /// Nothing seen yet.
    pub fn nothing() -> Self {
        Self { known: false, record: None, version: 0, changed: Instant::now(), terminated: String::new() }
    }

    /// The holder's container is known to be over.
    pub fn holder_terminated(&self) -> bool {
        let holder = self.record.as_ref().and_then(|r| r.holder.as_ref());
        holder.is_some_and(|h| h.nonce == self.terminated)
    }
}

/// An instance.
#[derive(Clone, Debug)]
pub struct Member {
    /// Which program it is.
    pub program: u64,
    /// uid of its claim.
    pub volume: String,
    /// What it was told.
    pub config: Arc<AgentConfig>,
    /// Its server.
    pub process: Process,
    /// The pod that it is to stream from; empty: nobody.
    pub follows: String,
    /// It streams.
    pub streaming: bool,
    /// It holds the Lease.
    pub leads: bool,
    /// The Lease.
    pub seen: Seen,
    /// What it has promised to candidates.
    pub promise: Promise,
    /// Standbys that its server waits for.
    pub synchronous: Vec<String>,
    /// How many of them.
    pub confirmations: i32,
    /// What only a person can solve.
    pub refused: Option<String>,
    /// Newest segment that it put into the store, and when.
    pub archived: Option<(String, Timestamp)>,
    /// The store's words about the last failure.
    pub archive_error: String,
    /// Since when WAL waits for its segment to end.
    pub unswitched: Option<Instant>,
}

impl Member {
    /// One that has just begun on a volume.
    pub fn new(program: u64, volume: &str, config: Arc<AgentConfig>) -> Self {
        Self {
            program,
            volume: volume.into(),
            config,
            process: Process::Down,
            follows: String::new(),
            streaming: false,
            leads: false,
            seen: Seen::nothing(),
            promise: Promise::default(),
            synchronous: Vec::new(),
            confirmations: 0,
            refused: None,
            archived: None,
            archive_error: String::new(),
            unswitched: None,
        }
    }

    /// The Lease's time to live.
    pub fn ttl(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.config.ttl_seconds).unwrap_or(6))
    }

    /// Bytes of a WAL segment.
    pub fn segment(&self) -> u64 {
        u64::try_from(self.config.wal_segment_size_mb).unwrap_or(16).max(1) << 20
    }
}

//! What the decision rests on, and what it says.

use super::{Holder, Promise, Record};
use crate::Lsn;
use holdfast_core::crd::database::DurabilityMode;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What the volume holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// Nothing.
    Empty,
    /// A data directory.
    Present {
        /// The data set that its state file names.
        data_set: String,
        /// PostgreSQL's system identifier.
        system_identifier: String,
        /// A restore filled it and nobody has led it yet: it is the only copy, and nothing was acknowledged on it.
        unled: bool,
    },
}

/// What the local server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// No process runs.
    Down,
    /// It runs but cannot be asked yet.
    Starting,
    /// It follows or waits.
    Standby {
        /// Timeline.
        timeline: u32,
        /// End of the WAL that it has safely on disk.
        flushed: Lsn,
        /// Whether it receives WAL now.
        streaming: bool,
    },
    /// It accepts writes.
    Primary {
        /// Timeline.
        timeline: u32,
    },
}

/// A peer's promise: it has stopped receiving for earlier terms and has exactly this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// Pod name.
    pub pod: String,
    /// Term that it promises for.
    pub term: u64,
    /// Data set; empty: no data.
    pub data_set: String,
    /// System identifier; empty: no data.
    pub system_identifier: String,
    /// Timeline; 0: not known, its own WAL is not replayed yet.
    pub timeline: u32,
    /// End of its WAL.
    pub flushed: Lsn,
    /// It leads now and gives nothing away.
    pub leads: bool,
    /// It has promised, whatever it has: an empty volume's word is as good. Agents of before do not say so.
    #[serde(default)]
    pub promised: bool,
}

/// Everything that the decision rests on.
#[derive(Clone, Debug)]
pub struct View {
    /// This pod in this incarnation.
    pub me: Holder,
    /// Data set that the operator names.
    pub data_set: String,
    /// System identifier that the operator has on record; empty: none ever.
    pub system_identifier: String,
    /// Durability mode in force.
    pub durability: DurabilityMode,
    /// Confirmations that durability asks for.
    pub standbys: i32,
    /// Pods of all instances wanted, this one included.
    pub members: Vec<String>,
    /// The volume.
    pub data: Data,
    /// The server.
    pub server: Server,
    /// The Lease as last seen; `None`: there is none.
    pub lease: Option<Record>,
    /// The version of it: its resourceVersion, which Kubernetes 1.35 and later promise to be a number that only grows, and which
    /// was one before. 0: there is no Lease, or it is none.
    pub version: u64,
    /// Since when the Lease has not changed, by this member's own clock.
    pub unchanged: Duration,
    /// How long ago this member agreed that the Lease's holder stays, see [`super::agree`], by its own clock; after a start also since it
    /// first saw the Lease, for it does not know what it agreed to before.
    pub consent: Option<Duration>,
    /// The Lease's time to live.
    pub ttl: Duration,
    /// The holder's container was seen terminated, with the Lease's nonce in its message.
    pub holder_terminated: bool,
    /// Answers to this member's call for votes; empty before it called.
    pub votes: Vec<Vote>,
    /// What this member has promised to candidates, itself included.
    pub promise: Promise,
    /// It called for votes in this round, and everybody answered or was given time to.
    pub polled: bool,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
// One is made in a turn, and taken apart at once.
#[allow(clippy::large_enum_variant)]
pub enum Action {
    /// Nothing; the text says for what.
    Wait(String),
    /// SIGKILL everything: this server accepts writes without the right to.
    Fence,
    /// Something only a person can solve.
    Refuse(String),
    /// Write the Lease (create or replace, with precondition): this member takes it.
    Take(Record),
    /// Give the Lease back: this member cannot lead.
    Release,
    /// Make a new data directory. The Lease is held.
    Initialise,
    /// Be primary: start, or promote to this timeline. The Lease is held.
    Lead,
    /// Follow this pod: clone, rewind, start or re-point as needed.
    Follow(String),
    /// Run alone as a standby, so that its own WAL is replayed and its position is known.
    StandAlone,
    /// Read the Lease from the API server itself; if it still is what this member saw, ask the peers for their promise. If it cannot
    /// be read, do nothing: it could not be taken either, and who detaches for nothing takes the primary's confirmations away.
    Poll,
}

impl View {
    /// The Lease, if it is about this data set.
    pub(super) fn record(&self) -> Option<&Record> {
        self.lease.as_ref().filter(|r| r.data_set == self.data_set)
    }

    /// Whether this member holds the Lease.
    pub(super) fn leads(&self) -> bool {
        self.record().is_some_and(|r| r.holder.as_ref() == Some(&self.me))
    }

    /// For how long this member has had no sign of the holder: neither a renewal nor the wish to stay.
    pub(super) fn silent(&self) -> Duration {
        self.consent.map_or(self.unchanged, |consent| consent.min(self.unchanged))
    }

    /// The term that a takeover begins, or a call for votes is about. Above every promise that this member knows of, not only
    /// above the Lease's: peers that promised a higher one in a call that came to nothing would never answer it.
    pub fn next_term(&self) -> u64 {
        self.lease.as_ref().map_or(0, |r| r.term).max(self.promise.term) + 1
    }
}

//! What members promise each other before one of them takes the Lease.

use super::{Data, Record, Server, View, Vote};
use serde::{Deserialize, Serialize};

/// A candidate's call for promises.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Call {
    /// The term that the candidate wants to begin.
    pub term: u64,
    /// The version of the Lease that it wants to replace, and of no other, see [`View::version`].
    #[serde(default)]
    pub version: u64,
    /// That Lease's uid; empty: there is none.
    #[serde(default)]
    pub lease_uid: String,
    /// The candidate's pod.
    pub candidate: String,
    /// The data set that it is about.
    pub data_set: String,
}

/// A promise: to receive nothing from the primary of an earlier term, so that what was answered stays all that there is. Kept on the
/// volume before the answer is given: a restart must not forget it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Promise {
    /// The highest term promised.
    pub term: u64,
    /// The newest version of the Lease that it was about.
    pub version: u64,
}

impl Promise {
    /// What a member whose volume bears no promise has to count as one, having seen this version first: the volume that was there before
    /// may have promised something, but nothing about a version that did not exist yet.
    pub fn unknown(record: &Record, version: u64) -> Self {
        Self { term: record.term + 1, version }
    }

    /// Whether it forbids to follow the holder of this Lease. The candidate replaces one version only: once there is a newer one, and
    /// still of the earlier term, it has failed, and the promise has no object any more.
    pub fn binds(&self, record: &Record, version: u64) -> bool {
        record.term < self.term && version <= self.version
    }

    /// With another one on top.
    pub fn and(self, call: &Call) -> Self {
        Self { term: self.term.max(call.term), version: self.version.max(call.version) }
    }
}

/// What a member answers a candidate: the promise that it must keep durably, and then stop receiving, before it says what it has.
///
/// Errors: why it promises nothing.
pub fn answer(view: &View, call: &Call) -> Result<Promise, String> {
    if view.leads() {
        return Err("it leads".into());
    }
    if call.term < view.promise.term {
        return Err(format!("it has promised term {}", view.promise.term));
    }
    if call.version < view.version {
        return Err("the Lease has changed since".into());
    }
    // Whoever held it may live on with this member's own consent, given before it saw that the Lease is gone.
    if view.lease.is_none() && !view.system_identifier.is_empty() && view.unchanged < view.ttl {
        return Err("the Lease is gone: whoever held it gets its time to end".into());
    }
    let alive = view
        .record()
        .is_some_and(|r| r.holder.is_some() && view.silent() < view.ttl && !view.holder_terminated);
    // Its word that the holder may stay stands for one TTL.
    if alive && view.consent.is_some_and(|consent| consent < view.ttl) {
        return Err("it has agreed that the holder stays".into());
    }
    if alive && matches!(view.server, Server::Standby { streaming: true, .. }) {
        return Err("it hears from the holder, whose Lease is alive".into());
    }
    Ok(view.promise.and(call))
}

/// What a member says it has. `promised`: it has promised, and receives nothing any more; else it says nothing of its WAL.
pub fn vote(view: &View, call: &Call, promised: bool) -> Vote {
    let (data_set, system_identifier) = match &view.data {
        Data::Present { data_set, system_identifier, .. } => (data_set.clone(), system_identifier.clone()),
        Data::Empty => Default::default(),
    };
    let (timeline, flushed) = match view.server {
        Server::Standby { timeline, flushed, .. } if promised && call.data_set == view.data_set => {
            (timeline, flushed)
        }
        _ => Default::default(),
    };
    Vote {
        pod: view.me.pod.clone(),
        // Without a promise it says which term it has promised already: the next call must be above that.
        term: if promised { call.term } else { call.term.max(view.promise.term) },
        data_set,
        system_identifier,
        timeline,
        flushed,
        leads: view.leads(),
        promised,
    }
}

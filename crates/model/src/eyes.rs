//! What a member sees, as the product's own functions want it.

use crate::{
    checked::Checked,
    mistakes::Mistake,
    world::{Entry, Id, Members, Poll, Server, World},
};
use holdfast_core::crd::database::DurabilityMode;
use holdfast_postgresql::{
    Lsn,
    failover::{self, Call, Data, HandOver, Holder, Promise, Record, Synchronous, View, Vote},
};
use std::time::Duration;

/// One data set, one system identifier: volumes of others are told apart by tests of the function itself.
const DATA_SET: &str = "d";
const SYSTEM: &str = "7";
/// The Lease's time to live.
pub const TTL: Duration = Duration::from_secs(6);

/// The pod of a member.
pub fn pod(id: Id) -> String {
    format!("m{id}")
}

/// The member of a pod.
pub fn id(pod: &str) -> Id {
    pod.trim_start_matches('m').parse().unwrap_or(Id::MAX)
}

/// The names of a set.
pub fn names(set: Members) -> Vec<String> {
    (0..8).filter(|i| set & (1 << i) != 0).map(pod).collect()
}

/// The set of these names.
pub fn bits(names: &[String]) -> Members {
    names.iter().fold(0, |set, name| set | 1 << id(name))
}

fn holder(id: Id, boot: u8) -> Holder {
    Holder { pod: pod(id), uid: format!("u{id}"), nonce: boot.to_string() }
}

/// A version of the Lease as its record.
pub fn record(entry: &Entry) -> Record {
    Record {
        holder: entry.holder.map(|(id, boot)| holder(id, boot)),
        last_holder: pod(entry.last_holder),
        term: entry.term.into(),
        timeline: entry.timeline.into(),
        data_set: DATA_SET.into(),
        system_identifier: SYSTEM.into(),
        synchronous: names(entry.set),
        confirmations: entry.confirmations.into(),
        members: (0..entry.members).map(pod).collect(),
        hand_over: entry.hand_over.map(|(to, past)| HandOver {
            to: pod(to),
            lsn: Lsn(past.into()),
            ..HandOver::default()
        }),
        switchover: None,
    }
}

fn small(number: u64) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

/// A record as the model keeps it.
pub fn entry(record: &Record) -> Entry {
    Entry {
        holder: record.holder.as_ref().map(|h| (id(&h.pod), h.nonce.parse().unwrap_or(0))),
        last_holder: id(&record.last_holder),
        term: small(record.term),
        timeline: small(record.timeline.into()),
        set: bits(&record.synchronous),
        confirmations: u8::try_from(record.confirmations).unwrap_or(0),
        members: record.members.len() as u8,
        hand_over: record.hand_over.as_ref().map(|h| (id(&h.to), small(h.lsn.0))),
    }
}

/// A set as the product wants it.
pub fn synchronous(set: (Members, u8)) -> Synchronous {
    Synchronous { members: names(set.0), confirmations: set.1.into() }
}

/// What a member sees. `unchanged`: for how long the Lease has not changed, by its own clock; `consent`: since it agreed that its holder stays.
pub fn view(
    checked: &Checked,
    world: &World,
    me: Id,
    unchanged: Duration,
    consent: Option<Duration>,
    terminated: bool,
) -> View {
    let Checked { mode, mistake, .. } = *checked;
    let member = &world.members[usize::from(me)];
    let (lease, version) = match &member.holds {
        Some((entry, version)) => (Some(record(entry)), *version),
        None => (world.entry(member.seen).map(record), member.seen),
    };
    let empty = !member.data && mistake != Some(Mistake::EmptyMemberLeads);
    let lease = lease.map(|mut lease| {
        if mistake == Some(Mistake::WithoutTheSet) && member.holds.is_none() {
            (lease.synchronous, lease.confirmations) = (Vec::new(), 0);
        }
        if mistake == Some(Mistake::HandOverUnchecked)
            && let Some(hand_over) = &mut lease.hand_over
        {
            hand_over.lsn = Lsn(0);
        }
        lease
    });
    View {
        me: holder(me, member.boot),
        data_set: DATA_SET.into(),
        system_identifier: SYSTEM.into(),
        durability: if mistake == Some(Mistake::WithoutTheSet) { DurabilityMode::Asynchronous } else { mode },
        standbys: 1,
        members: (0..world.members.len()).map(|i| pod(i as Id)).collect(),
        data: match empty {
            true => Data::Empty,
            false => {
                Data::Present { data_set: DATA_SET.into(), system_identifier: SYSTEM.into(), unled: false }
            }
        },
        server: match member.server {
            Server::Down => failover::Server::Down,
            Server::Primary => failover::Server::Primary { timeline: member.timeline.into() },
            Server::Standby(upstream) => failover::Server::Standby {
                timeline: member.timeline.into(),
                flushed: Lsn(member.wal.len() as u64),
                streaming: upstream.is_some(),
            },
        },
        lease,
        version: version.into(),
        unchanged,
        consent,
        ttl: TTL,
        holder_terminated: terminated,
        votes: Vec::new(),
        promise: Promise { term: member.promise.0.into(), version: member.promise.1.into() },
        polled: false,
    }
}

/// The call that a poll is about.
pub fn call(me: Id, poll: &Poll) -> Call {
    Call {
        term: poll.term.into(),
        version: poll.version.into(),
        lease_uid: String::new(),
        candidate: pod(me),
        data_set: DATA_SET.into(),
    }
}

/// The votes of a poll.
pub fn votes(poll: &Poll) -> Vec<Vote> {
    let vote = |(i, vote): (usize, &Option<(u8, u8)>)| {
        let (timeline, length) = (*vote)?;
        Some(Vote {
            pod: pod(i as Id),
            term: poll.term.into(),
            data_set: DATA_SET.into(),
            system_identifier: SYSTEM.into(),
            timeline: timeline.into(),
            flushed: Lsn(length.into()),
            leads: false,
            promised: true,
        })
    };
    poll.votes.iter().enumerate().filter_map(vote).collect()
}

//! Who is primary: the decision, as one pure function.
//!
//! An agent calls [`decide`] with what it sees and does what it says. The truth is the Lease `<database>-primary`,
//! changed only with a resourceVersion precondition, so that of two members who decide to take it one fails.

use crate::Lsn;
use holdfast_core::crd::database::DurabilityMode;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Who holds the Lease: a pod in one incarnation of its container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Pod name.
    pub pod: String,
    /// Pod uid.
    pub uid: String,
    /// Drawn when the container started; also in its termination message.
    pub nonce: String,
}

/// What the Lease says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The holder; none: released.
    pub holder: Option<Holder>,
    /// Pod that held it last, also after a release: nobody has more of the data.
    pub last_holder: String,
    /// Counts takeovers; never falls.
    pub term: u64,
    /// Timeline that the holder is on, or was allotted for its promotion. 0: not known yet.
    pub timeline: u32,
    /// Data set that all this is about.
    pub data_set: String,
    /// PostgreSQL's system identifier of it; empty before initdb is done.
    pub system_identifier: String,
    /// Standbys on whose confirmation postgres may rely.
    pub synchronous: Vec<String>,
    /// How many of them confirm each commit.
    pub confirmations: i32,
}

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
    /// Since when the Lease has not changed, by this member's own clock.
    pub unchanged: Duration,
    /// The Lease's time to live.
    pub ttl: Duration,
    /// The holder's container was seen terminated, with the Lease's nonce in its message.
    pub holder_terminated: bool,
    /// Answers to this member's call for votes; empty before it called.
    pub votes: Vec<Vote>,
    /// The highest term that this member knows of by its promises.
    pub promised: u64,
    /// It called for votes in this round, and everybody answered or was given time to.
    pub polled: bool,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Ask the peers for their promise.
    Poll,
}

impl View {
    /// The term that a takeover begins, or a call for votes is about. Above every promise that this member knows of, not only
    /// above the Lease's: peers that promised a higher one in a call that came to nothing would never answer it.
    pub fn next_term(&self) -> u64 {
        self.lease.as_ref().map_or(0, |r| r.term).max(self.promised) + 1
    }
}

impl Record {
    /// The members that any acknowledged commit may be on: the synchronous set and its primary.
    fn electorate(&self) -> Vec<&str> {
        let mut all: Vec<&str> = self.synchronous.iter().map(String::as_str).collect();
        if !self.last_holder.is_empty() && !all.contains(&self.last_holder.as_str()) {
            all.push(&self.last_holder);
        }
        all
    }
}

/// Decides. See the module's documentation.
pub fn decide(view: &View) -> Action {
    // A Lease of another data set is void, save that its term must still be exceeded.
    let record = view.lease.as_ref().filter(|r| r.data_set == view.data_set);
    if let Data::Present { data_set, system_identifier, .. } = &view.data {
        if *data_set != view.data_set {
            return Action::Refuse(format!(
                "the volume belongs to data set {data_set}, not {}: it is left untouched",
                view.data_set
            ));
        }
        let known = [Some(view.system_identifier.as_str()), record.map(|r| r.system_identifier.as_str())];
        if let Some(other) = known.into_iter().flatten().find(|k| !k.is_empty() && k != system_identifier) {
            return Action::Refuse(format!(
                "the volume's system identifier is {system_identifier}, the database's is {other}: it is left untouched"
            ));
        }
    }
    let holder = record.and_then(|r| r.holder.as_ref());
    if let (Some(record), Some(holder)) = (record, holder) {
        if *holder == view.me {
            return match &view.data {
                Data::Empty if record.system_identifier.is_empty() && view.system_identifier.is_empty() => {
                    Action::Initialise
                }
                // An empty volume never leads: there is data somewhere that must.
                Data::Empty => Action::Release,
                Data::Present { .. } => Action::Lead,
            };
        }
        // The same pod in an earlier incarnation: its container is gone, and every process with it.
        let earlier_self = holder.uid == view.me.uid;
        if !earlier_self && !view.holder_terminated && view.unchanged < view.ttl {
            return match view.server {
                Server::Primary { .. } => Action::Fence,
                // This pod's namesake, deleted by force: it may still run on another node until its time is up.
                _ if holder.pod == view.me.pod => Action::Wait(
                    "the Lease still names this pod's predecessor: waiting for it to run out".into(),
                ),
                _ => Action::Follow(holder.pod.clone()),
            };
        }
    }
    if let Server::Primary { .. } = view.server {
        return Action::Fence;
    }
    let unled = matches!(view.data, Data::Present { unled: true, .. });
    if view.lease.is_none() && !unled && !view.system_identifier.is_empty() && view.unchanged < view.ttl {
        return Action::Wait("the Lease is gone: whoever held it gets its time to end".into());
    }
    succeed(view, record)
}

/// Nobody holds the Lease: whether this member may take it.
fn succeed(view: &View, record: Option<&Record>) -> Action {
    let term = view.next_term();
    let Data::Present { system_identifier, .. } = &view.data else {
        let known =
            !view.system_identifier.is_empty() || record.is_some_and(|r| !r.system_identifier.is_empty());
        if known {
            return Action::Wait("the volume is empty: waiting for an instance that has the data".into());
        }
        if !view.polled {
            return Action::Poll;
        }
        if let Some(vote) = view.votes.iter().find(|v| v.leads || !v.data_set.is_empty()) {
            return Action::Wait(format!(
                "the volume is empty and {} has data: an empty volume never leads",
                vote.pod
            ));
        }
        return Action::Take(fresh(view, term, String::new(), 0));
    };
    // Whoever held it last has every acknowledged commit on its own disk and needs nobody's word. After an operator's
    // restore there is no record at all, and only one volume with data.
    if let Some(record) = record
        && record.last_holder == view.me.pod
    {
        return Action::Take(Record { holder: Some(view.me.clone()), term, ..record.clone() });
    }
    let (timeline, flushed) = match view.server {
        Server::Down => return Action::StandAlone,
        Server::Standby { timeline, flushed, .. } => (timeline, flushed),
        Server::Starting | Server::Primary { .. } => return Action::Wait("replaying its own WAL".into()),
    };
    if let Some(record) = record
        && timeline < record.timeline
    {
        return Action::Wait(format!(
            "on timeline {timeline}, while the primary was on {}: it cannot take over",
            record.timeline
        ));
    }
    if !view.polled {
        return Action::Poll;
    }
    let usable: Vec<&Vote> = view
        .votes
        .iter()
        .filter(|v| {
            v.term >= term
                && v.timeline > 0
                && v.system_identifier == *system_identifier
                && v.data_set == view.data_set
        })
        .collect();
    if let Some(leader) = view.votes.iter().find(|v| v.leads) {
        return Action::Wait(format!("{} still leads", leader.pod));
    }
    if let Some(better) = usable.iter().find(|v| (v.timeline, v.flushed) > (timeline, flushed)) {
        return Action::Wait(format!("{} has more of the WAL", better.pod));
    }
    // Of equals the first by name, so that they do not block each other.
    if let Some(equal) =
        usable.iter().find(|v| (v.timeline, v.flushed) == (timeline, flushed) && v.pod < view.me.pod)
    {
        return Action::Wait(format!("{} has as much of the WAL and comes first", equal.pod));
    }
    if let Some(missing) = missing_promises(view, record, &usable) {
        return Action::Wait(missing);
    }
    Action::Take(fresh(view, term, system_identifier.clone(), promoted(record, timeline)))
}

/// The timeline of a promotion from here.
fn promoted(record: Option<&Record>, timeline: u32) -> u32 {
    record.map_or(timeline, |r| r.timeline.max(timeline)) + 1
}

/// Whether enough members promised, so that every acknowledged commit is on one of them; else what is missing.
fn missing_promises(view: &View, record: Option<&Record>, usable: &[&Vote]) -> Option<String> {
    let (electorate, confirmations): (Vec<&str>, i32) = match record {
        Some(record) if !record.synchronous.is_empty() => (record.electorate(), record.confirmations),
        // The primary had relaxed (Preferred), or had no standby yet: what it acknowledged may be on its own disk alone.
        Some(record) if view.durability != DurabilityMode::Asynchronous && !record.last_holder.is_empty() => {
            return Some(format!("only {} is known to have every commit", record.last_holder));
        }
        Some(_) => return None,
        // No Lease at all: any member may have been primary, or in the set.
        None if view.lease.is_none()
            && !matches!(view.data, Data::Present { unled: true, .. })
            && view.durability != DurabilityMode::Asynchronous
            && !view.system_identifier.is_empty() =>
        {
            // Whether a Preferred primary had relaxed is not known any more: then everybody is needed.
            let confirmations = if view.durability == DurabilityMode::Required { view.standbys } else { 0 };
            (view.members.iter().map(String::as_str).collect(), confirmations)
        }
        None => return None,
    };
    let heard =
        electorate.iter().filter(|m| **m == view.me.pod || usable.iter().any(|v| v.pod == **m)).count();
    let needed = electorate.len().saturating_sub(usize::try_from(confirmations).unwrap_or(0)).max(1);
    (heard < needed).then(|| {
        format!(
            "{heard} of the {needed} promises that are needed among {}: a commit could be lost",
            electorate.join(", ")
        )
    })
}

/// The record of a takeover: the old electorate, without the new primary, goes on confirming.
fn fresh(view: &View, term: u64, system_identifier: String, timeline: u32) -> Record {
    let record = view.lease.as_ref().filter(|r| r.data_set == view.data_set);
    let synchronous: Vec<String> = record
        .filter(|r| !r.synchronous.is_empty())
        .map(|r| r.electorate().into_iter().filter(|m| *m != view.me.pod).map(String::from).collect())
        .unwrap_or_default();
    Record {
        holder: Some(view.me.clone()),
        last_holder: view.me.pod.clone(),
        term,
        timeline,
        data_set: view.data_set.clone(),
        system_identifier,
        confirmations: if synchronous.is_empty() { 0 } else { record.map_or(0, |r| r.confirmations) },
        synchronous,
    }
}

/// The synchronous set that a primary should have next, given who streams; `None`: leave it.
///
/// `Required` never empties the set once it had a member, and never lets go of one that is still wanted: that would
/// acknowledge commits which a takeover could miss. `Preferred` does, and records it before postgres relaxes.
pub fn next_synchronous(
    record: &Record,
    mode: DurabilityMode,
    standbys: i32,
    wanted: &[String],
    streaming: &[String],
) -> Option<(Vec<String>, i32)> {
    let mut set: Vec<String> = match mode {
        DurabilityMode::Asynchronous => Vec::new(),
        DurabilityMode::Preferred => streaming.iter().filter(|s| wanted.contains(s)).cloned().collect(),
        DurabilityMode::Required => {
            let kept = record.synchronous.iter().filter(|s| wanted.contains(s));
            let new = streaming.iter().filter(|s| wanted.contains(s) && !record.synchronous.contains(s));
            kept.chain(new).cloned().collect()
        }
    };
    set.sort();
    if mode == DurabilityMode::Required && set.len() < usize::try_from(standbys).unwrap_or(0) {
        // Not enough standbys to promise what is asked: at the beginning none is promised, later what was stays.
        return None;
    }
    let confirmations = match mode {
        _ if set.is_empty() => 0,
        DurabilityMode::Preferred => standbys.min(i32::try_from(set.len()).unwrap_or(i32::MAX)),
        _ => standbys,
    };
    let mut current = record.synchronous.clone();
    current.sort();
    (set != current || confirmations != record.confirmations).then_some((set, confirmations))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(pod: &str) -> Holder {
        Holder { pod: pod.into(), uid: format!("uid-{pod}"), nonce: format!("nonce-{pod}") }
    }

    fn record() -> Record {
        Record {
            holder: Some(holder("orders-0")),
            last_holder: "orders-0".into(),
            term: 4,
            timeline: 2,
            data_set: "d1".into(),
            system_identifier: "77".into(),
            synchronous: vec!["orders-1".into(), "orders-2".into()],
            confirmations: 1,
        }
    }

    fn view(pod: &str) -> View {
        View {
            me: holder(pod),
            data_set: "d1".into(),
            system_identifier: "77".into(),
            durability: DurabilityMode::Required,
            standbys: 1,
            members: (0..3).map(|n| format!("orders-{n}")).collect(),
            data: Data::Present { data_set: "d1".into(), system_identifier: "77".into(), unled: false },
            server: Server::Standby { timeline: 2, flushed: Lsn(500), streaming: false },
            lease: Some(record()),
            unchanged: Duration::from_secs(7),
            ttl: Duration::from_secs(6),
            holder_terminated: false,
            votes: Vec::new(),
            promised: 0,
            polled: false,
        }
    }

    fn vote(pod: &str, flushed: u64) -> Vote {
        Vote {
            pod: pod.into(),
            term: 5,
            data_set: "d1".into(),
            system_identifier: "77".into(),
            timeline: 2,
            flushed: Lsn(flushed),
            leads: false,
        }
    }

    #[test]
    fn a_live_lease_is_followed_and_a_rival_fenced() {
        let fresh = View { unchanged: Duration::from_secs(1), ..view("orders-1") };
        assert_eq!(decide(&fresh), Action::Follow("orders-0".into()));
        let rival = View { server: Server::Primary { timeline: 2 }, ..fresh };
        assert_eq!(decide(&rival), Action::Fence);
        // Also when the Lease has run out: the right to write ended with it.
        assert_eq!(decide(&View { unchanged: Duration::from_secs(60), ..rival }), Action::Fence);
    }

    #[test]
    fn takeover_needs_promises_that_cover_every_commit() {
        assert_eq!(decide(&view("orders-1")), Action::Poll);
        // R = |S| - W + 1 = 2: alone it may miss what orders-2 confirmed.
        let alone = View { polled: true, ..view("orders-1") };
        assert!(matches!(decide(&alone), Action::Wait(_)));
        let two = View { votes: vec![vote("orders-2", 500)], ..alone.clone() };
        let Action::Take(taken) = decide(&two) else { panic!("{:?}", decide(&two)) };
        assert_eq!((taken.term, taken.timeline, taken.last_holder.as_str()), (5, 3, "orders-1"));
        assert_eq!(
            (taken.synchronous, taken.confirmations),
            (vec!["orders-2".to_string(), "orders-0".to_string()], 1)
        );
        // A promise for an earlier term is none, and a member without data proves nothing.
        for bad in [Vote { term: 4, ..vote("orders-2", 500) }, Vote { timeline: 0, ..vote("orders-2", 500) }]
        {
            assert!(matches!(decide(&View { votes: vec![bad], ..alone.clone() }), Action::Wait(_)));
        }
    }

    #[test]
    fn promises_that_came_to_nothing_do_not_stand_in_the_way() {
        // Three called one after another before there was a Lease; the first one's term, 1, took it. All promised 3 since.
        let mut view = View { promised: 3, polled: true, ..view("orders-1") };
        if let Some(lease) = &mut view.lease {
            lease.term = 1;
        }
        assert_eq!(view.next_term(), 4, "term 2 is one that nobody would answer");
        view.votes = vec![Vote { term: 4, ..vote("orders-2", 500) }];
        let Action::Take(taken) = decide(&view) else { panic!("{:?}", decide(&view)) };
        assert_eq!(taken.term, 4);
        assert_eq!(
            View { promised: 2, ..super::tests::view("orders-1") }.next_term(),
            5,
            "the Lease's own counts, too"
        );
    }

    #[test]
    fn the_most_advanced_wins_and_of_equals_the_first() {
        let polled = View { polled: true, ..view("orders-1") };
        assert!(matches!(
            decide(&View { votes: vec![vote("orders-2", 501)], ..polled.clone() }),
            Action::Wait(_)
        ));
        let second = View { polled: true, votes: vec![vote("orders-1", 500)], ..view("orders-2") };
        assert!(matches!(decide(&second), Action::Wait(_)));
        let leads = Vote { leads: true, ..vote("orders-0", 400) };
        assert!(matches!(
            decide(&View { votes: vec![vote("orders-2", 1), leads], ..polled }),
            Action::Wait(_)
        ));
    }

    #[test]
    fn a_standby_left_behind_on_an_older_timeline_cannot_lead() {
        let old = View {
            server: Server::Standby { timeline: 1, flushed: Lsn(900), streaming: false },
            polled: true,
            votes: vec![vote("orders-2", 500)],
            ..view("orders-1")
        };
        assert!(matches!(decide(&old), Action::Wait(_)));
    }

    #[test]
    fn a_terminated_or_restarted_holder_is_not_waited_for() {
        let early = View { unchanged: Duration::from_secs(1), holder_terminated: true, ..view("orders-1") };
        assert_eq!(decide(&early), Action::Poll);
        let mut me = holder("orders-0");
        me.nonce = "second".into();
        let again = View { me, server: Server::Down, unchanged: Duration::ZERO, ..view("orders-0") };
        let Action::Take(taken) = decide(&again) else { panic!("{:?}", decide(&again)) };
        // It goes on where it was: no promotion, the same timeline.
        assert_eq!((taken.timeline, taken.term), (2, 5));
    }

    #[test]
    fn a_pods_namesake_deleted_by_force_is_waited_for() {
        let mut me = holder("orders-0");
        me.uid = "other".into();
        let soon = View { me, server: Server::Down, unchanged: Duration::from_secs(1), ..view("orders-0") };
        assert!(matches!(decide(&soon), Action::Wait(_)));
        assert!(matches!(decide(&View { unchanged: Duration::from_secs(7), ..soon }), Action::Take(_)));
    }

    #[test]
    fn an_empty_volume_never_leads() {
        let empty = View { data: Data::Empty, server: Server::Down, ..view("orders-0") };
        assert!(matches!(decide(&View { lease: None, polled: true, ..empty.clone() }), Action::Wait(_)));
        let held = Record { holder: Some(holder("orders-0")), ..record() };
        assert_eq!(decide(&View { lease: Some(held), ..empty.clone() }), Action::Release);
        let new = View { lease: None, system_identifier: String::new(), ..empty };
        assert_eq!(decide(&new), Action::Poll);
        let peer = View { polled: true, votes: vec![vote("orders-2", 5)], ..new.clone() };
        assert!(matches!(decide(&peer), Action::Wait(_)));
        let Action::Take(taken) = decide(&View { polled: true, ..new.clone() }) else { panic!() };
        assert_eq!(taken.system_identifier, "");
        assert_eq!(decide(&View { lease: Some(taken), ..new }), Action::Initialise);
    }

    #[test]
    fn foreign_data_is_left_untouched() {
        for data in [
            Data::Present { data_set: "d2".into(), system_identifier: "77".into(), unled: false },
            Data::Present { data_set: "d1".into(), system_identifier: "78".into(), unled: false },
        ] {
            assert!(matches!(decide(&View { data, ..view("orders-0") }), Action::Refuse(_)));
        }
    }

    #[test]
    fn a_lease_of_another_data_set_is_void_but_its_term_counts() {
        let old = Record { data_set: "d0".into(), system_identifier: "66".into(), ..record() };
        let restored = View {
            lease: Some(old),
            unchanged: Duration::ZERO,
            polled: true,
            server: Server::Standby { timeline: 3, flushed: Lsn(7), streaming: false },
            ..view("orders-0")
        };
        let Action::Take(taken) = decide(&restored) else { panic!("{:?}", decide(&restored)) };
        assert_eq!((taken.term, taken.timeline), (5, 4));
    }

    #[test]
    fn a_lost_lease_is_no_licence_save_for_data_that_nobody_led() {
        let lost = View { lease: None, polled: true, ..view("orders-0") };
        let soon =
            View { votes: vec![vote("orders-1", 1)], unchanged: Duration::from_secs(1), ..lost.clone() };
        assert!(matches!(decide(&soon), Action::Wait(_)));
        assert!(matches!(decide(&lost), Action::Wait(_)));
        assert!(matches!(
            decide(&View { votes: vec![vote("orders-1", 1)], ..lost.clone() }),
            Action::Take(_)
        ));
        let data = Data::Present { data_set: "d1".into(), system_identifier: "77".into(), unled: true };
        assert!(matches!(decide(&View { data, ..lost }), Action::Take(_)));
    }

    #[test]
    fn a_primary_that_had_relaxed_is_waited_for() {
        let relaxed = Record { synchronous: vec![], confirmations: 0, ..record() };
        let view = View {
            lease: Some(relaxed),
            durability: DurabilityMode::Preferred,
            polled: true,
            votes: vec![vote("orders-2", 1)],
            ..view("orders-1")
        };
        assert!(matches!(decide(&view), Action::Wait(_)));
        assert!(matches!(
            decide(&View { durability: DurabilityMode::Asynchronous, ..view }),
            Action::Take(_)
        ));
    }

    #[test]
    fn the_synchronous_set_grows_and_required_never_empties_it() {
        let wanted: Vec<String> = (1..3).map(|n| format!("orders-{n}")).collect();
        let none = Record { synchronous: vec![], confirmations: 0, ..record() };
        use DurabilityMode::{Preferred, Required};
        assert_eq!(next_synchronous(&none, Required, 1, &wanted, &[]), None);
        assert_eq!(
            next_synchronous(&none, Required, 1, &wanted, &wanted[..1]),
            Some((wanted[..1].to_vec(), 1))
        );
        assert_eq!(next_synchronous(&record(), Required, 1, &wanted, &[]), None);
        assert_eq!(next_synchronous(&record(), Preferred, 1, &wanted, &[]), Some((vec![], 0)));
        // Scaled down: a member that is no longer wanted leaves.
        assert_eq!(
            next_synchronous(&record(), Required, 1, &wanted[..1], &wanted),
            Some((wanted[..1].to_vec(), 1))
        );
    }
}

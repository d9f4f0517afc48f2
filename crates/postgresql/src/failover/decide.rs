//! The decision.

use super::{Action, Data, HandOver, Record, Server, View, Vote, admitted};
use holdfast_core::crd::database::DurabilityMode;

/// Decides. See the module's documentation.
pub fn decide(view: &View) -> Action {
    // A Lease of another data set is void, save that its term must still be exceeded.
    let record = view.record();
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
        if !earlier_self && !view.holder_terminated && view.silent() < view.ttl {
            return match view.server {
                Server::Primary { .. } => Action::Fence,
                // This pod's namesake, deleted by force: it may still run on another node until its time is up.
                _ if holder.pod == view.me.pod => Action::Wait(
                    "the Lease still names this pod's predecessor: waiting for it to run out".into(),
                ),
                // Following it again would confirm commits that a candidate was promised not to miss.
                _ if view.promise.binds(record, view.version) => {
                    Action::Wait("keeps its promise to a candidate".into())
                }
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
    if let Some(wait) = record.and_then(|r| handed_over(view, r)) {
        return wait;
    }
    succeed(view, record)
}

/// For a while after a planned end only the successor takes the Lease, and without asking: the primary had stopped, so there is
/// nothing that this member does not have.
fn handed_over(view: &View, record: &Record) -> Option<Action> {
    let hand_over = record.hand_over.as_ref().filter(|_| view.unchanged < view.ttl / 2)?;
    if hand_over.to != view.me.pod {
        return Some(Action::Wait(format!("{} hands over to {}", record.last_holder, hand_over.to)));
    }
    Some(match (&view.data, view.server) {
        (Data::Present { system_identifier, .. }, Server::Standby { timeline, flushed, .. })
            if timeline == record.timeline && flushed > hand_over.lsn =>
        {
            let timeline = promoted(Some(record), timeline);
            Action::Take(fresh(view, view.next_term(), system_identifier.clone(), timeline))
        }
        (Data::Present { .. }, Server::Down) => Action::StandAlone,
        _ => Action::Wait(format!("taking over from {}: replaying the last of its WAL", record.last_holder)),
    })
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
    // Who has not promised does not say what it has.
    let promised = |v: &Vote| {
        v.term >= term
            && v.timeline > 0
            && v.system_identifier == *system_identifier
            && v.data_set == view.data_set
    };
    // Whoever held it last has every acknowledged commit on its own disk and needs nobody's word. After an operator's
    // restore there is no record at all, and only one volume with data.
    if let Some(record) = record
        && record.last_holder == view.me.pod
    {
        // Its predecessor on a node that is cut off may stay with the others' consent; who of them promises has not agreed, and will not.
        let namesake = record.holder.as_ref().is_some_and(|h| h.uid != view.me.uid);
        let others = record.members.len() > 1;
        if namesake && others && !view.holder_terminated {
            if !view.polled {
                return Action::Poll;
            }
            let word = |v: &&Vote| v.term >= term && v.promised || promised(v);
            if !view.votes.iter().filter(word).any(|v| record.members.contains(&v.pod)) {
                return Action::Wait(format!(
                    "this pod's predecessor may still lead with the consent of {}: waiting for the promise of one of them",
                    record.members.join(", ")
                ));
            }
        }
        let mut switchover = record.switchover.clone();
        if let (Some(HandOver { to, .. }), Some(said)) = (&record.hand_over, &mut switchover) {
            said.refused = format!("{to} did not take over in time");
        }
        let holder = Some(view.me.clone());
        let members = admitted(&view.me.pod, &view.members, &record.synchronous);
        return Action::Take(Record { holder, term, members, hand_over: None, switchover, ..record.clone() });
    }
    if let Some(record) = record
        && !record.members.is_empty()
        && !record.members.contains(&view.me.pod)
    {
        return Action::Wait("the Lease does not name this instance yet: its primary has to admit it".into());
    }
    let (timeline, flushed) = match view.server {
        Server::Down => return Action::StandAlone,
        Server::Standby { timeline, flushed, .. } => (timeline, flushed),
        Server::Starting | Server::Primary { .. } => return Action::Wait("replaying its own WAL".into()),
    };
    // Where commits wait for a quorum it is the promises that tell what there is: a timeline that none of them knows was lost before
    // anything was acknowledged on it. Elsewhere nobody knows what it held.
    if let Some(record) = record
        && record.synchronous.is_empty()
        && timeline < record.timeline
    {
        return Action::Wait(format!(
            "on timeline {timeline}, while the primary was on {}: it cannot take over",
            record.timeline
        ));
    }
    if let Some(record) = record
        && let Some(only) = only_the_last_holder(view, record)
    {
        return Action::Wait(only);
    }
    if !view.polled {
        return Action::Poll;
    }
    let usable: Vec<&Vote> = view.votes.iter().filter(|v| promised(v)).collect();
    if let Some(leader) = view.votes.iter().find(|v| v.leads) {
        return Action::Wait(format!("{} still leads", leader.pod));
    }
    if let Some(better) = usable.iter().find(|v| (v.timeline, v.flushed) > (timeline, flushed)) {
        return Action::Wait(format!("{} has more of the WAL", better.pod));
    }
    // Of equals the first by name, so that they do not block each other. It had its chance: it may not reach the API server.
    if view.unchanged < view.ttl * 2
        && let Some(equal) =
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

/// The primary had relaxed (Preferred), or had no standby yet: what it acknowledged may be on its own disk alone, and nobody need be
/// asked.
fn only_the_last_holder(view: &View, record: &Record) -> Option<String> {
    let alone = record.synchronous.is_empty()
        && view.durability != DurabilityMode::Asynchronous
        && !record.last_holder.is_empty();
    alone.then(|| format!("only {} is known to have every commit", record.last_holder))
}

/// Whether enough members promised, so that every acknowledged commit is on one of them; else what is missing.
fn missing_promises(view: &View, record: Option<&Record>, usable: &[&Vote]) -> Option<String> {
    let (electorate, confirmations): (Vec<&str>, i32) = match record {
        Some(record) if !record.synchronous.is_empty() => (record.electorate(), record.confirmations),
        Some(_) => return None,
        // No Lease at all: any member may have been primary, or in the set, or be it still with the others' consent.
        None if view.lease.is_none()
            && !matches!(view.data, Data::Present { unled: true, .. })
            && !view.system_identifier.is_empty() =>
        {
            // Whether a primary waited for anybody is not known any more, but where it must: then everybody is needed.
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
        members: admitted(&view.me.pod, &view.members, &synchronous),
        synchronous,
        hand_over: None,
        switchover: record.and_then(|r| r.switchover.clone()),
    }
}

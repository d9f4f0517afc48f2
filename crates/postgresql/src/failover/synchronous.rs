//! The synchronous set, and in which order it changes.

use super::Record;
use holdfast_core::crd::database::DurabilityMode;
use std::collections::BTreeSet;

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

/// A synchronous set: whose confirmations count, and how many of them each commit waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Synchronous {
    /// Pods.
    pub members: Vec<String>,
    /// Confirmations for each commit; 0: commits wait for nobody.
    pub confirmations: i32,
}

impl Synchronous {
    /// As the Lease says.
    pub fn of(record: &Record) -> Self {
        Self { members: record.synchronous.clone(), confirmations: record.confirmations }
    }

    /// Whether a takeover that goes by this set finds every commit that was acknowledged under the other. One that asks for no
    /// confirmation needs the holder's own word, who has them all.
    pub fn covers(&self, other: &Self) -> bool {
        self.confirmations == 0
            || (self.confirmations <= other.confirmations
                && other.members.iter().all(|m| self.members.contains(m)))
    }
}

/// The next step of a change of the synchronous set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Write this into the Lease.
    Record(Synchronous),
    /// Have postgres obey the goal, and wait until every backend does.
    Obey,
    /// Wait until what was committed before has arrived at as many of the goal's members as it asks for.
    Arrive,
    /// The Lease and postgres say the goal.
    Done,
}

/// In which order the set changes. The Lease never claims more than postgres does: while it changes over, the Lease says what holds
/// before and after, everybody of both sets and only as many confirmations as both ask for, so that a takeover meanwhile asks
/// whoever may have a commit. The new set counts when postgres obeys it, and what was committed before has arrived as well.
///
/// `obeyed`: what postgres does now; `arrived`: what was committed before it did has reached the goal's members.
pub fn change(recorded: &Synchronous, obeyed: &Synchronous, goal: &Synchronous, arrived: bool) -> Change {
    if recorded == goal && obeyed == goal {
        return Change::Done;
    }
    let members: BTreeSet<&String> =
        recorded.members.iter().chain(&obeyed.members).chain(&goal.members).collect();
    let confirmations = recorded.confirmations.min(obeyed.confirmations).min(goal.confirmations);
    let between = Synchronous { members: members.into_iter().cloned().collect(), confirmations };
    let covered = |by: &Synchronous| by.covers(obeyed) && by.covers(goal);
    match () {
        () if obeyed != goal && !covered(recorded) => Change::Record(between),
        () if obeyed != goal => Change::Obey,
        () if !arrived => Change::Arrive,
        () => Change::Record(goal.clone()),
    }
}

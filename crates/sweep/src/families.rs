//! Which plans are run: every crash, and families of other troubles.

use crate::{
    operators::Operator,
    plan::{Plan, Trouble},
    run::Ending,
    world::Disturbance,
};
use holdfast_testkit::Fault;

/// A kind of trouble, as the table names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Every write: dies before it, dies after it, its answer is lost.
    Crash,
    /// Two deaths, of one operator or of two in turn.
    Pair,
    /// A death, and a next life that first sees old caches.
    Stale,
    /// Every write: 409, 500, reset, no answer, a second writer.
    Answer,
    /// Every second or third write fails; one kind is forbidden; 503 for all.
    Many,
    /// Watches that are cut, expire, coalesce or lose events.
    Watch,
    /// Two leaders at once.
    Overlap,
    /// Every change and deletion: somebody has put another object of that name in the place of the one that it is meant for.
    Replaced,
    /// Every write: its sender dies, and it arrives when the next life is at work.
    Late,
    /// The watch of one kind is late, and no other is.
    Lag,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Crash,
        Self::Pair,
        Self::Stale,
        Self::Answer,
        Self::Many,
        Self::Watch,
        Self::Overlap,
        Self::Replaced,
        Self::Late,
        Self::Lag,
    ];

    /// What the table says.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Pair => "pair",
            Self::Stale => "stale",
            Self::Answer => "answer",
            Self::Many => "many",
            Self::Watch => "watch",
            Self::Overlap => "overlap",
            Self::Replaced => "replaced",
            Self::Late => "late",
            Self::Lag => "lag",
        }
    }
}

/// Told to people, and read by no program.
const EVENTS: &str = "events.events.k8s.io";

/// What operators ask for, each with what a 403 on it stands for: a role that was edited by hand.
const RESOURCES: [(Operator, &[&str]); 3] = [
    (
        Operator::Database,
        &[
            "databases.holdfast.dev",
            "statefulsets.apps",
            "pods",
            "persistentvolumeclaims",
            "configmaps",
            "secrets",
            "services",
            "leases.coordination.k8s.io",
            "endpointslices.discovery.k8s.io",
        ],
    ),
    (
        Operator::Backups,
        &[
            "backups.holdfast.dev",
            "backupschedules.holdfast.dev",
            "backupstores.holdfast.dev",
            "databases.holdfast.dev",
            "jobs.batch",
            "pods",
            "leases.coordination.k8s.io",
        ],
    ),
    (
        Operator::Restores,
        &[
            "restores.holdfast.dev",
            "databases.holdfast.dev",
            "backups.holdfast.dev",
            "jobs.batch",
            "pods",
            "persistentvolumeclaims",
            "leases.coordination.k8s.io",
        ],
    ),
];

/// The plans of one family for one workload, given its calm run. `pairs` is how many pairs are drawn, `seed` which; `full`:
/// also those that are nearly the same as another.
pub fn plans(
    family: Family,
    calm: &Ending,
    workload: &str,
    (pairs, full): (usize, bool),
    seed: u64,
) -> Vec<Plan> {
    let one = |troubles: Vec<Trouble>| Plan { workload: workload.into(), troubles };
    let writes: Vec<(Operator, u64)> =
        calm.writes.iter().flat_map(|(who, n)| (1..=*n).map(|k| (*who, k))).collect();
    let active: Vec<Operator> = calm.writes.iter().filter(|(_, n)| **n > 0).map(|(who, _)| *who).collect();
    let each = |faults: &[Fault]| -> Vec<Plan> {
        let of = |(who, k): &(Operator, u64)| {
            faults.iter().map(|fault| one(vec![Trouble::At(*who, *k, *fault)])).collect::<Vec<_>>()
        };
        writes.iter().flat_map(of).collect()
    };
    let attempted = |who: Operator, k: u64| {
        let at = usize::try_from(k - 1).unwrap_or(usize::MAX);
        calm.attempted.get(&who).and_then(|all| all.get(at)).map(String::as_str)
    };
    match family {
        // To die before a write is to have died after the one before, as far as the server can tell; before the first it is not. Nobody
        // reads an Event, so to have died after one is to have died before it.
        Family::Crash => {
            let event = |who: Operator, k: u64| attempted(who, k).is_some_and(|what| what.ends_with(EVENTS));
            let mut all = each(&[Fault::DieBefore, Fault::DieAfter, Fault::LoseAnswer]);
            all.retain(|plan| match plan.troubles[..] {
                [Trouble::At(_, k, Fault::DieBefore)] => k == 1 || full,
                [Trouble::At(who, k, Fault::DieAfter)] => full || !event(who, k),
                _ => true,
            });
            all
        }
        Family::Answer => {
            each(&[Fault::Conflict, Fault::InternalError, Fault::HangAfter, Fault::SecondWriter])
        }
        Family::Stale => {
            let of =
                |(who, k): &(Operator, u64)| [1, 4, 16].map(|back| one(vec![Trouble::Stale(*who, *k, back)]));
            writes.iter().flat_map(of).collect()
        }
        Family::Pair => drawn(&writes, pairs, seed).into_iter().map(one).collect(),
        Family::Many => {
            let faults = [Fault::Conflict, Fault::InternalError, Fault::SecondWriter, Fault::LoseAnswer];
            let every = active.iter().flat_map(|who| {
                [2, 3].into_iter().flat_map(move |k| faults.map(|fault| Trouble::Every(*who, k, fault)))
            });
            let kinds = RESOURCES.iter().filter(|(who, _)| active.contains(who)).flat_map(|(who, all)| {
                all.iter().map(|r| Trouble::Resource(*who, (*r).into(), Fault::Forbidden))
            });
            let away = active.iter().map(|who| Trouble::Resource(*who, String::new(), Fault::Unavailable));
            every.chain(kinds).chain(away).map(|trouble| one(vec![trouble])).collect()
        }
        Family::Watch => [Disturbance::Cut, Disturbance::Expire, Disturbance::Coalesce, Disturbance::Lose]
            .into_iter()
            .map(|what| one(vec![Trouble::Watches(what)]))
            .collect(),
        Family::Replaced => {
            // An Event has nothing that another one of its name could suffer.
            let known =
                |who: &Operator, k: u64| match attempted(*who, k).and_then(|what| what.split_once(' ')) {
                    Some((_, EVENTS)) | None => false,
                    Some((verb, _)) => matches!(verb, "delete" | "patch" | "update"),
                };
            let hit = writes.iter().filter(|(who, k)| known(who, *k));
            hit.map(|(who, k)| one(vec![Trouble::At(*who, *k, Fault::Replaced)])).collect()
        }
        Family::Late => each(&[Fault::Late]),
        Family::Lag => RESOURCES
            .iter()
            .filter(|(who, _)| active.contains(who))
            .flat_map(|(who, all)| all.iter().map(move |resource| (*who, *resource)))
            .map(|(who, resource)| Trouble::Lag(who, resource.into()))
            .map(|trouble| one(vec![trouble]))
            .collect(),
        Family::Overlap => active.iter().map(|who| one(vec![Trouble::Overlap(*who)])).collect(),
    }
}

/// At most so many plans, spread over all; another seed takes others. Crashes are never left out.
pub fn thinned(plans: Vec<Plan>, family: Family, most: usize, seed: u64) -> Vec<Plan> {
    if matches!(family, Family::Crash | Family::Watch | Family::Overlap) || most == 0 || plans.len() <= most {
        return plans;
    }
    let (count, shift) = (plans.len(), usize::try_from(seed).unwrap_or(0));
    let chosen: std::collections::BTreeSet<usize> =
        (0..most).map(|i| (i * count / most + shift) % count).collect();
    plans.into_iter().enumerate().filter(|(index, _)| chosen.contains(index)).map(|(_, plan)| plan).collect()
}

/// Pairs of deaths, drawn without chance: the same seed draws the same ones.
fn drawn(writes: &[(Operator, u64)], pairs: usize, seed: u64) -> Vec<Vec<Trouble>> {
    const DEATHS: [Fault; 2] = [Fault::DieBefore, Fault::DieAfter];
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut draw = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below.max(1) as u64).unwrap_or(0)
    };
    if writes.is_empty() {
        return Vec::new();
    }
    (0..pairs)
        .map(|_| {
            let mut one = || {
                let (who, k) = writes[draw(writes.len())];
                Trouble::At(who, k, DEATHS[draw(2)])
            };
            let first = one();
            let second = match (one(), &first) {
                // The count of a second life begins anew: small numbers strike while it finds its feet.
                (Trouble::At(who, k, fault), Trouble::At(before, _, _)) if who == *before => {
                    Trouble::At(who, 1 + k % 7, fault)
                }
                (other, _) => other,
            };
            vec![first, second]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_write_is_struck_in_every_way_and_pairs_repeat_themselves() {
        let calm =
            Ending { writes: [(Operator::Database, 3), (Operator::Backups, 0)].into(), ..Ending::default() };
        let crash = plans(Family::Crash, &calm, "create", (0, true), 1);
        assert_eq!(crash.len(), 9);
        assert_eq!(crash[8].to_string(), "create database@3:lose-answer");
        let pairs = plans(Family::Pair, &calm, "create", (40, true), 7);
        assert_eq!((pairs.len(), &pairs), (40, &plans(Family::Pair, &calm, "create", (40, true), 7)));
        assert_ne!(pairs, plans(Family::Pair, &calm, "create", (40, true), 8));
        assert!(
            plans(Family::Overlap, &calm, "create", (0, true), 1).len() == 1,
            "who writes nothing is left out"
        );
    }
}

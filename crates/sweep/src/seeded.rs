//! That the sweep is not blind: programming faults are seeded into the operators, and each must be caught.
//!
//! The faults are made in the requests on their way ([`Tamper`]), so that no shipped program has a switch for them, and what is
//! tested is the very code that is shipped.

use crate::{
    families::{self, Family},
    operators::Operator,
    plan::Plan,
    run::{self, Ending},
    slices::{self, Slice},
};
use holdfast_testkit::{On, Tamper};
use std::ops::ControlFlow;

/// A fault as somebody might program it.
pub struct Bug {
    /// What was done wrong.
    pub name: &'static str,
    /// Where.
    pub operator: Operator,
    /// How it shows in requests.
    pub tamper: Tamper,
    /// Only in lives after the first: a branch that waits for the moment of a change, which a life that begins later misses.
    pub later_lives: bool,
    /// Where it can be caught.
    pub workload: &'static str,
    /// By which troubles.
    pub families: &'static [Family],
}

/// How a bug was caught.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// By this plan, for this reason.
    Caught(Plan, String),
    /// So many plans found nothing wrong.
    Missed(usize),
    /// So many plans ran, and not once was there a request that it could have changed.
    Idle(usize),
}

/// All bugs.
pub fn all() -> Vec<Bug> {
    use Family::{Crash, Late, Overlap, Pair, Replaced};
    use Operator::{Backups, Database, Restores};
    let on = |resource: &str, verb: &str| On::resource(resource).verb(verb);
    let bug = |name, operator, tamper, workload, families| Bug {
        name,
        operator,
        tamper,
        later_lives: false,
        workload,
        families,
    };
    let later = |bug: Bug| Bug { later_lives: true, ..bug };
    vec![
        bug(
            "the finalizer goes before the volumes that it guards",
            Database,
            Tamper::Swapped {
                first: on("persistentvolumeclaims", "delete"),
                second: on("databases.holdfast.dev", "patch").main(),
            },
            "delete-database-with-data",
            &[Crash],
        ),
        bug(
            "a worker is written down before it is made",
            Backups,
            Tamper::Swapped {
                first: on("jobs.batch", "create"),
                second: on("backups.holdfast.dev", "patch").subresource("status"),
            },
            "backup",
            &[Crash],
        ),
        bug(
            "a worker is deleted before its result is written down",
            Backups,
            Tamper::Swapped {
                first: on("backups.holdfast.dev", "patch").subresource("status"),
                second: on("jobs.batch", "delete"),
            },
            "backup",
            &[Crash],
        ),
        bug(
            "a Backup is made without its finalizer",
            Backups,
            Tamper::WithoutFinalizers(on("backups.holdfast.dev", "patch").main()),
            "delete-backup",
            &[Crash],
        ),
        bug(
            "workers have no owner",
            Backups,
            Tamper::WithoutOwner(on("jobs.batch", "create")),
            "delete-store-probing",
            &[Crash],
        ),
        bug(
            "a Database's children have no owner",
            Database,
            Tamper::WithoutOwner(on("services", "patch")),
            "create",
            &[Crash],
        ),
        bug(
            "the Lease of a Restore has no owner",
            Restores,
            Tamper::WithoutOwner(on("leases.coordination.k8s.io", "create")),
            "restore-in-place",
            &[Crash],
        ),
        bug(
            "a restored volume gets a name of its own each time",
            Restores,
            Tamper::OwnNames(on("persistentvolumeclaims", "create")),
            "restore-in-place",
            &[Crash],
        ),
        bug(
            "the follow-up Backup gets a name of its own each time",
            Restores,
            Tamper::OwnNames(on("backups.holdfast.dev", "create")),
            "restore-in-place",
            &[Crash],
        ),
        later(bug(
            "settings are written only by the process that saw them change",
            Database,
            Tamper::Skipped(on("configmaps", "patch")),
            "reload",
            &[Crash],
        )),
        later(bug(
            "the Lease is let go only by the process that saw the work end",
            Backups,
            Tamper::Skipped(on("leases.coordination.k8s.io", "delete")),
            "backup",
            &[Crash],
        )),
        later(bug(
            "old volumes are retired only by the process that handed the new ones over",
            Restores,
            Tamper::Skipped(on("persistentvolumeclaims", "patch")),
            "restore-in-place",
            &[Crash],
        )),
        bug(
            "pods are deleted by name",
            Database,
            Tamper::WithoutPreconditions(on("pods", "delete")),
            "roll",
            &[Replaced],
        ),
        bug(
            "volumes are deleted by name",
            Database,
            Tamper::WithoutPreconditions(on("persistentvolumeclaims", "delete")),
            "delete-database-with-data",
            &[Replaced],
        ),
        bug(
            "workers are deleted by name",
            Backups,
            Tamper::WithoutPreconditions(on("jobs.batch", "delete")),
            "backup",
            &[Replaced],
        ),
        bug(
            "the Lease of a backup is let go by name",
            Backups,
            Tamper::WithoutPreconditions(on("leases.coordination.k8s.io", "delete")),
            "backup",
            &[Replaced],
        ),
        bug(
            "a volume is handed over by name",
            Restores,
            Tamper::WithoutPreconditions(on("persistentvolumeclaims", "patch")),
            "restore-in-place",
            &[Replaced],
        ),
        bug(
            "a status is written by name",
            Database,
            Tamper::WithoutPreconditions(on("databases.holdfast.dev", "patch")),
            "recreate-database-with-data",
            &[Late],
        ),
        bug(
            "a child is applied by name",
            Database,
            Tamper::WithoutPreconditions(on("statefulsets.apps", "patch")),
            "roll",
            &[Replaced],
        ),
        bug(
            "a worker gets a name of its own each time",
            Backups,
            Tamper::OwnNames(on("jobs.batch", "create")),
            "backup",
            &[Late, Crash, Pair, Overlap],
        ),
    ]
}

/// Looks for a plan that catches the bug: the calm one first, then those of its families.
pub fn hunt(bug: &Bug, calm: &Ending, seed: u64) -> Verdict {
    let mut plans = Vec::new();
    for family in bug.families {
        let all = families::plans(*family, calm, bug.workload, (0, true), seed);
        plans.extend(all.into_iter().filter(|plan| plan.troubles.iter().any(|t| t.is_of(bug.operator))));
    }
    let mut slices = vec![Slice::calm(bug.workload, seed)];
    slices.extend(Slice::of(bug.workload, seed, &plans));
    let (mut tampered, mut tried, mut caught) = (0, 0, None);
    for mut slice in slices {
        slice.bug = Some(bug.name.into());
        slices::run(&slice, &mut |plan, ending| {
            tampered += ending.tampered;
            tried += 1;
            // What went wrong without it is not its doing.
            let wrong = run::judge(&plan, calm, &ending).into_iter().next();
            let Some(reason) = wrong.filter(|_| ending.tampered > 0 || ending.dump.is_empty()) else {
                return ControlFlow::Continue(());
            };
            caught = Some(Verdict::Caught(plan, reason));
            ControlFlow::Break(())
        });
        if let Some(caught) = caught {
            return caught;
        }
    }
    if tampered == 0 { Verdict::Idle(tried) } else { Verdict::Missed(tried) }
}

//! Runs one plan, and says what is wrong with how it ended.

use crate::{
    branch::Branches,
    operators::Operator,
    plan::{Plan, Trouble},
    workloads::{self, Workload},
    world::{LANDED_ALL, NextLife, Stale, World},
};
use holdfast_testkit::{Fault, Nth, On, Rule};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

/// How a run ended.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ending {
    /// The end state.
    pub dump: String,
    /// Objects made and deleted.
    pub counts: BTreeMap<String, u64>,
    /// Writes of each operator in the part of the workload in which things go wrong.
    pub writes: BTreeMap<Operator, u64>,
    /// Faults that struck.
    pub faults: u64,
    /// What each of these was: `delete pods`.
    pub attempted: BTreeMap<Operator, Vec<String>>,
    /// Whether it was ended before its end, which is not compared then.
    pub cut_short: bool,
    /// What was wrong whatever the calm run did.
    pub problems: Vec<String>,
    /// Requests that a seeded fault changed.
    pub tampered: u64,
    /// Every write, by client, verb and resource.
    pub tally: BTreeMap<String, u64>,
    /// Every write of the operators, in order, and the faults that struck.
    pub log: Vec<String>,
}

/// Runs a plan on a runtime of its own, with a paused clock. `seed` varies uids.
pub fn run(plan: &Plan, seed: u64) -> Ending {
    run_with(plan, seed, None, |_| {})
}

/// As [`run`]; `prepare` is handed the world before the part in which things go wrong, and of that part there are `branches`.
pub fn run_with(
    plan: &Plan,
    seed: u64,
    branches: Option<&Branches>,
    prepare: impl FnOnce(&mut World),
) -> Ending {
    // A panic is a failure like any other, and in a copy it is the copy's.
    let ran = catch_unwind(AssertUnwindSafe(|| on_runtime(plan, seed, branches, prepare)));
    let failed = |why: String| Ending { problems: vec![why], ..Ending::default() };
    let ending = match ran {
        Ok(Ok(ending)) => ending,
        Ok(Err(error)) => failed(error),
        Err(_) => failed("it panicked, see above".into()),
    };
    if let Some(branches) = branches {
        branches.end(&ending);
    }
    ending
}

fn on_runtime(
    plan: &Plan,
    seed: u64,
    branches: Option<&Branches>,
    prepare: impl FnOnce(&mut World),
) -> Result<Ending, String> {
    let all = workloads::all();
    let workload =
        all.iter().find(|w| w.name == plan.workload).ok_or(format!("no workload {:?}", plan.workload))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.map_err(|error| format!("no runtime: {error}"))?;
    runtime.block_on(async {
        let mut ending = Ending::default();
        let mut world = World::new(seed).await?;
        if let Err(error) = through(workload, plan, &mut world, &mut ending, branches, prepare).await {
            ending.cut_short = error == LANDED_ALL;
            ending.problems.extend(Some(error).filter(|_| !ending.cut_short));
        }
        ending.faults = world.struck().len() as u64;
        ending.problems.extend(world.problems());
        for lost in world.server.overwritten() {
            ending.problems.push(format!("what another writer had written was taken away: {lost}"));
        }
        if !ending.cut_short {
            ending.dump = world.dump();
        }
        ending.tampered = world.tampered();
        ending.log = world.operator_writes();
        ending.tally = world.tally();
        ending.log.extend(world.struck());
        Ok(ending)
    })
}

async fn through(
    workload: &Workload,
    plan: &Plan,
    world: &mut World,
    ending: &mut Ending,
    branches: Option<&Branches>,
    prepare: impl FnOnce(&mut World),
) -> Result<(), String> {
    (workload.setup)(world).await.map_err(|error| format!("setup: {error}"))?;
    world.settle().await.map_err(|error| format!("setup: {error}"))?;
    let before: BTreeMap<Operator, u64> =
        Operator::ALL.into_iter().map(|which| (which, world.attempts(which))).collect();
    let counted = world.counts();
    prepare(world);
    let of_copy = branches.and_then(Branches::at_start);
    let plan = of_copy.as_ref().unwrap_or(plan);
    let trouble = begin(world, &plan.troubles);
    if let Some(branches) = branches
        && of_copy.is_none()
    {
        branch_at_writes(world, branches);
    }
    (workload.act)(world).await?;
    end(world, trouble, &plan.troubles).await;
    world.settle().await?;
    for which in Operator::ALL {
        let from = before.get(&which).copied().unwrap_or(0);
        ending.writes.insert(which, world.attempts(which) - from);
        let attempted = world.session(which).map(|session| session.attempted()).unwrap_or_default();
        let from = usize::try_from(from).unwrap_or_default();
        ending.attempted.insert(which, attempted.into_iter().skip(from).collect());
    }
    ending.counts = world.counts();
    for (what, count) in counted {
        *ending.counts.entry(what).or_default() -= count;
    }
    let more = world.resync_writes().await;
    if !more.is_empty() {
        ending.problems.push(format!("{} writes in three resyncs at rest: {}", more.len(), more.join("; ")));
    }
    Ok(())
}

fn branch_at_writes(world: &World, branches: &Branches) {
    let revision = world.server.revision();
    for which in Operator::ALL {
        let (branches, coming) = (branches.clone(), world.coming());
        if let Some(session) = world.session(which) {
            session.choose(move |number| branches.at_write(which, number, revision, &coming));
        }
    }
}

/// What has to be undone before the end is compared.
struct Standing {
    overlap: Vec<Operator>,
    watches: bool,
}

fn begin(world: &mut World, troubles: &[Trouble]) -> Standing {
    let mut standing = Standing { overlap: Vec::new(), watches: false };
    let mut died: Vec<Operator> = Vec::new();
    let revision = world.server.revision();
    for trouble in troubles {
        match trouble {
            Trouble::At(who, k, fault) => {
                let rule = Rule::at_write(*k, *fault);
                if died.contains(who) {
                    world.next_life(*who, NextLife { rules: vec![rule], stale: None });
                } else {
                    world.fault(*who, rule);
                }
                if matches!(fault, Fault::DieBefore | Fault::DieAfter | Fault::Late) {
                    died.push(*who);
                }
            }
            Trouble::Every(who, k, fault) => {
                // Not for ever: what fails for good cannot end well.
                let rule = Rule { on: On::writes(), nth: Nth::Every(*k), fault: *fault };
                world.fault_for(*who, rule, Duration::from_secs(600));
            }
            Trouble::Stale(who, k, back) => {
                world.fault(*who, Rule::at_write(*k, Fault::DieAfter));
                let stale = Some(Stale { back: *back, not_before: revision });
                world.next_life(*who, NextLife { rules: Vec::new(), stale });
            }
            Trouble::Resource(who, resource, fault) => {
                let rule = Rule::always(On::resource(resource), *fault);
                world.fault_for(*who, rule, Duration::from_secs(120));
            }
            Trouble::Lag(who, resource) => world.lag(*who, resource),
            Trouble::Overlap(who) => {
                world.double(*who);
                standing.overlap.push(*who);
            }
            Trouble::Watches(disturbance) => {
                world.disturb(Some(*disturbance));
                standing.watches = true;
            }
        }
    }
    standing
}

async fn end(world: &mut World, standing: Standing, troubles: &[Trouble]) {
    world.lag_no_more();
    for who in standing.overlap {
        world.single(who);
    }
    if standing.watches {
        world.disturb(None);
    }
    let failed_for_long = |trouble: &Trouble| matches!(trouble, Trouble::Every(..) | Trouble::Resource(..));
    // Backoff has grown to five minutes meanwhile.
    let pause = if troubles.iter().any(failed_for_long) { 330 } else { 1 };
    world.pass(Duration::from_secs(pause)).await;
}

/// Whether a run must have made and deleted as many objects as the calm one. Not where an answer that fails makes an operator
/// try again what was done: only deaths and lost answers are promised to cost nothing.
fn counts_matter(plan: &Plan) -> bool {
    let uncounted = workloads::UNCOUNTED.contains(&plan.workload.as_str());
    !uncounted
        && plan.troubles.iter().all(|trouble| {
            matches!(
                trouble,
                Trouble::At(_, _, Fault::DieBefore | Fault::DieAfter | Fault::LoseAnswer)
                    | Trouble::Stale(..)
            )
        })
}

/// What is wrong with a run, given the calm one.
pub fn judge(plan: &Plan, calm: &Ending, ending: &Ending) -> Vec<String> {
    let mut wrong = ending.problems.clone();
    if ending.cut_short {
        return wrong;
    }
    if ending.dump.is_empty() && !wrong.is_empty() {
        // It came to no end.
        return wrong;
    }
    if ending.dump != calm.dump {
        wrong
            .push(format!("it ended otherwise than the calm run:\n{}", difference(&calm.dump, &ending.dump)));
    }
    if counts_matter(plan) && ending.counts != calm.counts {
        wrong.push(format!("objects made and deleted: {:?}, calm {:?}", ending.counts, calm.counts));
    }
    wrong
}

/// The lines that differ, the first of them, with the ones around and the object that they are in.
pub fn difference(calm: &str, other: &str) -> String {
    /// Enough to see what it is about.
    const MOST: usize = 80;
    let before: Vec<&str> = calm.lines().collect();
    let diff = similar::TextDiff::from_lines(calm, other);
    let mut lines = Vec::new();
    for group in diff.grouped_ops(2) {
        let from = group.first().map_or(0, |op| op.old_range().start).min(before.len());
        let object = before[..from].iter().rposition(|line| *line == "{").unwrap_or(from);
        let find = |start: &str| {
            before[object..].iter().find(|line| line.starts_with(start)).map_or("", |line| line.trim())
        };
        lines.push(format!("  in {} {}", find("  \"kind\":"), find("    \"name\":")));
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            lines.push(format!("  {} {}", change.tag(), change.value().trim_end()));
        }
    }
    let more = lines.len().saturating_sub(MOST);
    lines.truncate(MOST);
    if more > 0 {
        lines.push(format!("  ... and {more} lines more"));
    }
    lines.join("\n")
}

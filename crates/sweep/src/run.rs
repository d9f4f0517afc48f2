//! Runs one plan, and says what is wrong with how it ended.

use crate::{
    operators::Operator,
    plan::{Plan, Trouble},
    workloads::{self, Workload},
    world::{NextLife, Stale, World},
};
use holdfast_testkit::{Fault, Nth, On, Rule};
use std::{collections::BTreeMap, time::Duration};

/// How a run ended.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    /// The end state.
    pub dump: String,
    /// Objects made and deleted.
    pub counts: BTreeMap<String, u64>,
    /// Writes of each operator in the part of the workload in which things go wrong.
    pub writes: BTreeMap<Operator, u64>,
    /// Faults that struck.
    pub faults: u64,
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
    run_with(plan, seed, |_| {})
}

/// As [`run`]; `prepare` is handed the world before the part in which things go wrong.
pub fn run_with(plan: &Plan, seed: u64, prepare: impl FnOnce(&mut World)) -> Ending {
    let Some(workload) = workloads::all().into_iter().find(|w| w.name == plan.workload) else {
        return Ending { problems: vec![format!("no workload {:?}", plan.workload)], ..Ending::default() };
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    match runtime {
        Ok(runtime) => runtime.block_on(live(plan, &workload, seed, prepare)),
        Err(error) => Ending { problems: vec![format!("no runtime: {error}")], ..Ending::default() },
    }
}

async fn live(plan: &Plan, workload: &Workload, seed: u64, prepare: impl FnOnce(&mut World)) -> Ending {
    let mut ending = Ending::default();
    let mut world = match World::new(seed).await {
        Ok(world) => world,
        Err(error) => return Ending { problems: vec![error], ..ending },
    };
    if let Err(error) = through(workload, plan, &mut world, &mut ending, prepare).await {
        ending.problems.push(error);
    }
    ending.faults = world.struck().len() as u64;
    ending.problems.extend(world.problems());
    for lost in world.server.overwritten() {
        ending.problems.push(format!("what another writer had written was taken away: {lost}"));
    }
    ending.dump = world.dump();
    ending.tampered = world.tampered();
    ending.log = world.operator_writes();
    ending.tally = world.tally();
    ending.log.extend(world.struck());
    ending
}

async fn through(
    workload: &Workload,
    plan: &Plan,
    world: &mut World,
    ending: &mut Ending,
    prepare: impl FnOnce(&mut World),
) -> Result<(), String> {
    (workload.setup)(world).await.map_err(|error| format!("setup: {error}"))?;
    world.settle().await.map_err(|error| format!("setup: {error}"))?;
    let before: BTreeMap<Operator, u64> =
        Operator::ALL.into_iter().map(|which| (which, world.attempts(which))).collect();
    let counted = world.counts();
    prepare(world);
    let trouble = begin(world, &plan.troubles);
    (workload.act)(world).await?;
    end(world, trouble, &plan.troubles).await;
    world.settle().await?;
    for which in Operator::ALL {
        ending.writes.insert(which, world.attempts(which) - before.get(&which).copied().unwrap_or(0));
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
                if matches!(fault, Fault::DieBefore | Fault::DieAfter) {
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
    if ending.dump != calm.dump {
        wrong
            .push(format!("it ended otherwise than the calm run:\n{}", difference(&calm.dump, &ending.dump)));
    }
    if counts_matter(plan) && ending.counts != calm.counts {
        wrong.push(format!("objects made and deleted: {:?}, calm {:?}", ending.counts, calm.counts));
    }
    wrong
}

/// The lines that differ, few of them, with the ones around.
pub fn difference(calm: &str, other: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (calm.lines().collect(), other.lines().collect());
    let head = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let tail = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    let tail = tail.min(a.len() - head).min(b.len() - head);
    let mut text = String::new();
    // The object that it is in.
    let from = a[..head.min(a.len())].iter().rposition(|line| *line == "{").unwrap_or(head);
    let naming = |lines: &[&str], from: usize| {
        let kind = lines[from..].iter().find(|l| l.starts_with("  \"kind\":")).map(|l| l.trim().to_string());
        let name =
            lines[from..].iter().find(|l| l.starts_with("    \"name\":")).map(|l| l.trim().to_string());
        format!("  in {} {}\n", kind.unwrap_or_default(), name.unwrap_or_default())
    };
    text.push_str(&naming(&a, from.min(a.len().saturating_sub(1))));
    let mut side = |sign: char, lines: &[&str]| {
        for line in lines[head.saturating_sub(2)..lines.len() - tail].iter().take(30) {
            text.push_str(&format!("  {sign} {line}\n"));
        }
    };
    side('-', &a);
    side('+', &b);
    text
}

//! The decision who is primary, explored by a model checker: every order of events for three members, and for five as far as a bound allows.
//!
//! The functions explored are those that agents run: `holdfast_postgresql::failover::{decide, answer, change}`. The rest of the
//! world, disks and servers and the API server, is `world`; what can happen in it is `step`. `mistakes` are made on
//! purpose, and each must be found. It prints what it saw, and fails if it saw what must never be.

mod checked;
mod eyes;
mod fair;
mod mistakes;
mod step;
mod world;

use checked::Checked;
use holdfast_core::crd::database::DurabilityMode::{Asynchronous, Preferred, Required};
use mistakes::Mistake;
use stateright::{Checker, HasDiscoveries, Model};
use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

/// What is explored, by name.
fn worlds() -> Vec<(&'static str, Checked)> {
    let three = Checked {
        members: 3,
        mode: Required,
        clocks: false,
        faults: 1,
        losses: false,
        sets: false,
        hand_overs: false,
        stays: false,
        renews: true,
        confirmations: 1,
        commits: 2,
        terms: 3,
        mistake: None,
    };
    vec![
        ("three members, restarts", three.clone()),
        ("three members, lost pods and volumes", Checked { losses: true, ..three.clone() }),
        ("three members, changes of the set", Checked { sets: true, confirmations: 2, ..three.clone() }),
        ("three members, hand-overs", Checked { hand_overs: true, ..three.clone() }),
        ("three members, preferred", Checked { mode: Preferred, sets: true, ..three.clone() }),
        ("five members, restarts", Checked { members: 5, ..three.clone() }),
        ("three members, with clocks", Checked { clocks: true, commits: 1, ..three.clone() }),
        (
            "asynchronous, with clocks",
            Checked { mode: Asynchronous, clocks: true, commits: 1, ..three.clone() },
        ),
        (
            "two asynchronous members, with clocks",
            Checked { members: 2, mode: Asynchronous, clocks: true, commits: 1, terms: 2, ..three.clone() },
        ),
        (
            "two members that stay without the API server",
            Checked {
                members: 2,
                mode: Asynchronous,
                clocks: true,
                stays: true,
                commits: 1,
                terms: 2,
                ..three.clone()
            },
        ),
        (
            "three members that stay without the API server",
            Checked {
                mode: Asynchronous,
                clocks: true,
                stays: true,
                renews: false,
                commits: 1,
                terms: 2,
                ..three
            },
        ),
    ]
}

struct Arguments {
    seconds: u64,
    only: Option<String>,
    mistakes: bool,
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut out = Arguments { seconds: 8, only: None, mistakes: true };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seconds" => out.seconds = words.next().unwrap_or_default().parse()?,
            "--only" => out.only = words.next(),
            "--no-mistakes" => out.mistakes = false,
            _ => anyhow::bail!(
                "usage: holdfast-model [--seconds N, for each world] [--only TEXT] [--no-mistakes]"
            ),
        }
    }
    Ok(out)
}

/// Explores one world. `Some`: what was found, and the way there.
fn explore(checked: &Checked, limit: Duration) -> (usize, bool, Option<String>) {
    let began = Instant::now();
    let checker = checked
        .clone()
        .checker()
        .threads(2)
        .timeout(limit)
        .finish_when(HasDiscoveries::Any)
        .spawn_bfs()
        .join();
    let states = checker.unique_state_count();
    let found = checker.discoveries().into_iter().next().map(|(property, path)| {
        let last = path.last_state().clone();
        let steps: Vec<String> = path.into_actions().iter().map(|a| format!("  {a:?}")).collect();
        let stuck = fair::why(checked, &last).unwrap_or_default();
        format!("{property}: {:?} after\n{}\nends in {last:?}\n{stuck}", last.wrong, steps.join("\n"))
    });
    (states, began.elapsed() < limit, found)
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = arguments()?;
    let wanted = |name: &str| arguments.only.as_ref().is_none_or(|only| name.contains(only));
    let (mut fine, mut failed, mut total) = (0, 0, 0);
    for (name, checked) in worlds().into_iter().filter(|(name, _)| wanted(name)) {
        let began = Instant::now();
        let (states, whole, found) = explore(&checked, Duration::from_secs(arguments.seconds));
        total += states;
        let extent = if whole { "all of them" } else { "as far as the time went" };
        println!("{name}: {states} states, {extent}, {:.1} s", began.elapsed().as_secs_f64());
        match found {
            None => fine += 1,
            Some(found) => {
                failed += 1;
                println!("FOUND: {found}");
            }
        }
    }
    let mut caught = 0;
    for mistake in mistakes::ALL.into_iter().filter(|_| arguments.mistakes) {
        if !wanted(&format!("{mistake:?}")) {
            continue;
        }
        let began = Instant::now();
        let found = world_of(mistake).and_then(|checked| {
            let (states, _, found) = explore(&checked, Duration::from_secs(60));
            found.map(|_| states)
        });
        match found {
            Some(states) => {
                caught += 1;
                println!(
                    "mistake {mistake:?}: caught within {states} states, {:.1} s",
                    began.elapsed().as_secs_f64()
                );
            }
            None => {
                failed += 1;
                println!("mistake {mistake:?}: NOT CAUGHT, {:.1} s", began.elapsed().as_secs_f64());
            }
        }
    }
    println!("{} passed, {failed} failed: {total} states, {caught} mistakes caught", fine + caught);
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The world in which a mistake has its chance, as small as may be.
fn world_of(mistake: Mistake) -> Option<Checked> {
    let name = match mistake {
        Mistake::FenceAfterTtl => "two asynchronous members, with clocks",
        Mistake::StayFromAnswer => "two members that stay without the API server",
        Mistake::StayWithSome => "three members that stay without the API server",
        Mistake::LateTerminated => "asynchronous, with clocks",
        Mistake::EmptyMemberLeads | Mistake::EmptyVolumeFollows => "three members, lost pods and volumes",
        Mistake::SetInWrongOrder => "three members, changes of the set",
        Mistake::HandOverUnchecked => "three members, hand-overs",
        _ => "three members, restarts",
    };
    let (_, checked) = worlds().into_iter().find(|(n, _)| *n == name)?;
    // Where no commit is needed to see it none is written.
    let commits = if mistake == Mistake::TimelineNotAllotted { 1 } else { checked.commits };
    let confirmations = 1;
    let calm = matches!(mistake, Mistake::SetInWrongOrder | Mistake::StayFromAnswer | Mistake::StayWithSome);
    let faults = if calm { 0 } else { checked.faults };
    Some(Checked { mistake: Some(mistake), commits, confirmations, faults, ..checked })
}

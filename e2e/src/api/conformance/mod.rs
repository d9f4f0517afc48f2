//! Proves that the API server in memory behaves as a real one: random sequences of requests go to both, and every answer,
//! what is left in the end, and what watches saw is compared.
//!
//! `make api-test` runs a few that are always the same: what fails there was broken by a change. `make conformance` runs many
//! that nobody saw before, from a seed that the clock gives and that is printed. `HOLDFAST_CONFORMANCE_SEQUENCES=N` runs another
//! number of these, `HOLDFAST_CONFORMANCE_SEED=N` begins with that seed; both together, with one sequence, run it again, as a
//! failure prints it.

mod bodies;
mod dice;
mod gaps;
mod ground;
mod kinds;
mod masks;
mod plan;
mod pods;
mod run;
mod schema;
mod shrink;
mod side;
mod steps;
mod watches;

use crate::{
    cluster::{Cluster, variable},
    namespace,
    runner::Scene,
};
use anyhow::{Context, Result, bail};
use futures::{StreamExt, stream};
use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

/// Who sends requests: also the names of field managers.
pub const USERS: [&str; 3] = ["ann", "bob", "cid"];
/// How many sequences run at once, each in a namespace.
const AT_ONCE: usize = 6;
/// How many sequences of each of the two tests run when nothing else is said.
const SEQUENCES: u64 = 150;
/// How many sequences of each of the two tests are always the same: few enough for seconds.
const ALWAYS: usize = 30;

/// What the environment says, and where it says nothing, as many seeds as usual from one that the clock gives.
fn asked() -> Result<Vec<u64>> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let first = number("HOLDFAST_CONFORMANCE_SEED")?.unwrap_or(now);
    let count = number("HOLDFAST_CONFORMANCE_SEQUENCES")?.unwrap_or(SEQUENCES);
    Ok((first..first.saturating_add(count)).collect())
}

/// New sequences about the built-in kinds.
pub async fn built_in_kinds(scene: Scene) -> Result<()> {
    ground::quiet(&scene.cluster).await?;
    compare(&scene.cluster, false, &asked()?).await
}

/// New sequences about the project's kinds, with built-in ones between.
pub async fn custom_kinds(scene: Scene) -> Result<()> {
    custom(&scene.cluster, true, &asked()?).await
}

/// The same few sequences every time, about the built-in kinds.
pub async fn built_in_kinds_as_always(scene: Scene) -> Result<()> {
    ground::quiet(&scene.cluster).await?;
    compare(&scene.cluster, false, &(1..).take(ALWAYS).collect::<Vec<_>>()).await
}

/// The same few sequences every time, about the project's kinds: those in which nothing is collected, since the real collector
/// takes most of a minute to learn of new kinds.
pub async fn custom_kinds_as_always(scene: Scene) -> Result<()> {
    let seeds: Vec<u64> = (1..).filter(|seed| !plan::plan(*seed, true).collects()).take(ALWAYS).collect();
    custom(&scene.cluster, false, &seeds).await
}

async fn custom(cluster: &Cluster, collecting: bool, seeds: &[u64]) -> Result<()> {
    ground::quiet(cluster).await?;
    ground::install(cluster).await?;
    let compared = async {
        if collecting {
            ground::known_to_the_collector(cluster).await?;
        }
        compare(cluster, true, seeds).await
    };
    let compared = compared.await;
    let gone = ground::uninstall(cluster).await;
    compared.and(gone)
}

#[derive(Default)]
struct Sum {
    sequences: u64,
    requests: usize,
    refused: usize,
    events: usize,
    kinds: BTreeSet<&'static str>,
    differing: Vec<(u64, String)>,
}

fn number(name: &str) -> Result<Option<u64>> {
    variable(name)
        .map(|text| text.parse().with_context(|| format!("{name} takes a number, not {text}")))
        .transpose()
}

async fn compare(cluster: &Cluster, custom: bool, seeds: &[u64]) -> Result<()> {
    let show_all = variable("HOLDFAST_CONFORMANCE_ALL").is_some();
    let start = Instant::now();
    let next = AtomicUsize::new(0);
    let workers = stream::iter(0..AT_ONCE.min(seeds.len())).map(|_| async {
        let space = namespace::unique("same");
        ground::create(cluster, &space).await?;
        let mut sum = Sum::default();
        let result = work(cluster, &space, custom, seeds, &next, show_all, &mut sum).await;
        namespace::delete(cluster, &space).await?;
        result.map(|()| sum)
    });
    let sums: Vec<Result<Sum>> = workers.buffer_unordered(AT_ONCE).collect().await;
    let mut all = Sum::default();
    for sum in sums {
        let sum = sum?;
        all.sequences += sum.sequences;
        all.requests += sum.requests;
        all.refused += sum.refused;
        all.events += sum.events;
        all.kinds.extend(sum.kinds);
        all.differing.extend(sum.differing);
    }
    println!(
        "        {} sequences from seed {}, {} requests ({} refused), {} watch events, {} kinds in {:.0} s: {} differ",
        all.sequences,
        seeds.first().copied().unwrap_or_default(),
        all.requests,
        all.refused,
        all.events,
        all.kinds.len(),
        start.elapsed().as_secs_f64(),
        all.differing.len()
    );
    if all.differing.is_empty() {
        return Ok(());
    }
    all.differing.sort();
    let name = if custom { "custom_kinds" } else { "built_in_kinds" };
    let texts: Vec<String> = all
        .differing
        .iter()
        .map(|(seed, text)| format!("seed {seed} (HOLDFAST_CONFORMANCE_SEED={seed} HOLDFAST_CONFORMANCE_SEQUENCES=1 … conformance --only {name}):\n{text}"))
        .collect();
    bail!("the server in memory differs from the real one\n{}", texts.join("\n"))
}

async fn work(
    cluster: &Cluster,
    space: &str,
    custom: bool,
    seeds: &[u64],
    next: &AtomicUsize,
    show_all: bool,
    sum: &mut Sum,
) -> Result<()> {
    while let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
        let plan = plan::plan(seed, custom);
        let outcome = run::run(cluster, space, &plan, seed).await.with_context(|| format!("seed {seed}"))?;
        sum.sequences += 1;
        sum.requests += outcome.requests;
        sum.refused += outcome.refused;
        sum.events += outcome.events;
        sum.kinds.extend(plan.kinds.iter().map(|k| kinds::all()[*k].kind));
        let Some(found) = outcome.difference else { continue };
        let text = if show_all {
            found
        } else {
            // The others need not go on: one difference is enough to fail.
            next.store(seeds.len(), Ordering::Relaxed);
            let (plan, found) = shrink::shrink(cluster, space, plan, found, seed).await?;
            let steps: Vec<String> = plan.steps.iter().map(|step| format!("  {step}")).collect();
            format!("{}\n{found}", steps.join("\n"))
        };
        sum.differing.push((seed, text));
    }
    Ok(())
}

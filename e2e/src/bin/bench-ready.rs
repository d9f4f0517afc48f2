//! How long it takes from applying a Database until it is Ready, images being on the nodes.

use anyhow::{Context, Result};
use holdfast_core::{Database, conditions::types};
use holdfast_e2e::{
    cluster::{Cluster, variable},
    database::{Db, READY, spec},
    dump, namespace,
    objects::{describe, holds},
    wait::say,
};
use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

/// Instances, and the seconds within which they should be ready.
const GOALS: [(i32, f64); 2] = [(1, 9.0), (3, 18.0)];

#[tokio::main]
async fn main() -> ExitCode {
    match all().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", say(&error));
            ExitCode::FAILURE
        }
    }
}

async fn all() -> Result<()> {
    let runs: usize = match variable("RUNS") {
        Some(text) => text.parse().context("RUNS is a number")?,
        None => 5,
    };
    let cluster = Cluster::connect().await?;
    for (instances, goal) in GOALS {
        let mut times = Vec::new();
        for run in 1..=runs.max(1) {
            let name = namespace::unique("bench");
            let result = measure(&cluster, &name, instances).await;
            if result.is_err() {
                eprintln!("{}", dump::namespace(&cluster, &name).await);
            }
            let cleared = namespace::delete(&cluster, &name).await;
            let seconds = result?.as_secs_f64();
            cleared?;
            println!("{instances} instance(s), run {run}: {seconds:5.1} s");
            times.push(seconds);
        }
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        let verdict = if median <= goal { "met" } else { "missed" };
        println!(
            "{instances} instance(s), median of {}: {median:5.1} s, goal {goal} s {verdict}",
            times.len()
        );
    }
    Ok(())
}

async fn measure(cluster: &Cluster, namespace: &str, instances: i32) -> Result<Duration> {
    namespace::create(cluster, namespace).await?;
    let start = Instant::now();
    let db = Db::apply(cluster, namespace, "sample", &spec(instances)).await?;
    loop {
        let object: Database = db.get().await?;
        if holds(&object, types::READY) {
            return Ok(start.elapsed());
        }
        anyhow::ensure!(
            start.elapsed() < READY,
            "{instances} instance(s) did not become ready: {}",
            describe(&object)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

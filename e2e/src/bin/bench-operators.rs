//! Measures the operators at scale. Runs under `e2e/cluster/bare`: make bench-operators
//!
//!   bench-operators [--quick] [--databases N,N] [--backups N] [--seconds N] [--long N] FOLDER-OF-PROGRAMS
//!
//! `--seconds`: how long operators are watched at rest at each size; `--long`: at the end. Exit status 1: a goal was missed, or
//! something failed.

use anyhow::{Context, Result, bail};
use holdfast_e2e::{
    bench::run::{Sizes, run},
    wait::say,
};
use std::{path::PathBuf, process::ExitCode, time::Duration};

#[tokio::main]
async fn main() -> ExitCode {
    let (sizes, programs) = match arguments(std::env::args().skip(1)) {
        Ok(read) => read,
        Err(error) => {
            eprintln!("{}", say(&error));
            return ExitCode::from(2);
        }
    };
    match run(programs, sizes).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{}", say(&error));
            ExitCode::FAILURE
        }
    }
}

fn arguments(mut all: impl Iterator<Item = String>) -> Result<(Sizes, PathBuf)> {
    let mut sizes = Sizes::full();
    let mut programs = None;
    while let Some(argument) = all.next() {
        let mut numbers = || -> Result<Vec<usize>> {
            let text = all.next().with_context(|| format!("{argument} takes a number"))?;
            text.split(',').map(|n| n.parse().with_context(|| format!("{argument} {text}"))).collect()
        };
        let seconds = |n: usize| anyhow::Ok(Duration::from_secs(u64::try_from(n)?));
        match argument.as_str() {
            "--quick" => sizes = Sizes::quick(),
            "--databases" => sizes.databases = numbers()?,
            "--backups" => sizes.backups = numbers()?.into_iter().sum(),
            "--seconds" => sizes.window = seconds(numbers()?.into_iter().sum())?,
            "--long" => sizes.long_window = seconds(numbers()?.into_iter().sum())?,
            _ if argument.starts_with('-') => bail!("{argument} is not known"),
            _ => programs = Some(PathBuf::from(argument)),
        }
    }
    Ok((sizes, programs.context("the folder of the operators' programs is missing")?))
}

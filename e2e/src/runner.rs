//! Runs tests: some at once, each in a namespace of its own, each with a deadline; one line a test.

use crate::{
    cluster::{Cluster, variable},
    dump, namespace,
    wait::say,
};
use anyhow::{Context, Result, anyhow, bail};
use futures::{FutureExt, StreamExt, future::LocalBoxFuture, stream};
use std::{
    panic::AssertUnwindSafe,
    process::ExitCode,
    time::{Duration, Instant},
};

/// What a test is given.
#[derive(Clone)]
pub struct Scene {
    /// The cluster.
    pub cluster: Cluster,
    /// A namespace that is there for this test only.
    pub namespace: String,
}

/// A test.
pub struct Test {
    /// Its name, unique.
    pub name: &'static str,
    /// Seconds after which it has failed.
    pub deadline: u64,
    /// What it does.
    pub run: fn(Scene) -> LocalBoxFuture<'static, Result<()>>,
}

/// Makes a [`Test`] from an async function of a [`Scene`].
#[macro_export]
macro_rules! test {
    ($deadline:expr, $($path:ident)::+) => {
        $crate::runner::Test {
            name: $crate::runner::last(stringify!($($path)::+)),
            deadline: $deadline,
            run: |scene| Box::pin($($path)::+(scene)),
        }
    };
}

/// The part of a path after the last `::`.
pub fn last(path: &'static str) -> &'static str {
    path.rsplit("::").next().unwrap_or(path).trim()
}

struct Options {
    only: Vec<String>,
    jobs: usize,
    again: bool,
    list: bool,
}

fn options() -> Result<Options> {
    let mut options = Options { only: Vec::new(), jobs: 2, again: false, list: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--only" => {
                options.only = value()?.split(',').filter(|n| !n.is_empty()).map(String::from).collect()
            }
            "--jobs" => options.jobs = value()?.parse::<usize>().context("--jobs takes a number")?.max(1),
            "--again" => options.again = true,
            "--list" => options.list = true,
            _ => bail!("unknown option {argument}; there are --only NAME[,NAME], --jobs N, --again, --list"),
        }
    }
    Ok(options)
}

/// Runs the tests that the command line asks for. Fails unless all passed.
pub async fn main(tests: Vec<Test>) -> ExitCode {
    match chosen(tests).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{}", say(&error));
            ExitCode::FAILURE
        }
    }
}

async fn chosen(tests: Vec<Test>) -> Result<bool> {
    let options = options()?;
    if options.list {
        tests.iter().for_each(|t| println!("{}", t.name));
        return Ok(true);
    }
    if let Some(unknown) = options.only.iter().find(|n| !tests.iter().any(|t| t.name == n.as_str())) {
        bail!("there is no test {unknown}; --list shows them");
    }
    let cluster = Cluster::connect().await?;
    let wanted = |t: &Test| options.only.is_empty() || options.only.iter().any(|n| n == t.name);
    let chosen: Vec<Test> = tests.into_iter().filter(wanted).collect();
    let start = Instant::now();
    let all = chosen.len();
    let results: Vec<Option<Test>> = stream::iter(chosen)
        .map(|test| one(cluster.clone(), test))
        .buffer_unordered(options.jobs)
        .collect()
        .await;
    let mut failed: Vec<Test> = results.into_iter().flatten().collect();
    if options.again {
        // Tests share a small machine with a whole cluster: one that also fails alone has found something. One that does not is
        // named, so that it can be looked into.
        let mut still = Vec::new();
        for test in failed {
            let name = test.name;
            match one(cluster.clone(), test).await {
                Some(test) => still.push(test),
                None => println!("FLAKY   {name}: it failed beside another test and passed alone"),
            }
        }
        failed = still;
    }
    println!("{} passed, {} failed in {} s", all - failed.len(), failed.len(), start.elapsed().as_secs());
    Ok(failed.is_empty())
}

/// Runs a test; gives it back if it failed.
async fn one(cluster: Cluster, test: Test) -> Option<Test> {
    let start = Instant::now();
    let name = namespace::unique(test.name);
    let result = in_namespace(&cluster, &test, &name).await;
    let took = start.elapsed().as_secs_f64();
    if let Err(error) = &result {
        let state = dump::namespace(&cluster, &name).await;
        eprintln!(
            "===== {} failed in namespace {name}\n{state}===== {}: {}\n",
            test.name,
            test.name,
            say(error)
        );
    }
    let keep = result.is_err() && variable("HOLDFAST_KEEP").is_some();
    let gone = if keep { Ok(()) } else { namespace::delete(&cluster, &name).await };
    let (word, said) = match (&result, &gone) {
        (Ok(()), Ok(())) => ("ok    ", String::new()),
        (Err(error), _) => ("FAILED", format!("  {}", say(error))),
        (Ok(()), Err(error)) => {
            ("FAILED", format!("  it passed, but cannot be cleared away: {}", say(error)))
        }
    };
    println!("{word}  {:<28} {took:6.1} s{said}", test.name);
    (result.is_err() || gone.is_err()).then_some(test)
}

async fn in_namespace(cluster: &Cluster, test: &Test, name: &str) -> Result<()> {
    namespace::create(cluster, name).await?;
    let scene = Scene { cluster: cluster.clone(), namespace: name.into() };
    let work = AssertUnwindSafe((test.run)(scene)).catch_unwind();
    match tokio::time::timeout(Duration::from_secs(test.deadline), work).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(anyhow!("it panicked")),
        Err(_) => Err(anyhow!("not done within its deadline of {} s", test.deadline)),
    }
}

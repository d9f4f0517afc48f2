//! Runs the sweep: `sweep --help`.

use holdfast_sweep::{
    families::{self, Family},
    hostile,
    plan::Plan,
    run::{self, Ending},
    seeded::{self, Verdict},
    slices::{self, Slice},
    workloads,
};
use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

// A plan is mostly JSON that is made and dropped; a quarter of the time went into the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const HELP: &str = "The operators, killed at every write in every way, on an in-memory cluster.

  sweep                       every workload, every family of troubles
  sweep --only a,b            these workloads
  sweep --family crash,pair   these families: crash pair stale answer many watch overlap replaced late lag
  sweep --pairs N             pairs of deaths a workload, before --sample (20)
  sweep --sample N            of each other family but crash, at most so many plans a workload; 0: all (2)
  sweep --seed N              draws other pairs and other uids (1)
  sweep --plan 'PLAN'         one plan alone, as a failure prints it; with its writes
  sweep --seeded              seeds programming faults, each of which must be caught; --only: those in these workloads
  sweep hostile --help        specs that are wrong in every way
  sweep --list                the workloads, with the writes of their calm runs";

struct Options {
    only: Vec<String>,
    families: Vec<Family>,
    pairs: usize,
    sample: usize,
    seed: u64,
    plan: Option<Plan>,
    list: bool,
    seeded: bool,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        only: Vec::new(),
        families: Family::ALL.into(),
        pairs: 20,
        sample: 2,
        seed: 1,
        plan: None,
        list: false,
        seeded: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--only" => options.only = value()?.split(',').map(Into::into).collect(),
            "--family" => {
                let names = value()?;
                let find = |name: &str| {
                    Family::ALL.into_iter().find(|f| f.name() == name).ok_or(format!("no family {name:?}"))
                };
                options.families = names.split(',').map(find).collect::<Result<_, _>>()?;
            }
            "--pairs" => options.pairs = value()?.parse().map_err(|error| format!("--pairs: {error}"))?,
            "--sample" => options.sample = value()?.parse().map_err(|error| format!("--sample: {error}"))?,
            "--seed" => options.seed = value()?.parse().map_err(|error| format!("--seed: {error}"))?,
            "--plan" => options.plan = Some(value()?.parse()?),
            "--list" => options.list = true,
            "--seeded" => options.seeded = true,
            _ => return Err(HELP.into()),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("hostile") {
        return hostile(arguments);
    }
    if std::env::args().nth(1).as_deref() == Some(slices::ARGUMENT) {
        return serve(slices::serve);
    }
    if std::env::args().nth(1).as_deref() == Some(hostile::parts::ARGUMENT) {
        return serve(hostile::parts::serve);
    }
    let options = match options() {
        Ok(options) => options,
        Err(help) => {
            eprintln!("{help}");
            return ExitCode::from(2);
        }
    };
    log();
    match &options.plan {
        Some(plan) => alone(plan, options.seed),
        None if options.seeded => seeded(&options),
        None => sweep(&options),
    }
}

fn log() {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("SWEEP_LOG"))
        .with_writer(std::io::stderr)
        .init();
}

/// A process that runs a part of the plans of another one.
fn serve(what: fn() -> std::io::Result<()>) -> ExitCode {
    log();
    match what() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The calm runs, by workload.
fn calm(names: &[&str], seed: u64) -> BTreeMap<String, Ending> {
    let mut all = BTreeMap::new();
    let slices = names.iter().map(|name| Slice::calm(name, seed)).collect();
    slices::run_all(slices, |plan, ending| drop(all.insert(plan.workload, ending)));
    all
}

/// One plan, with everything that there is to see.
fn alone(plan: &Plan, seed: u64) -> ExitCode {
    let calm = run::run(&Plan { workload: plan.workload.clone(), troubles: Vec::new() }, seed);
    let begun = Instant::now();
    let ending = run::run(plan, seed);
    println!("{plan}: {:?}, {} faults, writes {:?}", begun.elapsed(), ending.faults, ending.writes);
    for line in &ending.log {
        println!("  {line}");
    }
    for (what, count) in &ending.tally {
        println!("  {count:6} {what}");
    }
    let wrong = run::judge(plan, &calm, &ending);
    if let Ok(path) = std::env::var("SWEEP_DUMP") {
        for (name, text) in [("calm", &calm.dump), ("plan", &ending.dump)] {
            if let Err(error) = std::fs::write(format!("{path}.{name}"), text) {
                println!("cannot write {path}.{name}: {error}");
            }
        }
    }
    for what in &wrong {
        println!("WRONG: {what}");
    }
    if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Programming faults, each of which must be caught.
fn seeded(options: &Options) -> ExitCode {
    let mut bugs = seeded::all();
    bugs.retain(|bug| options.only.is_empty() || options.only.iter().any(|name| name == bug.workload));
    let mut names: Vec<&str> = bugs.iter().map(|bug| bug.workload).collect();
    names.sort_unstable();
    names.dedup();
    let calm = calm(&names, options.seed);
    let (next, caught) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(bug) = bugs.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let said = match calm.get(bug.workload).map(|calm| seeded::hunt(bug, calm, options.seed))
                    {
                        Some(Verdict::Caught(plan, reason)) => {
                            caught.fetch_add(1, Ordering::SeqCst);
                            let reason: String =
                                reason.lines().next().unwrap_or_default().chars().take(110).collect();
                            format!("caught by '{plan}': {reason}")
                        }
                        Some(Verdict::Missed(plans)) => format!("MISSED by {plans} plans"),
                        Some(Verdict::Idle(plans)) => {
                            format!("MISSED: {plans} plans made no request that it changes")
                        }
                        None => "MISSED: its workload has no calm run".into(),
                    };
                    println!("{:9} {:70} {said}", bug.operator.to_string(), bug.name);
                }
            });
        }
    });
    let caught = caught.into_inner();
    println!("{} faults seeded, {caught} caught", bugs.len());
    println!("{caught} passed, {} failed", bugs.len() - caught);
    if caught == bugs.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Specs that are wrong in every way.
fn hostile(arguments: impl Iterator<Item = String>) -> ExitCode {
    let options = match hostile::Options::from_arguments(arguments) {
        Ok(options) => options,
        Err(help) => {
            eprintln!("{help}");
            return ExitCode::from(2);
        }
    };
    let found = |outcome: &hostile::Outcome| {
        if matches!(outcome.verdict, hostile::Verdict::Finding(_)) {
            println!("{}\n    {}", outcome.again(), outcome.verdict);
        }
    };
    match hostile::run(&options, found) {
        Ok(report) => {
            let found = report.findings().count() + report.failures.len();
            println!("{report}");
            println!("{} passed, {found} failed", report.outcomes.len() - report.findings().count());
            if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Default)]
struct Sum {
    plans: u64,
    faults: u64,
    failed: u64,
}

fn sweep(options: &Options) -> ExitCode {
    let begun = Instant::now();
    let chosen: Vec<&str> = workloads::all()
        .iter()
        .map(|w| w.name)
        .filter(|name| options.only.is_empty() || options.only.iter().any(|o| o == name))
        .collect();
    let calm = calm(&chosen, options.seed);
    let mut failures: Vec<String> = Vec::new();
    for (name, ending) in &calm {
        for problem in &ending.problems {
            failures.push(format!("{name} calm\n    {problem}"));
        }
        if options.list {
            let writes: Vec<String> = ending.writes.iter().map(|(who, n)| format!("{who} {n}")).collect();
            println!("{name:32} {}", writes.join(", "));
        }
    }
    let mut plans = Vec::new();
    if !options.list {
        for (name, ending) in calm.iter().filter(|(_, ending)| ending.problems.is_empty()) {
            for family in &options.families {
                let of = families::plans(
                    *family,
                    ending,
                    name,
                    (options.pairs, options.sample == 0),
                    options.seed,
                );
                let of = families::thinned(of, *family, options.sample, options.seed);
                plans.extend(of.into_iter().map(|plan| (*family, plan)));
            }
        }
    }
    let family_of: BTreeMap<String, Family> = plans.iter().map(|(f, p)| (p.to_string(), *f)).collect();
    let mut sums: BTreeMap<(String, Family), Sum> = BTreeMap::new();
    let (planned, mut struck) = (plans.len(), 0);
    let mut of_workload: BTreeMap<String, Vec<Plan>> = BTreeMap::new();
    for (_, plan) in plans {
        of_workload.entry(plan.workload.clone()).or_default().push(plan);
    }
    let slices = of_workload.iter().flat_map(|(name, plans)| Slice::of(name, options.seed, plans)).collect();
    slices::run_all(slices, |plan, ending| {
        let Some(calm) = calm.get(&plan.workload) else { return };
        let wrong = run::judge(&plan, calm, &ending);
        // Else it is the calm run once more, which has to end as it did.
        if let Some(family) = family_of.get(&plan.to_string()) {
            let sum = sums.entry((plan.workload.clone(), *family)).or_default();
            sum.plans += 1;
            sum.faults += ending.faults;
            struck += ending.faults;
            sum.failed += u64::from(!wrong.is_empty());
        }
        if !wrong.is_empty() {
            let failure =
                format!("sweep --seed {} --plan '{plan}'\n    {}", options.seed, wrong.join("\n    "));
            println!("FAILED: {failure}");
            failures.push(failure);
        }
    });
    table(&sums, &options.families, &calm);
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{} workloads, {planned} plans, {struck} faults injected, {} failed, {seconds:.0} s",
        calm.len(),
        failures.len()
    );
    for failure in failures.iter().filter(|f| f.contains(" calm\n")) {
        println!("FAILED: {failure}");
    }
    let passed = (planned + calm.len()).saturating_sub(failures.len());
    println!("{passed} passed, {} failed", failures.len());
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Plans (and failures, if any) by workload and family.
fn table(sums: &BTreeMap<(String, Family), Sum>, families: &[Family], calm: &BTreeMap<String, Ending>) {
    let mut head = format!("{:30} {:>6}", "workload", "writes");
    families.iter().for_each(|family| head.push_str(&format!(" {:>9}", family.name())));
    println!("{head}");
    for (name, ending) in calm {
        let mut line = format!("{name:30} {:>6}", ending.writes.values().sum::<u64>());
        for family in families {
            let cell = match sums.get(&(name.clone(), *family)) {
                Some(sum) if sum.failed > 0 => format!("{}/{}!", sum.failed, sum.plans),
                Some(sum) => sum.plans.to_string(),
                None => "-".into(),
            };
            line.push_str(&format!(" {cell:>9}"));
        }
        println!("{line}");
    }
}

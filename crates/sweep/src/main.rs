//! Runs the sweep: `sweep --help`.

use holdfast_sweep::{
    families::{self, Family},
    hostile,
    plan::Plan,
    run::{self, Ending},
    seeded::{self, Verdict},
    workloads,
};
use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

const HELP: &str = "The operators, killed at every write in every way, on an in-memory cluster.

  sweep                       every workload, every family of troubles
  sweep --only a,b            these workloads
  sweep --family crash,pair   these families: crash pair stale answer many watch overlap
  sweep --pairs N             pairs of deaths a workload, before --sample (20)
  sweep --sample N            of each other family but crash, at most so many plans a workload; 0: all (2)
  sweep --seed N              draws other pairs and other uids (1)
  sweep --plan 'PLAN'         one plan alone, as a failure prints it; with its writes
  sweep --seeded              seeds programming faults; each must be caught
  sweep hostile --help        specs that are wrong in every way
  sweep --list                the workloads, with the writes of their calm runs";

/// One plan may take so long on the real clock.
const HANGS: Duration = Duration::from_secs(120);

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
    let options = match options() {
        Ok(options) => options,
        Err(help) => {
            eprintln!("{help}");
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("SWEEP_LOG"))
        .with_writer(std::io::stderr)
        .init();
    match &options.plan {
        Some(plan) => alone(plan, options.seed),
        None if options.seeded => seeded(&options),
        None => sweep(&options),
    }
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
    let bugs = seeded::all();
    let mut names: Vec<&str> = bugs.iter().map(|bug| bug.workload).collect();
    names.sort_unstable();
    names.dedup();
    let plans = names.iter().map(|name| Plan { workload: (*name).into(), troubles: Vec::new() }).collect();
    let calm: BTreeMap<String, Ending> =
        in_parallel(plans, options.seed).into_iter().map(|(plan, ending)| (plan.workload, ending)).collect();
    let next = AtomicUsize::new(0);
    let verdicts = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(bug) = bugs.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let Some(calm) = calm.get(bug.workload) else { continue };
                    let verdict = seeded::hunt(bug, calm, options.seed);
                    verdicts.lock().unwrap_or_else(PoisonError::into_inner).insert(bug.name, verdict);
                }
            });
        }
    });
    let verdicts = verdicts.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut caught = 0;
    for bug in &bugs {
        let said = match verdicts.get(bug.name) {
            Some(Verdict::Caught(plan, reason)) => {
                caught += 1;
                let reason: String = reason.lines().next().unwrap_or_default().chars().take(110).collect();
                format!("caught by '{plan}': {reason}")
            }
            Some(Verdict::Missed(plans)) => format!("MISSED by {plans} plans"),
            Some(Verdict::Idle(plans)) => format!("MISSED: {plans} plans made no request that it changes"),
            None => "MISSED: its search ended by itself".into(),
        };
        println!("{:9} {:70} {said}", bug.operator.to_string(), bug.name);
    }
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
    match hostile::run(&options, |_| {}) {
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
    let calm_plans: Vec<Plan> =
        chosen.iter().map(|name| Plan { workload: (*name).into(), troubles: Vec::new() }).collect();
    let calm: BTreeMap<String, Arc<Ending>> = in_parallel(calm_plans, options.seed)
        .into_iter()
        .map(|(plan, ending)| (plan.workload, Arc::new(ending)))
        .collect();
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
    let all: Vec<Plan> = plans.into_iter().map(|(_, plan)| plan).collect();
    let (planned, mut struck) = (all.len(), 0);
    in_parallel_with(all, options.seed, |plan, ending| {
        let Some(family) = family_of.get(&plan.to_string()) else { return };
        let sum = sums.entry((plan.workload.clone(), *family)).or_default();
        sum.plans += 1;
        sum.faults += ending.faults;
        struck += ending.faults;
        let Some(calm) = calm.get(&plan.workload) else { return };
        let wrong = run::judge(&plan, calm, &ending);
        if !wrong.is_empty() {
            sum.failed += 1;
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
    println!("{} passed, {} failed", planned + calm.len() - failures.len(), failures.len());
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Plans (and failures, if any) by workload and family.
fn table(sums: &BTreeMap<(String, Family), Sum>, families: &[Family], calm: &BTreeMap<String, Arc<Ending>>) {
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

fn in_parallel(plans: Vec<Plan>, seed: u64) -> Vec<(Plan, Ending)> {
    let mut all = Vec::new();
    in_parallel_with(plans, seed, |plan, ending| all.push((plan, ending)));
    all
}

/// Runs plans on as many threads as there are cores, and hands over what became of each.
fn in_parallel_with(plans: Vec<Plan>, seed: u64, mut done: impl FnMut(Plan, Ending)) {
    let plans = Arc::new(plans);
    let next = Arc::new(AtomicUsize::new(0));
    let current = Arc::new(Mutex::new(BTreeMap::<usize, (usize, Instant)>::new()));
    let (sender, receiver) = mpsc::channel();
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    for thread in 0..threads {
        let (plans, next, current, sender) =
            (Arc::clone(&plans), Arc::clone(&next), Arc::clone(&current), sender.clone());
        std::thread::spawn(move || {
            loop {
                let index = next.fetch_add(1, Ordering::SeqCst);
                let Some(plan) = plans.get(index) else { return };
                current
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(thread, (index, Instant::now()));
                // A panic is a failure like any other; the thread has more to do.
                let ending = std::panic::catch_unwind(|| run::run(plan, seed)).unwrap_or_else(|_| Ending {
                    problems: vec!["it panicked, see above".into()],
                    ..Ending::default()
                });
                current.lock().unwrap_or_else(PoisonError::into_inner).remove(&thread);
                if sender.send((index, ending)).is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    loop {
        match receiver.recv_timeout(Duration::from_secs(5)) {
            Ok((index, ending)) => done(plans[index].clone(), ending),
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let running = current.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((index, _)) = running.values().find(|(_, since)| since.elapsed() > HANGS) {
                    // A loop that lets no time pass: nothing can be done about its thread.
                    println!(
                        "FAILED: sweep --seed {seed} --plan '{}'\n    it never ends: a loop without a pause",
                        plans[*index]
                    );
                    println!("0 passed, 1 failed");
                    std::process::exit(1);
                }
            }
        }
    }
}

//! Plans in processes of their own: a slice of a workload's plans each, told and heard line by line.

use crate::{
    branch::{Branches, Heard},
    plan::Plan,
    run::{self, Ending},
    seeded,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader, Write},
    ops::ControlFlow,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError, mpsc},
    time::Duration,
};

/// The argument that makes this program such a process.
pub const ARGUMENT: &str = "--slice";
/// One plan may take so long on the real clock.
const HANGS: Duration = Duration::from_secs(60);
/// Plans a process. Each pays once for the calm run.
const PLANS: usize = 64;

/// What a process is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Slice {
    /// The workload.
    pub workload: String,
    /// See [`run::run`].
    pub seed: u64,
    /// Plans of this workload.
    pub plans: Vec<String>,
    /// A fault that is seeded into it, by name.
    pub bug: Option<String>,
}

/// What it says.
#[derive(Serialize, Deserialize)]
enum Said {
    Begun(String),
    Ended(String, Box<Ending>),
    Calm(Box<Ending>),
}

impl Slice {
    /// The calm run alone.
    pub fn calm(workload: &str, seed: u64) -> Self {
        Self { workload: workload.into(), seed, plans: Vec::new(), bug: None }
    }

    /// Plans of one workload in portions.
    pub fn of(workload: &str, seed: u64, plans: &[Plan]) -> Vec<Self> {
        // Neighbours cost alike: dealt in turn, all portions take equally long.
        let portions = plans.len().div_ceil(PLANS);
        let deal = |portion: usize| plans.iter().skip(portion).step_by(portions.max(1));
        (0..portions)
            .map(|portion| Self {
                plans: deal(portion).map(ToString::to_string).collect(),
                ..Self::calm(workload, seed)
            })
            .collect()
    }

    fn calm_plan(&self) -> Plan {
        Plan { workload: self.workload.clone(), troubles: Vec::new() }
    }
}

/// The process itself: reads its slice from the standard input. Errors: what it reads or writes fails.
pub fn serve() -> io::Result<()> {
    let slice: Slice = serde_json::from_reader(io::stdin().lock())?;
    let plans =
        slice.plans.iter().map(|plan| plan.parse::<Plan>()).collect::<std::result::Result<Vec<_>, _>>();
    let plans = plans.map_err(io::Error::other)?;
    let branches = Branches::new(plans, |heard| {
        say(&match heard {
            Heard::Begun(plan) => Said::Begun(plan.to_string()),
            Heard::Ended(plan, ending) => Said::Ended(plan.to_string(), ending),
        });
    });
    let bug = slice.bug.as_ref().and_then(|name| seeded::all().into_iter().find(|bug| bug.name == name));
    let calm = run::run_with(&slice.calm_plan(), slice.seed, Some(&branches), |world| {
        if let Some(bug) = bug {
            world.seed(bug.operator, bug.tamper, bug.later_lives);
        }
    });
    say(&Said::Calm(Box::new(calm)));
    Ok(())
}

/// Says something to the process that began this one, as a line. Without a listener this one ends.
pub(crate) fn say(said: &impl Serialize) {
    let mut out = io::stdout().lock();
    let line = serde_json::to_string(said).map_err(io::Error::from);
    // Nobody listens any more.
    if line.and_then(|line| writeln!(out, "{line}")).and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

/// Runs a slice in a process of its own; `done` hears of each plan, the calm run last, and may break off.
pub fn run(slice: &Slice, done: &mut dyn FnMut(Plan, Ending) -> ControlFlow<()>) {
    let mut waiting: Vec<String> = slice.plans.clone();
    waiting.push(slice.calm_plan().to_string());
    let failed = |why: String| Ending { problems: vec![why], ..Ending::default() };
    let mut told = |waiting: &mut Vec<String>, plan: String, ending: Ending| {
        waiting.retain(|other| *other != plan);
        plan.parse().map_or(ControlFlow::Continue(()), |plan| done(plan, ending))
    };
    let why = match start(ARGUMENT, slice) {
        Err(error) => format!("its process does not start: {error}"),
        Ok(mut child) => {
            let lines = listen::<Said>(&mut child);
            let mut current = String::from("the calm run");
            let why = loop {
                match lines.recv_timeout(HANGS) {
                    Ok(Said::Begun(plan)) => current = plan,
                    Ok(Said::Ended(plan, ending)) => {
                        if told(&mut waiting, plan, *ending).is_break() {
                            end(&mut child);
                            return;
                        }
                    }
                    // Runs may differ by a write or two that say the same as another: a plan whose write never came was calm.
                    Ok(Said::Calm(ending)) => {
                        for plan in waiting.clone() {
                            if told(&mut waiting, plan, (*ending).clone()).is_break() {
                                break;
                            }
                        }
                        break String::new();
                    }
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        break format!("'{current}' never ends: a loop without a pause");
                    }
                    Err(mpsc::RecvTimeoutError::Disconnected) => {
                        break format!("the process ended by itself at '{current}', see above");
                    }
                }
            };
            end(&mut child);
            why
        }
    };
    for plan in waiting.clone() {
        if told(&mut waiting, plan, failed(why.clone())).is_break() {
            return;
        }
    }
}

/// Starts this program once more, with an argument, and with what it is to do on its standard input. Errors: it cannot be started.
pub fn start(argument: &str, what: &impl Serialize) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    // A group of its own, so that its copies end with it.
    let mut child =
        command.arg(argument).process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    if let Some(mut input) = child.stdin.take() {
        serde_json::to_writer(&mut input, what)?;
    }
    Ok(child)
}

/// What a process says, line by line.
pub fn listen<T: DeserializeOwned + Send + 'static>(child: &mut Child) -> mpsc::Receiver<T> {
    let (sender, receiver) = mpsc::channel();
    if let Some(output) = child.stdout.take() {
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(io::Result::ok) {
                let Ok(said) = serde_json::from_str(&line) else { return };
                if sender.send(said).is_err() {
                    return;
                }
            }
        });
    }
    receiver
}

/// Ends a process and its copies.
pub fn end(child: &mut Child) {
    let group = format!("-{}", child.id());
    // It may have ended before: then there is nobody to be told.
    let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
    let _ = child.wait();
}

/// Runs slices, as many at once as there are cores; `done` hears of each plan, on this thread.
pub fn run_all(slices: Vec<Slice>, mut done: impl FnMut(Plan, Ending)) {
    let queue = Mutex::new(VecDeque::from(slices));
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            let (queue, sender) = (&queue, sender.clone());
            scope.spawn(move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(slice) = next else { return };
                    run(&slice, &mut |plan, ending| match sender.send((plan, ending)) {
                        Ok(()) => ControlFlow::Continue(()),
                        Err(_) => ControlFlow::Break(()),
                    });
                }
            });
        }
        drop(sender);
        for (plan, ending) in receiver {
            done(plan, ending);
        }
    });
}

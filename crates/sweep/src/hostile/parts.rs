//! Changes in processes of their own, which can be copied: a part each, told and heard line by line.

use super::{
    change::Change,
    generate, lasting,
    options::Moment,
    report::{Outcome, Report},
    run::{self, Tried},
};
use crate::slices;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{Mutex, PoisonError, mpsc},
    time::Duration,
};

/// The argument that makes this program such a process.
pub const ARGUMENT: &str = "--hostile-part";
/// One change may take so long on the real clock.
const HANGS: Duration = Duration::from_secs(120);

/// What a process is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Part {
    /// The kind.
    pub kind: String,
    /// When its changes come.
    pub moment: Moment,
    /// See [`super::Options::seed`].
    pub seed: u64,
    /// See [`super::Options::lines`].
    pub lines: usize,
    /// Its changes, by name.
    pub changes: Vec<String>,
}

/// What it says.
#[derive(Serialize, Deserialize)]
enum Said {
    Begun(String),
    Ended(String, Result<Tried, String>),
    Failed(String),
}

/// The process itself: reads its part from the standard input. Errors: what it reads or writes fails.
pub fn serve() -> io::Result<()> {
    let part: Part = serde_json::from_reader(io::stdin().lock())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let done = runtime.block_on(run::run_part(&part, |change, tried| {
        slices::say(&match tried {
            None => Said::Begun(change.to_string()),
            Some(tried) => Said::Ended(change.to_string(), tried),
        });
    }));
    if let Err(error) = done {
        slices::say(&Said::Failed(error));
    }
    Ok(())
}

/// What is heard of parts.
enum Heard {
    Tried(String, Moment, Tried),
    Failed(String),
}

/// Runs parts, so many at once; `tried` hears of each change, on this thread. Errors: the definitions cannot be read.
pub fn run_all(parts: Vec<Part>, threads: usize, mut tried: impl FnMut(&Outcome)) -> Result<Report, String> {
    let changes: BTreeMap<String, Change> =
        generate::all()?.into_iter().map(|change| (change.to_string(), change)).collect();
    let mut report = Report::default();
    let queue = Mutex::new(VecDeque::from(parts));
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let (queue, sender) = (&queue, sender.clone());
            scope.spawn(move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(part) = next else { return };
                    run_one(&part, &sender);
                }
            });
        }
        drop(sender);
        for heard in receiver {
            match heard {
                Heard::Failed(why) => report.failures.push(why),
                // What is refused at rest is refused at any moment: it says nothing new.
                Heard::Tried(_, moment, (super::Verdict::Refused, _)) if moment != Moment::Rest => {}
                Heard::Tried(name, moment, (verdict, lasts)) => {
                    let Some(change) = changes.get(&name).cloned() else { continue };
                    let lasting = lasting::why(&change).filter(|_| lasts);
                    let outcome = Outcome { change, moment, verdict, lasting };
                    tried(&outcome);
                    report.outcomes.push(outcome);
                }
            }
        }
    });
    Ok(report)
}

/// Runs one part in a process of its own.
fn run_one(part: &Part, sender: &mpsc::Sender<Heard>) {
    let (mut waiting, mut current) = (part.changes.clone(), String::from("the scene"));
    let hear = |heard| {
        // Nobody listens any more: then nothing is missed.
        let _ = sender.send(heard);
    };
    let why = match slices::start(ARGUMENT, part) {
        Err(error) => format!("its process does not start: {error}"),
        Ok(mut child) => {
            let lines = slices::listen::<Said>(&mut child);
            let why = loop {
                match lines.recv_timeout(HANGS) {
                    Ok(Said::Begun(change)) => current = change,
                    Ok(Said::Ended(change, ended)) => {
                        waiting.retain(|other| *other != change);
                        hear(match ended {
                            Ok(tried) => Heard::Tried(change, part.moment, tried),
                            Err(why) => Heard::Failed(format!("{change} ({}): {why}", part.moment)),
                        });
                    }
                    Ok(Said::Failed(why)) => break why,
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        break format!("'{current}' never ends: a loop without a pause");
                    }
                    Err(mpsc::RecvTimeoutError::Disconnected) => {
                        break format!("the process ended by itself at '{current}', see above");
                    }
                }
            };
            slices::end(&mut child);
            why
        }
    };
    if !waiting.is_empty() {
        let (count, moment) = (waiting.len(), part.moment);
        hear(Heard::Failed(format!("{count} changes of {} ({moment}) were not tried: {why}", part.kind)));
    }
}

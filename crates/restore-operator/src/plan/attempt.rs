//! The attempts of a worker: which one is the latest, and whether there is another one. Pure.

use super::*;

/// Where the latest attempt of a worker stands.
pub(super) enum Attempt<'a> {
    Start(u32),
    Running(Option<&'a str>),
    Backoff(Duration, String),
    Ended(&'a WorkerResult),
    Failed(String, String),
}

pub(super) fn attempt(o: &Observed, purpose: Purpose, now: Timestamp) -> Attempt<'_> {
    let find = |n: u32| {
        let name = purpose.job_name(o.uid(), n);
        o.workers.iter().find(|w| w.name == name).map(|w| (n, w))
    };
    let Some((number, worker)) = (1..=ATTEMPTS).rev().find_map(find) else { return Attempt::Start(1) };
    if worker.deleting {
        return Attempt::Running(None);
    }
    match &worker.state {
        WorkerState::Running(Some(why)) if now.as_second() - worker.created.as_second() > START_SECONDS => {
            Attempt::Failed(
                "WorkerNotStarted".into(),
                format!("the worker's pod did not start in {START_SECONDS} s: {why}"),
            )
        }
        WorkerState::Running(why) => Attempt::Running(why.as_deref()),
        WorkerState::Ended(WorkerResult::Failed { reason, message, permanent }) => {
            if *permanent {
                return Attempt::Failed(reason.clone(), message.clone());
            }
            if number >= ATTEMPTS {
                return Attempt::Failed(reason.clone(), format!("{message} (after {ATTEMPTS} attempts)"));
            }
            let due = worker.ended.unwrap_or(worker.created).as_second() + (BACKOFF_SECONDS << (number - 1));
            let left = due - now.as_second();
            // Two workers must never write to one volume.
            if left > 0 || o.pods.iter().any(|p| p.job == worker.name) {
                let left = Duration::from_secs(left.max(1).unsigned_abs());
                return Attempt::Backoff(left, format!("attempt {number} failed: {reason}: {message}"));
            }
            Attempt::Start(number + 1)
        }
        WorkerState::Ended(result) => Attempt::Ended(result),
    }
}

/// What to say while a worker runs.
pub(super) fn running(what: &str, why: Option<&str>) -> String {
    match why {
        Some(why) => format!("the worker of {what} does not start: {why}"),
        None => format!("the worker of {what} runs"),
    }
}

//! Entry points of the subcommands `work` and `wal-fetch`.

use crate::{fetch, instance::archiver, worker};
use anyhow::Context;
use holdfast_core::wire::{self, WorkerJob, WorkerResult};
use std::path::{Path, PathBuf};

/// Where Kubernetes reads a container's last words.
const TERMINATION_LOG: &str = "/dev/termination-log";
/// Kubernetes keeps so many bytes of them.
const TERMINATION_LIMIT: usize = 4096;

/// `wal-fetch`: inside a restore the job's own list of histories counts, in an instance the agent is asked.
pub async fn fetch(name: String, path: PathBuf) -> i32 {
    if Path::new(wire::RUN_FOLDER).join("fetch.json").exists() {
        fetch::run(&name, &path).await
    } else {
        archiver::fetch_command(name, path).await
    }
}

/// `work`: does the job in the environment and leaves the result as the container's last words.
///
/// A SIGTERM (the Job was deleted, the node drains) ends it; what it had written without a manifest is no backup.
pub async fn work() -> anyhow::Result<()> {
    let text =
        std::env::var(wire::JOB_VARIABLE).with_context(|| format!("{} is not set", wire::JOB_VARIABLE))?;
    let job: WorkerJob = serde_json::from_str(&text).context("the job cannot be read")?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let result = tokio::select! {
        result = worker::run(job) => result,
        _ = terminate.recv() => WorkerResult::Failed {
            reason: "Terminated".into(),
            message: "the worker was told to end before it was done".into(),
            permanent: false,
        },
    };
    let words = last_words(&result)?;
    std::fs::write(TERMINATION_LOG, &words).context("writing the result")?;
    if let WorkerResult::Failed { reason, message, .. } = &result {
        anyhow::bail!("{reason}: {message}");
    }
    tracing::info!(result = %String::from_utf8_lossy(&words), "done");
    Ok(())
}

/// The result as JSON that fits. Only a failure's message may be shortened: anything else must arrive whole.
fn last_words(result: &WorkerResult) -> anyhow::Result<Vec<u8>> {
    let mut result = result.clone();
    loop {
        let words = serde_json::to_vec(&result)?;
        if words.len() <= TERMINATION_LIMIT {
            return Ok(words);
        }
        result = match result {
            WorkerResult::Failed { reason, message, permanent } if !message.is_empty() => {
                let keep = message.chars().count() * 3 / 4;
                WorkerResult::Failed { reason, message: message.chars().take(keep).collect(), permanent }
            }
            _ => WorkerResult::Failed {
                reason: "ResultTooLong".into(),
                message: format!("the result has {} bytes, and {TERMINATION_LIMIT} fit", words.len()),
                permanent: true,
            },
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_and_still_json() {
        let message = "\"ß\n".repeat(3000);
        let words =
            last_words(&WorkerResult::Failed { reason: "Why".into(), message, permanent: false }).unwrap();
        assert!(words.len() <= TERMINATION_LIMIT);
        assert!(matches!(serde_json::from_slice(&words).unwrap(), WorkerResult::Failed { .. }));
    }
}

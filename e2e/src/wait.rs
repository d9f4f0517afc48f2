//! Waiting for what must become true: by looking again and again up to a deadline, never by sleeping and hoping.

use anyhow::{Result, anyhow};
use std::{
    fmt,
    future::Future,
    time::{Duration, Instant},
};

/// How often is looked.
const EVERY: Duration = Duration::from_millis(200);
/// How long one look may take.
const LOOK: Duration = Duration::from_secs(20);

/// What one look saw.
pub enum Seen<T> {
    /// What was waited for.
    Yes(T),
    /// Not yet; the text says what was there instead.
    NotYet(String),
}

/// An error after which waiting is in vain.
#[derive(Debug)]
pub struct Hopeless(pub String);

impl fmt::Display for Hopeless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Hopeless {}

/// Looks until it is there, at most for `limit`. Errors of a look count as "not yet", since a cluster in trouble is what
/// tests are about; [`Hopeless`] ends the wait. The error says what was waited for and what was seen last.
pub async fn wait_for<T, F, Fut>(what: &str, limit: Duration, mut look: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Seen<T>>>,
{
    let start = Instant::now();
    loop {
        let last = match tokio::time::timeout(LOOK, look()).await {
            Ok(Ok(Seen::Yes(value))) => return Ok(value),
            Ok(Ok(Seen::NotYet(state))) => state,
            Ok(Err(error)) if error.is::<Hopeless>() => {
                return Err(error.context(format!("waiting for {what}")));
            }
            Ok(Err(error)) => say(&error),
            Err(_) => format!("no answer within {LOOK:?}"),
        };
        if start.elapsed() > limit {
            return Err(anyhow!("{what}: not within {} s; last seen: {last}", limit.as_secs()));
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// As [`wait_for`], for a plain yes or no with a description.
pub async fn until<F, Fut>(what: &str, limit: Duration, mut look: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<String>>>,
{
    wait_for(what, limit, || {
        let looked = look();
        async move {
            Ok(match looked.await? {
                None => Seen::Yes(()),
                Some(instead) => Seen::NotYet(instead),
            })
        }
    })
    .await
}

/// An error with its causes, without the debug output that kube adds to what the API server said.
pub fn say(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        if let Some(kube::Error::Api(status)) = cause.downcast_ref::<kube::Error>() {
            parts.push(status.message.clone());
            break;
        }
        let text = cause.to_string();
        // Some errors repeat their cause in their own text.
        if parts.last().is_none_or(|last| !last.contains(&text)) {
            parts.push(text);
        }
    }
    parts.join(": ")
}

/// Seconds, short to write.
pub const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

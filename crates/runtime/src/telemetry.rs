//! Logs: one JSON object a line on stdout. Touches stdout and the process's global subscriber only.

use std::error::Error;
use tracing_subscriber::EnvFilter;

/// Sends logs as JSON to stdout, filtered by `RUST_LOG` (default `info`). A second call changes nothing.
pub fn init(component: &'static str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let first = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_target(true)
        .with_env_filter(filter)
        .with_writer(std::io::stdout)
        .try_init()
        .is_ok();
    if first {
        tracing::info!(component, version = env!("CARGO_PKG_VERSION"), "starting");
    }
}

/// An error with all its causes on one line: what a log, a condition or an event shows of it.
///
/// Causes that the text before already contains are left out, as many error types print their source themselves.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot apply StatefulSet orders")]
    struct Outer(#[source] Middle);

    #[derive(Debug, thiserror::Error)]
    #[error("request failed: connection refused")]
    struct Middle(#[source] std::io::Error);

    #[test]
    fn a_chain_names_every_cause_once() {
        let error = Outer(Middle(std::io::Error::other("connection refused")));
        assert_eq!(chain(&error), "cannot apply StatefulSet orders: request failed: connection refused");
    }
}

//! Whether commits can end: they wait for as many standbys as the primary's Lease asks for. Pure.

use super::primary;
use crate::{observe::Observed, plan::trouble::PATIENCE_SECONDS};
use holdfast_core::{conditions, names};
use k8s_openapi::{api::coordination::v1::Lease, jiff::Timestamp};
use kube::ResourceExt;
use serde::Deserialize;

/// Reason: the primary runs, and no commit ends.
pub use holdfast_core::conditions::COMMITS_WAIT;

/// What a Lease says about commits. Before the first standby has streamed it asks for none.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Record {
    synchronous: Vec<String>,
    confirmations: usize,
    switchover: Option<Switchover>,
}

/// What the Lease says of the last switchover that was asked for.
#[derive(Deserialize)]
pub struct Switchover {
    /// As it was asked for.
    pub asked: String,
    /// Why it was refused; empty: it was not.
    #[serde(default)]
    pub refused: String,
}

/// What became of the last switchover that was asked for.
pub fn switchover(observed: &Observed) -> Option<Switchover> {
    record(observed.primary_lease.as_deref()?)?.switchover
}

fn record(lease: &Lease) -> Option<Record> {
    serde_json::from_str(lease.annotations().get(names::ANNOTATION_RECORD)?).ok()
}

/// Why no commit ends just now; none: they do, or nothing tells. A standby that only blinks looks the same for a moment.
pub fn waiting(observed: &Observed) -> Option<String> {
    let primary = primary(observed)?;
    let lease = observed.primary_lease.as_deref()?;
    let holder = lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref());
    let same = |key: &str, said: &str| lease.labels().get(key).is_none_or(|l| said.is_empty() || l == said);
    // A record of another primary, or of other data, says nothing about this one's commits.
    if holder != Some(primary.name.as_str()) || !same(names::LABEL_DATA_SET, &primary.report.data_set) {
        return None;
    }
    let record = record(lease)?;
    let streaming = &primary.report.streaming;
    let (there, missing): (Vec<&String>, Vec<&String>) =
        record.synchronous.iter().partition(|standby| streaming.contains(standby));
    if there.len() >= record.confirmations {
        return None;
    }
    let missing: Vec<&str> = missing.into_iter().map(String::as_str).collect();
    Some(format!(
        "every commit waits for {} standby(s) and {} stream: missing are {}; commits end when they are back, or when \
         spec.durability.mode is set to Preferred, which gives the promise of a second copy up",
        record.confirmations,
        there.len(),
        missing.join(", ")
    ))
}

/// Why no commit ends, and has not for a while. Once said it is said until it ends: a new process does not know since when.
pub fn lasting(observed: &Observed, now: Timestamp) -> Option<String> {
    let said = observed.database.status.as_ref().is_some_and(|status| {
        conditions::find(&status.conditions, conditions::types::AVAILABLE)
            .is_some_and(|c| c.status == "False" && c.reason == COMMITS_WAIT)
    });
    let long = |since: Timestamp| now.as_second() - since.as_second() >= PATIENCE_SECONDS;
    waiting(observed).filter(|_| said || observed.commits_wait_since.is_some_and(long))
}

#[cfg(test)]
#[path = "commits_tests.rs"]
mod tests;

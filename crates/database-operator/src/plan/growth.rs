//! The size of volumes: growth, what refuses or fails it, and a growth taken back. Pure.

use crate::{
    observe::{Observed, Words},
    plan::{
        Problem,
        volumes::{self, Named},
    },
    validate::Size,
};
use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimCondition},
    apimachinery::pkg::api::resource::Quantity,
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt;
use std::collections::BTreeMap;

/// For so long a size that was refused is not asked for again, seconds.
pub const RETRY_SECONDS: i64 = 60;
/// Drivers try again with a growing pause. For so long before the newest attempt a failure still belongs to this growth.
const ATTEMPTS: SignedDuration = SignedDuration::from_secs(300);
const MIB: i64 = 1 << 20;

/// A size that the API server refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// The size that was asked for.
    pub size: Quantity,
    /// When.
    pub at: Timestamp,
    /// The API server's words.
    pub words: String,
}

/// A claim that should ask for another size.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// The claim.
    pub claim: Named,
    /// Its StorageClass.
    pub class: String,
    /// The size that it is to ask for.
    pub size: Quantity,
    /// Less than it asks for now: a growth is taken back.
    pub back: bool,
}

/// A volume that has less than the spec and its claim ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Growing {
    /// Name of the claim.
    pub claim: String,
    /// Its uid.
    pub uid: String,
    /// For people: "1Gi of 2Gi".
    pub progress: String,
    /// What the claim itself says about a failure.
    pub failure: Option<String>,
    /// The controller has done its part, the filesystem grows on the volume's node.
    pub on_node: bool,
    /// Events about this growth are not older than this.
    pub since: Option<Timestamp>,
}

/// Claims that have a volume and belong to an instance that is wanted. Only these can change their size.
fn bound<'a>(
    observed: &'a Observed,
    data_set: &str,
    instances: i32,
) -> impl Iterator<Item = &'a PersistentVolumeClaim> {
    let claims = volumes::claims_of(observed, data_set).into_iter();
    claims
        .filter(move |(ordinal, claim)| {
            *ordinal < instances && claim.metadata.deletion_timestamp.is_none() && volumes::is_bound(claim)
        })
        .map(|(_, claim)| claim)
}

/// Claims that should ask for another size.
///
/// More is asked for at once. A growth that has not come to its end is taken back as far as Kubernetes lets it (from 1.34 on):
/// a request may go down only to more than the volume has, so one that is taken back altogether ends just above it.
pub fn asks(observed: &Observed, data_set: &str, size: &Size, instances: i32) -> Vec<Ask> {
    bound(observed, data_set, instances)
        .filter_map(|claim| {
            let asked = volumes::asked(claim)?;
            let (wanted, back) = if asked < size.bytes {
                (size.quantity.clone(), false)
            } else {
                let (has, _) = volumes::has(claim)?;
                let (bytes, wanted) = if size.bytes > has {
                    (size.bytes, size.quantity.clone())
                } else {
                    let above = has / MIB + 1;
                    (above * MIB, Quantity(format!("{above}Mi")))
                };
                (asked > has && asked > bytes).then_some((wanted, true))?
            };
            Some(Ask { claim: Named::of(claim), class: class(claim), size: wanted, back })
        })
        .collect()
}

fn class(claim: &PersistentVolumeClaim) -> String {
    claim.spec.as_ref().and_then(|s| s.storage_class_name.clone()).unwrap_or_default()
}

/// Whether this may be asked for now: the same was not refused a moment ago.
pub fn due(ask: &Ask, refusals: &BTreeMap<String, Refusal>, now: Timestamp) -> bool {
    refusal(ask, refusals).is_none_or(|r| now.as_second() - r.at.as_second() >= RETRY_SECONDS)
}

fn refusal<'a>(ask: &Ask, refusals: &'a BTreeMap<String, Refusal>) -> Option<&'a Refusal> {
    refusals.get(&ask.claim.uid).filter(|refusal| refusal.size == ask.size)
}

/// Refusals of what is still wanted: taking the size back ends the others.
pub fn standing(asks: &[Ask], refusals: &BTreeMap<String, Refusal>) -> BTreeMap<String, Refusal> {
    let standing =
        asks.iter().filter_map(|ask| Some((ask.claim.uid.clone(), refusal(ask, refusals)?.clone())));
    standing.collect()
}

/// What the API server does not let a claim ask for.
pub fn refused(asks: &[Ask], refusals: &BTreeMap<String, Refusal>, size: &Quantity) -> Option<Problem> {
    let refused: Vec<(&Ask, &Refusal)> =
        asks.iter().filter_map(|ask| Some((ask, refusal(ask, refusals)?))).collect();
    let (first, refusal) = refused.first()?;
    let alike = refused.iter().filter(|(ask, _)| ask.back == first.back);
    let claims: Vec<&str> = alike.map(|(ask, _)| ask.claim.name.as_str()).collect();
    let class = match first.class.as_str() {
        "" => "no StorageClass".to_string(),
        name => format!("StorageClass {name}"),
    };
    let (what, then) = match first.back {
        false => (
            format!("is not allowed to grow to {}", first.size.0),
            "set spec.storage.size back, or restore a backup into a new Database whose class and quota allow the size",
        ),
        true => (
            format!("asked for more before and is not allowed to go back to {}", first.size.0),
            "set spec.storage.size to what the claim asks for, or let the growth come to its end",
        ),
    };
    Some(Problem::new(
        "ExpansionRefused",
        format!(
            "spec.storage.size {}: volume claim {} of {class} {what}: {}; {then}",
            size.0,
            claims.join(", "),
            refusal.words
        ),
    ))
}

/// Volumes that were asked to grow and have not yet. What the spec no longer asks for does not count.
pub fn growing(observed: &Observed, data_set: &str, size: &Size, instances: i32) -> Vec<Growing> {
    bound(observed, data_set, instances)
        .filter_map(|claim| {
            let (has, capacity) = volumes::has(claim)?;
            let asked = volumes::asked(claim)?;
            (has < size.bytes && has < asked).then(|| {
                let on_node = condition(claim, "FileSystemResizePending").is_some();
                let then = if on_node { ", the rest is done on its node" } else { "" };
                Growing {
                    claim: claim.name_any(),
                    uid: claim.uid().unwrap_or_default(),
                    progress: format!("{} of {}{then}", capacity.0, size.quantity.0),
                    failure: failure(claim, on_node),
                    on_node,
                    since: condition(claim, "Resizing")
                        .and_then(|c| c.last_transition_time.as_ref())
                        .and_then(|t| t.0.checked_sub(ATTEMPTS).ok()),
                }
            })
        })
        .collect()
}

/// A condition of a claim that is True.
fn condition<'a>(
    claim: &'a PersistentVolumeClaim,
    type_: &str,
) -> Option<&'a PersistentVolumeClaimCondition> {
    let conditions = claim.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == type_ && c.status == "True")
}

/// What the claim says: an error of the newest attempt, or a state that no further attempt is expected to change. When only the
/// node is left, what the controller said before is over.
fn failure(claim: &PersistentVolumeClaim, on_node: bool) -> Option<String> {
    let errors =
        if on_node { &["NodeResizeError"][..] } else { &["ControllerResizeError", "NodeResizeError"] };
    let error = errors.iter().find_map(|t| condition(claim, t));
    let message = error.map(|c| match c.message.as_deref().unwrap_or_default() {
        "" => c.type_.clone(),
        message => message.to_string(),
    });
    let state = claim.status.as_ref().and_then(|s| s.allocated_resource_statuses.as_ref()?.get("storage"));
    // "Failed" is what versions before 1.31 wrote for "Infeasible".
    let final_state = state
        .filter(|s| s.ends_with("ResizeInfeasible") || s.ends_with("ResizeFailed"))
        .filter(|s| !on_node || s.starts_with("Node"));
    message.or_else(|| final_state.cloned())
}

/// A growth that the driver cannot carry out, in its own words: from the claim, or from the events about it.
pub fn failed(growing: &[Growing], words: &BTreeMap<String, Words>) -> Option<Problem> {
    let failures: Vec<String> = growing
        .iter()
        .filter_map(|one| {
            let told = words.get(&one.uid).map(|w| w.message.as_str());
            // An event says more than a bare state.
            let text = match (one.failure.as_deref(), told) {
                (Some(failure), Some(told)) if !failure.contains(' ') => told,
                (Some(failure), _) => failure,
                (None, told) => told?,
            };
            Some(format!("volume claim {} ({}): {text}", one.claim, one.progress))
        })
        .collect();
    (!failures.is_empty()).then(|| {
        let message = format!(
            "spec.storage.size: the storage driver cannot grow {}; it is tried again: put right what it says, or set \
             spec.storage.size back",
            failures.join("; ")
        );
        Problem::new("ExpansionFailed", message)
    })
}

/// Whether the volume claim template may take the new size: every claim asks for at least as much, so that a growth that is
/// refused does not make the StatefulSet anew again and again.
pub fn template_may_follow(asks: &[Ask]) -> bool {
    asks.iter().all(|ask| ask.back)
}

#[cfg(test)]
#[path = "growth_tests.rs"]
mod tests;

//! Exclusive work on the database: whether its pods must be down, may be down for sure, or may run. Pure.

use crate::observe::{Observed, live_pod};
use holdfast_core::{names, operation};
use kube::ResourceExt;

/// What the operation Lease asks for, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Nothing asks for exclusive work, and no pod of such work is left.
    None,
    /// Nothing asks, but these pods of some operation still live: pods must not be started beside them.
    Leftover(Vec<String>),
    /// Pods must go; these are still there.
    Stopping {
        /// Token of the operation.
        token: String,
        /// Pods that are still there.
        left: Vec<String>,
    },
    /// Everything is down for this operation.
    Quiesced {
        /// Token of the operation.
        token: String,
    },
}

impl Operation {
    /// Whether pods must not run.
    pub fn stops(&self) -> bool {
        matches!(self, Self::Stopping { .. } | Self::Quiesced { .. })
    }
}

/// Whether no pod of the StatefulSet is left and none can come: its controller has seen that none is wanted.
pub fn all_down(observed: &Observed) -> bool {
    let quiet = observed.stateful_set.as_deref().is_none_or(|set| {
        let status = set.status.as_ref();
        set.spec.as_ref().and_then(|s| s.replicas) == Some(0)
            && status.and_then(|s| s.observed_generation) >= set.metadata.generation
            && status.is_none_or(|s| s.replicas == 0)
    });
    quiet && observed.instances.is_empty()
}

/// Reads the Lease and the pods.
///
/// No Lease is no permission: a worker whose Lease was deleted by hand may still write to a volume. So pods are not started
/// while a pod with any operation's token lives. A Lease that is being deleted still holds.
pub fn operation(observed: &Observed) -> Operation {
    let foreign = |token: Option<&str>| -> Vec<String> {
        let workers = observed.workers.iter().filter(|pod| live_pod(pod));
        workers
            .filter(|pod| {
                pod.labels().get(names::LABEL_OPERATION_TOKEN).is_some_and(|t| Some(t.as_str()) != token)
            })
            .map(|pod| pod.name_any())
            .collect()
    };
    let exclusive = observed
        .operation_lease
        .as_deref()
        .filter(|lease| operation::Mode::of(lease) == operation::Mode::Exclusive);
    match exclusive {
        Some(lease) => {
            let token = operation::token(lease).unwrap_or_default().to_string();
            let mut left: Vec<String> = observed.instances.iter().map(|i| i.name.clone()).collect();
            left.extend(foreign(Some(&token)));
            if left.is_empty() && all_down(observed) {
                Operation::Quiesced { token }
            } else {
                Operation::Stopping { token, left }
            }
        }
        None => match foreign(None) {
            left if left.is_empty() => Operation::None,
            left => Operation::Leftover(left),
        },
    }
}

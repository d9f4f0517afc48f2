//! Finds a short sequence that still shows a difference: takes requests away as long as it does.

use super::{plan::Plan, run::run};
use crate::cluster::Cluster;
use anyhow::Result;
use std::time::{Duration, Instant};

/// How long is tried.
const LIMIT: Duration = Duration::from_secs(60);

/// A shorter plan that differs too, and how it differs.
///
/// Errors: the cluster does not answer.
pub async fn shrink(
    cluster: &Cluster,
    space: &str,
    plan: Plan,
    found: String,
    seed: u64,
) -> Result<(Plan, String)> {
    let start = Instant::now();
    let (mut plan, mut found) = (plan, found);
    let mut width = plan.steps.len().div_ceil(2).max(1);
    loop {
        let mut from = 0;
        let mut shorter = false;
        while from < plan.steps.len() {
            if start.elapsed() > LIMIT {
                return Ok((plan, found));
            }
            let mut steps = plan.steps.clone();
            steps.drain(from..(from + width).min(steps.len()));
            let candidate = Plan { kinds: plan.kinds.clone(), steps };
            match run(cluster, space, &candidate, seed).await?.difference {
                Some(difference) => {
                    (plan, found, shorter) = (candidate, difference, true);
                }
                None => from += width,
            }
        }
        if width == 1 && !shorter {
            return Ok((plan, found));
        }
        width = (width / 2).max(1);
    }
}

//! Durability in force, and how many instances it allows. Pure.

use crate::{plan::Problem, validate::ValidatedDatabase};
use holdfast_core::crd::database::{Durability, DurabilityMode};

/// What came out.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Durability in force.
    pub durability: Durability,
    /// Instances that are to run.
    pub instances: i32,
    /// Why these are not the spec's.
    pub problem: Option<Problem>,
}

/// Decided once: what the spec says counts, else what was decided before (`recorded`: status, else what the agents were
/// told), else the default for this number of instances. A scale below what was promised is not carried out: it would
/// either break the promise or stop all writes.
pub fn decide(db: &ValidatedDatabase, recorded: Option<&Durability>, running: Option<i32>) -> Decision {
    let wanted = db.instances.get();
    let durability = match (&db.durability, recorded) {
        (Some(durability), _) | (None, Some(durability)) => durability.clone(),
        (None, None) => {
            let mode = match wanted {
                1 => DurabilityMode::Asynchronous,
                2 => DurabilityMode::Preferred,
                _ => DurabilityMode::Required,
            };
            Durability { mode, standbys: 1 }
        }
    };
    let least = if durability.mode == DurabilityMode::Required { durability.standbys + 1 } else { 1 };
    if wanted >= least {
        return Decision { durability, instances: wanted, problem: None };
    }
    let instances = running.unwrap_or(least).max(least);
    let problem = Problem::new(
        "DurabilityUnreachable",
        format!(
            "spec.instances {wanted} cannot keep durability Required with {} standby(s), decided when the database was made; \
             {instances} instances stay. Set spec.durability (Preferred or Asynchronous) to scale down",
            durability.standbys
        ),
    );
    Decision { durability, instances, problem: Some(problem) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixtures::valid;

    fn with(instances: i32) -> ValidatedDatabase {
        valid(&format!("instances: {instances}"))
    }

    #[test]
    fn defaults_follow_the_number_of_instances_once() {
        for (instances, mode) in
            [(1, DurabilityMode::Asynchronous), (2, DurabilityMode::Preferred), (3, DurabilityMode::Required)]
        {
            let decision = decide(&with(instances), None, None);
            assert_eq!((decision.durability.mode, decision.instances), (mode, instances));
            assert_eq!(decision.problem, None);
        }
        let kept = Durability { mode: DurabilityMode::Asynchronous, standbys: 1 };
        assert_eq!(decide(&with(3), Some(&kept), Some(1)).durability, kept);
    }

    #[test]
    fn a_scale_that_breaks_the_promise_is_not_carried_out() {
        let kept = Durability { mode: DurabilityMode::Required, standbys: 1 };
        let decision = decide(&with(1), Some(&kept), Some(3));
        assert_eq!(decision.instances, 3);
        assert_eq!(decision.problem.unwrap().reason, "DurabilityUnreachable");
        assert_eq!(decide(&with(2), Some(&kept), Some(3)).instances, 2);
        let by_hand = valid("instances: 1\ndurability: {mode: Asynchronous}");
        assert_eq!(decide(&by_hand, Some(&kept), Some(3)).instances, 1);
    }
}

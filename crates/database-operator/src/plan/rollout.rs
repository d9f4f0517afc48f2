//! The order in which pods are replaced: replicas first, one at a time, the primary last. Pure.

use crate::observe::{Instance, Observed};
use holdfast_core::report::Role;

/// A pod to delete, so that it comes back from the new template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replace {
    /// Name of the pod.
    pub name: String,
    /// Its uid: never its successor.
    pub uid: String,
    /// Why, for people.
    pub why: &'static str,
}

/// How far the pods are behind their template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rollout {
    /// Pods that are not as the template wants them.
    pub outdated: Vec<String>,
    /// The one to replace now.
    pub next: Option<Replace>,
}

/// Decides. `settled`: the StatefulSet is as wanted, and its controller has seen it. `configuration`: hash of what the agents were
/// told; until all of them have taken it up, who needs a restart for a parameter is not known of all, and the one that
/// happens to know it first may be the primary.
///
/// A pod that does not serve is replaced at once: that risks nothing more, and it may well be what the change is to cure.
/// One that serves is replaced only while every other instance is ready and streams, so that at no time more than one is
/// missing. At its end the primary's agent hands over, so it goes last.
pub fn rollout(observed: &Observed, instances: i32, settled: bool, configuration: &str) -> Rollout {
    let update = observed
        .stateful_set
        .as_ref()
        .and_then(|set| set.status.as_ref()?.update_revision.as_deref())
        .filter(|revision| !revision.is_empty());
    let (Some(update), true) = (update, settled) else { return Rollout::default() };
    let pods: Vec<&Instance> = observed.instances.iter().filter(|i| i.ordinal < instances).collect();
    let old = |i: &&&Instance| i.revision != update;
    let told = pods.iter().all(|i| i.revision != update || i.report.config_hash == configuration);
    let behind = |i: &&&Instance| i.revision != update || (told && i.report.pending_restart);
    let outdated: Vec<String> = pods.iter().filter(behind).map(|i| i.name.clone()).collect();
    Rollout { next: next(&pods, instances, &old, &behind), outdated }
}

fn next(
    pods: &[&Instance],
    instances: i32,
    old: &dyn Fn(&&&Instance) -> bool,
    behind: &dyn Fn(&&&Instance) -> bool,
) -> Option<Replace> {
    let replace = |i: &Instance, why| Some(Replace { name: i.name.clone(), uid: i.uid.clone(), why });
    if pods.iter().any(|i| i.terminating) {
        return None;
    }
    // A primary that fails while others serve is replaced by one of them first: it may only have blinked.
    let others_serve = pods.iter().any(|i| i.ready);
    let cannot_hand_over = |i: &&&Instance| i.report.role != Role::Primary || !others_serve;
    if let Some(broken) = pods.iter().filter(old).filter(|i| !i.ready).find(cannot_hand_over) {
        return replace(broken, "it does not serve, and its template changed");
    }
    let wanted = usize::try_from(instances).unwrap_or(0);
    let all_ready = pods.len() == wanted && pods.iter().all(|i| i.ready);
    let primary = pods.iter().find(|i| i.report.role == Role::Primary)?;
    let all_stream =
        pods.iter().all(|i| i.name == primary.name || primary.report.streaming.contains(&i.name));
    if !all_ready || !all_stream {
        return None;
    }
    let replica = pods.iter().filter(behind).rev().find(|i| i.report.role != Role::Primary);
    match replica {
        Some(replica) => replace(replica, "its template or a parameter changed"),
        None if behind(&primary) => {
            replace(primary, "its template or a parameter changed; the replicas are done")
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixtures::{instance, observed, running};

    /// Three instances, the first one primary; `old` ones have the old revision, `broken` ones are not ready.
    fn seen(old: &[i32], broken: &[i32], streaming: &[&str]) -> Observed {
        let mut seen = observed("");
        seen.stateful_set = Some(running(3, "d1"));
        seen.instances = (0..3)
            .map(|ordinal| {
                let mut one = instance(ordinal, |report| {
                    report.role = if ordinal == 0 { Role::Primary } else { Role::Replica };
                    if ordinal == 0 {
                        report.streaming = streaming.iter().map(|s| (*s).to_string()).collect();
                    }
                });
                one.revision = if old.contains(&ordinal) { "old".into() } else { "new".into() };
                one.ready = !broken.contains(&ordinal);
                one
            })
            .collect();
        seen
    }

    #[test]
    fn the_order_of_a_rollout() {
        let both = ["orders-1", "orders-2"];
        let table: [(&str, Observed, Option<&str>); 9] = [
            ("nothing to do", seen(&[], &[], &both), None),
            ("replicas first, the last one first", seen(&[0, 1, 2], &[], &both), Some("orders-2")),
            ("then the other one", seen(&[0, 1], &[], &both), Some("orders-1")),
            ("the primary last", seen(&[0], &[], &both), Some("orders-0")),
            ("not while another one is not ready", seen(&[0, 1], &[2], &both), None),
            ("not while another one does not stream", seen(&[0, 1], &[], &["orders-1"]), None),
            (
                "one that does not serve and is outdated at once",
                seen(&[0, 1, 2], &[1], &["orders-2"]),
                Some("orders-1"),
            ),
            ("a primary that blinks is left to its replicas", seen(&[0], &[0], &[]), None),
            ("nothing serves at all", seen(&[0], &[0, 1, 2], &[]), Some("orders-0")),
        ];
        for (case, seen, expected) in table {
            let got = rollout(&seen, 3, true, "c1").next.map(|r| r.name);
            assert_eq!(got.as_deref(), expected, "{case}");
        }
    }

    #[test]
    fn a_pending_restart_counts_and_an_unsettled_set_does_not() {
        let mut all = seen(&[], &[], &["orders-1", "orders-2"]);
        all.instances[2].report.pending_restart = true;
        for instance in &mut all.instances {
            instance.report.config_hash = "c1".into();
        }
        assert_eq!(rollout(&all, 3, true, "c1").next.unwrap().name, "orders-2");
        assert_eq!(rollout(&all, 3, false, "c1"), Rollout::default());
        // The primary took the configuration up first: it must not go first for that.
        assert_eq!(rollout(&all, 3, true, "c2"), Rollout::default());
        all.instances[1].terminating = true;
        assert_eq!(rollout(&all, 3, true, "c1").next, None);
    }
}

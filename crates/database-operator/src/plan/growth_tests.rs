//! Sizes, case by case.

use super::*;
use crate::plan::fixtures::{claim, now, observed};
use serde_json::{Value, json};
use std::sync::Arc;

fn size(text: &str) -> Size {
    Size::parse("spec.storage.size", &Quantity(text.into())).unwrap()
}

/// One volume of class `rigid`: what its claim asks for, what it has, and more of its status.
fn seen(asked: &str, has: &str, status: Value) -> Observed {
    let mut seen = observed("");
    let mut one = (*claim("d1", 0, "current")).clone();
    let spec = one.spec.as_mut().unwrap();
    spec.storage_class_name = Some("rigid".into());
    spec.resources.as_mut().unwrap().requests = Some([("storage".into(), Quantity(asked.into()))].into());
    let mut all = json!({"phase": "Bound", "capacity": {"storage": has}});
    all.as_object_mut().unwrap().extend(status.as_object().unwrap().clone());
    one.status = Some(serde_json::from_value(all).unwrap());
    seen.claims = vec![Arc::new(one)];
    seen
}

fn condition_of(type_: &str, message: &str) -> Value {
    json!({"conditions": [{"type": type_, "status": "True", "message": message,
        "lastTransitionTime": "2026-11-21T08:59:00Z"}]})
}

#[test]
fn what_a_claim_should_ask_for() {
    // Asked, has, the spec's size; expected: the size to ask for, and whether that takes a growth back.
    type Asked = Option<(&'static str, bool)>;
    let table: [(&str, &str, &str, Asked); 9] = [
        ("1Gi", "1Gi", "1Gi", None),
        ("1Gi", "1Gi", "4Gi", Some(("4Gi", false))),
        ("4Gi", "1Gi", "4Gi", None),
        ("4Gi", "1Gi", "2Gi", Some(("2Gi", true))),
        // Kubernetes refuses a request of exactly what the volume has.
        ("4Gi", "1Gi", "1Gi", Some(("1025Mi", true))),
        ("1025Mi", "1Gi", "1Gi", None),
        // Nothing is left to take back, or the volume has more than the spec: volumes do not shrink.
        ("4Gi", "4Gi", "1Gi", None),
        ("2Gi", "3Gi", "1Gi", None),
        ("1500Mi", "1Gi", "2Gi", Some(("2Gi", false))),
    ];
    for (asked, has, wanted, expected) in table {
        let asks = asks(&seen(asked, has, json!({})), "d1", &size(wanted), 1);
        let got = asks.first().map(|ask| (ask.size.0.as_str(), ask.back));
        assert_eq!(got, expected, "asks for {asked}, has {has}, {wanted} is wanted");
    }
    let grown = |seen: &Observed, instances| asks(seen, "d1", &size("4Gi"), instances);
    assert!(grown(&seen("1Gi", "1Gi", json!({})), 0).is_empty(), "beyond the instances wanted");
    let waits = seen("1Gi", "1Gi", json!({"phase": "Pending"}));
    assert!(grown(&waits, 1).is_empty(), "a claim without a volume cannot change");
}

#[test]
fn a_refusal_is_told_kept_for_a_while_and_ends_with_the_wish() {
    let seen = seen("1Gi", "1Gi", json!({}));
    let wish = asks(&seen, "d1", &size("4Gi"), 1);
    assert!(due(&wish[0], &BTreeMap::new(), now()));
    assert!(!template_may_follow(&wish));
    let words = "only dynamically provisioned pvc can be resized and the storageclass must support resize";
    let refusal = Refusal { size: Quantity("4Gi".into()), at: now(), words: words.into() };
    let refusals = BTreeMap::from([("uid-d1-orders-0".to_string(), refusal)]);
    let problem = refused(&wish, &refusals, &Quantity("4Gi".into())).unwrap();
    assert_eq!(problem.reason, "ExpansionRefused");
    for part in
        ["spec.storage.size 4Gi", "d1-orders-0", "StorageClass rigid", words, "set spec.storage.size back"]
    {
        assert!(problem.message.contains(part), "{part}: {}", problem.message);
    }
    assert!(!due(&wish[0], &refusals, now() + SignedDuration::from_secs(RETRY_SECONDS - 1)));
    assert!(due(&wish[0], &refusals, now() + SignedDuration::from_secs(RETRY_SECONDS)));
    assert_eq!(standing(&wish, &refusals), refusals);
    // Another size is another question; the old size is none at all.
    let other = asks(&seen, "d1", &size("2Gi"), 1);
    assert!(due(&other[0], &refusals, now()) && standing(&other, &refusals).is_empty());
    let back = asks(&seen, "d1", &size("1Gi"), 1);
    assert!(back.is_empty() && refused(&back, &refusals, &Quantity("1Gi".into())).is_none());
}

#[test]
fn an_older_kubernetes_that_takes_nothing_back_is_told() {
    let wish = asks(&seen("4Gi", "1Gi", json!({})), "d1", &size("2Gi"), 1);
    assert!(template_may_follow(&wish), "new instances get the smaller size");
    let refusal = Refusal {
        size: wish[0].size.clone(),
        at: now(),
        words: "can not be less than previous value".into(),
    };
    let problem =
        refused(&wish, &[(wish[0].claim.uid.clone(), refusal)].into(), &Quantity("2Gi".into())).unwrap();
    assert_eq!(problem.reason, "ExpansionRefused");
    assert!(problem.message.contains("go back to 2Gi: can not be less"), "{}", problem.message);
}

#[test]
fn a_growth_in_progress_says_how_far_it_is() {
    let far = |asked, has, wanted, status| growing(&seen(asked, has, status), "d1", &size(wanted), 1);
    assert_eq!(far("2Gi", "1Gi", "2Gi", json!({}))[0].progress, "1Gi of 2Gi");
    assert!(far("2Gi", "2Gi", "2Gi", json!({})).is_empty());
    assert!(far("1025Mi", "1Gi", "1Gi", json!({})).is_empty(), "nobody waits for what was taken back");
    let node = far("2Gi", "1Gi", "2Gi", condition_of("FileSystemResizePending", "waiting"));
    assert_eq!(node[0].progress, "1Gi of 2Gi, the rest is done on its node");
    assert_eq!((&node[0].failure, failed(&node, &BTreeMap::new())), (&None, None));
    let since = far("2Gi", "1Gi", "2Gi", condition_of("Resizing", ""))[0].since;
    assert_eq!(since, Some("2026-11-21T08:54:00Z".parse().unwrap()));
}

#[test]
fn a_growth_that_fails_is_told_in_the_drivers_words() {
    let infeasible = json!({"allocatedResourceStatuses": {"storage": "ControllerResizeInfeasible"}});
    let mut both = condition_of("ControllerResizeError", "the pool has no room");
    both.as_object_mut().unwrap().extend(infeasible.as_object().unwrap().clone());
    let event = Words { reason: "VolumeResizeFailed".into(), message: "rpc error: no room".into() };
    let words = BTreeMap::from([("uid-d1-orders-0".to_string(), event)]);
    let none = BTreeMap::new();
    let busy = json!({"allocatedResourceStatuses": {"storage": "NodeResizeInProgress"}});
    let table: [(Value, &BTreeMap<String, Words>, Option<&str>); 7] = [
        (condition_of("ControllerResizeError", "the pool has no room"), &none, Some("the pool has no room")),
        (condition_of("NodeResizeError", "xfs_growfs"), &none, Some("xfs_growfs")),
        (infeasible.clone(), &none, Some("ControllerResizeInfeasible")),
        (infeasible, &words, Some("rpc error: no room")),
        (both, &words, Some("the pool has no room")),
        (busy.clone(), &none, None),
        (busy, &words, Some("rpc error: no room")),
    ];
    for (status, words, expected) in table {
        let growing = growing(&seen("2Gi", "1Gi", status.clone()), "d1", &size("2Gi"), 1);
        let problem = failed(&growing, words);
        assert_eq!(problem.is_some(), expected.is_some(), "{status}");
        if let (Some(problem), Some(expected)) = (problem, expected) {
            assert_eq!(problem.reason, "ExpansionFailed");
            let named = format!("volume claim d1-orders-0 (1Gi of 2Gi): {expected}");
            assert!(problem.message.contains(&named), "{}", problem.message);
        }
    }
}

#[test]
fn what_the_controller_said_is_over_when_only_the_node_is_left() {
    let said = |types: [&str; 2], state: &str| {
        let conditions = types.map(|t| json!({"type": t, "status": "True", "message": format!("about {t}")}));
        let status = json!({"conditions": conditions, "allocatedResourceStatuses": {"storage": state}});
        growing(&seen("2Gi", "1Gi", status), "d1", &size("2Gi"), 1).remove(0)
    };
    let rest = said(["ControllerResizeError", "FileSystemResizePending"], "ControllerResizeInfeasible");
    assert_eq!((rest.on_node, rest.failure), (true, None));
    let node = said(["NodeResizeError", "FileSystemResizePending"], "NodeResizePending");
    assert_eq!(node.failure.as_deref(), Some("about NodeResizeError"));
    let early = said(["ControllerResizeError", "Resizing"], "ControllerResizeInProgress");
    assert_eq!(early.failure.as_deref(), Some("about ControllerResizeError"));
}

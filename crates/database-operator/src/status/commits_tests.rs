//! When commits wait, and when that is told.

use super::*;
use crate::{
    plan::{
        Facts,
        fixtures::{instance, now, observed},
    },
    status::status,
};
use holdfast_core::{
    crd::database::{Durability, DurabilityMode},
    report::Role,
};
use serde_json::json;
use std::{sync::Arc, time::Duration};

/// `orders-0` leads; its Lease asks for this, and these standbys stream.
fn seen(synchronous: &[&str], confirmations: i32, streaming: &[&str]) -> Observed {
    let mut seen = observed("");
    let record = json!({"term": 4, "holder": {"pod": "orders-0"}, "synchronous": synchronous,
        "confirmations": confirmations});
    seen.primary_lease = Some(Arc::new(
        serde_json::from_value(
            json!({"metadata": {"name": "orders-primary", "labels": {names::LABEL_DATA_SET: "d1"},
            "annotations": {names::ANNOTATION_RECORD: record.to_string()}}, "spec": {"holderIdentity": "orders-0"}}),
        )
        .unwrap(),
    ));
    seen.instances = (0..3)
        .map(|i| {
            instance(i, |r| {
                r.data_set = "d1".into();
                if i == 0 {
                    r.role = Role::Primary;
                    r.streaming = streaming.iter().map(|s| (*s).to_string()).collect();
                }
            })
        })
        .collect();
    seen
}

#[test]
fn what_the_lease_asks_for_against_what_streams() {
    let both = ["orders-1", "orders-2"];
    let table: [(&str, Observed, bool); 7] = [
        ("as it should be", seen(&both, 1, &both), false),
        ("one is enough", seen(&both, 1, &["orders-2"]), false),
        ("one is not enough", seen(&both, 2, &["orders-2"]), true),
        ("none streams", seen(&both, 1, &[]), true),
        ("only one that is not asked streams", seen(&["orders-1"], 1, &["orders-2"]), true),
        ("no standby has streamed yet", seen(&[], 0, &[]), false),
        ("the set changes, and none is asked for", seen(&both, 0, &[]), false),
    ];
    for (case, seen, expected) in table {
        assert_eq!(waiting(&seen).is_some(), expected, "{case}");
    }
    let text = waiting(&seen(&both, 2, &["orders-2"])).unwrap();
    assert!(text.contains("2 standby(s) and 1 stream: missing are orders-1;"), "{text}");
    let mut other = seen(&both, 1, &[]);
    Arc::make_mut(other.primary_lease.as_mut().unwrap()).spec.as_mut().unwrap().holder_identity =
        Some("orders-1".into());
    assert_eq!(waiting(&other), None, "another primary's record");
    let mut other = seen(&both, 1, &[]);
    other.instances[0].report.data_set = "d2".into();
    assert_eq!(waiting(&other), None, "other data");
    other.primary_lease = None;
    assert_eq!(waiting(&other), None);
}

#[test]
fn commits_that_wait_are_told_when_it_lasts_and_until_it_ends() {
    let facts = Facts {
        durability: Some(Durability { mode: DurabilityMode::Required, standbys: 1 }),
        instances: 3,
        replicas: 3,
        settled: true,
        data_set: Some(crate::plan::volumes::DataSet {
            id: "d1".into(),
            history: "h1".into(),
            system_identifier: Some("7501".into()),
        }),
        ..Facts::default()
    };
    let said = |seen: &Observed, now| {
        let status = status(seen, &facts, None, true, now);
        let of = |type_: &str| {
            let one = conditions::find(&status.conditions, type_).unwrap();
            format!("{} {}", one.status, one.reason)
        };
        let all = [of("Available"), of("Consistent"), of("Ready")];
        (all.join(", "), status)
    };
    let later = |seconds| now() + Duration::from_secs(seconds);
    let mut wait = seen(&["orders-1"], 1, &[]);
    wait.commits_wait_since = Some(now());
    let (blink, _) = said(&wait, later(4));
    assert!(blink.starts_with("True PrimaryReady, False SingleCopy"), "{blink}");
    let (lasts, status) = said(&wait, later(5));
    assert_eq!(lasts, "False CommitsWait, False CommitsWait, False CommitsWait");
    assert_eq!(status.phase.as_deref(), Some("Degraded"), "nothing is to take over");
    // Another process knows only what was said.
    Arc::make_mut(&mut wait.database).status = Some(status);
    wait.commits_wait_since = None;
    assert!(said(&wait, later(6)).0.starts_with("False CommitsWait"));
    wait.instances[0].report.streaming = vec!["orders-1".into()];
    wait.instances[0].report.synchronous = vec!["orders-1".into()];
    assert!(said(&wait, later(7)).0.starts_with("True PrimaryReady, True InSync"));
    // A primary that is not ready has its own reason.
    wait.instances[0].report.streaming.clear();
    wait.instances[0].ready = false;
    assert!(said(&wait, later(8)).0.starts_with("False PrimaryNotReady"));
}

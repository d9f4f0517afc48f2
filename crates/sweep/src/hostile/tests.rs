//! The generator as a whole, and its changes against the in-memory API server alone.

use super::{
    oracle::{Answer, judge},
    *,
};
use holdfast_testkit::Server;
use std::collections::BTreeSet;

#[test]
fn there_are_many_changes_each_once_and_always_in_the_same_order() {
    let changes = all().unwrap();
    assert_eq!(changes, all().unwrap());
    let counts = count(&changes);
    eprintln!("{counts:?}");
    assert!(counts["Database"] > 400, "{counts:?}");
    for kind in schema::kinds() {
        assert!(counts[kind] > 50, "{kind}: {counts:?}");
    }
    let names: BTreeSet<String> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(names.len(), changes.len(), "each can be named");
}

#[test]
fn every_field_of_every_spec_is_tried() {
    for kind in schema::kinds() {
        let spec = schema::spec(kind).unwrap();
        let tried: BTreeSet<String> = generate::of(kind).unwrap().into_iter().map(|c| c.path).collect();
        for field in schema::fields(&spec) {
            let path = field.path.to_string();
            assert!(tried.contains(&path), "{kind} {path}");
        }
    }
}

#[test]
fn a_way_back_leads_back() {
    for change in all().unwrap() {
        if let Back::Patch(back) = &change.back
            && change.path.starts_with("spec")
        {
            let base = bases::base(change.kind);
            let there = path::merged(&base, &change.change);
            assert_ne!(there, base, "{change}");
            assert_eq!(path::merged(&there, back), base, "{change}");
        }
    }
}

async fn lab(kind: &str) -> kube::Client {
    let server = Server::new("2026-03-02T10:00:00Z".parse().unwrap(), 1);
    server.register_holdfast().unwrap();
    server.namespace("lab");
    let client = server.client("user", "lab");
    for object in bases::scene(kind).into_iter().flatten().chain([bases::base(kind)]) {
        assert_eq!(ground::make(&client, &object).await.unwrap(), Answer::Accepted, "{object}");
    }
    client
}

/// Each refusal is real: the schemas and the CEL rules are those that are deployed.
#[tokio::test(start_paused = true)]
async fn every_refusal_names_its_field() {
    let (mut wrong, mut refused, mut accepted) = (Vec::new(), 0, 0);
    for kind in schema::kinds() {
        let mut client = lab(kind).await;
        for change in generate::of(kind).unwrap().into_iter().filter(|c| c.back != Back::Itself) {
            let answer = ground::apply(&client, &change).await.unwrap();
            if answer == Answer::Accepted {
                accepted += 1;
                if ground::revert(&client, &change).await.unwrap() != Answer::Accepted {
                    assert!(lasting::why(&change).is_some(), "{change}");
                    client = lab(kind).await;
                }
                continue;
            }
            refused += 1;
            if let Verdict::Finding(what) = judge(&change, &answer, None) {
                wrong.push(format!("{change}\n    {what}"));
            }
        }
    }
    eprintln!("{refused} refused, {accepted} accepted");
    assert!(refused > 300 && accepted > 300, "{refused} {accepted}");
    assert!(wrong.is_empty(), "{} of {refused}:\n{}", wrong.len(), wrong.join("\n"));
}

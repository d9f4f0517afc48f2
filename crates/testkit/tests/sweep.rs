//! That a sweep over all crashes can stand on this: a small controller, killed at every write in every way, must end as if
//! nothing had happened; one with a known fault must be caught.

// Helpers of tests are not tests to clippy.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use futures::StreamExt;
use holdfast_testkit::{Fault, Mask, Rule, Server, Session};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::{Controller, controller::Action, watcher},
};
use serde_json::json;
use std::{sync::Arc, time::Duration};

/// What the controller has: a client, and perhaps the fault.
struct Context {
    client: Client,
    /// Creates the child under a new name each time, and remembers it afterwards.
    forgetful: bool,
}

/// A parent gets a finalizer, then a child, then the child's name.
async fn reconcile(parent: Arc<ConfigMap>, context: Arc<Context>) -> Result<Action, kube::Error> {
    let parents: Api<ConfigMap> = Api::namespaced(context.client.clone(), "lab");
    let children: Api<Secret> = Api::namespaced(context.client.clone(), "lab");
    let (name, by_name) = (parent.name_any(), PatchParams::default());
    if parent.finalizers().is_empty() {
        let hold = json!({"metadata": {"finalizers": ["lab.test/hold"], "resourceVersion": parent.resource_version()}});
        parents.patch(&name, &by_name, &Patch::Merge(hold)).await?;
        return Ok(Action::await_change());
    }
    if parent.data.as_ref().is_some_and(|d| d.contains_key("child")) {
        return Ok(Action::await_change());
    }
    let owner = parent.controller_owner_ref(&()).unwrap();
    let child = if context.forgetful {
        let child = json!({"metadata": {"generateName": "child-", "ownerReferences": [owner]}});
        children.create(&PostParams::default(), &serde_json::from_value(child).unwrap()).await?
    } else {
        let child = json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": format!("{name}-child"), "ownerReferences": [owner]}, "stringData": {"k": "v"}});
        children
            .patch(&format!("{name}-child"), &PatchParams::apply("lab").force(), &Patch::Apply(child))
            .await?
    };
    let done = json!({"metadata": {"resourceVersion": parent.resource_version()}, "data": {"child": child.name_any()}});
    parents.patch(&name, &by_name, &Patch::Merge(done)).await?;
    Ok(Action::await_change())
}

fn start(session: &Session, forgetful: bool) -> tokio::task::JoinHandle<()> {
    let client = session.client("lab");
    let parents: Api<ConfigMap> = Api::namespaced(client.clone(), "lab");
    let children: Api<Secret> = Api::namespaced(client.clone(), "lab");
    let controller = Controller::new(parents, watcher::Config::default())
        .owns(children, watcher::Config::default())
        .run(
            reconcile,
            |_, _, _| Action::requeue(Duration::from_secs(1)),
            Arc::new(Context { client, forgetful }),
        )
        .for_each(|_| std::future::ready(()));
    tokio::spawn(controller)
}

/// Until nothing was written for a minute, or the client is dead. `false`: neither came.
async fn settle(server: &Server, session: &Session) -> bool {
    for _ in 0..60 {
        let before = server.writes().len();
        tokio::select! {
            () = session.dead() => return true,
            () = tokio::time::sleep(Duration::from_secs(60)) => {}
        }
        if server.writes().len() == before {
            return true;
        }
    }
    false
}

/// Runs the workload, with a fault in the first life, until it rests; the end state, and the first life's writes.
async fn run(fault: Option<Rule>, forgetful: bool) -> (String, u64) {
    let server = Server::new("2026-03-01T10:00:00Z".parse().unwrap(), 3);
    server.namespace("lab");
    let user: Api<ConfigMap> = Api::namespaced(server.client("user", "lab"), "lab");
    let parent = json!({"metadata": {"name": "parent"}});
    user.create(&PostParams::default(), &serde_json::from_value(parent).unwrap()).await.unwrap();
    let first = server.session("operator");
    if let Some(rule) = fault {
        first.add(rule);
    }
    let life = start(&first, forgetful);
    assert!(settle(&server, &first).await, "the first life ends or rests");
    life.abort();
    let second = server.session("operator");
    let life = start(&second, forgetful);
    assert!(settle(&server, &second).await, "the second life rests");
    let before = server.writes().len();
    second.expire_watches("configmaps");
    assert!(settle(&server, &second).await);
    assert_eq!(server.writes().len(), before, "a look at everything anew writes nothing");
    life.abort();
    let mask = Mask {
        patterns: vec![(regex::Regex::new("child-[a-z0-9]{5}").unwrap(), "<child>".into())],
        ..Mask::default()
    };
    (server.dump(&mask), first.writes())
}

const MODES: [Fault; 8] = [
    Fault::DieBefore,
    Fault::DieAfter,
    Fault::LoseAnswer,
    Fault::Reset,
    Fault::Conflict,
    Fault::InternalError,
    Fault::Forbidden,
    Fault::SecondWriter,
];

fn without_touch(dump: &str) -> String {
    // The second writer's annotation, and what it leaves behind, is no difference.
    let touch = regex::Regex::new(r#"\s*"annotations": \{\s*"testkit.local/touched": "\d+"\s*\},?"#).unwrap();
    touch.replace_all(dump, "").into_owned()
}

#[tokio::test(start_paused = true)]
async fn a_sound_controller_ends_the_same_after_every_crash() {
    let (calm, writes) = run(None, false).await;
    assert_eq!(writes, 3);
    for k in 1..=writes {
        for mode in MODES {
            let (dump, _) = run(Some(Rule::at_write(k, mode)), false).await;
            assert_eq!(without_touch(&dump), calm, "{mode:?} at write {k}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_forgetful_controller_is_caught() {
    let (calm, writes) = run(None, true).await;
    let mut caught = Vec::new();
    for k in 1..=writes {
        for mode in MODES {
            if without_touch(&run(Some(Rule::at_write(k, mode)), true).await.0) != calm {
                caught.push((k, mode));
            }
        }
    }
    assert!(caught.contains(&(2, Fault::DieAfter)) && caught.contains(&(2, Fault::LoseAnswer)), "{caught:?}");
    assert!(caught.contains(&(3, Fault::DieBefore)), "{caught:?}");
    assert!(!caught.iter().any(|(k, _)| *k == 1), "{caught:?}");
}

#[tokio::test(start_paused = true)]
async fn a_run_repeats_itself_exactly() {
    let runs = [run(None, true).await, run(None, true).await];
    assert_eq!(runs[0], runs[1]);
}

use crate::{lab, map, maps, of, refusal};
use holdfast_testkit::{Fault, Mask, Nth, On, Rule, Server, Session, TOUCHED, Uncounted};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::ConfigMap};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use std::{future::Future, time::Duration};

/// Whether a call ends within a minute of the paused clock.
async fn ends<T>(call: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_secs(60), call).await.ok()
}

async fn create(session: &Session, name: &str) -> Option<Result<ConfigMap, kube::Error>> {
    let api = maps(&session.client("lab"));
    ends(api.create(&PostParams::default(), &map(name, json!({})))).await
}

fn stored(server: &Server) -> Vec<String> {
    server.writes().iter().filter(|w| w.changed).map(|w| w.name.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn dying_before_a_write_leaves_no_trace_and_ends_the_life() {
    let (server, _) = lab();
    let session = server.session("operator").with(Rule::at_write(2, Fault::DieBefore));
    create(&session, "a").await.unwrap().unwrap();
    assert!(create(&session, "b").await.is_none());
    assert!(session.is_dead());
    ends(session.dead()).await.expect("who waits for the end is told");
    assert!(
        ends(maps(&session.client("lab")).list(&ListParams::default())).await.is_none(),
        "nothing is answered any more"
    );
    assert_eq!(stored(&server), ["a"]);
    assert_eq!((session.attempts(), session.writes()), (2, 1));
    let next = server.session("operator");
    create(&next, "b").await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn dying_after_a_write_leaves_it_done() {
    let (server, _) = lab();
    let session = server.session("operator").with(Rule::at_write(1, Fault::DieAfter));
    assert!(create(&session, "a").await.is_none());
    assert!(session.is_dead());
    assert_eq!(stored(&server), ["a"]);
    assert_eq!(session.struck(), ["DieAfter at create configmaps lab/"]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_a_reset_connection_and_a_done_write() {
    let (server, _) = lab();
    let session = server
        .session("operator")
        .with(Rule::at_write(1, Fault::LoseAnswer))
        .with(Rule::at_write(2, Fault::Reset))
        .with(Rule::at_write(3, Fault::HangAfter))
        .with(Rule::at_write(4, Fault::Hang));
    let error = create(&session, "a").await.unwrap().unwrap_err();
    let kube::Error::Service(cause) = error else { panic!("{error}") };
    let kind = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    assert_eq!(kind, Some(std::io::ErrorKind::ConnectionReset));
    assert!(matches!(create(&session, "b").await, Some(Err(kube::Error::Service(_)))));
    assert!(create(&session, "c").await.is_none());
    assert!(create(&session, "d").await.is_none());
    assert!(!session.is_dead());
    assert_eq!(stored(&server), ["a", "c"]);
    let again = refusal(create(&session, "a").await.unwrap());
    assert_eq!(again.reason, "AlreadyExists");
}

#[tokio::test(start_paused = true)]
async fn refusals_are_worded_as_the_servers_own() {
    let (server, _) = lab();
    let session = server
        .session("system:serviceaccount:lab:operator")
        .with(Rule::every_write(2, Fault::Conflict))
        .with(Rule::always(On::resource("leases.coordination.k8s.io"), Fault::Forbidden))
        .with(Rule {
            on: On::resource("configmaps").verb("list"),
            nth: Nth::First(1),
            fault: Fault::InternalError,
        })
        .with(Rule {
            on: On::resource("configmaps").verb("get").named("x"),
            nth: Nth::All,
            fault: Fault::Unavailable,
        })
        .with(Rule {
            on: On::resource("configmaps").verb("get").named("y"),
            nth: Nth::All,
            fault: Fault::GatewayTimeout,
        });
    let client = session.client("lab");
    create(&session, "a").await.unwrap().unwrap();
    let conflict = refusal(create(&session, "b").await.unwrap());
    assert!(
        conflict.is_conflict()
            && conflict.message.ends_with("apply your changes to the latest version and try again")
    );
    create(&session, "b").await.unwrap().unwrap();
    let leases: Api<Lease> = Api::namespaced(client.clone(), "lab");
    let forbidden = refusal(leases.list(&ListParams::default()).await);
    assert_eq!(
        forbidden.message,
        "leases.coordination.k8s.io is forbidden: User \"system:serviceaccount:lab:operator\" cannot list resource \"leases\" in API group \"coordination.k8s.io\" in the namespace \"lab\""
    );
    assert_eq!(refusal(maps(&client).list(&ListParams::default()).await).code, 500);
    maps(&client).list(&ListParams::default()).await.unwrap();
    assert_eq!(refusal(maps(&client).get("x").await).code, 503);
    assert_eq!(refusal(maps(&client).get("y").await).code, 504);
}

#[tokio::test(start_paused = true)]
async fn a_second_writer_spoils_what_relies_on_a_version_and_nothing_else() {
    let (server, client) = lab();
    let first = maps(&client).create(&PostParams::default(), &map("a", json!({}))).await.unwrap();
    let session = server.session("operator").with(Rule::every_write(1, Fault::SecondWriter));
    let api = maps(&session.client("lab"));
    assert!(refusal(api.replace("a", &PostParams::default(), &first).await).is_conflict());
    let patch = Patch::Merge(json!({"data": {"k": "v"}}));
    let patched = api.patch("a", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(patched.annotations()[TOUCHED], "2");
    let uid = DeleteParams {
        preconditions: Some(kube::api::Preconditions {
            uid: first.uid(),
            resource_version: patched.resource_version(),
        }),
        ..DeleteParams::default()
    };
    assert!(refusal(api.delete("a", &uid).await).is_conflict());
}

#[tokio::test(start_paused = true)]
async fn writes_by_the_clock_need_not_count() {
    let (server, _) = lab();
    let session = server
        .session("operator")
        .not_counting(Uncounted::default().object("leases.coordination.k8s.io", "leader").resource("events"))
        .with(Rule::at_write(1, Fault::DieBefore));
    let leases: Api<Lease> = Api::namespaced(session.client("lab"), "lab");
    let lease: Lease = of(json!({"metadata": {"name": "leader"}, "spec": {"holderIdentity": "me"}}));
    let made = leases.replace("leader", &PostParams::default(), &lease).await.unwrap();
    leases.replace("leader", &PostParams::default(), &made).await.unwrap();
    assert_eq!((session.attempts(), session.is_dead()), (0, false));
    assert!(create(&session, "a").await.is_none());
    assert!(session.is_dead());
}

#[tokio::test(start_paused = true)]
async fn a_dead_clients_watches_fall_silent() {
    use futures::StreamExt;
    let (server, client) = lab();
    let session = server.session("operator");
    let events = kube::runtime::watcher(maps(&session.client("lab")), Default::default());
    let mut events = events.boxed();
    for _ in 0..2 {
        events.next().await.unwrap().unwrap();
    }
    session.kill();
    maps(&client).create(&PostParams::default(), &map("a", json!({}))).await.unwrap();
    assert!(ends(events.next()).await.is_none());
}

/// One history: what it makes is the same but for uids, times and revisions.
async fn history(seed: u64, detours: usize) -> Server {
    let server = Server::new("2026-03-01T10:00:00Z".parse().unwrap(), seed);
    server.namespace("lab");
    let client = server.client("tester", "lab");
    let api = maps(&client);
    for _ in 0..detours {
        tokio::time::advance(Duration::from_secs(7)).await;
        api.create(&PostParams::default(), &map("b", json!({}))).await.unwrap();
        api.delete("b", &DeleteParams::default()).await.unwrap();
    }
    let owner =
        api.create(&PostParams::default(), &map("a", json!({"at": "2026-03-01T10:00:00Z"}))).await.unwrap();
    let uid = owner.uid().unwrap();
    let child = json!({"metadata": {"name": "b", "labels": {"of": uid}, "annotations": {"of": format!("job-{uid}-x")},
        "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "uid": uid}]}});
    api.create(&PostParams::default(), &of(child)).await.unwrap();
    server
}

#[tokio::test(start_paused = true)]
async fn a_dump_is_the_same_for_histories_that_ended_alike() {
    let calm = history(1, 0).await;
    let eventful = history(2, 3).await;
    let mask = Mask::default();
    assert_ne!(calm.revision(), eventful.revision());
    assert_eq!(calm.dump(&mask), eventful.dump(&mask));
    assert!(calm.dump(&mask).contains("job-<uid of ConfigMap lab/a>-x"));
    let client = eventful.client("tester", "lab");
    maps(&client).delete("a", &DeleteParams::default()).await.unwrap();
    let dangling = eventful.dump(&mask);
    assert!(dangling.contains("<former uid of ConfigMap lab/a>"), "{dangling}");
    let without = Mask { without: vec!["configmaps".into()], ..Mask::default() };
    assert!(!eventful.dump(&without).contains("ConfigMap"));
}

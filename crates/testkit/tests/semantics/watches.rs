use crate::{lab, map, maps, refusal};
use futures::{Stream, StreamExt, TryStreamExt};
use holdfast_testkit::Lose;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Client, ResourceExt,
    api::{Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    runtime::watcher::{self, Event, watcher},
};
use serde_json::json;
use std::{pin::Pin, time::Duration};

type Events = Pin<Box<dyn Stream<Item = Result<Event<ConfigMap>, watcher::Error>> + Send>>;

fn watched(client: &Client, config: watcher::Config) -> Events {
    watcher(maps(client), config).boxed()
}

/// The next event in short: `init`, `+a` for a listed object, `done`, `~a`, `-a`, `!410`.
async fn next(events: &mut Events) -> String {
    let next = tokio::time::timeout(Duration::from_secs(600), events.next()).await;
    match next.expect("an event comes").unwrap() {
        Ok(Event::Init) => "init".into(),
        Ok(Event::InitApply(o)) => format!("+{}", o.name_any()),
        Ok(Event::InitDone) => "done".into(),
        Ok(Event::Apply(o)) => format!("~{}", o.name_any()),
        Ok(Event::Delete(o)) => format!("-{}", o.name_any()),
        Err(watcher::Error::WatchError(status)) => format!("!{}", status.code),
        Err(other) => format!("error: {other}"),
    }
}

async fn take(events: &mut Events, count: usize) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(next(events).await);
    }
    all
}

/// Nothing comes for so long.
async fn silent(events: &mut Events) {
    let next = tokio::time::timeout(Duration::from_secs(30), events.next()).await;
    assert!(next.is_err(), "{next:?}");
}

async fn create(client: &Client, name: &str) {
    maps(client).create(&PostParams::default(), &map(name, json!({"k": "0"}))).await.unwrap();
}

async fn change(client: &Client, name: &str, value: &str) {
    let patch = Patch::Merge(json!({"data": {"k": value}}));
    maps(client).patch(name, &PatchParams::default(), &patch).await.unwrap();
}

async fn delete(client: &Client, name: &str) {
    maps(client).delete(name, &Default::default()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_watcher_lists_and_then_sees_every_change() {
    let (_, client) = lab();
    create(&client, "a").await;
    let mut events = watched(&client, watcher::Config::default());
    assert_eq!(take(&mut events, 3).await, ["init", "+a", "done"]);
    create(&client, "b").await;
    change(&client, "a", "1").await;
    change(&client, "a", "2").await;
    delete(&client, "a").await;
    assert_eq!(take(&mut events, 4).await, ["~b", "~a", "~a", "-a"]);
    silent(&mut events).await;
}

#[tokio::test(start_paused = true)]
async fn a_streaming_list_ends_with_its_bookmark() {
    let (_, client) = lab();
    create(&client, "a").await;
    create(&client, "b").await;
    let mut events = watched(&client, watcher::Config::default().streaming_lists());
    assert_eq!(take(&mut events, 4).await, ["init", "+a", "+b", "done"]);
    delete(&client, "b").await;
    assert_eq!(next(&mut events).await, "-b");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_by_time_goes_on_where_it_was() {
    let (_, client) = lab();
    let mut events = watched(&client, watcher::Config::default().timeout(60));
    assert_eq!(take(&mut events, 2).await, ["init", "done"]);
    // Several lives of the watch pass.
    silent(&mut events).await;
    tokio::time::advance(Duration::from_secs(200)).await;
    create(&client, "a").await;
    assert_eq!(next(&mut events).await, "~a");
}

#[tokio::test(start_paused = true)]
async fn forgotten_history_makes_a_watcher_list_anew() {
    let (server, client) = lab();
    create(&client, "a").await;
    let mut events = watched(&client, watcher::Config::default().timeout(60));
    assert_eq!(take(&mut events, 3).await, ["init", "+a", "done"]);
    delete(&client, "a").await;
    create(&client, "b").await;
    server.compact();
    let seen = take(&mut events, 4).await;
    assert_eq!(seen, ["!410", "init", "+b", "done"], "a's end is only seen as its absence");
}

#[tokio::test(start_paused = true)]
async fn bookmarks_carry_a_quiet_watch_over_a_compaction() {
    let (server, client) = lab();
    server.namespace("other");
    let elsewhere = server.client("other", "other");
    let mut events = watched(&client, watcher::Config::default().timeout(60));
    assert_eq!(take(&mut events, 2).await, ["init", "done"]);
    for name in ["x", "y"] {
        let api: kube::Api<ConfigMap> = kube::Api::namespaced(elsewhere.clone(), "other");
        api.create(&PostParams::default(), &map(name, json!({}))).await.unwrap();
        silent(&mut events).await;
    }
    // Two seconds before each end there is a bookmark: the next watch begins after what was compacted.
    tokio::time::timeout(Duration::from_secs(70), events.next()).await.expect_err("bookmarks are no events");
    server.compact();
    create(&client, "a").await;
    assert_eq!(next(&mut events).await, "~a");
}

#[tokio::test(start_paused = true)]
async fn a_raw_watch_shows_bookmarks_and_errors_as_they_are() {
    let (server, client) = lab();
    create(&client, "a").await;
    let now = server.revision().to_string();
    let stream = maps(&client).watch(&WatchParams::default().timeout(120), &now).await.unwrap();
    let events: Vec<WatchEvent<ConfigMap>> = stream.try_collect().await.unwrap();
    assert_eq!(events.len(), 2, "one after a minute, one before the end: {events:?}");
    assert!(
        events.iter().all(|e| matches!(e, WatchEvent::Bookmark(b) if b.metadata.resource_version == now))
    );
    change(&client, "a", "1").await;
    server.compact();
    let stream = maps(&client).watch(&WatchParams::default(), &now).await.unwrap();
    let events: Vec<WatchEvent<ConfigMap>> = stream.try_collect().await.unwrap();
    let [WatchEvent::Error(status)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
    assert!(status.message.starts_with("too old resource version: "), "{}", status.message);
}

#[tokio::test(start_paused = true)]
async fn an_object_leaves_a_selection_as_if_deleted() {
    let (_, client) = lab();
    let labelled = json!({"metadata": {"name": "a", "labels": {"on": "yes"}}});
    maps(&client).create(&PostParams::default(), &crate::of(labelled)).await.unwrap();
    let mut events = watched(&client, watcher::Config::default().labels("on=yes"));
    assert_eq!(take(&mut events, 3).await, ["init", "+a", "done"]);
    create(&client, "unlabelled").await;
    let label = |value: &str| Patch::Merge(json!({"metadata": {"labels": {"on": value}}}));
    maps(&client).patch("a", &PatchParams::default(), &label("no")).await.unwrap();
    assert_eq!(next(&mut events).await, "-a");
    maps(&client).patch("a", &PatchParams::default(), &label("yes")).await.unwrap();
    assert_eq!(next(&mut events).await, "~a");
}

#[tokio::test(start_paused = true)]
async fn a_deletion_carries_the_last_state_under_a_new_version() {
    let (server, client) = lab();
    create(&client, "a").await;
    let before = server.revision().to_string();
    delete(&client, "a").await;
    let stream = maps(&client).watch(&WatchParams::default().timeout(5), &before).await.unwrap();
    let events: Vec<WatchEvent<ConfigMap>> = stream.try_collect().await.unwrap();
    let WatchEvent::Deleted(last) = &events[0] else { panic!("{events:?}") };
    assert_eq!(last.data.as_ref().unwrap()["k"], "0");
    assert_eq!(last.resource_version(), Some(server.revision().to_string()));
}

#[tokio::test(start_paused = true)]
async fn a_frozen_watch_is_late_and_then_complete() {
    let (server, client) = lab();
    let session = server.session("operator");
    let late = session.client("lab");
    create(&client, "a").await;
    let mut events = watched(&late, watcher::Config::default());
    assert_eq!(take(&mut events, 3).await, ["init", "+a", "done"]);
    session.freeze("configmaps", server.revision());
    change(&client, "a", "1").await;
    delete(&client, "a").await;
    silent(&mut events).await;
    assert!(maps(&late).get_opt("a").await.unwrap().is_none(), "a read of one object is never stale");
    session.thaw("configmaps");
    assert_eq!(take(&mut events, 2).await, ["~a", "-a"]);
}

#[tokio::test(start_paused = true)]
async fn a_restart_may_begin_with_an_older_state() {
    let (server, client) = lab();
    create(&client, "a").await;
    let then = server.revision();
    delete(&client, "a").await;
    create(&client, "b").await;
    let session = server.session("operator");
    session.freeze("", then);
    let stale = session.client("lab");
    // With pages, kube asks for the newest state even so.
    let any = watcher::Config { page_size: None, ..watcher::Config::default().any_semantic() };
    let mut events = watched(&stale, any);
    assert_eq!(take(&mut events, 3).await, ["init", "+a", "done"]);
    silent(&mut events).await;
    let mut fresh = watched(&stale, watcher::Config::default());
    assert_eq!(take(&mut fresh, 3).await, ["init", "+b", "done"], "who asks for the newest state gets it");
    let lied = server.session("operator");
    lied.freeze_all_lists("configmaps", then);
    let mut fooled = watched(&lied.client("lab"), watcher::Config::default());
    assert_eq!(take(&mut fooled, 3).await, ["init", "+a", "done"]);
    session.thaw("");
    assert_eq!(take(&mut events, 2).await, ["-a", "~b"]);
}

#[tokio::test(start_paused = true)]
async fn expired_watches_make_one_of_many_changes() {
    let (server, client) = lab();
    let session = server.session("operator");
    create(&client, "a").await;
    let mut events = watched(&session.client("lab"), watcher::Config::default());
    assert_eq!(take(&mut events, 3).await, ["init", "+a", "done"]);
    session.freeze("configmaps", server.revision());
    change(&client, "a", "1").await;
    create(&client, "short-lived").await;
    delete(&client, "short-lived").await;
    session.expire_watches("configmaps");
    assert_eq!(next(&mut events).await, "!410");
    session.thaw("configmaps");
    assert_eq!(take(&mut events, 3).await, ["init", "+a", "done"]);
    silent(&mut events).await;
}

#[tokio::test(start_paused = true)]
async fn lost_events_never_come_and_cut_watches_lose_none() {
    let (server, client) = lab();
    let session = server.session("operator");
    create(&client, "a").await;
    let mut events = watched(&session.client("lab"), watcher::Config::default());
    assert_eq!(take(&mut events, 3).await, ["init", "+a", "done"]);
    session.lose(Lose { resource: "configmaps".into(), name: "a".into(), type_: "DELETED".into(), count: 1 });
    delete(&client, "a").await;
    session.cut_watches("configmaps");
    create(&client, "b").await;
    // The watch was cut before it looked: what it goes on from still holds the deletion, which is lost then.
    assert_eq!(next(&mut events).await, "~b");
    assert_eq!(session.lost(), 1);
    silent(&mut events).await;
}

#[tokio::test(start_paused = true)]
async fn initial_events_need_their_matching_rule() {
    let (_, client) = lab();
    let request = http::Request::get("/api/v1/namespaces/lab/configmaps?watch=true&sendInitialEvents=true")
        .body(Vec::new())
        .unwrap();
    let refused = refusal(client.request::<serde_json::Value>(request).await);
    assert_eq!((refused.code, refused.reason.as_str()), (422, "Invalid"));
}

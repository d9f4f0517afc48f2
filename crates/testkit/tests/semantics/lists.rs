use crate::{lab, map, maps, of, refusal};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, PostParams, VersionMatch},
};
use serde_json::json;

async fn fill(client: &Client, names: &[&str]) {
    for name in names {
        maps(client).create(&PostParams::default(), &map(name, json!({}))).await.unwrap();
    }
}

fn names(list: &kube::core::ObjectList<ConfigMap>) -> Vec<String> {
    list.iter().map(ResourceExt::name_any).collect()
}

#[tokio::test(start_paused = true)]
async fn a_list_is_sorted_carries_the_revision_and_stays_in_its_namespace() {
    let (server, client) = lab();
    server.namespace("other");
    fill(&client, &["b", "a"]).await;
    let other: Api<ConfigMap> = Api::namespaced(client.clone(), "other");
    other.create(&PostParams::default(), &map("c", json!({}))).await.unwrap();
    let list = maps(&client).list(&ListParams::default()).await.unwrap();
    assert_eq!(names(&list), ["a", "b"]);
    assert_eq!(list.metadata.resource_version, Some(server.revision().to_string()));
    let all: Api<ConfigMap> = Api::all(client);
    assert_eq!(names(&all.list(&ListParams::default()).await.unwrap()), ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn pages_show_the_state_of_the_first_one() {
    let (_, client) = lab();
    fill(&client, &["a", "b", "c"]).await;
    let api = maps(&client);
    let first = api.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first.metadata.remaining_item_count, Some(1));
    api.delete("c", &Default::default()).await.unwrap();
    fill(&client, &["d"]).await;
    let token = first.metadata.continue_.unwrap();
    let second = api.list(&ListParams::default().limit(2).continue_token(&token)).await.unwrap();
    assert_eq!(names(&second), ["c"]);
    assert_eq!(second.metadata.resource_version, first.metadata.resource_version);
    assert_eq!(second.metadata.continue_.unwrap_or_default(), "");
}

#[tokio::test(start_paused = true)]
async fn a_page_of_forgotten_history_is_gone() {
    let (server, client) = lab();
    fill(&client, &["a", "b"]).await;
    let api = maps(&client);
    let token = api.list(&ListParams::default().limit(1)).await.unwrap().metadata.continue_.unwrap();
    fill(&client, &["c"]).await;
    server.compact();
    let gone = refusal(api.list(&ListParams::default().limit(1).continue_token(&token)).await);
    assert_eq!((gone.code, gone.reason.as_str()), (410, "Expired"));
}

#[tokio::test(start_paused = true)]
async fn an_exact_revision_is_served_while_it_is_known() {
    let (server, client) = lab();
    fill(&client, &["a"]).await;
    let then = server.revision().to_string();
    fill(&client, &["b"]).await;
    let api = maps(&client);
    let exact = ListParams::default().at(&then).matching(VersionMatch::Exact);
    assert_eq!(names(&api.list(&exact).await.unwrap()), ["a"]);
    let at_least = ListParams::default().at(&then).matching(VersionMatch::NotOlderThan);
    assert_eq!(names(&api.list(&at_least).await.unwrap()), ["a", "b"]);
    let future = ListParams::default().at("999").matching(VersionMatch::NotOlderThan);
    let early = refusal(api.list(&future).await);
    assert_eq!((early.code, early.reason.as_str()), (504, "Timeout"));
    server.compact();
    assert_eq!(refusal(api.list(&exact).await).code, 410);
}

#[tokio::test(start_paused = true)]
async fn selectors_narrow_and_unknown_fields_are_refused() {
    let (_, client) = lab();
    let pods: Api<Pod> = Api::namespaced(client, "lab");
    for (name, tier) in [("p", "web"), ("q", "db")] {
        let pod: Pod = of(json!({"metadata": {"name": name, "labels": {"tier": tier}},
            "spec": {"containers": [{"name": "c", "image": "i:1"}]}}));
        pods.create(&PostParams::default(), &pod).await.unwrap();
    }
    let found = |params: ListParams| {
        let pods = pods.clone();
        async move { pods.list(&params).await.unwrap().iter().map(ResourceExt::name_any).collect::<Vec<_>>() }
    };
    assert_eq!(found(ListParams::default().labels("tier in (db,cache)")).await, ["q"]);
    assert_eq!(found(ListParams::default().fields("metadata.name=p,status.phase=Pending")).await, ["p"]);
    let refused = refusal(pods.list(&ListParams::default().fields("spec.image=i")).await);
    assert_eq!((refused.code, refused.reason.as_str()), (400, "BadRequest"));
    assert!(refused.message.ends_with("field label not supported: spec.image"), "{}", refused.message);
}

#[tokio::test(start_paused = true)]
async fn metadata_alone_can_be_asked_for() {
    let (_, client) = lab();
    maps(&client).create(&PostParams::default(), &map("a", json!({"k": "v"}))).await.unwrap();
    let list = maps(&client).list_metadata(&ListParams::default()).await.unwrap();
    assert_eq!(list.items[0].name_any(), "a");
    let one = maps(&client).get_metadata("a").await.unwrap();
    assert_eq!(one.types.unwrap().kind, "PartialObjectMetadata");
}

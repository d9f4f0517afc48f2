//! The writes about volumes, against an API server that is scripted.

use super::*;
use crate::plan::{fixtures::claim, volumes::Named};
use std::{
    io::{Read, Write as _},
    net::TcpListener,
    sync::{Arc, Mutex},
};

type Calls = Arc<Mutex<Vec<String>>>;

/// Answers each request with what `answer` says to its method and path; the calls are noted.
fn api_server(answer: impl Fn(&str, &str) -> (u16, Value) + Send + 'static) -> (Client, Calls) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let calls = Calls::default();
    let noted = Arc::clone(&calls);
    // Ends with the test's process.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (mut text, mut buffer) = (String::new(), [0_u8; 65536]);
            let whole = |text: &str| {
                let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
                let length = head
                    .lines()
                    .find_map(|l| l.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
                body.len() >= length.unwrap_or(0)
            };
            while !whole(&text) {
                let read = stream.read(&mut buffer).unwrap();
                text.push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            let mut line = head.split(' ');
            let (method, path) = (line.next().unwrap(), line.next().unwrap());
            let name = path.split('?').next().unwrap().rsplit('/').next().unwrap();
            noted.lock().unwrap().push(format!("{method} {name} {body}").trim().to_string());
            let (code, value) = answer(method, name);
            let value = value.to_string();
            let reply = format!(
                "HTTP/1.1 {code} -\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{value}",
                value.len()
            );
            stream.write_all(reply.as_bytes()).unwrap();
        }
    });
    let config = kube::Config::new(format!("http://{address}").parse().unwrap());
    (Client::try_from(config).unwrap(), calls)
}

fn writer(client: &Client) -> Writer<'_> {
    Writer { client, database: "orders".into(), namespace: "shop".into(), uid: "uid-orders".into() }
}

fn refusal(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
        "message": message});
    (code, status)
}

fn clone_in(phase: &str, volume: &str) -> PersistentVolumeClaim {
    let mut one = (*claim("d1", 2, "current")).clone();
    one.metadata.resource_version = Some("41".into());
    one.metadata.annotations = Some([(clones::ANNOTATION_CLONED_FROM.into(), "d1-orders-1".into())].into());
    one.spec.as_mut().unwrap().volume_name = Some(volume.into());
    one.status.as_mut().unwrap().phase = Some(phase.into());
    one
}

fn doomed() -> GivenUp {
    GivenUp {
        claim: Named { name: "d1-orders-2".into(), uid: "uid-d1-orders-2".into() },
        pod: Named { name: "orders-2".into(), uid: "pod-2".into() },
        why: "no clone".into(),
    }
}

#[tokio::test]
async fn a_refused_growth_is_no_failure_and_other_trouble_is() {
    let patch = || ClaimPatch {
        name: "d1-orders-0".into(),
        uid: "u0".into(),
        system_identifier: None,
        size: Some(k8s_openapi::apimachinery::pkg::api::resource::Quantity("2Gi".into())),
    };
    let now = crate::plan::fixtures::now();
    let (client, calls) = api_server(|_, _| refusal(403, "Forbidden", "the class must support resize"));
    let refused = writer(&client).claim(patch(), now).await.unwrap().unwrap();
    assert_eq!((refused.words.as_str(), refused.size.0.as_str()), ("the class must support resize", "2Gi"));
    let call = calls.lock().unwrap()[0].clone();
    assert!(call.starts_with("PATCH d1-orders-0") && call.contains("\"uid\":\"u0\""), "{call}");
    let (client, _) = api_server(|_, _| refusal(422, "Invalid", "less than status.capacity"));
    assert!(writer(&client).claim(patch(), now).await.unwrap().is_some());
    let (client, _) = api_server(|_, _| refusal(500, "InternalError", "etcd is away"));
    assert!(writer(&client).claim(patch(), now).await.is_err(), "it is tried again");
    let (client, _) = api_server(|_, _| refusal(404, "NotFound", "gone"));
    assert_eq!(writer(&client).claim(patch(), now).await.unwrap(), None);
}

#[tokio::test]
async fn a_clone_that_is_there_or_is_refused_does_not_keep_the_replica_away() {
    let make = |answer: fn(&str, &str) -> (u16, Value)| async move {
        let (client, _) = api_server(answer);
        writer(&client).clone_claim(clone_in("Pending", "")).await
    };
    let made = make(|_, _| (201, serde_json::to_value(clone_in("Pending", "")).unwrap())).await;
    assert!(matches!(made, Ok(Some(CloneNews::Begun(_)))), "{made:?}");
    let there = make(|_, _| refusal(409, "AlreadyExists", "exists")).await;
    assert!(matches!(there, Ok(None)), "{there:?}");
    let refused = make(|_, _| refusal(403, "Forbidden", "exceeded quota")).await;
    let Ok(Some(CloneNews::Failed(note))) = refused else { panic!("{refused:?}") };
    assert!(note.contains("exceeded quota"), "{note}");
    assert!(make(|_, _| refusal(500, "InternalError", "etcd is away")).await.is_err(), "before it is scaled");
}

#[tokio::test]
async fn a_claim_that_has_or_had_a_volume_is_never_deleted() {
    let other = || {
        let mut other = clone_in("Pending", "");
        other.metadata.uid = Some("another".into());
        other
    };
    let plain = || {
        let mut plain = clone_in("Pending", "");
        plain.metadata.annotations = None;
        plain
    };
    for there in
        [clone_in("Bound", "pvc-1"), clone_in("Pending", "pvc-1"), clone_in("Lost", ""), other(), plain()]
    {
        let (client, calls) = api_server(move |_, _| (200, serde_json::to_value(&there).unwrap()));
        assert_eq!(writer(&client).give_up(doomed()).await.unwrap(), None);
        assert_eq!(calls.lock().unwrap().as_slice(), ["GET d1-orders-2"]);
    }
    // Bound between the look and the deletion: the pod stays as well.
    let (client, calls) = api_server(|method, _| match method {
        "GET" => (200, serde_json::to_value(clone_in("Pending", "")).unwrap()),
        _ => refusal(409, "Conflict", "the object has been modified"),
    });
    assert_eq!(writer(&client).give_up(doomed()).await.unwrap(), None);
    assert_eq!(calls.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_clone_that_is_given_up_goes_with_its_pod() {
    let (client, calls) = api_server(|method, name| match (method, name) {
        ("GET", _) | ("DELETE", "d1-orders-2") => {
            (200, serde_json::to_value(clone_in("Pending", "")).unwrap())
        }
        _ => (200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})),
    });
    let news = writer(&client).give_up(doomed()).await.unwrap();
    assert_eq!(news, Some(CloneNews::Failed("no clone".into())));
    let calls = calls.lock().unwrap().clone();
    assert!(
        calls[1].starts_with("DELETE d1-orders-2")
            && calls[1].contains("\"resourceVersion\":\"41\"")
            && calls[1].contains("\"uid\":\"uid-d1-orders-2\""),
        "only as it was read: {}",
        calls[1]
    );
    assert!(calls[2].starts_with("DELETE orders-2") && calls[2].contains("pod-2"), "{}", calls[2]);
}

#[tokio::test]
async fn a_full_volume_does_not_wait_for_a_service_that_is_refused() {
    use crate::plan::{fixtures, plan};
    let mut seen = fixtures::observed("");
    seen.claims = vec![claim("d1", 0, "current"), claim("d1", 1, "current")];
    Arc::make_mut(&mut seen.database).spec.storage.size.0 = "2Gi".into();
    let db = crate::validate::validate(&seen.database, &fixtures::settings()).unwrap();
    let plan = plan(&seen, Ok(&db), &fixtures::settings(), fixtures::now());
    assert_eq!(plan.claims.len(), 2);
    let (client, calls) = api_server(|method, name| match (method, name) {
        ("PATCH", "d1-orders-0") => refusal(500, "InternalError", "etcd is away"),
        ("PATCH", "d1-orders-1") => (200, serde_json::to_value(&*claim("d1", 1, "current")).unwrap()),
        _ => refusal(403, "Forbidden", "exceeded quota: services"),
    });
    let error = apply(&client, &seen.database, Some(&db), plan, fixtures::now()).await.unwrap_err();
    assert!(error.problem().is_some_and(|p| p.message.contains("exceeded quota")), "{error}");
    let grew = |name: &str| {
        let patch = format!("PATCH {name} ");
        calls.lock().unwrap().iter().any(|call| call.starts_with(&patch) && call.contains("2Gi"))
    };
    assert!(grew("d1-orders-0") && grew("d1-orders-1"), "{calls:?}");
}

fn with_finalizers(finalizers: &[&str]) -> Value {
    let mut database = serde_json::to_value(crate::plan::fixtures::database("")).unwrap();
    database["metadata"]["finalizers"] = json!(finalizers);
    database
}

#[tokio::test]
async fn our_finalizer_goes_whoever_put_it_there() {
    // Applied by us: the answer shows it gone.
    let (client, calls) = api_server(|_, _| (200, with_finalizers(&["example.org/keep"])));
    writer(&client).finalizers(&[]).await.unwrap();
    assert_eq!(calls.lock().unwrap().len(), 1);
    // Added by hand: it is not ours to drop by an apply.
    let (client, calls) = api_server(|_, _| (200, with_finalizers(&["example.org/keep", names::FINALIZER])));
    writer(&client).finalizers(&[]).await.unwrap();
    let calls = calls.lock().unwrap();
    assert_eq!(calls.len(), 2, "{calls:?}");
    assert!(calls[1].contains("\"finalizers\":[\"example.org/keep\"]"), "{calls:?}");
    assert!(calls[1].contains("\"resourceVersion\":\"7\""), "{calls:?}");
}

#[tokio::test]
async fn a_child_that_lost_its_labels_is_ours_by_its_owner() {
    use k8s_openapi::api::core::v1::Service;
    let service = |owner: &str, labels: Value| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "orders-ro", "namespace": "shop", "labels": labels,
            "ownerReferences": [{"apiVersion": "holdfast.dev/v1alpha1", "kind": "Database", "name": "orders", "uid": owner,
                "controller": true}]}})
    };
    let wanted = || -> Service {
        serde_json::from_value(service("uid-orders", json!({"holdfast.dev/database": "orders"}))).unwrap()
    };
    let (client, calls) = api_server(move |_, _| (200, service("uid-orders", json!({}))));
    writer(&client).child(Write::Create(wanted())).await.unwrap();
    let written = calls.lock().unwrap()[1].clone();
    assert!(written.starts_with("PATCH orders-ro") && written.contains("holdfast.dev/database"), "{written}");
    for foreign in
        [service("another", json!({})), json!({"metadata": {"name": "orders-ro", "namespace": "shop"}})]
    {
        let (client, calls) = api_server(move |_, _| (200, foreign.clone()));
        let taken = writer(&client).child(Write::Create(wanted())).await;
        assert!(matches!(taken, Err(ApplyError::NameTaken { .. })), "{taken:?}");
        assert_eq!(calls.lock().unwrap().len(), 1, "nothing is written over it");
    }
}

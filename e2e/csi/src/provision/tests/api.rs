//! An API server in memory: enough of it for reconciles and, over HTTP, for watches. Objects by path; every request is remembered.

use kube::{Client, Config, client::Body};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tonic::codegen::http::{Request, Response};

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    requests: Vec<String>,
    version: u64,
    /// Every change so far: the event's type, the path, the object.
    changes: Vec<(&'static str, String, Value)>,
}

/// Shared by the tests and the client.
#[derive(Clone)]
pub struct Server {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<usize>,
}

fn refusal(code: u16, reason: &str) -> (u16, Value) {
    let message = reason.to_lowercase();
    (
        code,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message,
        "reason": reason, "code": code}),
    )
}

/// JSON merge patch (RFC 7396).
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().unwrap();
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

fn held(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty())
}

/// Whether an object's path is in a collection, also in that of all namespaces.
fn within(path: &str, collection: &str) -> bool {
    path.rsplit('/').nth(1) == collection.rsplit('/').next()
}

impl State {
    fn set(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let before = self.objects.insert(path.into(), object.clone());
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.changes.push((kind, path.into(), object.clone()));
        object
    }

    fn remove(&mut self, path: &str) {
        if let Some(object) = self.objects.remove(path) {
            self.changes.push(("DELETED", path.into(), object));
        }
    }

    fn list(&self, collection: &str) -> Value {
        let items = self.objects.iter().filter(|(path, _)| within(path, collection));
        let items: Vec<_> = items.map(|(_, object)| object.clone()).collect();
        json!({"kind": "List", "apiVersion": "v1", "items": items,
            "metadata": {"resourceVersion": self.changes.len().to_string()}})
    }

    fn answer(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let there = self.objects.get(path).cloned();
        let metadata = &body["metadata"];
        let wrong = |field: &str, asked: &Value| {
            let has = there.as_ref().map(|object| &object["metadata"][field]);
            !asked.is_null() && has.is_some_and(|has| has != asked)
        };
        match (method, &there) {
            ("POST", _) => {
                let path = format!("{path}/{}", metadata["name"].as_str().unwrap());
                if self.objects.contains_key(&path) {
                    return refusal(409, "AlreadyExists");
                }
                let mut object = body.clone();
                object["metadata"]["uid"] = json!(format!("uid-{}", self.version));
                (201, self.set(&path, object))
            }
            (_, None) => refusal(404, "NotFound"),
            ("GET", Some(object)) => (200, object.clone()),
            ("PATCH", Some(object)) => {
                if wrong("uid", &metadata["uid"]) || wrong("resourceVersion", &metadata["resourceVersion"]) {
                    return refusal(409, "Conflict");
                }
                let mut object = object.clone();
                merge(&mut object, body);
                let object = self.set(path, object);
                if !object["metadata"]["deletionTimestamp"].is_null() && !held(&object) {
                    self.remove(path);
                }
                (200, object)
            }
            ("DELETE", Some(object)) => {
                if wrong("uid", &body["preconditions"]["uid"]) {
                    return refusal(409, "Conflict");
                }
                if held(object) {
                    let mut object = object.clone();
                    object["metadata"]["deletionTimestamp"] = json!("2026-11-21T10:00:00Z");
                    return (200, self.set(path, object));
                }
                self.remove(path);
                (200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
            }
            (other, _) => panic!("method {other}"),
        }
    }
}

impl Server {
    /// An empty one.
    pub fn new() -> Self {
        Self { state: Arc::default(), changed: watch::Sender::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn handle(&self, method: &str, path: &str, body: &[u8]) -> (u16, Value) {
        let body = serde_json::from_slice(body).unwrap_or(Value::Null);
        let mut state = self.state();
        state.requests.push(format!("{method} {path}"));
        let answer = state.answer(method, path, &body);
        self.changed.send_replace(state.changes.len());
        answer
    }

    /// A client of it, without a network. It cannot list or watch.
    pub fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let (head, body) = request.into_parts();
                let bytes = body.collect_bytes().await?;
                let (code, answer) = server.handle(head.method.as_str(), head.uri.path(), &bytes);
                let answer = Body::from(serde_json::to_vec(&answer).unwrap());
                Ok::<_, kube::Error>(Response::builder().status(code).body(answer).unwrap())
            }
        });
        Client::new(service, "default")
    }

    /// A client over HTTP, which can list and watch.
    pub async fn connected(&self) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let server = self.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let server = server.clone();
                // A client that goes away ends its connection; that is all.
                tokio::spawn(async move { server.serve(connection).await.ok() });
            }
        });
        Client::try_from(Config::new(address.parse().unwrap())).unwrap()
    }

    /// One request a connection.
    async fn serve(&self, connection: TcpStream) -> std::io::Result<()> {
        let mut connection = BufReader::new(connection);
        let (mut first, mut length) = (String::new(), 0);
        connection.read_line(&mut first).await?;
        loop {
            let mut line = String::new();
            connection.read_line(&mut line).await?;
            let line = line.trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        connection.read_exact(&mut body).await?;
        let mut words = first.split_whitespace();
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let collection = !query.is_empty() && method == "GET";
        let parameter = |name: &str| {
            let mut all = query.split('&').filter_map(|pair| pair.split_once('='));
            all.find(|(key, _)| *key == name).map(|(_, value)| value.to_string())
        };
        if collection && parameter("watch").is_some() {
            let from = parameter("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
            return self.watch(&mut connection, path, from).await;
        }
        let (code, answer) =
            if collection { (200, self.state().list(path)) } else { self.handle(method, path, &body) };
        let answer = answer.to_string();
        let head = format!(
            "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        connection.write_all((head + &answer).as_bytes()).await
    }

    async fn watch(
        &self,
        connection: &mut BufReader<TcpStream>,
        path: &str,
        mut from: usize,
    ) -> std::io::Result<()> {
        let head = "HTTP/1.1 200 X\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";
        connection.write_all(head.as_bytes()).await?;
        let mut changed = self.changed.subscribe();
        loop {
            let news = self.state().changes[from..].to_vec();
            from += news.len();
            for (kind, at, object) in news {
                if within(&at, path) {
                    let line = json!({"type": kind, "object": object}).to_string() + "\n";
                    connection.write_all(line.as_bytes()).await?;
                }
            }
            if changed.wait_for(|count| *count > from).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Puts an object there, under the version that it names or a new one.
    pub fn put(&self, path: &str, object: Value) {
        let mut state = self.state();
        let named = object["metadata"]["resourceVersion"].clone();
        state.set(path, object);
        if !named.is_null()
            && let Some(object) = state.objects.get_mut(path)
        {
            object["metadata"]["resourceVersion"] = named;
        }
        self.changed.send_replace(state.changes.len());
    }

    /// The object there.
    pub fn get(&self, path: &str) -> Option<Value> {
        self.state().objects.get(path).cloned()
    }

    /// Waits until there has been a change and this holds, at most 5 s.
    pub async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            while !holds(self) {
                changed.changed().await.unwrap();
            }
        };
        let waited = tokio::time::timeout(std::time::Duration::from_secs(5), waiting).await;
        assert!(waited.is_ok(), "{what}: {:#?}", self.state().requests);
    }

    /// Objects whose path begins so.
    pub fn under(&self, path: &str) -> Vec<Value> {
        let state = self.state();
        state
            .objects
            .iter()
            .filter(|(at, _)| at.starts_with(path))
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Requests so far that begin so: method and path.
    pub fn requests(&self, begin: &str) -> usize {
        self.state().requests.iter().filter(|request| request.starts_with(begin)).count()
    }
}

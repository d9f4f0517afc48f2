//! Watches that run beside a sequence.

use super::{
    kinds::{self, Kind},
    masks::Names,
    side::Side,
};
use anyhow::{Context, Result, ensure};
use futures::AsyncBufReadExt;
use kube::Client;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

/// How long is waited for what must come.
const LIMIT: Duration = Duration::from_secs(30);

/// The object by which a watch shows that it has shown everything.
pub const LAST: &str = "zzz-last";

/// Looks often, for what comes within milliseconds. Errors: it does not come, or a look fails.
pub async fn soon<F, Fut>(what: &str, mut look: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<bool>>,
{
    let start = Instant::now();
    let mut pause = Duration::from_millis(2);
    while !look().await? {
        ensure!(start.elapsed() < LIMIT, "{what}: not within {} s", LIMIT.as_secs());
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
    Ok(())
}

/// A running watch of a kind.
pub struct Watching {
    /// The kind.
    pub kind: usize,
    /// What it selects; empty: all.
    pub selector: &'static str,
    events: Arc<Mutex<Vec<Value>>>,
    task: JoinHandle<()>,
}

fn locked(events: &Mutex<Vec<Value>>) -> MutexGuard<'_, Vec<Value>> {
    events.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens a watch of a kind that begins with what comes next. Errors: it cannot be opened.
pub async fn open(side: &Side, index: usize, selector: &'static str) -> Result<Watching> {
    let kind = kinds::all().get(index).context("no such kind")?;
    let client = side.client().context("no client")?.clone();
    let path = kind.path(&side.namespace);
    let list: Value = client.request(http::Request::get(format!("{path}?limit=1")).body(Vec::new())?).await?;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap_or("1").to_string();
    let selected = if selector.is_empty() { String::new() } else { format!("&labelSelector={selector}") };
    let path = format!("{path}?watch=true&timeoutSeconds=600&resourceVersion={version}{selected}");
    let events = Arc::new(Mutex::new(Vec::new()));
    let stream = client.request_stream(http::Request::get(path).body(Vec::new())?).await?;
    let into = Arc::clone(&events);
    let task = tokio::spawn(async move {
        let mut stream = std::pin::pin!(stream);
        let mut line = String::new();
        while matches!(stream.read_line(&mut line).await, Ok(1..)) {
            if let Ok(event) = serde_json::from_str::<Value>(&line) {
                locked(&into).push(event);
            }
            line.clear();
        }
    });
    Ok(Watching { kind: index, selector, events, task })
}

/// Makes the object that ends a watch of its kind.
pub async fn end(client: &Client, kind: &Kind, namespace: &str) -> Result<()> {
    let mut body = kind.samples.first().cloned().unwrap_or_default();
    body["metadata"] = json!({"name": LAST, "labels": {"tier": "a"}});
    body["apiVersion"] = kind.api_version().into();
    body["kind"] = kind.kind.into();
    super::ground::with_namespace(&mut body, namespace);
    let request =
        http::Request::post(kind.path(namespace)).header(http::header::CONTENT_TYPE, super::steps::JSON);
    let _: Value = client
        .request(request.body(serde_json::to_vec(&body)?)?)
        .await
        .with_context(|| format!("{} {LAST}", kind.kind))?;
    Ok(())
}

impl Watching {
    /// All events by the name of their object, once the last has come.
    ///
    /// Errors: it does not come.
    pub async fn events(&self, names: &Names) -> Result<BTreeMap<String, Vec<Value>>> {
        let kind = kinds::all()[self.kind].kind;
        let name =
            |event: &Value| event["object"]["metadata"]["name"].as_str().unwrap_or_default().to_string();
        soon(&format!("the last event of {kind}"), || async {
            Ok(locked(&self.events).iter().any(|event| name(event) == LAST))
        })
        .await?;
        let mut by_name: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for event in locked(&self.events).iter() {
            let object = names.object(&event["object"]);
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_string();
            if name != LAST && !(kind == "ServiceAccount" && name == "default") {
                by_name.entry(name).or_default().push(json!({"type": event["type"], "object": object}));
            }
        }
        Ok(by_name)
    }
}

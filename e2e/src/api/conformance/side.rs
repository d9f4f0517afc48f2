//! One of the two servers: sends requests, and remembers what it answered.

use super::{
    USERS,
    kinds::{self, Kind},
    steps::{Base, JSON, Step},
};
use anyhow::{Context, Result};
use http::Request;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};

/// Deadline of one request.
const DEADLINE: Duration = Duration::from_secs(20);
/// How often an answer that says "not now" is asked for again.
const TRIES: u32 = 6;

/// What a server said.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// HTTP status code.
    pub code: u16,
    /// The body; a text that is no JSON as a string.
    pub body: Value,
}

/// A server, a namespace of it, and what was seen there.
pub struct Side {
    clients: Vec<Client>,
    /// The namespace; the same name on both servers.
    pub namespace: String,
    /// An address that a Service may ask for, and nobody else does.
    pub address: String,
    /// Objects as they appeared in answers, by kind and name, oldest first.
    seen: BTreeMap<(String, String), Vec<Value>>,
    /// The token of the last list of a kind.
    tokens: BTreeMap<String, String>,
}

impl Side {
    /// A server through one client for each of the users.
    pub fn new(clients: Vec<Client>, namespace: &str, address: &str) -> Self {
        Self {
            clients,
            namespace: namespace.into(),
            address: address.into(),
            seen: BTreeMap::new(),
            tokens: BTreeMap::new(),
        }
    }

    /// The client of the first user.
    pub fn client(&self) -> Option<&Client> {
        self.clients.first()
    }

    /// Carries out a step: one answer, or two where the object is read first. Errors: no answer.
    pub async fn carry_out(&mut self, step: &Step) -> Result<Vec<Answer>> {
        let kind = kinds::all().get(step.kind).context("no such kind")?;
        let mut answers = Vec::new();
        let mut body = self.resolved(&step.body);
        if step.base != Base::Nothing {
            if step.base == Base::Fresh {
                let read = Step::new(step.user, "GET", step.kind, &step.name);
                let answer = self.send(&read, kind, &Value::Null).await?;
                answers.push(answer);
            }
            let key = (kind.kind.to_string(), step.name.clone());
            let last = self.seen.get(&key).and_then(|all| all.last());
            let mut object = last.cloned().unwrap_or_else(|| {
                json!({"apiVersion": kind.api_version(), "kind": kind.kind, "metadata": {"name": step.name}})
            });
            merge(&mut object, &body);
            body = object;
        }
        answers.push(self.send(step, kind, &body).await?);
        Ok(answers)
    }

    /// The name that begins like a generated one of the other server; any other name as it is.
    pub fn counterpart(&self, kind: &str, name: &str) -> String {
        let Some((prefix, _)) = name.split_once('-').filter(|(prefix, _)| prefix.starts_with("zz")) else {
            return name.into();
        };
        let alike = |key: &&(String, String)| key.0 == kind && key.1.starts_with(&format!("{prefix}-"));
        self.seen.keys().find(alike).map_or_else(|| name.into(), |(_, name)| name.clone())
    }

    async fn send(&mut self, step: &Step, kind: &Kind, body: &Value) -> Result<Answer> {
        let mut path = kind.path(&self.namespace);
        for part in [step.name.as_str(), step.subresource].into_iter().filter(|p| !p.is_empty()) {
            path = format!("{path}/{part}");
        }
        let mut query = Vec::new();
        for (name, value) in self.query(step, kind) {
            query.push(format!("{name}={}", encoded(&value)));
        }
        if !query.is_empty() {
            path = format!("{path}?{}", query.join("&"));
        }
        let bytes = if body.is_null() { Vec::new() } else { serde_json::to_vec(body)? };
        let client = self.clients.get(step.user).context("no such user")?;
        let mut tries = 0;
        let answer = loop {
            tries += 1;
            let request = Request::builder()
                .method(step.method)
                .uri(&path)
                .header(http::header::CONTENT_TYPE, step.content)
                .header(http::header::ACCEPT, JSON)
                .header(http::header::USER_AGENT, format!("{}/1", USERS[step.user]))
                .body(Body::from(bytes.clone()))?;
            let what = || format!("{} {path}", step.method);
            let ask = async {
                let response = client.send(request).await?;
                let code = response.status().as_u16();
                Ok::<_, kube::Error>((code, response.into_body().collect_bytes().await?))
            };
            let answered = tokio::time::timeout(DEADLINE, ask).await;
            let (code, bytes) =
                answered.with_context(|| format!("{}: no answer", what()))?.with_context(what)?;
            let body = serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into());
            // Under load a server may decline to answer. It is not what is compared; what it says again and again is.
            let not_now = matches!(code, 429 | 500 | 503 | 504);
            if !not_now || tries == TRIES || certain(&body) {
                break Answer { code, body };
            }
            tokio::time::sleep(Duration::from_millis(20 << tries)).await;
        };
        if answer.code < 300 && !step.is_dry() {
            self.remember(kind, &answer.body);
        }
        Ok(answer)
    }

    fn query(&self, step: &Step, kind: &Kind) -> Vec<(String, String)> {
        let mut query: Vec<(String, String)> = step
            .query
            .iter()
            .map(|(name, value)| (name.clone(), self.text(value)))
            .filter(|(_, value)| !value.is_empty())
            .collect();
        // This one is the namespace's own, not the sequence's: pods need it.
        if kind.kind == "ServiceAccount" && step.name.is_empty() && step.method != "POST" {
            let mut selectors = vec!["metadata.name!=default".to_string()];
            selectors.extend(query.iter().find(|(name, _)| name == "fieldSelector").map(|(_, v)| v.clone()));
            query.retain(|(name, _)| name != "fieldSelector");
            query.push(("fieldSelector".into(), selectors.join(",")));
        }
        query
    }

    fn remember(&mut self, kind: &Kind, body: &Value) {
        let items = body["items"].as_array();
        for object in items.into_iter().flatten().chain([body]) {
            let meta = &object["metadata"];
            if let (Some(name), Some(_)) = (meta["name"].as_str(), meta["uid"].as_str()) {
                let mut object = object.clone();
                object["kind"] = kind.kind.into();
                object["apiVersion"] = kind.api_version().into();
                let all = self.seen.entry((kind.kind.into(), name.into())).or_default();
                if all.last() != Some(&object) {
                    all.push(object);
                }
            }
        }
        if items.is_some() {
            let token = body["metadata"]["continue"].as_str().unwrap_or_default();
            self.tokens.insert(kind.kind.into(), token.into());
        }
    }

    fn resolved(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.text(text).into(),
            Value::Array(items) => items.iter().map(|item| self.resolved(item)).collect(),
            Value::Object(fields) => {
                let fields = fields.iter().map(|(name, field)| (name.clone(), self.resolved(field)));
                Value::Object(fields.collect())
            }
            other => other.clone(),
        }
    }

    /// A text, with what it refers to in its place.
    fn text(&self, text: &str) -> String {
        let Some(reference) = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) else {
            return text.into();
        };
        match reference {
            "namespace" => return self.namespace.clone(),
            "address" => return self.address.clone(),
            _ => {}
        }
        let Some((what, of)) = reference.split_once(' ') else { return text.into() };
        if what == "continue" {
            return self.tokens.get(of).cloned().unwrap_or_default();
        }
        let (kind, name) = of.split_once('/').unwrap_or((of, ""));
        let all = self.seen.get(&(kind.into(), name.into())).map_or(&[][..], Vec::as_slice);
        let object = if what.starts_with("first-") { all.first() } else { all.last() };
        let field = |name: &str| object.and_then(|o| o["metadata"][name].as_str()).map(String::from);
        match what {
            "uid" | "first-uid" => field("uid").unwrap_or_else(|| "not-yet".into()),
            _ => field("resourceVersion").unwrap_or_default(),
        }
    }
}

/// Whether a 500 is the answer to the request, not a sign of trouble: etcd's name is in the others.
fn certain(body: &Value) -> bool {
    let message = body["message"].as_str().unwrap_or_default();
    body["code"] == 500 && !["etcd", "timed out", "timeout", "connect"].iter().any(|w| message.contains(w))
}

fn merge(object: &mut Value, change: &Value) {
    let (Some(fields), Some(changes)) = (object.as_object_mut(), change.as_object()) else {
        *object = change.clone();
        return;
    };
    for (name, value) in changes {
        if value.is_null() {
            fields.remove(name);
        } else if value.is_object() && fields.get(name).is_some_and(Value::is_object) {
            merge(&mut fields[name.as_str()], value);
        } else {
            fields.insert(name.clone(), value.clone());
        }
    }
}

fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

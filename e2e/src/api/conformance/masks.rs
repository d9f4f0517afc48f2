//! Makes answers comparable: uids, revisions, times and generated names become what they stand for.

use super::side::Answer;
use regex::Regex;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, sync::OnceLock};

/// What the values that a server makes up stand for: numbered in the order in which they appear. The same on both servers if
/// these behave alike: an object that was not written keeps its number.
#[derive(Default)]
pub struct Names {
    uids: BTreeMap<String, usize>,
    versions: BTreeMap<String, usize>,
}

/// How the addresses begin that are asked for, and so compared.
pub const ASKED: &str = "10.96.0.";

fn times() -> Option<&'static Regex> {
    static TIMES: OnceLock<Option<Regex>> = OnceLock::new();
    TIMES.get_or_init(|| Regex::new(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z").ok()).as_ref()
}

/// Names that are generated: each prefix is used once in a sequence.
fn generated() -> Option<&'static Regex> {
    static GENERATED: OnceLock<Option<Regex>> = OnceLock::new();
    GENERATED.get_or_init(|| Regex::new(r"(zz\d+_?-)[bcdfghjklmnpqrstvwxz2456789]{5}").ok()).as_ref()
}

fn numbers() -> Option<&'static Regex> {
    static NUMBERS: OnceLock<Option<Regex>> = OnceLock::new();
    NUMBERS.get_or_init(|| Regex::new(r"\d+").ok()).as_ref()
}

impl Names {
    /// Takes in what an answer shows.
    pub fn learn(&mut self, body: &Value) {
        for object in body["items"].as_array().into_iter().flatten() {
            self.learn_one(object);
        }
        self.learn_one(body);
    }

    fn learn_one(&mut self, object: &Value) {
        let meta = &object["metadata"];
        let Some(uid) = meta["uid"].as_str() else { return };
        let next = self.uids.len();
        self.uids.entry(uid.into()).or_insert(next);
        if let Some(version) = meta["resourceVersion"].as_str() {
            let next = self.versions.len();
            self.versions.entry(version.into()).or_insert(next);
        }
    }

    /// An answer without what differs from server to server.
    pub fn masked(&self, answer: &Answer) -> Answer {
        let mut body = self.value("", &answer.body);
        if answer.code >= 400 {
            refusal(&mut body);
        }
        if body["items"].is_array() {
            if let Some(meta) = body["metadata"].as_object_mut() {
                // The revision of the whole server.
                meta.insert("resourceVersion".into(), json!("<of the list>"));
                meta.entry("continue").and_modify(|token| {
                    if *token != "" {
                        *token = json!("<more>");
                    }
                });
            }
            for item in body["items"].as_array_mut().into_iter().flatten() {
                object(item);
            }
        } else {
            object(&mut body);
        }
        Answer { code: answer.code, body }
    }

    /// An object of a watch event.
    pub fn object(&self, value: &Value) -> Value {
        let mut masked = self.value("", value);
        object(&mut masked);
        masked
    }

    fn value(&self, field: &str, value: &Value) -> Value {
        match value {
            Value::String(text) => self.text(field, text).into(),
            Value::Array(items) => items.iter().map(|item| self.value(field, item)).collect(),
            Value::Object(fields) => {
                fields.iter().map(|(name, v)| (self.text("", name), self.value(name, v))).collect()
            }
            Value::Number(_) if field == "nodePort" => json!("<port>"),
            other => other.clone(),
        }
    }

    fn text(&self, field: &str, text: &str) -> String {
        match field {
            "resourceVersion" => {
                return self
                    .versions
                    .get(text)
                    .map_or_else(|| "<version>".into(), |n| format!("<version {n}>"));
            }
            // Times of the years in which nobody runs this were written by a user.
            "creationTimestamp" | "deletionTimestamp" | "time" if !text.starts_with("2020") => {
                return "<time>".into();
            }
            "clusterIP" | "clusterIPs" if text.starts_with("10.") && !text.starts_with(ASKED) => {
                return "<address>".into();
            }
            _ => {}
        }
        let mut text = text.to_string();
        if text.len() >= 36 {
            for (uid, number) in &self.uids {
                if text.contains(uid) {
                    text = text.replace(uid, &format!("<uid {number}>"));
                }
            }
        }
        if text.contains("zz")
            && let Some(generated) = generated()
        {
            text = generated.replace_all(&text, "$1<generated>").into_owned();
        }
        if field == "message" {
            if let Some(times) = times() {
                text = times.replace_all(&text, "<time>").into_owned();
            }
            if (text.contains("ResourceVersion") || text.contains("resource version"))
                && let Some(numbers) = numbers()
            {
                text = numbers.replace_all(&text, "<number>").into_owned();
            }
        }
        text
    }
}

/// The order of managers follows their times, to the second: two servers may see a second end at different moments.
fn object(object: &mut Value) {
    if let Some(managers) = object.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut) {
        let key = |m: &Value| ["operation", "manager", "subresource", "apiVersion"].map(|f| m[f].to_string());
        managers.sort_by_key(key);
    }
}

/// Several faults come in no particular order.
fn refusal(status: &mut Value) {
    if !status.is_object() {
        return;
    }
    let message = status["message"].as_str().unwrap_or_default().to_string();
    if message.contains(" is invalid: ") {
        // Made of the causes.
    } else if let Some(said) = super::gaps::said(&message) {
        status["message"] = said.into();
    }
    let Some(causes) = status.pointer_mut("/details/causes").and_then(Value::as_array_mut) else { return };
    for cause in causes.iter_mut() {
        let text = |field: &str| cause[field].as_str().unwrap_or_default();
        if let Some(said) = super::gaps::said_of(text("field"), text("message")) {
            cause["message"] = said.into();
        }
    }
    causes.sort_by_key(|cause| cause["field"].to_string() + &cause["message"].to_string());
    // Two of the server's validators may find the same.
    causes.dedup();
    // The message is made of the causes.
    if let Some((head, _)) = status["message"].as_str().and_then(|m| m.split_once(" is invalid: ")) {
        status["message"] = format!("{head} is invalid").into();
    } else if causes_of(status) > 1 {
        status["message"] = "<the causes>".into();
    }
}

fn causes_of(status: &Value) -> usize {
    status.pointer("/details/causes").and_then(Value::as_array).map_or(0, Vec::len)
}

/// Where two values differ: path, the first, the second.
pub fn differences(path: &str, a: &Value, b: &Value) -> Vec<String> {
    match (a, b) {
        _ if a == b => Vec::new(),
        (Value::Object(x), Value::Object(y)) => {
            let mut names: Vec<&String> = x.keys().chain(y.keys()).collect();
            names.sort();
            names.dedup();
            let get = |fields: &Map<String, Value>, name: &String| {
                fields.get(name).cloned().unwrap_or(json!("(absent)"))
            };
            names
                .iter()
                .flat_map(|name| differences(&format!("{path}.{name}"), &get(x, name), &get(y, name)))
                .collect()
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => x
            .iter()
            .zip(y)
            .enumerate()
            .flat_map(|(i, (x, y))| differences(&format!("{path}[{i}]"), x, y))
            .collect(),
        _ => vec![format!("{path}: {a}, not {b}")],
    }
}

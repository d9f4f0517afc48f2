//! What a change is. Pure.

use serde_json::Value;
use std::fmt;

/// The object that is changed or made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Such as `holdfast.dev/v1alpha1`.
    pub api_version: String,
    /// Such as `Database`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

impl Target {
    /// An object of one of the project's kinds.
    pub fn ours(kind: &str, name: &str) -> Self {
        let api_version = format!("{}/{}", holdfast_core::crd::GROUP, holdfast_core::crd::VERSION);
        Self { api_version, kind: kind.into(), name: name.into() }
    }

    /// An object of another kind.
    pub fn of(api_version: &str, kind: &str, name: &str) -> Self {
        Self { api_version: api_version.into(), kind: kind.into(), name: name.into() }
    }
}

/// How what was there before comes back.
#[derive(Clone, Debug, PartialEq)]
pub enum Back {
    /// By this merge patch.
    Patch(Value),
    /// The change made an object: by deleting it.
    Delete,
    /// By itself: an operator keeps it as it was.
    Itself,
}

/// One change that somebody makes.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The kind whose operator is tried.
    pub kind: &'static str,
    /// The field, as `spec.storage.size`. Of changes of another kind's object, that comes first: `StatefulSet metadata.labels`.
    pub path: String,
    /// What is wrong with it, in one word, and the value: `above-maximum 65536`.
    pub label: String,
    /// The object.
    pub target: Target,
    /// A merge patch; with [`Back::Delete`] the whole object.
    pub change: Value,
    /// How to return.
    pub back: Back,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.kind, self.path, self.label)
    }
}

impl Change {
    /// Whether it makes a new object.
    pub fn makes(&self) -> bool {
        self.back == Back::Delete
    }

    /// The texts that it brings, without those that are too short to be told from others.
    pub fn texts(&self) -> Vec<String> {
        let mut texts = self.all_texts();
        texts.retain(|text| text.trim().len() >= 3);
        texts
    }

    /// Every text that it brings.
    pub fn all_texts(&self) -> Vec<String> {
        let mut texts = Vec::new();
        let place = super::path::Path::fields(self.path.rsplit(' ').next().unwrap_or_default());
        let brought =
            if self.makes() { place.get(&self.change).unwrap_or(&Value::Null) } else { &self.change };
        collect(brought, &mut texts);
        texts.sort();
        texts.dedup();
        texts
    }
}

fn collect(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::String(text) => into.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| collect(item, into)),
        Value::Object(fields) => fields.values().for_each(|field| collect(field, into)),
        Value::Number(number) => into.push(number.to_string()),
        _ => {}
    }
}

/// A value for a label: on one line, and short. Texts that differ stay different.
pub fn shown(value: &Value) -> String {
    const MOST: usize = 40;
    let text = match value {
        Value::String(text) => {
            let plain = text.chars().all(|c| c.is_ascii_graphic() && c != '\'' && c != '"');
            if plain && !text.is_empty() { text.clone() } else { format!("{text:?}") }
        }
        other => other.to_string(),
    };
    if text.chars().count() <= MOST {
        return text;
    }
    let start: String = text.chars().take(12).collect();
    format!("{start}…({} characters)", text.chars().count())
}

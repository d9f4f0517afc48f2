//! The whole state as text that is equal for runs that ended alike: uids, revisions and times are masked.

use crate::{rest::meta, server::Server};
use regex::Regex;
use serde_json::{Map, Value, json};

/// What a dump leaves out or rewrites beyond uids, revisions and times.
#[derive(Clone, Debug, Default)]
pub struct Mask {
    /// Resources that are left out, such as `events`.
    pub without: Vec<String>,
    /// Patterns (regular expressions), each with what stands for its matches: names that are made from uids, say.
    pub patterns: Vec<(Regex, String)>,
    /// Whether managedFields are left out.
    pub without_managers: bool,
}

impl Server {
    /// All objects, by kind, namespace and name, one after the other as indented JSON.
    ///
    /// An object's uid becomes `<uid of Kind namespace/name>` wherever it appears, also within other texts; that of an object which is gone
    /// `<former uid of …>`, so that a reference to the wrong one shows.
    pub fn dump(&self, mask: &Mask) -> String {
        let state = self.shared.state();
        let uids: Vec<(String, String)> = state
            .uids
            .iter()
            .map(|(uid, key)| {
                let current = state.store.get(key).is_some_and(|o| meta(o, "uid") == uid);
                let which = if current { "uid" } else { "former uid" };
                let kind = &state.kinds[key.kind].kind;
                (uid.clone(), format!("<{which} of {kind} {}/{}>", key.namespace, key.name))
            })
            .collect();
        // Only a text that has a uid's form can hold one: most texts are looked at once.
        let uid = Regex::new("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}").ok();
        let time = Regex::new(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})").ok();
        let text = |text: &str| -> String {
            let mut text = text.to_string();
            if uid.as_ref().is_some_and(|form| form.is_match(&text)) {
                for (uid, name) in &uids {
                    text = text.replace(uid, name);
                }
            }
            if let Some(time) = &time {
                text = time.replace_all(&text, "<time>").into_owned();
            }
            for (pattern, name) in &mask.patterns {
                text = pattern.replace_all(&text, name.as_str()).into_owned();
            }
            text
        };
        let mut lines = String::new();
        for key in state.store.keys() {
            let kind = &state.kinds[key.kind];
            if mask.without.contains(&kind.qualified()) {
                continue;
            }
            let Some(object) = state.store.get(&key) else { continue };
            let mut object = Value::clone(object);
            object["metadata"]["resourceVersion"] = json!("<revision>");
            if mask.without_managers
                && let Some(fields) = object["metadata"].as_object_mut()
            {
                fields.remove("managedFields");
            }
            let object = masked(object, &text);
            lines.push_str(&format!("{object:#}\n"));
        }
        lines
    }
}

fn masked(value: Value, text: &impl Fn(&str) -> String) -> Value {
    match value {
        Value::String(given) => text(&given).into(),
        Value::Array(items) => items.into_iter().map(|item| masked(item, text)).collect(),
        Value::Object(fields) => {
            let fields: Map<String, Value> =
                fields.into_iter().map(|(name, field)| (text(&name), masked(field, text))).collect();
            Value::Object(fields)
        }
        other => other,
    }
}

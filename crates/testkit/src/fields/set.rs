//! Sets of field paths, in the form of `fieldsV1`. Pure.

use super::topology::{List, Topology};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A set of paths. The elements of paths are written as `fieldsV1` does: `f:name`, `k:{"name":"x"}`, `v:"x"`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Set(pub BTreeMap<String, Node>);

/// One element of a path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Node {
    /// Whether the path that ends here is in the set.
    pub member: bool,
    /// Longer paths.
    pub below: Set,
}

pub(crate) fn field(name: &str) -> String {
    format!("f:{name}")
}

/// The element of a list's item: by its keys, or by itself.
pub(crate) fn item(list: &List, item: &Value) -> String {
    match list {
        List::Map(keys) => {
            let keys: Map<String, Value> = keys
                .iter()
                .filter_map(|(key, default)| {
                    let value = item.get(key).filter(|v| !v.is_null()).or(default.as_ref())?;
                    Some((key.clone(), value.clone()))
                })
                .collect();
            format!("k:{}", Value::Object(keys))
        }
        List::Set | List::Atomic => format!("v:{item}"),
    }
}

impl Set {
    /// All paths of a value that somebody who wrote it owns.
    pub fn of(value: &Value, topology: &Topology<'_>) -> Self {
        let mut set = Self::default();
        match value {
            Value::Object(fields) if !topology.is_atomic() => {
                for (name, value) in fields {
                    let topology = topology.field(name);
                    let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                    let node = Node {
                        member: empty || topology.is_leaf(value) || topology.is_map_entry(),
                        below: if topology.is_leaf(value) {
                            Self::default()
                        } else {
                            Self::of(value, &topology)
                        },
                    };
                    if node != Node::default() {
                        set.0.insert(field(name), node);
                    }
                }
            }
            Value::Array(items) => {
                let list = topology.list();
                for value in items {
                    let topology = topology.item();
                    let below =
                        if topology.is_leaf(value) { Self::default() } else { Self::of(value, &topology) };
                    set.0.insert(item(&list, value), Node { member: true, below });
                }
            }
            _ => {}
        }
        set
    }

    pub fn is_empty(&self) -> bool {
        self.0.values().all(|node| !node.member && node.below.is_empty())
    }

    pub fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        for (element, theirs) in &other.0 {
            let node = all.0.entry(element.clone()).or_default();
            node.member |= theirs.member;
            node.below = node.below.union(&theirs.below);
        }
        all
    }

    fn keep(&self, other: &Self, wanted: fn(bool, bool) -> bool) -> Self {
        let nothing = Node::default();
        let nodes = self.0.iter().filter_map(|(element, ours)| {
            let theirs = other.0.get(element).unwrap_or(&nothing);
            let node = Node {
                member: wanted(ours.member, theirs.member),
                below: ours.below.keep(&theirs.below, wanted),
            };
            (node.member || !node.below.0.is_empty()).then(|| (element.clone(), node))
        });
        Self(nodes.collect())
    }

    pub fn difference(&self, other: &Self) -> Self {
        self.keep(other, |ours, theirs| ours && !theirs)
    }

    pub fn intersection(&self, other: &Self) -> Self {
        self.keep(other, |ours, theirs| ours && theirs)
    }

    /// With every named field that has paths below it as a path of its own: what is removed or kept is whole structures.
    pub fn named(&self, topology: &Topology<'_>) -> Self {
        let nodes = self.0.iter().map(|(element, node)| {
            let (inner, named) = match element.strip_prefix("f:") {
                Some(name) => (topology.field(name), true),
                None => (topology.item(), false),
            };
            let structure = named && !inner.is_map_entry() && !node.below.0.is_empty();
            let node = Node { member: node.member || structure, below: node.below.named(&inner) };
            (element.clone(), node)
        });
        Self(nodes.collect())
    }

    /// Without one path (given as field names) and all below it.
    pub fn without(mut self, path: &[&str]) -> Self {
        if let [last] = path {
            self.0.remove(&field(last));
        } else if let [first, rest @ ..] = path
            && let Some(node) = self.0.get_mut(&field(first))
        {
            node.below = std::mem::take(&mut node.below).without(rest);
            if !node.member && node.below.is_empty() {
                self.0.remove(&field(first));
            }
        }
        self
    }

    /// As `fieldsV1`.
    pub fn encode(&self) -> Value {
        let nodes = self.0.iter().map(|(element, node)| {
            let mut below = node.below.encode();
            if node.member && !node.below.0.is_empty() {
                below["."] = json!({});
            }
            (element.clone(), below)
        });
        Value::Object(nodes.collect())
    }

    /// From `fieldsV1`.
    pub fn decode(fields: &Value) -> Self {
        let nodes = fields.as_object().into_iter().flatten().filter(|(element, _)| *element != ".").map(
            |(element, below)| {
                let leaf = below.as_object().is_none_or(Map::is_empty);
                let member = leaf || below.get(".").is_some();
                (element.clone(), Node { member, below: Self::decode(below) })
            },
        );
        Self(nodes.collect())
    }

    /// The paths as conflicts name them: `.spec.containers[name="x"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect("", &mut paths);
        paths
    }

    fn collect(&self, before: &str, paths: &mut Vec<String>) {
        for (element, node) in &self.0 {
            let step = match element.split_at(2) {
                ("f:", name) => format!(".{name}"),
                ("k:", keys) => {
                    let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                    let pairs: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    format!("[{}]", pairs.join(","))
                }
                (_, value) => format!("[={value}]"),
            };
            let path = format!("{before}{step}");
            node.below.collect(&path, paths);
            if node.member {
                paths.push(path);
            }
        }
    }
}

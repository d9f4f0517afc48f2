//! Merges what a manager applies, compares objects field by field, takes out what nobody wants any more. Pure.
//!
//! The rules are those of structured-merge-diff, version 6: which paths count as added, changed or removed decides who owns what.

use super::{
    set::{Node, Set, field, item},
    topology::{List, Topology},
};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// What differs between two objects.
#[derive(Clone, Debug, Default)]
pub(crate) struct Comparison {
    /// Paths that are new or have another value.
    pub changed: Set,
    /// Paths that are gone.
    pub removed: Set,
}

/// `live` with `config` laid over it. Nothing is taken away.
pub(crate) fn merged(live: &Value, config: &Value, topology: &Topology<'_>) -> Value {
    match (live, config) {
        (Value::Object(live), Value::Object(config)) if !topology.is_atomic() => {
            let mut all = live.clone();
            for (name, value) in config {
                let value = match live.get(name) {
                    Some(there) => merged(there, value, &topology.field(name)),
                    None => value.clone(),
                };
                all.insert(name.clone(), value);
            }
            Value::Object(all)
        }
        (Value::Array(live), Value::Array(config)) if topology.list() != List::Atomic => {
            Value::Array(merged_list(live, config, topology))
        }
        // A null lays nothing over fields that are owned one by one.
        (Value::Object(fields), Value::Null) if !topology.is_atomic() && !fields.is_empty() => live.clone(),
        (Value::Array(items), Value::Null) if topology.list() != List::Atomic && !items.is_empty() => {
            live.clone()
        }
        _ => config.clone(),
    }
}

/// Items of the applied list keep the order that it gives them; others stay where they were, relative to these.
fn merged_list(live: &[Value], config: &[Value], topology: &Topology<'_>) -> Vec<Value> {
    let list = topology.list();
    let mut there: BTreeMap<String, Option<&Value>> = BTreeMap::new();
    let lefts: Vec<String> = live.iter().map(|value| item(&list, value)).collect();
    for (name, value) in lefts.iter().zip(live) {
        // What is there twice is not merged with anything.
        there.entry(name.clone()).and_modify(|v| *v = None).or_insert(Some(value));
    }
    let rights: Vec<String> = config.iter().map(|value| item(&list, value)).collect();
    let wanted = |name: &str| rights.iter().any(|r| r == name);
    let mut shared = rights.iter().filter(|name| there.contains_key(*name));
    let mut next = shared.next();
    let inner = topology.item();
    let merge = |name: &str, value: &Value| match there.get(name).copied().flatten() {
        Some(before) => merged(before, value, &inner),
        None => value.clone(),
    };
    let mut taken: Vec<&str> = Vec::new();
    let mut all = Vec::new();
    let (mut l, mut r) = (0, 0);
    while l < lefts.len() || r < rights.len() {
        if l < lefts.len() && r < rights.len() {
            let name = lefts[l].as_str();
            if name == rights[r] {
                taken.push(name);
                all.push(merge(name, &config[r]));
                (l, r, next) = (l + 1, r + 1, shared.next());
                continue;
            }
            if wanted(name) && next.is_some_and(|next| next != name) {
                l += 1;
                continue;
            }
        }
        if l < lefts.len() {
            let name = lefts[l].as_str();
            if !wanted(name) {
                all.push(live[l].clone());
                l += 1;
                continue;
            }
            if taken.contains(&name) {
                l += 1;
            }
        }
        if r < rights.len() {
            let name = rights[r].as_str();
            taken.push(name);
            all.push(merge(name, &config[r]));
            r += 1;
            if next.is_some_and(|next| next == name) {
                next = shared.next();
            }
        }
    }
    all
}

/// Items of a body that is applied which are there twice: nobody could say which of them a field belongs to.
pub(crate) fn twice(config: &Value, topology: &Topology<'_>, path: &str, found: &mut Vec<String>) {
    match config {
        Value::Object(fields) if !topology.is_atomic() => {
            for (name, value) in fields {
                twice(value, &topology.field(name), &format!("{path}.{name}"), found);
            }
        }
        Value::Array(items) if topology.list() != List::Atomic => {
            let list = topology.list();
            let mut seen: BTreeSet<String> = BTreeSet::new();
            for value in items {
                let name = item(&list, value);
                twice(value, &topology.item(), &format!("{path}[{name}]"), found);
                if !seen.insert(name.clone()) {
                    found.push(format!("{path}: duplicate entries for key [{name}]"));
                }
            }
        }
        _ => {}
    }
}

/// What differs.
pub(crate) fn compare(old: &Value, new: &Value, topology: &Topology<'_>) -> Comparison {
    let [changed, removed] = walk(Some(old), Some(new), topology);
    Comparison { changed: changed.below, removed: removed.below }
}

/// The paths from here on that changed, and those that are gone.
fn walk(old: Option<&Value>, new: Option<&Value>, topology: &Topology<'_>) -> [Node; 2] {
    let mut found = [Node::default(), Node::default()];
    if old == new {
        return found;
    }
    let [changed, removed] = &mut found;
    let descended = match (old.unwrap_or(&Value::Null), new.unwrap_or(&Value::Null)) {
        (Value::Object(_) | Value::Null, Value::Object(_) | Value::Null) if !topology.is_atomic() => {
            fields(old, new, topology, changed, removed)
        }
        (Value::Array(_) | Value::Null, Value::Array(_) | Value::Null) if topology.list() != List::Atomic => {
            items(old, new, topology, changed, removed)
        }
        // A scalar that became a structure, or the reverse: its old paths are gone.
        (before @ (Value::Object(_) | Value::Array(_)), _) if new.is_some() && !topology.is_leaf(before) => {
            removed.below = Set::of(before, topology);
            false
        }
        _ => false,
    };
    match (old, new) {
        (None, _) => changed.member = true,
        (_, None) => removed.member = true,
        // The paths below tell.
        _ if descended => {}
        _ => changed.member = true,
    }
    found
}

fn put(set: &mut Set, element: String, node: Node) {
    if node != Node::default() {
        set.0.insert(element, node);
    }
}

fn fields(
    old: Option<&Value>,
    new: Option<&Value>,
    topology: &Topology<'_>,
    changed: &mut Node,
    removed: &mut Node,
) -> bool {
    let nothing = Map::new();
    let of = |value: Option<&Value>| value.and_then(Value::as_object).cloned();
    let (before, after) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
    let (before, after) = (before.unwrap_or(&nothing), after.unwrap_or(&nothing));
    if before.is_empty() && after.is_empty() {
        // Empty, null and absent are told apart as a whole.
        return of(old).is_none() && of(new).is_none() && old.is_some() && new.is_some();
    }
    let mut child = |name: &String, old: Option<&Value>, new: Option<&Value>| {
        let [c, r] = walk(old, new, &topology.field(name));
        put(&mut changed.below, field(name), c);
        put(&mut removed.below, field(name), r);
    };
    for (name, value) in after {
        child(name, before.get(name), Some(value));
    }
    for (name, value) in before {
        if !after.contains_key(name) {
            child(name, Some(value), None);
        }
    }
    true
}

fn items(
    old: Option<&Value>,
    new: Option<&Value>,
    topology: &Topology<'_>,
    changed: &mut Node,
    removed: &mut Node,
) -> bool {
    let of = |value: Option<&'_ Value>| value.and_then(Value::as_array).map_or(0, Vec::len);
    if of(old) == 0 && of(new) == 0 {
        return false;
    }
    let list = topology.list();
    let indexed = |value: Option<&Value>| -> Vec<(String, Value)> {
        let items = value.and_then(Value::as_array).into_iter().flatten();
        items.map(|value| (item(&list, value), value.clone())).collect()
    };
    let (before, after) = (indexed(old), indexed(new));
    let pick = |all: &[(String, Value)], name: &str| {
        all.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())
    };
    let inner = topology.item();
    let mut child = |name: &str, old: Option<&Value>, new: Option<&Value>| {
        let [c, r] = walk(old, new, &inner);
        put(&mut changed.below, name.into(), c);
        put(&mut removed.below, name.into(), r);
    };
    for (name, value) in &after {
        child(name, pick(&before, name).as_ref(), Some(value));
    }
    for (name, value) in &before {
        if pick(&after, name).is_none() {
            child(name, Some(value), None);
        }
    }
    true
}

/// Takes out what was in `before`, unless somebody owns it still (`owned`: the paths of all managers), or it was never
/// this manager's.
pub(crate) fn prune(merged: &Value, before: &Set, owned: &Set, topology: &Topology<'_>) -> Value {
    let before = before.named(topology);
    let all = Set::of(merged, topology).named(topology);
    let pruned = without(merged, &before, topology);
    let kept = Set::of(&pruned, topology).named(topology).union(&owned.named(topology));
    let pruned = without(merged, &all.difference(&kept), topology);
    let kept = Set::of(&pruned, topology).named(topology);
    without(merged, &all.difference(&kept).intersection(&before), topology)
}

/// A value without some of its paths. A structure of which nothing is left becomes null.
fn without(value: &Value, paths: &Set, topology: &Topology<'_>) -> Value {
    if paths.0.is_empty() {
        return value.clone();
    }
    match value {
        Value::Object(fields) => {
            if fields.is_empty() || topology.is_atomic() {
                return Value::Null;
            }
            let mut left = Map::new();
            for (name, value) in fields {
                match paths.0.get(&field(name)) {
                    Some(node) if node.member => {}
                    Some(node) => {
                        left.insert(name.clone(), without(value, &node.below, &topology.field(name)));
                    }
                    None => {
                        left.insert(name.clone(), value.clone());
                    }
                }
            }
            if left.is_empty() { Value::Null } else { Value::Object(left) }
        }
        Value::Array(items) => {
            let list = topology.list();
            if items.is_empty() || list == List::Atomic {
                return Value::Null;
            }
            let inner = topology.item();
            let left: Vec<Value> = items
                .iter()
                .filter_map(|value| match paths.0.get(&item(&list, value)) {
                    Some(node) if node.member => None,
                    Some(node) => Some(without(value, &node.below, &inner)),
                    None => Some(value.clone()),
                })
                .collect();
            if left.is_empty() { Value::Null } else { Value::Array(left) }
        }
        other => other.clone(),
    }
}

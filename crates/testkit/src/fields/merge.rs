//! Merges what a manager applies, compares objects field by field, takes out what nobody wants any more. Pure.

use super::{
    set::{Node, Set, field, item},
    topology::{List, Topology},
};
use serde_json::{Map, Value};

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
        _ if topology.is_leaf(config) => config.clone(),
        (Value::Object(live), Value::Object(config)) => {
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
        (Value::Array(live), Value::Array(config)) => Value::Array(merged_list(live, config, topology)),
        _ => config.clone(),
    }
}

/// Items of the applied list keep the order that it gives them; others stay where they were, relative to these.
fn merged_list(live: &[Value], config: &[Value], topology: &Topology<'_>) -> Vec<Value> {
    let list = topology.list();
    let element = |value: &Value| item(&list, value);
    let wanted: Vec<String> = config.iter().map(element).collect();
    let mut rest = live.iter().map(|value| (element(value), value)).peekable();
    let mut all = Vec::new();
    let found = |name: &str| live.iter().find(|value| element(value) == name);
    for (value, name) in config.iter().zip(&wanted) {
        // What stands before this item in the live list and is nobody's in the applied one comes first.
        while let Some((_, there)) = rest.next_if(|(other, _)| !wanted.contains(other)) {
            all.push(there.clone());
        }
        rest.next_if(|(other, _)| wanted.contains(other));
        all.push(match found(name) {
            Some(there) => merged(there, value, &topology.item()),
            None => value.clone(),
        });
    }
    all.extend(rest.filter(|(name, _)| !wanted.contains(name)).map(|(_, value)| value.clone()));
    all
}

/// What differs.
pub(crate) fn compare(old: &Value, new: &Value, topology: &Topology<'_>) -> Comparison {
    let mut found = Comparison::default();
    match (old, new) {
        (Value::Object(old), Value::Object(new)) if !topology.is_atomic() => {
            compare_fields(old, new, topology, &mut found);
        }
        (Value::Array(old), Value::Array(new)) => {
            let list = topology.list();
            let pick = |all: &[Value], name: &str| all.iter().find(|v| item(&list, v) == name).cloned();
            for value in new {
                let name = item(&list, value);
                let before = pick(old, &name);
                entry(&name, before.as_ref(), Some(value), &topology.item(), true, &mut found);
            }
            for value in old {
                let name = item(&list, value);
                if pick(new, &name).is_none() {
                    entry(&name, Some(value), None, &topology.item(), true, &mut found);
                }
            }
        }
        _ => {}
    }
    found
}

fn compare_fields(
    old: &Map<String, Value>,
    new: &Map<String, Value>,
    topology: &Topology<'_>,
    found: &mut Comparison,
) {
    for (name, value) in new {
        entry(&field(name), old.get(name), Some(value), &topology.field(name), false, found);
    }
    for (name, value) in old {
        if !new.contains_key(name) {
            entry(&field(name), Some(value), None, &topology.field(name), false, found);
        }
    }
}

/// One field or item.
fn entry(
    name: &str,
    old: Option<&Value>,
    new: Option<&Value>,
    topology: &Topology<'_>,
    is_item: bool,
    found: &mut Comparison,
) {
    // The paths of a whole value, itself included where it counts.
    let whole = |value: &Value| -> Node {
        let leaf = topology.is_leaf(value);
        let below = if leaf { Set::default() } else { Set::of(value, topology) };
        let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
        Node { member: leaf || empty || is_item || topology.is_map_entry(), below }
    };
    let put = |set: &mut Set, node: Node| {
        if node != Node::default() {
            set.0.insert(name.to_string(), node);
        }
    };
    match (old, new) {
        (Some(old), Some(new)) if old == new => {}
        (Some(old), Some(new)) if topology.is_leaf(new) || topology.is_leaf(old) => {
            put(&mut found.changed, whole(new));
            // A scalar that became a structure, or the reverse: its old paths are gone.
            if !topology.is_leaf(old) {
                put(&mut found.removed, whole(old));
            }
        }
        (Some(old), Some(new)) => {
            let below = compare(old, new, topology);
            put(&mut found.changed, Node { member: false, below: below.changed });
            put(&mut found.removed, Node { member: false, below: below.removed });
        }
        (None, Some(new)) => put(&mut found.changed, whole(new)),
        (Some(old), None) => put(&mut found.removed, whole(old)),
        (None, None) => {}
    }
}

/// Takes out what was in `before` and is not in `keep`, which holds the paths of all managers.
pub(crate) fn prune(value: &mut Value, before: &Set, keep: &Set, topology: &Topology<'_>) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, value| {
                let Some(node) = before.0.get(&field(name)) else { return true };
                stays(value, node, keep.0.get(&field(name)), &topology.field(name), false)
            });
        }
        Value::Array(items) => {
            let list = topology.list();
            if list == List::Atomic {
                return;
            }
            items.retain_mut(|value| {
                let name = item(&list, value);
                let Some(node) = before.0.get(&name) else { return true };
                stays(value, node, keep.0.get(&name), &topology.item(), true)
            });
        }
        _ => {}
    }
}

fn stays(
    value: &mut Value,
    before: &Node,
    keep: Option<&Node>,
    topology: &Topology<'_>,
    is_item: bool,
) -> bool {
    let wanted = keep.is_some_and(|k| k.member || !k.below.is_empty());
    if before.member && !wanted {
        return false;
    }
    if before.below.is_empty() {
        return true;
    }
    let nothing = Set::default();
    prune(value, &before.below, keep.map_or(&nothing, |k| &k.below), topology);
    // A structure of which nothing is left goes too, unless somebody wants the empty one.
    let empty = match &*value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    !empty || wanted || is_item
}

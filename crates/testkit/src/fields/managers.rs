//! Reads and writes `metadata.managedFields`, and carries out applies and updates on them. Pure.

use super::{
    merge::{Comparison, compare, merged, prune},
    set::Set,
    topology::Topology,
};
use crate::status::Refusal;
use serde_json::{Map, Value, json};

/// One entry of managedFields.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Manager {
    pub name: String,
    /// Apply, or Update for all other writes.
    pub apply: bool,
    pub api_version: String,
    pub subresource: String,
    /// When it last changed something; none: it never did.
    pub time: Option<String>,
    pub fields: Set,
}

/// Who writes, and through which door.
#[derive(Clone, Debug)]
pub(crate) struct Writer<'a> {
    pub name: &'a str,
    pub api_version: &'a str,
    pub subresource: &'a str,
    pub time: &'a str,
    /// What cannot be written through this door, and is not owned through it either.
    pub reset: &'a [&'a [&'a str]],
}

impl Manager {
    /// Whether this is the entry of a writer. One that applies has one for all versions.
    fn is(&self, writer: &Writer<'_>, apply: bool) -> bool {
        self.name == writer.name
            && self.apply == apply
            && self.subresource == writer.subresource
            && (apply || self.api_version == writer.api_version)
    }

    fn text(&self) -> String {
        let through = if self.subresource.is_empty() {
            String::new()
        } else {
            format!(" with subresource {:?}", self.subresource)
        };
        if self.apply {
            format!("{:?}{through}", self.name)
        } else {
            format!("{:?}{through} using {}", self.name, self.api_version)
        }
    }
}

pub(crate) fn read(object: &Value) -> Vec<Manager> {
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_string();
    let entries = object["metadata"]["managedFields"].as_array();
    entries
        .into_iter()
        .flatten()
        .map(|entry| Manager {
            name: text(entry, "manager"),
            apply: entry["operation"] == "Apply",
            api_version: text(entry, "apiVersion"),
            subresource: text(entry, "subresource"),
            time: entry["time"].as_str().map(String::from),
            fields: Set::decode(&entry["fieldsV1"]),
        })
        .collect()
}

pub(crate) fn write(object: &mut Value, mut managers: Vec<Manager>) {
    managers.retain(|m| !m.fields.is_empty());
    managers.sort_by(|a, b| {
        let key = |m: &Manager| {
            (!m.apply, m.time.clone(), m.name.clone(), m.api_version.clone(), m.subresource.clone())
        };
        key(a).cmp(&key(b))
    });
    let entries: Vec<Value> = managers
        .into_iter()
        .map(|m| {
            let mut entry = json!({
                "manager": m.name, "operation": if m.apply { "Apply" } else { "Update" },
                "apiVersion": m.api_version, "fieldsType": "FieldsV1", "fieldsV1": m.fields.encode(),
            });
            if let Some(time) = m.time {
                entry["time"] = time.into();
            }
            if !m.subresource.is_empty() {
                entry["subresource"] = m.subresource.into();
            }
            entry
        })
        .collect();
    if let Some(meta) = object["metadata"].as_object_mut() {
        if entries.is_empty() {
            meta.remove("managedFields");
        } else {
            meta.insert("managedFields".into(), entries.into());
        }
    }
}

/// Gives an object back the times of its managers when nothing else changed: that is no change at all.
pub(crate) fn keep_times(before: &Value, new: &mut Value) {
    fn entries(object: &Value) -> &[Value] {
        object["metadata"]["managedFields"].as_array().map_or(&[], Vec::as_slice)
    }
    let alike = |a: &Value, b: &Value| {
        ["manager", "operation", "apiVersion", "subresource", "fieldsV1"].iter().all(|f| a[*f] == b[*f])
    };
    let (had, has) = (entries(before), entries(new));
    if had == has || had.len() != has.len() || !had.iter().zip(has).all(|(a, b)| alike(a, b)) {
        return;
    }
    let given = new["metadata"]["managedFields"].take();
    new["metadata"]["managedFields"] = before["metadata"]["managedFields"].clone();
    if *new != *before {
        new["metadata"]["managedFields"] = given;
    }
}

/// Fields that nobody owns.
fn ownable(set: Set) -> Set {
    const NOT: [&[&str]; 10] = [
        &["apiVersion"],
        &["kind"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ];
    let mut set = NOT.iter().fold(set, |set, path| set.without(path));
    // The metadata as such is nobody's, what is in it is.
    if let Some(metadata) = set.0.get_mut("f:metadata") {
        metadata.member = false;
        if metadata.below.is_empty() {
            set.0.remove("f:metadata");
        }
    }
    set
}

/// Without the paths that the door in question does not write, and all below them.
fn without_reset(set: Set, reset: &[&[&str]]) -> Set {
    reset.iter().fold(set, |set, path| set.without(path))
}

/// The managers that a write which is not an apply starts from: a body may set them, or take them all away.
fn given(old: &Value, new: &Value, writer: &Writer<'_>) -> Vec<Manager> {
    let entries = new["metadata"].get("managedFields").and_then(Value::as_array);
    let Some(entries) = entries.filter(|_| writer.subresource.is_empty()) else { return read(old) };
    let bare = |entry: &Value| entry.as_object().is_some_and(Map::is_empty);
    if entries.is_empty() || (entries.len() == 1 && entries.iter().all(bare)) {
        return Vec::new();
    }
    let good = |entry: &Value| {
        ["Apply", "Update"].iter().any(|o| entry["operation"] == *o)
            && entry["apiVersion"].as_str().is_some_and(|v| !v.is_empty())
            && entry["fieldsType"] == "FieldsV1"
    };
    if entries.iter().all(good) { read(new) } else { read(old) }
}

/// Carries out a server-side apply. `bare`: an object of the kind without content. Returns the merged object, with the
/// managers of `live` not yet changed, and the new managers. Errors: conflicts, when not forced.
pub(crate) fn apply(
    live: &Value,
    config: &Value,
    bare: &Value,
    topology: &Topology<'_>,
    writer: &Writer<'_>,
    force: bool,
) -> Result<(Value, Vec<Manager>), Refusal> {
    let mut managers = read(live);
    if managers.is_empty() {
        let all = without_reset(compare(bare, live, topology).changed, writer.reset);
        let first = Writer { name: "before-first-apply", ..writer.clone() };
        let mine = entry(&first, false, Some(writer.time.into()), ownable(all));
        managers.extend(Some(mine).filter(|m| !m.fields.is_empty()));
    }
    let place = managers.iter().position(|m| m.is(writer, true));
    let before = place.map(|place| managers.remove(place));
    let fields = without_reset(Set::of(config, topology), writer.reset);
    let mut object = merged(live, config, topology);
    if let Some(before) = before.as_ref().filter(|b| !b.fields.is_empty()) {
        let all = managers.iter().fold(fields.clone(), |all, m| all.union(&m.fields));
        object = prune(&object, &before.fields, &all, topology);
    }
    let mut difference = compare(live, &object, topology);
    difference.changed = without_reset(difference.changed, writer.reset);
    difference.removed = without_reset(difference.removed, writer.reset);
    let conflicts: Vec<(String, String)> = managers
        .iter()
        .flat_map(|m| {
            let paths = m.fields.intersection(&difference.changed).paths();
            paths.into_iter().map(|path| (m.text(), path)).collect::<Vec<_>>()
        })
        .collect();
    if !conflicts.is_empty() && !force {
        return Err(conflict(&conflicts));
    }
    release(&mut managers, &difference);
    let time = if object == *live { before.and_then(|b| b.time) } else { Some(writer.time.to_string()) };
    managers.push(entry(writer, true, time, ownable(fields)));
    Ok((object, managers))
}

/// The managers after a write that is not an apply.
pub(crate) fn update(old: &Value, new: &Value, topology: &Topology<'_>, writer: &Writer<'_>) -> Vec<Manager> {
    let mut managers = given(old, new, writer);
    if managers.is_empty() && old["metadata"].get("uid").is_some() {
        // Somebody took them all away: they are not followed again before the first apply.
        return managers;
    }
    let mut difference = compare(old, new, topology);
    difference.changed = without_reset(difference.changed, writer.reset);
    difference.removed = without_reset(difference.removed, writer.reset);
    release(&mut managers, &difference);
    let changed = ownable(difference.changed);
    if changed.is_empty() {
        return managers;
    }
    let place = managers.iter().position(|m| m.is(writer, false));
    let before = place.map(|place| managers.remove(place).fields).unwrap_or_default();
    managers.push(entry(writer, false, Some(writer.time.into()), before.union(&changed)));
    managers
}

fn entry(writer: &Writer<'_>, apply: bool, time: Option<String>, fields: Set) -> Manager {
    Manager {
        name: writer.name.into(),
        apply,
        api_version: writer.api_version.into(),
        subresource: writer.subresource.into(),
        time,
        fields,
    }
}

/// What somebody else changed or removed is no longer theirs.
fn release(managers: &mut [Manager], difference: &Comparison) {
    for manager in managers {
        manager.fields = manager.fields.difference(&difference.changed).difference(&difference.removed);
    }
}

fn conflict(conflicts: &[(String, String)]) -> Refusal {
    let message = if let [(manager, path)] = conflicts {
        format!("Apply failed with 1 conflict: conflict with {manager}: {path}")
    } else {
        let mut lines: Vec<String> = Vec::new();
        for (index, (manager, path)) in conflicts.iter().enumerate() {
            if index == 0 || conflicts[index - 1].0 != *manager {
                lines.push(format!("conflicts with {manager}:"));
            }
            lines.push(format!("- {path}"));
        }
        format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
    };
    let causes: Vec<Value> = conflicts
        .iter()
        .map(|(manager, path)| {
            json!({"reason": "FieldManagerConflict", "message": format!("conflict with {manager}"), "field": path})
        })
        .collect();
    Refusal { code: 409, reason: "Conflict", message, details: json!({ "causes": causes }) }
}

//! Reads and writes `metadata.managedFields`, and carries out applies and updates on them. Pure.

use super::{
    merge::{Comparison, compare, merged, prune},
    set::Set,
    topology::Topology,
};
use crate::status::Refusal;
use serde_json::{Value, json};

/// One entry of managedFields.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Manager {
    pub name: String,
    /// Apply, or Update for all other writes.
    pub apply: bool,
    pub api_version: String,
    pub subresource: String,
    pub time: String,
    pub fields: Set,
}

/// Who writes, and through which door.
#[derive(Clone, Debug)]
pub(crate) struct Writer<'a> {
    pub name: &'a str,
    pub api_version: &'a str,
    pub subresource: &'a str,
    pub time: &'a str,
}

impl Manager {
    fn is(&self, writer: &Writer<'_>, apply: bool) -> bool {
        self.name == writer.name && self.apply == apply && self.subresource == writer.subresource
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
            format!("{:?}{through} using {} at {}", self.name, self.api_version, self.time)
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
            time: text(entry, "time"),
            fields: Set::decode(&entry["fieldsV1"]),
        })
        .collect()
}

pub(crate) fn write(object: &mut Value, mut managers: Vec<Manager>) {
    managers.retain(|m| !m.fields.is_empty());
    managers.sort_by(|a, b| {
        let key = |m: &Manager| (!m.apply, m.time.clone(), m.name.clone(), m.subresource.clone());
        key(a).cmp(&key(b))
    });
    let entries: Vec<Value> = managers
        .into_iter()
        .map(|m| {
            let mut entry = json!({
                "manager": m.name, "operation": if m.apply { "Apply" } else { "Update" },
                "apiVersion": m.api_version, "time": m.time,
                "fieldsType": "FieldsV1", "fieldsV1": m.fields.encode(),
            });
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
    NOT.iter().fold(set, |set, path| set.without(path))
}

/// Carries out a server-side apply. Returns the merged object, with the managers of `live` not yet changed, and the new
/// managers. Errors: conflicts, when not forced.
pub(crate) fn apply(
    live: &Value,
    config: &Value,
    topology: &Topology<'_>,
    writer: &Writer<'_>,
    force: bool,
) -> Result<(Value, Vec<Manager>), Refusal> {
    let mut managers = read(live);
    let place = managers.iter().position(|m| m.is(writer, true));
    let before = place.map(|place| managers.remove(place));
    let fields = ownable(Set::of(config, topology));
    let mut object = merged(live, config, topology);
    if let Some(before) = &before {
        let all = managers.iter().fold(fields.clone(), |all, m| all.union(&m.fields));
        prune(&mut object, &before.fields, &all, topology);
    }
    let difference = compare(live, &object, topology);
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
    let time = match &before {
        // An apply that changes nothing leaves its time alone.
        Some(before) if before.fields == fields => before.time.clone(),
        _ => writer.time.to_string(),
    };
    managers.push(entry(writer, true, &time, fields));
    Ok((object, managers))
}

/// The managers after a write that is not an apply.
pub(crate) fn update(old: &Value, new: &Value, topology: &Topology<'_>, writer: &Writer<'_>) -> Vec<Manager> {
    let mut managers = read(old);
    let difference = compare(old, new, topology);
    let changed = ownable(difference.changed.clone());
    let place = managers.iter().position(|m| m.is(writer, false));
    let own = place.map(|place| managers.remove(place));
    release(&mut managers, &difference);
    let before = own.as_ref().map(|m| m.fields.clone()).unwrap_or_default();
    let fields = before.union(&changed).difference(&difference.removed);
    let time = match own {
        Some(own) if own.fields == fields => own.time,
        _ => writer.time.to_string(),
    };
    managers.push(entry(writer, false, &time, fields));
    managers
}

fn entry(writer: &Writer<'_>, apply: bool, time: &str, fields: Set) -> Manager {
    Manager {
        name: writer.name.into(),
        apply,
        api_version: writer.api_version.into(),
        subresource: writer.subresource.into(),
        time: time.into(),
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

//! Whether two end states are the same, but for what a way there and back legitimately leaves behind. Pure.

use holdfast_core::names;
use serde_json::Value;
use std::{collections::BTreeMap, net::Ipv4Addr};

/// What a way there and back may leave behind, and why: kind (empty: every kind), field, reason.
pub const LEFT: [(&str, &str, &str); 20] = [
    ("", "metadata generation", "counts the changes of a spec"),
    ("", "status observedGeneration", "the generation that was seen"),
    ("", "status conditions[] observedGeneration", "the generation that was seen"),
    ("StatefulSet", "status currentRevision", "Kubernetes numbers each template; there and back is one more"),
    ("StatefulSet", "status updateRevision", "as above"),
    ("StatefulSet", "status collisionCount", "as above"),
    ("Pod", "metadata labels controller-revision-hash", "as above"),
    ("Pod", "status containerStatuses[] containerID", "a new pod has new containers"),
    ("Pod", "status initContainerStatuses[] containerID", "as above"),
    ("Pod", "status initContainerStatuses[] state terminated containerID", "as above"),
    ("EndpointSlice", "metadata annotations holdfast.dev/term", "each primary begins a term"),
    ("Database", "status timeline", "a rollout may move the primary, which begins a timeline"),
    ("Database", "status members", "positions in the WAL move, and the primary may be another one"),
    ("Database", "status archive", "the WAL goes on"),
    ("BackupStore", "status probe", "counts probes"),
    ("BackupSchedule", "status retention round", "counts runs of retention"),
    ("BackupSchedule", "status missedRuns", "counts slots"),
    (
        "BackupSchedule",
        "status lastScheduleTime",
        "a schedule or zone that changed begins anew at that moment",
    ),
    (
        "Database",
        "status primary",
        "a rollout may move the primary; how many instances have which role is compared",
    ),
    ("PersistentVolume", "metadata uid", "a volume is told by its name, which is made of its claim's uid"),
];

/// What an instance's report may say otherwise: the WAL goes on, and a rollout begins timelines.
const REPORTED: [&str; 7] = ["timeline", "lsn", "lagBytes", "archive", "role", "streaming", "synchronous"];

/// Labels of pods that follow the role. They are counted instead.
const ROLES: [&str; 2] = [names::LABEL_ROLE, names::LABEL_SERVES_READS];

/// Kinds that are records of what happened, not part of a state.
const RECORDS: [&str; 3] = ["Event", "ControllerRevision", "Lease"];

/// An end state: each object by kind and name, and what is no object as lines.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    objects: BTreeMap<String, Value>,
    rest: Vec<String>,
}

impl State {
    /// Reads a dump: JSON objects one after the other, and after them perhaps more text.
    pub fn read(dump: &str) -> Self {
        let mut state = Self::default();
        let dump = &without_system_identifiers(dump);
        let mut all = serde_json::Deserializer::from_str(dump).into_iter::<Value>();
        let mut end = 0;
        while let Some(Ok(object)) = all.next() {
            if !object.is_object() {
                break;
            }
            end = all.byte_offset();
            state.add(object);
        }
        let rest = dump.get(end..).unwrap_or_default();
        state.rest = rest.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect();
        state
    }

    fn add(&mut self, mut object: Value) {
        let text = |at: &str| object.pointer(at).and_then(Value::as_str).unwrap_or_default().to_string();
        let (kind, namespace, name) = (text("/kind"), text("/metadata/namespace"), text("/metadata/name"));
        // A store is probed once an hour: whether a probe is under way is no part of the state either.
        let probe = matches!(kind.as_str(), "Job" | "Pod") && name.starts_with("hfp-");
        if probe || RECORDS.contains(&kind.as_str()) {
            return;
        }
        if let Some(meta) = object["metadata"].as_object_mut() {
            // Who wrote a field last, and when, is no part of the state.
            meta.remove("managedFields");
        }
        for (of, field, _) in LEFT {
            if of.is_empty() || of == kind {
                let steps: Vec<&str> = field.split(' ').collect();
                without(&mut object, &steps);
            }
        }
        if kind == "Pod" {
            self.count_role(&mut object, &namespace);
        }
        if kind == "Database" {
            same_primary(&mut object);
        }
        if let Some(notes) = object.pointer_mut("/metadata/annotations")
            && let Some(report) = notes.get_mut(names::ANNOTATION_REPORT)
            && let Ok(mut said) = serde_json::from_str::<Value>(report.as_str().unwrap_or_default())
        {
            REPORTED.iter().for_each(|field| without(&mut said, &[*field]));
            *report = said;
        }
        sort_conditions(&mut object);
        addresses(&mut object);
        if let Some(ends) = object.get_mut("endpoints").and_then(Value::as_array_mut) {
            for end in ends.iter_mut().filter_map(Value::as_object_mut) {
                // Which instance serves depends on who is primary; how many do does not.
                for field in ["targetRef", "nodeName", "zone", "hostname"] {
                    end.remove(field);
                }
            }
            ends.sort_by_key(ToString::to_string);
        }
        let key = format!("{kind} {namespace}/{name}");
        // Objects whose names are masked alike are told apart by their number.
        let mut free = key.clone();
        let mut number = 2;
        while self.objects.contains_key(&free) {
            free = format!("{key} #{number}");
            number += 1;
        }
        self.objects.insert(free, object);
    }

    /// Takes a pod's role off it, and counts it.
    fn count_role(&mut self, pod: &mut Value, namespace: &str) {
        let Some(labels) = pod.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) else { return };
        let text = |labels: &serde_json::Map<String, Value>, name: &str| {
            labels.get(name).and_then(Value::as_str).unwrap_or("none").to_string()
        };
        let database = text(labels, names::LABEL_DATABASE);
        let [role, reads] = ROLES.map(|name| text(labels, name));
        labels.retain(|name, _| !ROLES.contains(&name.as_str()));
        let key = format!("instances of {namespace}/{database}: role {role}, serves reads: {reads}");
        let count = self.objects.get(&key).and_then(Value::as_u64).unwrap_or(0);
        self.objects.insert(key, (count + 1).into());
    }

    /// Without what a user wrote: the spec of one object.
    pub fn without_spec(mut self, kind: &str, name: &str) -> Self {
        let suffix = format!("/{name}");
        for (key, object) in &mut self.objects {
            if key.starts_with(&format!("{kind} ")) && key.ends_with(&suffix) {
                object["spec"] = Value::Null;
            }
        }
        self
    }

    /// Names of the objects of a kind.
    pub fn names(&self, kind: &str) -> Vec<String> {
        let prefix = format!("{kind} ");
        let of = self.objects.keys().filter_map(|key| key.strip_prefix(&prefix));
        of.filter_map(|key| key.split_once('/').map(|(_, name)| name.to_string())).collect()
    }

    /// What differs, most important first; empty when nothing does.
    pub fn differences(&self, later: &Self) -> Vec<String> {
        let mut all = Vec::new();
        for key in self.objects.keys().filter(|k| !later.objects.contains_key(*k)) {
            all.push(format!("{key} is gone"));
        }
        for key in later.objects.keys().filter(|k| !self.objects.contains_key(*k)) {
            all.push(format!("{key} is new"));
        }
        for (key, before) in &self.objects {
            if let Some(after) = later.objects.get(key) {
                compare(key, before, after, &mut all);
            }
        }
        if self.rest != later.rest {
            let gone = self.rest.iter().filter(|l| !later.rest.contains(l)).map(|l| format!("gone: {l}"));
            let new = later.rest.iter().filter(|l| !self.rest.contains(l)).map(|l| format!("new: {l}"));
            all.extend(gone.chain(new));
        }
        all
    }
}

/// Which instance begins a database, and so which number PostgreSQL draws for it, is a matter of who is first.
fn without_system_identifiers(dump: &str) -> String {
    const BEGINS: &str = "7500000000000000";
    let mut parts = dump.split(BEGINS);
    let mut text = parts.next().unwrap_or_default().to_string();
    for part in parts {
        text.push_str("<system>");
        text.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    text
}

fn without(value: &mut Value, steps: &[&str]) {
    let Some((first, rest)) = steps.split_first() else { return };
    let (name, each) = first.strip_suffix("[]").map_or((*first, false), |name| (name, true));
    let Some(fields) = value.as_object_mut() else { return };
    if rest.is_empty() {
        fields.remove(name);
    } else if let Some(next) = fields.get_mut(name) {
        match next {
            Value::Array(items) if each => items.iter_mut().for_each(|item| without(item, rest)),
            next => without(next, rest),
        }
    }
}

/// Conditions are a map by type: their order says nothing.
fn sort_conditions(object: &mut Value) {
    if let Some(conditions) = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut) {
        conditions.sort_by_key(|c| c["type"].as_str().unwrap_or_default().to_string());
    }
}

/// Messages that name the primary name any.
fn same_primary(database: &mut Value) {
    const TIMELINE: &str = "on timeline ";
    let name = database["metadata"]["name"].as_str().unwrap_or_default().to_string();
    let conditions = database.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten() {
        let mut message = condition["message"].as_str().unwrap_or_default().to_string();
        if let Some((before, after)) = message.split_once(TIMELINE) {
            let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
            message = format!("{before}{TIMELINE}<timeline>{after}");
            condition["message"] = message.clone().into();
        }
        let rest = message.strip_prefix(&format!("{name}-"));
        let rest = rest.map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
        if let Some(rest) = rest.filter(|rest| rest.starts_with(' ')) {
            condition["message"] = format!("<instance>{rest}").into();
        }
    }
}

/// A new pod has a new address.
fn addresses(value: &mut Value) {
    match value {
        Value::String(text) if text.parse::<Ipv4Addr>().is_ok() => *text = "<address>".into(),
        Value::Array(items) => items.iter_mut().for_each(addresses),
        Value::Object(fields) => fields.values_mut().for_each(addresses),
        _ => {}
    }
}

fn compare(path: &str, before: &Value, after: &Value, into: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            let names = old.keys().chain(new.keys().filter(|n| !old.contains_key(*n)));
            for name in names {
                let nothing = Value::Null;
                let of = |fields: &serde_json::Map<String, Value>| {
                    fields.get(name).cloned().unwrap_or(nothing.clone())
                };
                compare(&format!("{path} {name}"), &of(old), &of(new), into);
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (index, (one, other)) in old.iter().zip(new).enumerate() {
                compare(&format!("{path}[{index}]"), one, other, into);
            }
        }
        _ if before == after => {}
        _ => into.push(format!("{path}: {} → {}", short(before), short(after))),
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 160 {
        text
    } else {
        format!("{}…", text.chars().take(160).collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn dump(objects: &[Value], rest: &str) -> String {
        let texts: Vec<String> = objects.iter().map(|o| format!("{o:#}")).collect();
        format!("{}\n{rest}", texts.join("\n"))
    }

    fn set(revision: &str, image: &str) -> Value {
        json!({"kind": "StatefulSet", "metadata": {"namespace": "lab", "name": "ledger", "generation": 3},
            "spec": {"image": image}, "status": {"updateRevision": revision}})
    }

    #[test]
    fn counters_may_differ_and_nothing_else() {
        let before = State::read(&dump(&[set("a", "one")], "volume x"));
        assert_eq!(
            before.differences(&State::read(&dump(&[set("b", "one")], "volume x"))),
            Vec::<String>::new()
        );
        let after = State::read(&dump(&[set("b", "two")], "volume y"));
        let all = before.differences(&after);
        assert_eq!(all[0], "StatefulSet lab/ledger spec image: \"one\" → \"two\"");
        assert!(all.contains(&"gone: volume x".to_string()) && all.contains(&"new: volume y".to_string()));
        let gone = before.differences(&State::read("volume x"));
        assert_eq!(gone, ["StatefulSet lab/ledger is gone"]);
    }

    #[test]
    fn the_order_of_conditions_says_nothing() {
        let of = |types: [&str; 2]| {
            let conditions: Vec<Value> =
                types.iter().map(|t| json!({"type": t, "observedGeneration": 1})).collect();
            State::read(&dump(
                &[
                    json!({"kind": "Database", "metadata": {"name": "a"}, "status": {"conditions": conditions}}),
                ],
                "",
            ))
        };
        assert_eq!(of(["A", "B"]), of(["B", "A"]));
    }

    #[test]
    fn the_primary_may_be_another_one_and_there_is_one() {
        let read = |roles: [&str; 2]| {
            let pod = |(index, role): (usize, &str)| {
                json!({"kind": "Pod", "metadata": {"namespace": "lab", "name": format!("ledger-{index}"),
                    "labels": {names::LABEL_DATABASE: "ledger", names::LABEL_ROLE: role}}})
            };
            let mut all: Vec<Value> = roles.into_iter().enumerate().map(pod).collect();
            let primary = roles.iter().position(|role| *role == "primary").unwrap_or_default();
            all.push(json!({"kind": "Database", "metadata": {"namespace": "lab", "name": "ledger"}, "status":
                {"conditions": [{"type": "Available", "message": format!("ledger-{primary} accepts writes")}]}}));
            State::read(&dump(&all, ""))
        };
        assert_eq!(read(["primary", "replica"]), read(["replica", "primary"]));
        let two = read(["primary", "replica"]).differences(&read(["primary", "primary"]));
        assert!(two.iter().any(|line| line.contains("role primary")), "{two:?}");
    }

    #[test]
    fn what_the_user_wrote_can_be_left_out() {
        let read = |image| State::read(&dump(&[set("a", image)], "")).without_spec("StatefulSet", "ledger");
        assert_eq!(read("one"), read("two"));
        assert_eq!(read("one").names("StatefulSet"), ["ledger"]);
    }
}

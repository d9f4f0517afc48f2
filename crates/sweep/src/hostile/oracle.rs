//! What became of a change, from what the API server answered and what the object says at rest. Pure.
//!
//! Nothing may be silent: a change is refused with the field's name, carried out, or the object says why not.

use super::{
    change::{Back, Change},
    ground::is_refused,
};
use holdfast_core::conditions::{self, types};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// What the API server said to the change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// No, with the HTTP status and its message.
    Refused {
        /// HTTP status.
        code: u16,
        /// Its words.
        message: String,
    },
    /// Yes.
    Accepted,
}

/// What is seen at rest after a change that was accepted.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Whether the operators came to rest. Errors: what they went on doing.
    pub settled: Result<(), String>,
    /// The object of [`Change::kind`] that has to speak for it.
    pub object: Option<Value>,
    /// Whether the change made a difference to the object as it is stored.
    pub stored: bool,
    /// Whether anything else differs from before: another object, or what this one says.
    pub effect: bool,
    /// Writes that forced resyncs caused.
    pub writes: Vec<String>,
    /// Faults whatever the change was: an operator that ended by itself, two primaries, lost data.
    pub problems: Vec<String>,
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// The API server took it not, and said which field.
    Refused,
    /// It is carried out, or it ended.
    CarriedOut,
    /// The object says that it cannot be carried out, and why.
    Stalled(String),
    /// The object says what it waits for, and that is not in the operators' hands.
    Waiting(String),
    /// None of these.
    Finding(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("refused"),
            Self::CarriedOut => f.write_str("carried out"),
            Self::Stalled(why) => write!(f, "stalled: {why}"),
            Self::Waiting(why) => write!(f, "waiting: {why}"),
            Self::Finding(what) => write!(f, "FINDING: {what}"),
        }
    }
}

/// Changes that make no difference while nothing happens, and why: kind, path, how the label begins. All others that are
/// accepted must be seen somewhere.
const QUIET: [(&str, &str, &str, &str); 16] = [
    ("Database", "spec.storage.replicaSource", "", "counts when a replica is added"),
    ("Database", "spec.storage.size", "other-spelling", "is the same amount"),
    ("Database", "spec.placement.spreadZones", "other true", "is what holds where nothing is said"),
    ("Database", "spec.durability", "removed", "what was decided stays, as status.durability says"),
    ("Database", "metadata", "", "labels, annotations and owners of a user's own object mean nothing to us"),
    ("BackupStore", "metadata", "", "as for a Database"),
    ("BackupSchedule", "metadata", "", "as for a Database"),
    ("Backup", "metadata", "", "as for a Database"),
    ("Restore", "metadata", "", "as for a Database"),
    ("BackupStore", "spec.maxParallelBackups", "", "counts when more backups run"),
    ("BackupSchedule", "spec.catchUp", "", "counts when slots were missed"),
    ("BackupSchedule", "spec.concurrencyPolicy", "", "counts when a slot comes while a Backup runs"),
    ("BackupSchedule", "spec.startingDeadlineSeconds", "", "counts when a slot is late"),
    ("BackupSchedule", "spec.template", "", "counts at the next slot"),
    ("BackupSchedule", "spec.retention", "", "counts when there are more backups than it keeps"),
    ("BackupSchedule", "spec.history", "", "counts when there are more failed Backups than it keeps"),
];

/// Words for what operators cannot bring about themselves.
const OUTSIDE: [&str; 12] = [
    "image",
    "pull",
    "schedul",
    "node",
    "BackupStore",
    "Secret",
    "claim",
    "volume",
    "Backup ",
    "Database ",
    "pod ",
    "quota",
];

/// What became of a change.
pub fn judge(change: &Change, answer: &Answer, seen: Option<&Seen>) -> Verdict {
    let accepted = match answer {
        Answer::Refused { code, message } => return refused(change, *code, message),
        Answer::Accepted => seen,
    };
    let Some(seen) = accepted else { return Verdict::Finding("accepted, and nobody looked".into()) };
    if let Some(problem) = seen.problems.first() {
        return Verdict::Finding(problem.clone());
    }
    if let Err(why) = &seen.settled {
        return Verdict::Finding(format!("never at rest: {why}"));
    }
    // What the API server refuses is tried again and again, which is well where the object says so.
    let (retried, written): (Vec<&String>, Vec<&String>) =
        seen.writes.iter().partition(|write| is_refused(write));
    if let Some(first) = written.first() {
        return Verdict::Finding(format!("{} writes at rest: {first}", written.len()));
    }
    let verdict = match &seen.object {
        None => Verdict::Finding("the object is gone".into()),
        Some(object) => said(change, object, seen),
    };
    match (retried.first(), &verdict) {
        (Some(first), Verdict::CarriedOut | Verdict::Waiting(_)) => {
            Verdict::Finding(format!("{verdict}, and yet errors without end: {first}"))
        }
        _ => verdict,
    }
}

fn refused(change: &Change, code: u16, message: &str) -> Verdict {
    if !matches!(code, 400 | 403 | 404 | 409 | 413 | 422) {
        return Verdict::Finding(format!("refused with HTTP status {code}: {message}"));
    }
    // Metadata is checked by Kubernetes, in its own words.
    if change.path.starts_with("spec") && !names(&change.path, message) {
        return Verdict::Finding(format!("the refusal does not name {}: {message}", change.path));
    }
    Verdict::Refused
}

/// Whether a refusal names a field or what it is in. Of fields that lie in the spec itself `spec` is enough only where the
/// whole spec is fixed, or the field's own name is there as well.
fn names(path: &str, message: &str) -> bool {
    if mentions(path, message) {
        return true;
    }
    let parent = path.rsplit_once(['.', '[']).map_or("", |(parent, _)| parent);
    let leaf = path.rsplit(['.', '[']).next().unwrap_or_default();
    match parent {
        "" => false,
        "spec" => mentions("spec", message) && (message.contains("immutable") || mentions(leaf, message)),
        // The rules of a Restore and a Backup fix all that is in the spec.
        _ => {
            mentions(parent, message)
                || names(parent, message) && mentions(leaf, message)
                || message.contains("spec of a ") && message.contains("immutable")
        }
    }
}

/// Whether a text has this very path, not a longer word that ends or begins with it.
fn mentions(path: &str, text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(path).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + path.len()..].chars().next();
        !before.is_some_and(|c| word(c) || c == '.') && !after.is_some_and(word)
    })
}

fn said(change: &Change, object: &Value, seen: &Seen) -> Verdict {
    let status = &object["status"];
    let generation = object["metadata"]["generation"].as_i64();
    let observed = status["observedGeneration"].as_i64();
    let said: Vec<Condition> = serde_json::from_value(status["conditions"].clone()).unwrap_or_default();
    if observed != generation {
        return Verdict::Finding(format!(
            "observedGeneration is {observed:?}, the generation {generation:?}: nobody has looked at it"
        ));
    }
    let find = |type_| conditions::find(&said, type_);
    let old = said.iter().find(|c| {
        [types::READY, types::STALLED].contains(&c.type_.as_str()) && c.observed_generation != generation
    });
    if let Some(old) = old {
        return Verdict::Finding(format!(
            "condition {} speaks of generation {:?}",
            old.type_, old.observed_generation
        ));
    }
    let is = |type_, status: &str| find(type_).filter(|c| c.status == status);
    if let Some(stalled) = is(types::STALLED, "True") {
        if is(types::READY, "True").is_some() {
            return Verdict::Finding(format!("Ready and Stalled at once: {}", stalled.message));
        }
        return told(change, stalled);
    }
    if let Some(failed) = is(types::SUCCEEDED, "False") {
        return Verdict::Finding(format!("it failed and is not Stalled: {}", failed.message));
    }
    let dry = object["spec"]["approve"] == false && is(types::VALIDATED, "True").is_some();
    if dry || is(types::READY, "True").is_some() || is(types::SUCCEEDED, "True").is_some() {
        return carried_out(change, seen);
    }
    let waiting = is(types::RECONCILING, "True").or_else(|| find(types::READY));
    let Some(waiting) = waiting else {
        return Verdict::Finding("it has no condition Ready: nothing is said".into());
    };
    let (reason, message) = (&waiting.reason, &waiting.message);
    if !camel(reason) || message.is_empty() {
        return Verdict::Finding(format!("it waits and does not say for what: {reason} {message:?}"));
    }
    if OUTSIDE.iter().any(|word| message.contains(word)) || change.texts().iter().any(|t| message.contains(t))
    {
        return Verdict::Waiting(format!("{reason}: {message}"));
    }
    Verdict::Finding(format!("it waits for nothing that is outside: {reason}: {message}"))
}

/// Stalled is an answer only when a person can act on it.
fn told(change: &Change, stalled: &Condition) -> Verdict {
    let (reason, message) = (&stalled.reason, &stalled.message);
    if !camel(reason) {
        return Verdict::Finding(format!(
            "Stalled with reason {reason:?}, which is not CamelCase: {message}"
        ));
    }
    let place = change.path.rsplit(' ').next().unwrap_or_default();
    let parent = place.rsplit_once(['.', '[']).map_or("", |(parent, _)| parent);
    let leaf = place.rsplit('.').next().unwrap_or_default();
    let named = mentions(place, message)
        || (parent.contains('.') && mentions(parent, message))
        || mentions(leaf, message)
        || (change.back == Back::Itself && message.contains(&change.target.name))
        || change.texts().iter().any(|text| message.contains(text.trim()))
        // What Kubernetes itself does not take of a child, it quotes; so it does the names of labels and annotations.
        || quotable(change).iter().any(|text| message.contains(&format!("Invalid value: {text:?}")));
    // What is missing is an answer, too: which pod, claim, store or Secret, in whose words.
    let missing = OUTSIDE.iter().any(|word| message.contains(word));
    if named || missing {
        return Verdict::Stalled(format!("{reason}: {message}"));
    }
    Verdict::Finding(format!("Stalled without naming {place} or what is missing: {reason}: {message}"))
}

/// The texts that a change brings, and the names of the last level of its fields: those of labels, say.
fn quotable(change: &Change) -> Vec<String> {
    fn names(value: &Value, into: &mut Vec<String>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, field)| {
                into.push(name.clone());
                names(field, into);
            }),
            Value::Array(items) => items.iter().for_each(|item| names(item, into)),
            _ => {}
        }
    }
    let mut all = change.all_texts();
    names(&change.change, &mut all);
    all
}

fn carried_out(change: &Change, seen: &Seen) -> Verdict {
    let quiet = QUIET.iter().any(|(kind, path, label, _)| {
        change.kind == *kind && change.path.starts_with(path) && change.label.starts_with(label)
    });
    // What an operator keeps as it was is as it was.
    if seen.stored && !seen.effect && !quiet && change.back != Back::Itself {
        return Verdict::Finding("accepted and called Ready, and nothing anywhere has changed".into());
    }
    Verdict::CarriedOut
}

fn camel(reason: &str) -> bool {
    reason.starts_with(|c: char| c.is_ascii_uppercase()) && reason.chars().all(|c| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile::change::Target;
    use serde_json::json;

    fn change(path: &str, value: Value) -> Change {
        Change {
            kind: "Database",
            path: path.into(),
            label: "other".into(),
            target: Target::ours("Database", "ledger"),
            change: value,
            back: Back::Patch(json!({})),
        }
    }

    fn seen(conditions: Value) -> Seen {
        let object = json!({"metadata": {"generation": 4}, "spec": {},
            "status": {"observedGeneration": 4, "conditions": conditions}});
        Seen {
            settled: Ok(()),
            object: Some(object),
            stored: true,
            effect: true,
            writes: Vec::new(),
            problems: Vec::new(),
        }
    }

    fn says(type_: &str, status: &str, reason: &str, message: &str) -> Value {
        json!({"type": type_, "status": status, "reason": reason, "message": message, "observedGeneration": 4,
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    fn judged(change: &Change, seen: &Seen) -> Verdict {
        judge(change, &Answer::Accepted, Some(seen))
    }

    fn is_finding(verdict: &Verdict, word: &str) -> bool {
        matches!(verdict, Verdict::Finding(what) if what.contains(word))
    }

    #[test]
    fn a_refusal_names_the_field_or_what_it_is_in() {
        let refusal = |path: &str, code: u16, message: &str| {
            judge(&change(path, json!({})), &Answer::Refused { code, message: message.into() }, None)
        };
        assert_eq!(refusal("spec.storage.size", 422, "spec.storage.size: too small"), Verdict::Refused);
        assert_eq!(refusal("spec.storage.size", 422, "spec.storage: Required value"), Verdict::Refused);
        assert!(is_finding(&refusal("spec.storage.size", 422, "the spec is wrong"), "does not name"));
        assert!(is_finding(&refusal("spec.size", 422, "spec.sizeLimit is wrong"), "does not name"));
        assert!(is_finding(&refusal("spec.instances", 422, "spec: Invalid value"), "does not name"));
        assert_eq!(
            refusal("spec.method", 422, "spec: Invalid value: spec of a Backup is immutable"),
            Verdict::Refused
        );
        assert!(is_finding(&refusal("spec.storage.size", 500, "spec.storage.size"), "500"));
        assert_eq!(refusal("metadata.labels", 422, "a lowercase RFC 1123 label must…"), Verdict::Refused);
    }

    #[test]
    fn ready_and_seen_somewhere_is_carried_out() {
        let change = change("spec.image", json!({"spec": {"image": "registry.example/other:1"}}));
        let mut seen = seen(json!([says("Ready", "True", "AllInstancesReady", "3 of 3")]));
        assert_eq!(judged(&change, &seen), Verdict::CarriedOut);
        seen.effect = false;
        assert!(is_finding(&judged(&change, &seen), "nothing anywhere"));
        seen.stored = false;
        assert_eq!(judged(&change, &seen), Verdict::CarriedOut, "it was that way before");
    }

    #[test]
    fn stalled_has_to_say_what_a_person_can_act_on() {
        let change = change(
            "spec.archive.storeRef.name",
            json!({"spec": {"archive": {"storeRef": {"name": "nowhere"}}}}),
        );
        let stalled = |reason: &str, message: &str| {
            seen(json!([says("Ready", "False", reason, message), says("Stalled", "True", reason, message)]))
        };
        let good = stalled("StoreNotFound", "spec.archive.storeRef names nowhere, which does not exist");
        assert!(matches!(judged(&change, &good), Verdict::Stalled(_)));
        assert!(is_finding(
            &judged(&change, &stalled("StoreNotFound", "something is wrong")),
            "without naming"
        ));
        assert!(is_finding(&judged(&change, &stalled("store not found", "nowhere")), "CamelCase"));
        let both = seen(json!([says("Ready", "True", "A", ""), says("Stalled", "True", "A", "nowhere")]));
        assert!(is_finding(&judged(&change, &both), "at once"));
    }

    #[test]
    fn waiting_is_for_something_outside() {
        let change = change("spec.instances", json!({"spec": {"instances": 5}}));
        let waits = |message: &str| seen(json!([says("Reconciling", "True", "InstancesNotReady", message)]));
        assert!(matches!(judged(&change, &waits("orders-3: no node has room")), Verdict::Waiting(_)));
        assert!(is_finding(
            &judged(&change, &waits("changes are being carried out")),
            "nothing that is outside"
        ));
        assert!(is_finding(&judged(&change, &waits("")), "does not say"));
    }

    #[test]
    fn silence_and_endless_work_are_found() {
        let change = change("spec.instances", json!({"spec": {"instances": 5}}));
        let ready = json!([says("Ready", "True", "AllInstancesReady", "")]);
        let mut late = seen(ready.clone());
        late.object.as_mut().unwrap()["status"]["observedGeneration"] = json!(3);
        assert!(is_finding(&judged(&change, &late), "nobody has looked"));
        let mut busy = seen(ready.clone());
        busy.settled = Err("no rest".into());
        assert!(is_finding(&judged(&change, &busy), "never at rest"));
        let mut writing = seen(ready.clone());
        writing.writes.push("apply statefulsets".into());
        assert!(is_finding(&judged(&change, &writing), "writes at rest"));
        let mut failing = seen(ready.clone());
        failing.writes.push("someone Apply statefulsets.apps lab/ledger -> 422, nothing changed".into());
        assert!(is_finding(&judged(&change, &failing), "errors without end"));
        let mut ended = seen(ready);
        ended.problems.push("operator database ended by itself".into());
        assert!(is_finding(&judged(&change, &ended), "ended by itself"));
        assert!(is_finding(&judged(&change, &seen(json!([]))), "nothing is said"));
    }
}

//! What the API server's audit log says about one user's requests.

use anyhow::{Context, Result};
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
};

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// The operator's own leader Lease.
    Leader,
    /// A watch that was begun.
    Watch,
    /// Which kinds the API server has.
    Discovery,
    /// Everything else.
    Work,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who made it: the name of a ServiceAccount.
    pub user: String,
    /// When it reached the API server.
    pub at: Timestamp,
    /// What for.
    pub purpose: Purpose,
    /// get, list, patch, …
    pub verb: String,
    /// Plural of the kind, with the subresource; of discovery the path.
    pub resource: String,
    /// HTTP status.
    pub code: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    stage: String,
    #[serde(rename = "requestURI")]
    uri: String,
    verb: String,
    user: User,
    #[serde(default)]
    object_ref: Option<ObjectRef>,
    #[serde(default)]
    response_status: Option<Status>,
    request_received_timestamp: String,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Deserialize)]
struct ObjectRef {
    #[serde(default)]
    resource: String,
    #[serde(default)]
    subresource: String,
    #[serde(default)]
    namespace: String,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
}

/// Reads one line. `None`: not a ServiceAccount's of the operators' namespace, or a stage that was or will be counted otherwise.
pub fn read(line: &str) -> Result<Option<Request>> {
    let line: Line =
        serde_json::from_str(line).with_context(|| format!("a line of the audit log: {line}"))?;
    let prefix = format!("system:serviceaccount:{}:", crate::SYSTEM);
    let Some(user) = line.user.username.strip_prefix(&prefix) else { return Ok(None) };
    // A watch counts when it begins: its end comes a minute later, or never.
    let counts = match line.verb.as_str() {
        "watch" => line.stage == "ResponseStarted",
        _ => matches!(line.stage.as_str(), "ResponseComplete" | "Panic"),
    };
    if !counts {
        return Ok(None);
    }
    let (resource, subresource, namespace) =
        line.object_ref.map_or_else(Default::default, |o| (o.resource, o.subresource, o.namespace));
    let purpose = if line.verb == "watch" {
        Purpose::Watch
    } else if resource.is_empty() {
        Purpose::Discovery
    } else if resource == "leases" && namespace == crate::SYSTEM {
        Purpose::Leader
    } else {
        Purpose::Work
    };
    let resource = match (resource.as_str(), subresource.as_str()) {
        ("", _) => line.uri,
        (_, "") => resource,
        _ => format!("{resource}/{subresource}"),
    };
    Ok(Some(Request {
        user: user.into(),
        at: line.request_received_timestamp.parse().context("a time in the audit log")?,
        purpose,
        verb: line.verb,
        resource,
        code: line.response_status.map_or(0, |s| s.code),
    }))
}

/// The audit log, read as it grows.
pub struct Log {
    path: PathBuf,
    read: u64,
    requests: Vec<Request>,
}

impl Log {
    /// The log in this file, from its beginning.
    pub fn new(path: PathBuf) -> Self {
        Self { path, read: 0, requests: Vec::new() }
    }

    /// Reads what was added. Errors: the file cannot be read, or a line is no event.
    pub fn refresh(&mut self) -> Result<()> {
        let what = || self.path.display().to_string();
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            // The API server makes it with the first event.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(what),
        };
        file.seek(SeekFrom::Start(self.read)).with_context(what)?;
        let mut text = String::new();
        file.read_to_string(&mut text).with_context(what)?;
        // The last line may still be being written.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        for line in text[..whole].lines() {
            self.requests.extend(read(line)?);
        }
        self.read += u64::try_from(whole)?;
        Ok(())
    }

    /// A user's requests that arrived from `from` until before `to`.
    pub fn of<'a>(
        &'a self,
        user: &'a str,
        from: Timestamp,
        to: Timestamp,
    ) -> impl Iterator<Item = &'a Request> {
        self.requests.iter().filter(move |r| r.user == user && r.at >= from && r.at < to)
    }

    /// When the last watch of `kinds` different kinds began that a user watches since `from`: kube begins to watch when it
    /// has the list. `None`: not all of them yet.
    pub fn synced(&self, user: &str, kinds: usize, from: Timestamp) -> Option<Timestamp> {
        let mut first: BTreeMap<&str, Timestamp> = BTreeMap::new();
        for request in self.of(user, from, Timestamp::MAX).filter(|r| r.purpose == Purpose::Watch) {
            let at = first.entry(&request.resource).or_insert(request.at);
            *at = request.at.min(*at);
        }
        (first.len() >= kinds).then(|| first.values().max().copied()).flatten()
    }
}

/// Requests by purpose and by verb and kind.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    purposes: BTreeMap<Purpose, usize>,
    work: BTreeMap<(String, String), usize>,
    /// Answers of 400 and more, by what was asked: a create that says "already exists" is one, too.
    pub refused: BTreeMap<String, usize>,
}

impl Counts {
    /// Counts.
    pub fn of<'a>(requests: impl Iterator<Item = &'a Request>) -> Self {
        let mut counts = Self::default();
        for request in requests {
            *counts.purposes.entry(request.purpose).or_default() += 1;
            if matches!(request.purpose, Purpose::Work | Purpose::Discovery) {
                *counts.work.entry((request.verb.clone(), request.resource.clone())).or_default() += 1;
            }
            if request.code >= 400 {
                let what = format!("{} {} {}", request.code, request.verb, request.resource);
                *counts.refused.entry(what).or_default() += 1;
            }
        }
        counts
    }

    /// Requests for this.
    pub fn purpose(&self, purpose: Purpose) -> usize {
        self.purposes.get(&purpose).copied().unwrap_or(0)
    }

    /// Everything but the leader Lease and watches.
    pub fn work(&self) -> usize {
        self.work.values().sum()
    }

    /// As [`Self::work`], by verb, the most frequent first.
    pub fn by_verb(&self) -> Vec<(String, usize)> {
        let verbs: BTreeSet<&str> = self.work.keys().map(|(verb, _)| verb.as_str()).collect();
        let sum = |verb: &str| self.work.iter().filter(|((v, _), _)| v == verb).map(|(_, n)| n).sum();
        let mut all: Vec<(String, usize)> =
            verbs.into_iter().map(|verb| (verb.to_string(), sum(verb))).collect();
        all.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        all
    }

    /// As [`Self::work`], by verb and kind, the most frequent first.
    pub fn by_kind(&self) -> Vec<(String, usize)> {
        let mut all: Vec<(String, usize)> =
            self.work.iter().map(|((verb, kind), n)| (format!("{verb} {kind}"), *n)).collect();
        all.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn line(user: &str, verb: &str, stage: &str, object: Value) -> String {
        json!({"stage": stage, "requestURI": "/apis/holdfast.dev/v1alpha1", "verb": verb, "user": {"username": user},
            "objectRef": object, "responseStatus": {"code": 200}, "requestReceivedTimestamp": "2026-11-21T09:00:00.5Z"})
        .to_string()
    }

    #[test]
    fn each_request_counts_once_for_its_purpose() {
        let ours = "system:serviceaccount:holdfast-system:keeper";
        let shelf = json!({"resource": "shelves", "subresource": "status", "namespace": "shop"});
        let lease = |namespace: &str| json!({"resource": "leases", "namespace": namespace});
        let table = [
            (line(ours, "patch", "ResponseComplete", shelf.clone()), Some((Purpose::Work, "shelves/status"))),
            (line(ours, "watch", "ResponseStarted", shelf.clone()), Some((Purpose::Watch, "shelves/status"))),
            (line(ours, "watch", "ResponseComplete", shelf.clone()), None),
            (
                line(ours, "update", "ResponseComplete", lease("holdfast-system")),
                Some((Purpose::Leader, "leases")),
            ),
            (line(ours, "update", "ResponseComplete", lease("shop")), Some((Purpose::Work, "leases"))),
            (
                line(ours, "get", "ResponseComplete", Value::Null),
                Some((Purpose::Discovery, "/apis/holdfast.dev/v1alpha1")),
            ),
            (line("system:serviceaccount:shop:keeper", "get", "ResponseComplete", shelf), None),
        ];
        for (line, expected) in table {
            let read = read(&line).unwrap().map(|r| (r.purpose, r.resource));
            assert_eq!(read, expected.map(|(purpose, kind)| (purpose, kind.to_string())), "{line}");
        }
    }

    #[test]
    fn caches_are_filled_when_the_last_kind_is_watched_for_the_first_time() {
        let watch = |kind: &str, second: i64| Request {
            user: "keeper".into(),
            at: Timestamp::from_second(second).unwrap(),
            purpose: Purpose::Watch,
            verb: "watch".into(),
            resource: kind.into(),
            code: 200,
        };
        let mut log = Log::new(PathBuf::new());
        log.requests = vec![watch("pods", 10), watch("shelves", 12)];
        assert_eq!(log.synced("keeper", 3, Timestamp::UNIX_EPOCH), None);
        log.requests.extend([watch("books", 11), watch("pods", 70)]);
        assert_eq!(log.synced("keeper", 3, Timestamp::UNIX_EPOCH).unwrap().as_second(), 12);
    }
}

//! A watch: a stream of lines that goes on from a revision.

use crate::{
    read::metadata_only,
    rest::State,
    selector::Selector,
    server::Shared,
    session::{Cuts, Life},
    status::Refusal,
    store::Change,
};
use bytes::Bytes;
use serde_json::{Value, json};
use std::{borrow::Cow, collections::VecDeque, sync::Arc, time::Duration};
use tokio::time::Instant;

/// How often a bookmark is sent, and how long before the end the last one.
const BOOKMARK: Duration = Duration::from_secs(60);
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

/// What a watch asks for.
pub(crate) struct Request {
    pub kind: usize,
    pub namespace: String,
    pub selector: Selector,
    pub metadata: bool,
    pub bookmarks: bool,
    pub timeout: Duration,
}

/// A running watch.
pub(crate) struct Watch {
    shared: Arc<Shared>,
    life: Arc<Life>,
    request: Request,
    resource: String,
    /// All changes up to here were looked at.
    cursor: u64,
    lines: VecDeque<Bytes>,
    ended: bool,
    deadline: Instant,
    bookmark: Instant,
    /// What had happened to the client's watches when this one began.
    cuts: Cuts,
    /// Whether it goes on from where another one ended.
    resumed: bool,
    changed: tokio::sync::watch::Receiver<u64>,
}

impl Watch {
    /// Begins after `cursor`. `initial`: what is sent first, and whether its end is marked.
    pub fn new(
        shared: Arc<Shared>,
        life: Arc<Life>,
        request: Request,
        resource: String,
        cursor: u64,
        initial: Option<(Vec<Value>, bool)>,
    ) -> Self {
        let now = Instant::now();
        let deadline = now + request.timeout;
        let (home, kind) = {
            let state = shared.state();
            (state.home(request.kind), state.kind(request.kind))
        };
        let changed = shared.of_kind(home);
        let cuts = life.cuts(&resource);
        let resumed = initial.is_none();
        let mut watch = Self {
            shared,
            life,
            request,
            resource,
            cursor,
            lines: VecDeque::new(),
            ended: false,
            deadline,
            bookmark: now,
            cuts,
            resumed,
            changed,
        };
        watch.schedule(now);
        if let Some((objects, marked)) = initial {
            for object in objects {
                watch.life.sees(&kind, &object);
                watch.send("ADDED", &object);
            }
            if marked {
                watch.mark(true);
            }
        }
        watch
    }

    /// A watch that says at once that its revision is gone.
    pub fn gone(mut self, refusal: &Refusal) -> Self {
        self.fail(refusal);
        self
    }

    fn schedule(&mut self, now: Instant) {
        let last = self.deadline.checked_sub(LAST_BOOKMARK).unwrap_or(now);
        // After the last one there is no other.
        self.bookmark = match now + BOOKMARK {
            regular if regular < last => regular,
            _ if now < last => last,
            _ => self.deadline + BOOKMARK,
        };
    }

    fn send(&mut self, type_: &str, object: &Value) {
        let line =
            if self.request.metadata { line(type_, &metadata_only(object)) } else { line(type_, object) };
        self.lines.push_back(line);
    }

    fn mark(&mut self, initial_end: bool) {
        let state = self.shared.state();
        let kind = state.kind(self.request.kind);
        drop(state);
        let mut meta = json!({"resourceVersion": self.cursor.to_string(), "creationTimestamp": null});
        if initial_end {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": meta});
        self.send("BOOKMARK", &object);
    }

    fn fail(&mut self, refusal: &Refusal) {
        self.lines.push_back(line("ERROR", &refusal.status()));
        self.ended = true;
    }

    /// The next line. `None`: the server ended the watch.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.life.is_dead() {
                std::future::pending::<()>().await;
            }
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if self.ended {
                return None;
            }
            self.changed.mark_unchanged();
            self.look();
            if !self.lines.is_empty() || self.ended {
                continue;
            }
            tokio::select! {
                biased;
                _ = self.changed.changed() => {}
                () = tokio::time::sleep_until(self.deadline) => self.ended = true,
                () = tokio::time::sleep_until(self.bookmark) => {
                    self.look();
                    if self.request.bookmarks && !self.ended {
                        self.mark(false);
                    }
                    self.schedule(Instant::now());
                }
            }
        }
    }

    /// Takes in what has happened.
    fn look(&mut self) {
        let cuts = self.life.cuts(&self.resource);
        // Every one that was there then, and every one that would go on from before.
        if cuts.expiries > self.cuts.expiries || (self.resumed && cuts.expired > self.cursor) {
            self.fail(&too_old(self.cursor, cuts.expired));
            return;
        }
        if cuts.ends > self.cuts.ends {
            self.ended = true;
            return;
        }
        let shared = Arc::clone(&self.shared);
        let state = shared.state();
        let sight = self.life.sight(&self.resource);
        let visible = sight.cache.unwrap_or(u64::MAX).min(state.store.revision);
        if visible <= self.cursor {
            return;
        }
        if self.cursor < state.store.compacted {
            self.fail(&too_old(self.cursor, state.store.compacted));
            return;
        }
        let home = state.home(self.request.kind);
        let changes: Vec<Change> = state
            .store
            .since(self.cursor)
            .iter()
            .take_while(|c| c.revision <= visible)
            .filter(|c| c.key.kind == home)
            .filter(|c| self.request.namespace.is_empty() || c.key.namespace == self.request.namespace)
            .cloned()
            .collect();
        self.cursor = visible;
        let kind = state.kind(self.request.kind);
        for change in changes {
            if let Some((type_, object)) = self.event(&state, &change)
                && !self.life.loses(&self.resource, &change.key.namespace, &change.key.name, type_)
            {
                match type_ {
                    "DELETED" => self.life.misses(&kind, &change.key.namespace, &change.key.name),
                    _ => self.life.sees(&kind, &object),
                }
                self.send(type_, &object);
            }
        }
    }

    /// What a change is to somebody who sees only what the selector selects.
    fn event<'a>(&self, state: &State, change: &'a Change) -> Option<(&'static str, Cow<'a, Value>)> {
        let shown = |object: &'a Option<Arc<Value>>| {
            object
                .as_ref()
                .map(|o| state.shown(self.request.kind, o))
                .filter(|o| self.request.selector.matches(o))
        };
        match (shown(&change.before), shown(&change.after)) {
            (None, Some(after)) => Some(("ADDED", after)),
            (Some(_), Some(after)) => Some(("MODIFIED", after)),
            (Some(mut before), None) => {
                // The last state that was selected, under the revision in which it left.
                before.to_mut()["metadata"]["resourceVersion"] = change.revision.to_string().into();
                Some(("DELETED", before))
            }
            (None, None) => None,
        }
    }
}

/// A line of a watch. Written straight from the object: most of the sweep's time would else go into copies.
fn line(type_: &str, object: &Value) -> Bytes {
    let mut line = format!("{{\"type\":\"{type_}\",\"object\":").into_bytes();
    // A value of JSON can always be written.
    let _ = serde_json::to_writer(&mut line, object);
    line.extend_from_slice(b"}\n");
    line.into()
}

pub(crate) fn too_old(asked: u64, oldest: u64) -> Refusal {
    Refusal::expired(format!("too old resource version: {asked} ({oldest})"))
}

//! Kubernetes Events. Creates and patches events.k8s.io Events; never fails its caller.

use crate::telemetry;
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// How long an event may take: it is news, not work.
const DEADLINE: Duration = Duration::from_secs(5);
/// The API server refuses longer notes.
const NOTE: usize = 1024;

/// How long a repeated event is joined to the one before, as kube's own recorder has it.
const SERIES: Duration = Duration::from_secs(6 * 60);

/// Records events on objects. Clones share one memory, which joins an event that says the same again to the one before.
#[derive(Clone)]
pub struct Events {
    client: Client,
    reporter: Reporter,
    series: Arc<Mutex<Series>>,
}

/// The last note of each kind of event, and the recorder that wrote it.
///
/// kube's recorder takes events of one reason for the same whatever they say, and shows the first one's words with a count: a
/// second failover would be told with the names of the first. So another note gets another recorder.
#[derive(Default)]
struct Series(HashMap<(String, String, String), Last>);

struct Last {
    note: String,
    at: Instant,
    recorder: Recorder,
}

impl Series {
    /// The recorder for a note about this object (by uid) with this reason and action.
    fn recorder(
        &mut self,
        kind: (String, String, String),
        note: &str,
        now: Instant,
        new: impl FnOnce() -> Recorder,
    ) -> Recorder {
        self.0.retain(|_, last| now.saturating_duration_since(last.at) < SERIES);
        match self.0.get_mut(&kind).filter(|last| last.note == note) {
            Some(last) => {
                last.at = now;
                last.recorder.clone()
            }
            None => {
                let recorder = new();
                self.0.insert(kind, Last { note: note.into(), at: now, recorder: recorder.clone() });
                recorder
            }
        }
    }
}

impl Events {
    /// Events reported by this controller, from this pod.
    pub fn new(client: Client, controller: &str, instance: Option<String>) -> Self {
        Self {
            client,
            reporter: Reporter { controller: controller.into(), instance },
            series: Arc::default(),
        }
    }

    /// Something that went as it should. `reason` and `action` are CamelCase, `note` is a sentence.
    pub async fn normal<K: Resource<DynamicType = ()>>(
        &self,
        on: &K,
        reason: &str,
        action: &str,
        note: &str,
    ) {
        self.publish(on, EventType::Normal, reason, action, note).await;
    }

    /// Something that a person should look at. The note says what to do.
    pub async fn warning<K: Resource<DynamicType = ()>>(
        &self,
        on: &K,
        reason: &str,
        action: &str,
        note: &str,
    ) {
        self.publish(on, EventType::Warning, reason, action, note).await;
    }

    async fn publish<K: Resource<DynamicType = ()>>(
        &self,
        on: &K,
        type_: EventType,
        reason: &str,
        action: &str,
        note: &str,
    ) {
        let event = Event {
            type_,
            reason: reason.into(),
            action: action.into(),
            note: Some(shorten(note).into()),
            secondary: None,
        };
        let reference = on.object_ref(&());
        let kind = (reference.uid.clone().unwrap_or_default(), event.reason.clone(), event.action.clone());
        let recorder = self.series.lock().unwrap_or_else(PoisonError::into_inner).recorder(
            kind,
            note,
            Instant::now(),
            || Recorder::new(self.client.clone(), self.reporter.clone()),
        );
        match tokio::time::timeout(DEADLINE, recorder.publish(&event, &reference)).await {
            Ok(Ok(())) => {}
            // A namespace that is being deleted takes no events; neither does an unreachable API server. The work goes on.
            Ok(Err(error)) => {
                tracing::warn!(reason, error = telemetry::chain(&error), "cannot record an event")
            }
            Err(_) => tracing::warn!(reason, "cannot record an event: no answer within {DEADLINE:?}"),
        }
    }
}

/// At most [`NOTE`] bytes, cut at a character.
fn shorten(note: &str) -> &str {
    let mut end = note.len().min(NOTE);
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    &note[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn another_note_is_another_event_and_the_same_one_is_counted() {
        let made = std::cell::Cell::new(0);
        let client = || {
            let client = unused();
            made.set(made.get() + 1);
            Recorder::new(client, Reporter { controller: "papers".into(), instance: None })
        };
        let mut series = Series::default();
        let kind = |reason: &str| ("u1".to_string(), reason.to_string(), "Act".to_string());
        let now = Instant::now();
        for (reason, note, expected) in [
            ("Moved", "a leads", 1),
            ("Moved", "a leads", 1),
            ("Moved", "b leads", 2),
            ("Grew", "b leads", 3),
        ] {
            series.recorder(kind(reason), note, now, client);
            assert_eq!(made.get(), expected, "{reason} {note}");
        }
        series.recorder(kind("Grew"), "b leads", now + SERIES, client);
        assert_eq!((made.get(), series.0.len()), (4, 1), "what is old is forgotten");
    }

    /// A client that is never used.
    fn unused() -> Client {
        let config = kube::Config::new(http::Uri::from_static("http://127.0.0.1:9"));
        Client::try_from(config).unwrap()
    }

    #[test]
    fn a_long_note_is_cut_between_characters() {
        let note = "é".repeat(NOTE);
        assert_eq!(shorten(&note).len(), NOTE);
        let odd = format!("a{note}");
        assert_eq!(shorten(&odd).len(), NOTE - 1);
        assert_eq!(shorten("short"), "short");
    }
}

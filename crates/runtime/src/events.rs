//! Kubernetes Events. Creates and patches events.k8s.io Events; never fails its caller.

use crate::telemetry;
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use std::time::Duration;

/// How long an event may take: it is news, not work.
const DEADLINE: Duration = Duration::from_secs(5);
/// The API server refuses longer notes.
const NOTE: usize = 1024;

/// Records events on objects. Clones share one cache, which joins repeated events into a series.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
}

impl Events {
    /// Events reported by this controller, from this pod.
    pub fn new(client: Client, controller: &str, instance: Option<String>) -> Self {
        Self { recorder: Recorder::new(client, Reporter { controller: controller.into(), instance }) }
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
        match tokio::time::timeout(DEADLINE, self.recorder.publish(&event, &reference)).await {
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

    #[test]
    fn a_long_note_is_cut_between_characters() {
        let note = "é".repeat(NOTE);
        assert_eq!(shorten(&note).len(), NOTE);
        let odd = format!("a{note}");
        assert_eq!(shorten(&odd).len(), NOTE - 1);
        assert_eq!(shorten("short"), "short");
    }
}

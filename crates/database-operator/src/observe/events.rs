//! Kubernetes' own words about objects that do not come up: asked only while something is stuck.

use holdfast_runtime::apply::bounded;
use k8s_openapi::{api::core::v1::Event, jiff::Timestamp};
use kube::{Api, Client, api::ListParams};
use std::collections::BTreeMap;

/// Which events count.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counts {
    /// The newest one, if it is a warning: a pod that pulls its image has got its volumes.
    Newest,
    /// About a claim that is not bound: the newest warning, and the news that no class is set, which is no warning but will
    /// not change by itself. `slow`: it has waited long enough to tell what it waits for, too.
    Unbound {
        /// Whether it has waited for long.
        slow: bool,
    },
    /// About a growth: the last word on how it went, if it failed and is not older than this growth.
    Growth {
        /// When this growth began, if the claim says so.
        since: Option<Timestamp>,
        /// The controller has done its part: only the node can still fail.
        on_node: bool,
    },
}

/// An object that does not come up: Kubernetes' events may say why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    /// uid of the object.
    pub uid: String,
    /// What it is, for people: "pod orders-0".
    pub what: String,
    /// Which events answer it.
    pub counts: Counts,
}

/// Kubernetes' own words about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words {
    /// Reason, CamelCase.
    pub reason: String,
    /// Message.
    pub message: String,
}

/// What is told about each object that is in trouble. A refusal is no failure: then there are no words.
pub async fn words(client: &Client, namespace: &str, questions: &[Question]) -> BTreeMap<String, Words> {
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    let mut answers = BTreeMap::new();
    for question in questions {
        let params = ListParams::default().fields(&format!("involvedObject.uid={}", question.uid));
        match bounded(api.list(&params)).await {
            Ok(events) => {
                if let Some(words) = answer(events.items, &question.counts) {
                    answers.insert(question.uid.clone(), words);
                }
            }
            Err(error) => {
                tracing::warn!(what = question.what, error = %error, "cannot read events");
                break;
            }
        }
    }
    answers
}

fn answer(events: Vec<Event>, counts: &Counts) -> Option<Words> {
    let warns = |event: &Event| event.type_.as_deref() == Some("Warning");
    let reason = |event: &Event| event.reason.clone().unwrap_or_default();
    let events = events.into_iter();
    let told = match counts {
        // Their times are whole seconds, and kubelets tell one failure in several: the one that says most.
        Counts::Newest => {
            let length = |event: &Event| event.message.as_ref().map_or(0, String::len);
            events.max_by_key(|event| (event_time(event), length(event))).filter(warns)
        }
        Counts::Unbound { slow } => {
            let waits = |event: &Event| match reason(event).as_str() {
                "FailedBinding" => true,
                "ExternalProvisioning" => *slow,
                _ => false,
            };
            let (warnings, news): (Vec<_>, Vec<_>) = events.partition(warns);
            let news = news.into_iter().filter(waits).max_by_key(event_time);
            warnings.into_iter().max_by_key(event_time).or(news)
        }
        Counts::Growth { since, on_node } => {
            // An earlier failure stays readable for an hour: a success after it, or its age, makes it void. FileSystemResizeRequired
            // is the controller's success: what is left is the node's.
            let outcome = |event: &Event| match reason(event).as_str() {
                "FileSystemResizeFailed" | "FileSystemResizeSuccessful" => true,
                "FileSystemResizeRequired" => !on_node,
                reason => {
                    !on_node && (reason.ends_with("ResizeFailed") || reason.ends_with("ResizeSuccessful"))
                }
            };
            let current = |event: &Event| since.is_none() || event_time(event) >= *since;
            events.filter(outcome).max_by_key(event_time).filter(warns).filter(current)
        }
    }?;
    Some(Words {
        reason: told.reason.unwrap_or_else(|| "Waiting".into()),
        message: told.message.unwrap_or_default(),
    })
}

fn event_time(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|s| s.last_observed_time.as_ref()).map(|t| t.0);
    let last = event.last_timestamp.as_ref().map(|t| t.0);
    let first = event.event_time.as_ref().map(|t| t.0);
    series.max(last).max(first).or(event.metadata.creation_timestamp.as_ref().map(|t| t.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(type_: &str, reason: &str, time: &str) -> Event {
        serde_json::from_value(
            serde_json::json!({"metadata": {}, "involvedObject": {}, "type": type_, "reason": reason,
            "message": format!("about {reason}"), "lastTimestamp": format!("2026-11-21T{time}Z")}),
        )
        .unwrap()
    }

    fn said(events: &[Event], counts: &Counts) -> Option<String> {
        answer(events.to_vec(), counts).map(|words| words.reason)
    }

    #[test]
    fn a_good_event_ends_a_pods_warning_but_not_a_claims() {
        let events =
            [event("Warning", "FailedMount", "09:00:00"), event("Normal", "Provisioning", "09:00:05")];
        assert_eq!(said(&events, &Counts::Newest), None);
        assert_eq!(said(&events, &Counts::Unbound { slow: false }).as_deref(), Some("FailedMount"));
    }

    #[test]
    fn of_one_second_the_event_that_says_most() {
        let mut short = event("Warning", "Failed", "09:00:00");
        short.message = Some("Error: ErrImagePull".into());
        let mut long = event("Warning", "Failed", "09:00:00");
        long.message = Some("Failed to pull image \"nowhere/none:1\": not found".into());
        for events in [[short.clone(), long.clone()], [long, short]] {
            let words = answer(events.to_vec(), &Counts::Newest).unwrap();
            assert!(words.message.contains("nowhere/none:1"), "{}", words.message);
        }
    }

    #[test]
    fn a_claim_without_a_class_or_a_provisioner_is_told_though_it_is_no_warning() {
        let none = [event("Normal", "FailedBinding", "09:00:00")];
        assert_eq!(said(&none, &Counts::Unbound { slow: false }).as_deref(), Some("FailedBinding"));
        let nobody = [event("Normal", "ExternalProvisioning", "09:00:00")];
        assert_eq!(said(&nobody, &Counts::Unbound { slow: false }), None, "it may be on its way");
        assert_eq!(said(&nobody, &Counts::Unbound { slow: true }).as_deref(), Some("ExternalProvisioning"));
        let waits = [event("Normal", "WaitForFirstConsumer", "09:00:00")];
        assert_eq!(said(&waits, &Counts::Unbound { slow: true }), None, "the scheduler knows more");
    }

    #[test]
    fn only_this_growths_failure_counts() {
        let failed = event("Warning", "VolumeResizeFailed", "09:00:00");
        let again = event("Normal", "Resizing", "09:00:01");
        let since = |text: &str| Counts::Growth { since: Some(text.parse().unwrap()), on_node: false };
        let any = Counts::Growth { since: None, on_node: false };
        let retried = [failed.clone(), again];
        assert_eq!(
            said(&retried, &any).as_deref(),
            Some("VolumeResizeFailed"),
            "a new attempt is no success"
        );
        assert_eq!(said(&retried, &since("2026-11-21T08:59:59Z")).as_deref(), Some("VolumeResizeFailed"));
        assert_eq!(said(&retried, &since("2026-11-21T09:30:00Z")), None, "an earlier growth's");
        let done = event("Normal", "FileSystemResizeSuccessful", "09:10:00");
        assert_eq!(said(&[failed, done], &any), None);
    }

    #[test]
    fn the_controllers_failure_is_void_when_only_the_node_is_left() {
        let failed = event("Warning", "VolumeResizeFailed", "09:00:00");
        let rest = event("Normal", "FileSystemResizeRequired", "09:00:10");
        let node = event("Warning", "FileSystemResizeFailed", "09:00:20");
        let growth = |on_node| Counts::Growth { since: None, on_node };
        assert_eq!(said(&[failed.clone(), rest.clone()], &growth(false)), None, "it got over it");
        // The claim says so, whatever became of the event.
        assert_eq!(said(std::slice::from_ref(&failed), &growth(true)), None);
        for on_node in [false, true] {
            let all = [failed.clone(), rest.clone(), node.clone()];
            assert_eq!(said(&all, &growth(on_node)).as_deref(), Some("FileSystemResizeFailed"));
        }
    }
}

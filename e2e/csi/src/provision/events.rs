//! Kubernetes Events (core/v1, which `kubectl describe` and field selectors on the object's uid find). Never fails its caller.

use super::call;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The same words are written again at most so often.
const AGAIN: Duration = Duration::from_secs(10);
/// What has not been said for so long is said anew: Kubernetes itself drops events after an hour.
const FORGET: Duration = Duration::from_secs(1800);
/// Kubernetes refuses longer messages.
const LONGEST: usize = 1024;
/// So much of an object's name fits into that of its event: names end at 253, the unique part takes 17.
const NAME: usize = 230;

/// What was said last about an object with a reason.
struct Said {
    name: String,
    message: String,
    count: i32,
    written: Instant,
}

/// What is to be written.
#[derive(Debug, PartialEq, Eq)]
enum Tell {
    Nothing,
    New(String),
    Again(String, i32),
}

/// By uid of the object and reason.
#[derive(Default)]
struct Ledger {
    said: HashMap<(String, String), Said>,
}

impl Ledger {
    /// `fresh` is a name for a new event.
    fn decide(
        &mut self,
        uid: &str,
        reason: &str,
        message: &str,
        fresh: impl FnOnce() -> String,
        now: Instant,
    ) -> Tell {
        self.said.retain(|_, said| now < said.written + FORGET);
        let key = (uid.to_string(), reason.to_string());
        match self.said.get_mut(&key) {
            Some(said) if said.message == message => {
                said.count = said.count.saturating_add(1);
                if now < said.written + AGAIN {
                    return Tell::Nothing;
                }
                said.written = now;
                Tell::Again(said.name.clone(), said.count)
            }
            _ => {
                let name = fresh();
                let said = Said { name: name.clone(), message: message.to_string(), count: 1, written: now };
                self.said.insert(key, said);
                Tell::New(name)
            }
        }
    }
}

/// Writes events, in the background.
#[derive(Clone)]
pub struct Events {
    client: Client,
    component: String,
    ledger: Arc<Mutex<Ledger>>,
}

impl Events {
    /// Events from this component.
    pub fn new(client: Client, component: &str) -> Self {
        Self { client, component: component.into(), ledger: Arc::default() }
    }

    /// Something that goes as it should.
    pub fn normal<K: Resource<DynamicType = ()>>(&self, on: &K, reason: &str, message: &str) {
        self.tell(on.object_ref(&()), "Normal", reason, message);
    }

    /// Something that a person should look at.
    pub fn warning<K: Resource<DynamicType = ()>>(&self, on: &K, reason: &str, message: &str) {
        self.tell(on.object_ref(&()), "Warning", reason, message);
    }

    fn tell(&self, on: ObjectReference, kind: &str, reason: &str, message: &str) {
        let message = shorten(message);
        let object = on.name.clone().unwrap_or_default();
        // Objects outside of namespaces have their events in this one.
        let namespace = on.namespace.clone().unwrap_or_else(|| "default".into());
        let uid = on.uid.clone().unwrap_or_default();
        let now = Timestamp::now();
        let fresh = || name(&object, now.as_nanosecond());
        let decided = {
            let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            ledger.decide(&uid, reason, message, fresh, Instant::now())
        };
        if decided != Tell::Nothing {
            tracing::info!(kind, reason, namespace, object, message, "event");
        }
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let event = |name: String, count: i32| Event {
            metadata: ObjectMeta { name: Some(name), namespace: Some(namespace), ..ObjectMeta::default() },
            involved_object: on,
            type_: Some(kind.into()),
            reason: Some(reason.into()),
            message: Some(message.into()),
            source: Some(EventSource { component: Some(self.component.clone()), host: None }),
            reporting_component: Some(self.component.clone()),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(count),
            ..Event::default()
        };
        // In the background: news must not slow the work down. Bounded by the deadline of a call.
        match decided {
            Tell::Nothing => {}
            Tell::New(name) => {
                let event = event(name, 1);
                tokio::spawn(async move { written(call(api.create(&PostParams::default(), &event)).await) });
            }
            Tell::Again(name, count) => {
                let patch = json!({"count": count, "lastTimestamp": Time(now)});
                let whole = event(name.clone(), count);
                tokio::spawn(async move {
                    let patched =
                        call(api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch))).await;
                    match patched {
                        // Kubernetes has dropped it, or the first write failed.
                        Err(error) if error.not_found() => {
                            written(call(api.create(&PostParams::default(), &whole)).await);
                        }
                        result => written(result),
                    }
                });
            }
        }
    }
}

fn written(result: Result<Event, super::CallError>) {
    if let Err(error) = result {
        // A namespace that is being deleted takes no events. The work goes on.
        tracing::warn!(%error, "cannot write an event");
    }
}

/// A name for a new event on an object, whose own name may already be as long as names can be.
fn name(object: &str, unique: i128) -> String {
    let mut end = object.len().min(NAME);
    while !object.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}.{unique:x}", object[..end].trim_end_matches(['.', '-']))
}

/// At most [`LONGEST`] bytes, cut at a character.
fn shorten(message: &str) -> &str {
    let mut end = message.len().min(LONGEST);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_words_are_counted_and_written_every_ten_seconds() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let mut at = |seconds: u64, message: &str, name: &str| {
            let now = start + Duration::from_secs(seconds);
            ledger.decide("u1", "ProvisioningFailed", message, || name.to_string(), now)
        };
        assert_eq!(at(0, "full", "e1"), Tell::New("e1".into()));
        assert_eq!(at(1, "full", "e2"), Tell::Nothing);
        assert_eq!(at(9, "full", "e3"), Tell::Nothing);
        assert_eq!(at(10, "full", "e4"), Tell::Again("e1".into(), 4));
        assert_eq!(at(11, "gone", "e5"), Tell::New("e5".into()));
        assert_eq!(at(4000, "gone", "e6"), Tell::New("e6".into()));
    }

    #[test]
    fn objects_and_reasons_do_not_share_words() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let mut say = |uid: &str, reason: &str| ledger.decide(uid, reason, "x", || "e".into(), now);
        assert_eq!(say("u1", "A"), Tell::New("e".into()));
        assert_eq!(say("u2", "A"), Tell::New("e".into()));
        assert_eq!(say("u1", "B"), Tell::New("e".into()));
        assert_eq!(say("u1", "B"), Tell::Nothing);
    }

    #[test]
    fn names_stay_valid() {
        assert_eq!(name("pgdata-orders-0", 255), "pgdata-orders-0.ff");
        let long = format!("{}-{}", "a".repeat(NAME - 1), "b".repeat(20));
        assert_eq!(name(&long, 255), format!("{}.ff", "a".repeat(NAME - 1)));
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let long = format!("a{}", "é".repeat(LONGEST));
        assert_eq!(shorten(&long).len(), LONGEST - 1);
        assert_eq!(shorten("short"), "short");
    }
}

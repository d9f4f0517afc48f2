//! A cache of packed objects that a watch keeps fresh, by namespace and name. Touches nothing else.
//!
//! kube's own store keeps names, uid and version of each object twice and the object whole; of the thousands of children of a
//! thousand databases that would be most of an operator's memory.

use crate::packed::{Json, Keep, Object, Packed, unpack};
use kube::runtime::watcher::Event;
use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};
use tokio::sync::watch;

/// An object without its name.
struct Entry<Digest> {
    /// Number of the list that it was in last.
    seen: u32,
    digest: Digest,
    json: Json,
}

/// By namespace and name.
type Objects<Digest> = BTreeMap<Box<str>, BTreeMap<Box<str>, Entry<Digest>>>;

/// What is known of the objects of one kind. It may be stale: whoever is about to write asks the API server first.
pub struct Cache<K, How: Keep<K>> {
    objects: Arc<RwLock<Objects<How::Digest>>>,
    ready: watch::Receiver<bool>,
}

impl<K, How: Keep<K>> Clone for Cache<K, How> {
    fn clone(&self) -> Self {
        Self { objects: Arc::clone(&self.objects), ready: self.ready.clone() }
    }
}

/// The watch that would fill a cache has ended.
#[derive(Debug, thiserror::Error)]
#[error("a watch has ended before its cache was filled")]
pub struct Ended;

impl<K: Object, How: Keep<K>> Cache<K, How> {
    /// Waits for the first list. Errors: it will never come.
    pub async fn ready(&self) -> Result<(), Ended> {
        let mut ready = self.ready.clone();
        ready.wait_for(|ready| *ready).await.map(drop).map_err(|_| Ended)
    }

    /// An object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<K> {
        // Unpacked outside of the lock, which the watch waits for.
        let json = self.read(|objects| Some(objects.get(namespace)?.get(name)?.json.clone()))?;
        unpack(&json)
    }

    /// The objects of a namespace whose digest fits, by name.
    pub fn filter(&self, namespace: &str, fits: impl Fn(&How::Digest) -> bool) -> Vec<K> {
        let found: Vec<Json> = self.read(|objects| {
            let all = objects.get(namespace).into_iter().flat_map(BTreeMap::values);
            all.filter(|entry| fits(&entry.digest)).map(|entry| entry.json.clone()).collect()
        });
        found.iter().filter_map(unpack).collect()
    }

    fn read<T>(&self, look: impl FnOnce(&Objects<How::Digest>) -> T) -> T {
        look(&self.objects.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The end of a [`Cache`] that its watch writes to. Dropped before the first list is complete, the cache never is.
pub struct Filler<K, How: Keep<K>> {
    objects: Arc<RwLock<Objects<How::Digest>>>,
    ready: watch::Sender<bool>,
    list: u32,
}

/// What a watch brought: an object's digest before (none: it is new) and now (none: it is gone).
pub struct News<'a, Digest> {
    /// Its namespace; empty: none.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// As it was.
    pub before: Option<&'a Digest>,
    /// As it is.
    pub now: Option<&'a Digest>,
}

/// An empty cache, and what fills it.
pub fn cache<K: Object, How: Keep<K>>() -> (Cache<K, How>, Filler<K, How>) {
    let objects = Arc::default();
    let (sender, ready) = watch::channel(false);
    (Cache { objects: Arc::clone(&objects), ready }, Filler { objects, ready: sender, list: 0 })
}

impl<K: Object, How: Keep<K>> Filler<K, How> {
    /// Takes in what the watch says, and tells what is new once the cache shows it.
    pub fn take(&mut self, event: Event<Packed<K, How>>, mut tell: impl FnMut(News<'_, How::Digest>)) {
        match event {
            Event::Init => self.list = self.list.wrapping_add(1),
            Event::InitApply(object) | Event::Apply(object) => {
                let (namespace, name, digest, json) = object.into_parts();
                let entry = Entry { seen: self.list, digest: digest.clone(), json };
                let before = {
                    let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
                    let all = match objects.get_mut(namespace.as_str()) {
                        Some(all) => all,
                        None => objects.entry(namespace.as_str().into()).or_default(),
                    };
                    match all.get_mut(name.as_str()) {
                        Some(known) => Some(std::mem::replace(known, entry)),
                        None => all.insert(name.as_str().into(), entry),
                    }
                };
                let (before, now) = (before.as_ref().map(|entry| &entry.digest), Some(&digest));
                tell(News { namespace: &namespace, name: &name, before, now });
            }
            Event::Delete(object) => {
                let (namespace, name, digest, _) = object.into_parts();
                self.remove(&namespace, &name);
                tell(News { namespace: &namespace, name: &name, before: Some(&digest), now: None });
            }
            Event::InitDone => {
                // Deleted while the watch was interrupted: no event tells of these.
                let mut gone = Vec::new();
                for (namespace, all) in &*self.objects.read().unwrap_or_else(PoisonError::into_inner) {
                    let unseen = all.iter().filter(|(_, entry)| entry.seen != self.list);
                    gone.extend(unseen.map(|(name, _)| (namespace.clone(), name.clone())));
                }
                for (namespace, name) in gone {
                    let entry = self.remove(&namespace, &name);
                    let before = entry.as_ref().map(|entry| &entry.digest);
                    tell(News { namespace: &namespace, name: &name, before, now: None });
                }
                self.ready.send_replace(true);
            }
        }
    }

    fn remove(&self, namespace: &str, name: &str) -> Option<Entry<How::Digest>> {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        let all = objects.get_mut(namespace)?;
        let entry = all.remove(name);
        if all.is_empty() {
            objects.remove(namespace);
        }
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Service;
    use serde_json::json;

    struct Counters;

    impl Keep<Service> for Counters {
        type Digest = String;

        fn digest(object: &Service) -> String {
            object.spec.as_ref().and_then(|s| s.external_name.clone()).unwrap_or_default()
        }
    }

    fn counter(namespace: &str, name: &str, clerk: &str) -> Packed<Service, Counters> {
        serde_json::from_value(
            json!({"metadata": {"namespace": namespace, "name": name}, "spec": {"externalName": clerk}}),
        )
        .unwrap()
    }

    #[tokio::test]
    async fn the_cache_shows_what_the_watch_says_and_tells_of_what_went_unseen() {
        let (cache, mut filler) = cache::<Service, Counters>();
        let mut told = Vec::new();
        let mut take = |event| {
            filler.take(event, |news| {
                let text = |digest: Option<&String>| digest.cloned().unwrap_or("-".into());
                told.push(format!(
                    "{}/{} {}>{}",
                    news.namespace,
                    news.name,
                    text(news.before),
                    text(news.now)
                ));
            });
            std::mem::take(&mut told)
        };
        let names = |clerk: &'static str| {
            let found = cache.filter("post", move |digest| digest == clerk);
            found.into_iter().filter_map(|service| service.metadata.name).collect::<Vec<_>>()
        };
        take(Event::Init);
        assert_eq!(take(Event::InitApply(counter("post", "b", "ann"))), ["post/b ->ann"]);
        take(Event::InitApply(counter("post", "a", "ann")));
        take(Event::InitApply(counter("bank", "a", "ann")));
        assert!(!*cache.ready.borrow(), "half a list must not be decided from");
        assert!(take(Event::InitDone).is_empty());
        cache.ready().await.unwrap();
        assert_eq!(names("ann"), ["a", "b"]);
        assert_eq!(take(Event::Apply(counter("post", "a", "bob"))), ["post/a ann>bob"]);
        assert_eq!((names("ann"), names("bob")), (vec!["b".to_string()], vec!["a".to_string()]));
        assert_eq!(cache.get("bank", "a").unwrap().spec.unwrap().external_name.unwrap(), "ann");
        assert!(cache.get("bank", "b").is_none());

        // The watch is begun anew; meanwhile b went and so did everything in the bank.
        take(Event::Init);
        assert_eq!(take(Event::InitApply(counter("post", "a", "bob"))), ["post/a bob>bob"]);
        assert_eq!(names("ann"), ["b"], "until the list is complete nothing is missing");
        assert_eq!(take(Event::InitDone), ["bank/a ann>-", "post/b ann>-"]);
        assert!(names("ann").is_empty() && cache.get("bank", "a").is_none());
        assert_eq!(take(Event::Delete(counter("post", "a", "bob"))), ["post/a bob>-"]);
        assert!(cache.read(BTreeMap::is_empty));
    }

    #[tokio::test]
    async fn a_watch_that_ended_early_is_told_instead_of_waited_for() {
        let (cache, filler) = cache::<Service, Counters>();
        drop(filler);
        assert!(cache.ready().await.is_err());
    }
}

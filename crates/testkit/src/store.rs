//! Objects, and every change to them since the last compaction. Holds no rules: see `rest`.

use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};

/// Names an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub kind: usize,
    pub namespace: String,
    pub name: String,
}

/// One revision.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub revision: u64,
    pub key: Key,
    pub before: Option<Arc<Value>>,
    /// With the resourceVersion of this revision. `None`: deleted.
    pub after: Option<Arc<Value>>,
}

/// Objects of one kind by namespace and name: the order in which they are listed.
pub(crate) type Objects = BTreeMap<(String, String), Arc<Value>>;

#[derive(Debug)]
pub(crate) struct Store {
    /// The newest revision.
    pub revision: u64,
    /// Changes up to here are forgotten.
    pub compacted: u64,
    objects: BTreeMap<usize, Objects>,
    changes: Vec<Change>,
}

impl Store {
    pub fn new() -> Self {
        Self { revision: 1, compacted: 1, objects: BTreeMap::new(), changes: Vec::new() }
    }

    pub fn get(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(&key.kind)?.get(&(key.namespace.clone(), key.name.clone()))
    }

    /// All objects of a kind.
    pub fn all(&self, kind: usize) -> Objects {
        self.objects.get(&kind).cloned().unwrap_or_default()
    }

    /// All objects of a kind, without copies of their names.
    pub fn each(&self, kind: usize) -> impl Iterator<Item = &Arc<Value>> {
        self.objects.get(&kind).into_iter().flat_map(Objects::values)
    }

    /// All keys.
    pub fn keys(&self) -> Vec<Key> {
        let keys = self.objects.iter().flat_map(|(kind, objects)| {
            objects.keys().map(|(namespace, name)| Key {
                kind: *kind,
                namespace: namespace.clone(),
                name: name.clone(),
            })
        });
        keys.collect()
    }

    /// All objects of a kind as they were. The caller has made sure that the revision is not compacted.
    pub fn all_at(&self, kind: usize, revision: u64) -> Objects {
        let mut objects = self.all(kind);
        for change in self.changes.iter().rev().take_while(|c| c.revision > revision) {
            if change.key.kind != kind {
                continue;
            }
            let key = (change.key.namespace.clone(), change.key.name.clone());
            match &change.before {
                Some(before) => objects.insert(key, Arc::clone(before)),
                None => objects.remove(&key),
            };
        }
        objects
    }

    /// The changes after a revision, oldest first.
    pub fn since(&self, revision: u64) -> &[Change] {
        let start = self.changes.partition_point(|c| c.revision <= revision);
        &self.changes[start..]
    }

    /// Stores an object under the next revision.
    pub fn put(&mut self, key: Key, mut object: Value) -> Arc<Value> {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let object = Arc::new(object);
        let place = (key.namespace.clone(), key.name.clone());
        let before = self.objects.entry(key.kind).or_default().insert(place, Arc::clone(&object));
        let after = Some(Arc::clone(&object));
        self.changes.push(Change { revision: self.revision, key, before, after });
        object
    }

    /// Takes an object away, under the next revision.
    pub fn remove(&mut self, key: Key) {
        let place = (key.namespace.clone(), key.name.clone());
        let before = self.objects.get_mut(&key.kind).and_then(|objects| objects.remove(&place));
        if before.is_some() {
            self.revision += 1;
            self.changes.push(Change { revision: self.revision, key, before, after: None });
        }
    }

    /// Forgets all changes so far: who wants to go on from an older revision must list anew.
    pub fn compact(&mut self) {
        self.compacted = self.revision;
        self.changes.clear();
    }
}

//! How caches keep objects: as JSON, packed against an object of the same kind, with what they are found by beside it.
//!
//! The types of Kubernetes' own kinds have room for every field that there is: a pod of ten volumes takes 50 KB, and written as
//! JSON 6. A thousand databases have eighteen thousand objects that differ in names, uids and times only, so each is kept as
//! its difference from one that was seen before, some hundred bytes, and made into a type when it is looked at.

use kube::{Resource, ResourceExt, core::ObjectMeta};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use std::{
    any::type_name,
    borrow::Cow,
    collections::BTreeMap,
    fmt::Debug,
    marker::PhantomData,
    sync::{Arc, Mutex, PoisonError},
};

/// Objects of one kind that others are packed against, at most. Kinds have few shapes: a pod is an instance or a worker.
const SHAPES: usize = 6;

/// Objects that can be kept packed: those of Kubernetes' own kinds and of ours.
pub trait Object:
    Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
}

impl<K> Object for K where
    K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
}

/// How an operator keeps objects of a kind.
pub trait Keep<K>: 'static {
    /// What objects are found and compared by without unpacking them.
    type Digest: Clone + Debug + Send + Sync + 'static;

    /// The digest of the whole object.
    fn digest(object: &K) -> Self::Digest;

    /// Takes away what nobody here reads.
    fn lighten(_: &mut K) {}
}

/// The JSON of an object, packed.
#[derive(Clone, Debug)]
pub struct Json {
    shape: Arc<[u8]>,
    difference: Arc<[u8]>,
}

/// What objects of each kind are packed against. Never shrinks, and stays small: a few objects a kind.
static KNOWN: Mutex<BTreeMap<&'static str, Vec<Arc<[u8]>>>> = Mutex::new(BTreeMap::new());

impl Json {
    /// Packs the JSON of an object of this kind.
    fn of(kind: &'static str, text: &[u8]) -> Self {
        let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let shapes = known().get(kind).cloned().unwrap_or_default();
        let mut best: Option<(Arc<[u8]>, Vec<u8>)> = None;
        for shape in shapes {
            let difference = lz4_flex::block::compress_prepend_size_with_dict(text, &shape);
            if best.as_ref().is_none_or(|(_, least)| difference.len() < least.len()) {
                best = Some((shape, difference));
            }
            if best.as_ref().is_some_and(|(_, least)| least.len() <= text.len() / 3) {
                break;
            }
        }
        if let Some((shape, difference)) = best
            && (difference.len() <= text.len() / 3 || known().get(kind).is_some_and(|s| s.len() >= SHAPES))
        {
            return Self { shape, difference: difference.into() };
        }
        // Like none before: the next ones of this shape are packed against it.
        let shape: Arc<[u8]> = text.into();
        known().entry(kind).or_default().push(Arc::clone(&shape));
        let difference = lz4_flex::block::compress_prepend_size_with_dict(text, &shape).into();
        Self { shape, difference }
    }

    /// The JSON. `None` never happens: it was packed here.
    fn text(&self) -> Option<Vec<u8>> {
        lz4_flex::block::decompress_size_prepended_with_dict(&self.difference, &self.shape).ok()
    }
}

/// An object as a cache keeps it.
pub struct Packed<K, How: Keep<K>> {
    /// Only namespace, name, uid and resourceVersion.
    meta: ObjectMeta,
    digest: How::Digest,
    json: Json,
    kind: PhantomData<fn() -> K>,
}

impl<K, How: Keep<K>> Clone for Packed<K, How> {
    fn clone(&self) -> Self {
        let (meta, digest, json) = (self.meta.clone(), self.digest.clone(), self.json.clone());
        Self { meta, digest, json, kind: PhantomData }
    }
}

impl<K, How: Keep<K>> Debug for Packed<K, How> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packed")
            .field("meta", &self.meta)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl<K: Object, How: Keep<K>> Packed<K, How> {
    /// Packs an object.
    ///
    /// Errors: it cannot be written as JSON.
    pub fn of(mut object: K) -> Result<Self, serde_json::Error> {
        object.managed_fields_mut().clear();
        let digest = How::digest(&object);
        How::lighten(&mut object);
        let all = object.meta();
        let meta = ObjectMeta {
            name: all.name.clone(),
            namespace: all.namespace.clone(),
            uid: all.uid.clone(),
            resource_version: all.resource_version.clone(),
            ..ObjectMeta::default()
        };
        let json = Json::of(type_name::<K>(), &serde_json::to_vec(&object)?);
        Ok(Self { meta, digest, json, kind: PhantomData })
    }

    /// The object, lightened. `None` never happens: it was written from the same type.
    pub fn unpack(&self) -> Option<K> {
        unpack(&self.json)
    }

    /// What it is found by.
    pub fn digest(&self) -> &How::Digest {
        &self.digest
    }

    /// Namespace (empty: none), name, digest and JSON: all that [`crate::cache`] keeps.
    pub(crate) fn into_parts(self) -> (String, String, How::Digest, Json) {
        let ObjectMeta { name, namespace, .. } = self.meta;
        (namespace.unwrap_or_default(), name.unwrap_or_default(), self.digest, self.json)
    }
}

/// The object of which this is the JSON.
pub(crate) fn unpack<K: Object>(json: &Json) -> Option<K> {
    let object = json.text().and_then(|text| serde_json::from_slice(&text).ok());
    if object.is_none() {
        tracing::error!(kind = %K::kind(&()), "a bug: an object in a cache cannot be read");
    }
    object
}

impl<'de, K: Object, How: Keep<K>> Deserialize<'de> for Packed<K, How> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::of(K::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl<K: Object, How: Keep<K>> Resource for Packed<K, How> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind(_: &()) -> Cow<'_, str> {
        K::kind(&())
    }
    fn group(_: &()) -> Cow<'_, str> {
        K::group(&())
    }
    fn version(_: &()) -> Cow<'_, str> {
        K::version(&())
    }
    fn plural(_: &()) -> Cow<'_, str> {
        K::plural(&())
    }
    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    struct Shelves;

    impl Keep<ConfigMap> for Shelves {
        type Digest = usize;

        fn digest(object: &ConfigMap) -> usize {
            object.data.as_ref().map_or(0, BTreeMap::len)
        }
    }

    fn shelf(number: usize, text: &str) -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"name": format!("shelf-{number}"), "namespace": "library",
            "uid": format!("0e4f3c52-0000-4f7e-8a3b-{number:012}"), "resourceVersion": number.to_string(),
            "managedFields": [{"manager": "librarian"}]},
            "data": {"rules": text.repeat(40), "number": number.to_string()}}))
        .unwrap()
    }

    #[test]
    fn what_is_unpacked_is_what_was_packed_and_the_like_takes_little() {
        for number in 0..50 {
            for text in ["Return books within four weeks. ", "Nothing is lent out on Sundays; "] {
                let object = shelf(number, text);
                let packed = Packed::<ConfigMap, Shelves>::of(object.clone()).unwrap();
                assert_eq!((packed.name_any(), *packed.digest()), (object.name_any(), 2));
                assert_eq!(packed.uid(), object.uid());
                let unpacked = packed.unpack().unwrap();
                assert_eq!(unpacked.data, object.data);
                assert!(unpacked.managed_fields().is_empty(), "nobody reads those");
                assert!(packed.json.difference.len() < 150, "{}", packed.json.difference.len());
            }
        }
        let known = KNOWN.lock().unwrap();
        assert!(known[type_name::<ConfigMap>()].len() <= SHAPES);
    }

    #[test]
    fn objects_of_many_shapes_are_kept_all_the_same() {
        let kind = "library.Catalogue";
        for number in 0..4 * SHAPES as u64 {
            // As good as random: nothing in it is like what was before.
            let next =
                |x: u64| x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let text: Vec<u8> = (0..3_000)
                .scan(number, |state, _| {
                    *state = next(*state);
                    Some((*state >> 33) as u8)
                })
                .collect();
            assert_eq!(Json::of(kind, &text).text().unwrap(), text);
        }
        assert_eq!(Json::of(kind, b"").text().unwrap(), b"");
        assert_eq!(KNOWN.lock().unwrap()[kind].len(), SHAPES);
    }
}

//! How caches keep objects: as JSON, with what they are found by beside it.
//!
//! The types of Kubernetes' own kinds have room for every field that there is: a pod of ten volumes takes 50 KB, and written as
//! JSON 6. A thousand Databases have eighteen thousand objects, so they are kept as JSON and made into types one at a time.

use holdfast_core::names;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    coordination::v1::Lease,
    core::v1::{ConfigMap, Container, PersistentVolumeClaim, Pod, PodSpec, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
    policy::v1::PodDisruptionBudget,
    rbac::v1::{Role, RoleBinding},
};
use kube::{Resource, ResourceExt, core::ObjectMeta};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use std::{borrow::Cow, marker::PhantomData, sync::Arc};

/// A kind that is kept packed.
pub trait Kept: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone {
    /// Takes away what nobody here reads.
    fn lighten(&mut self) {}
}

impl Kept for StatefulSet {}
impl Kept for PersistentVolumeClaim {}
impl Kept for Lease {}
impl Kept for ConfigMap {}
impl Kept for Service {}
impl Kept for EndpointSlice {}
impl Kept for PodDisruptionBudget {}
impl Kept for ServiceAccount {}
impl Kept for Role {}
impl Kept for RoleBinding {}

impl Kept for Pod {
    /// Of its template only the images and the claims are compared, see `plan::stateful_set::kept` and `plan::volumes::mounted`.
    fn lighten(&mut self) {
        let Some(spec) = self.spec.take() else { return };
        let light = |containers: Vec<Container>| -> Vec<Container> {
            let light = |c: Container| Container { name: c.name, image: c.image, ..Container::default() };
            containers.into_iter().map(light).collect()
        };
        let volumes = spec.volumes.into_iter().flatten().filter(|v| v.persistent_volume_claim.is_some());
        self.spec = Some(PodSpec {
            containers: light(spec.containers),
            init_containers: spec.init_containers.map(light),
            volumes: Some(volumes.collect()),
            node_name: spec.node_name,
            ..PodSpec::default()
        });
    }
}

/// An object as a cache keeps it.
#[derive(Clone, Debug)]
pub struct Packed<K> {
    /// Only namespace, name, uid and resourceVersion.
    meta: ObjectMeta,
    /// The Database that its label names.
    database: Option<Arc<str>>,
    json: Arc<[u8]>,
    kind: PhantomData<fn() -> K>,
}

impl<K: Kept> Packed<K> {
    /// Packs an object.
    ///
    /// Errors: it cannot be written as JSON.
    pub fn of(mut object: K) -> Result<Self, serde_json::Error> {
        object.managed_fields_mut().clear();
        object.lighten();
        let all = object.meta();
        let meta = ObjectMeta {
            name: all.name.clone(),
            namespace: all.namespace.clone(),
            uid: all.uid.clone(),
            resource_version: all.resource_version.clone(),
            ..ObjectMeta::default()
        };
        let database = object.labels().get(names::LABEL_DATABASE).map(|name| name.as_str().into());
        Ok(Self { meta, database, json: serde_json::to_vec(&object)?.into(), kind: PhantomData })
    }

    /// The object. `None` never happens: it was written from the same type.
    pub fn unpack(&self) -> Option<K> {
        serde_json::from_slice(&self.json).ok()
    }

    /// The Database that its label names.
    pub fn database(&self) -> Option<&str> {
        self.database.as_deref()
    }
}

impl<'de, K: Kept> Deserialize<'de> for Packed<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::of(K::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl<K: Kept> Resource for Packed<K> {
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

//! How this operator keeps objects: packed, see [`holdfast_runtime::packed`], with the Database that they belong to beside them.

use holdfast_core::{BackupStore, Database, names, operation};
use holdfast_runtime::packed::{Keep, Packed};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    coordination::v1::Lease,
    core::v1::{ConfigMap, Container, PersistentVolumeClaim, Pod, PodSpec, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
    policy::v1::PodDisruptionBudget,
    rbac::v1::{Role, RoleBinding},
};
use kube::{Resource, ResourceExt};
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

/// What children are found by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// The Database that its label names.
    pub database: Option<Arc<str>>,
    /// A change that leaves this as it is wakes nobody; `None`: every change counts.
    pub essence: Option<u64>,
}

impl Child {
    /// Whether it carries this Database's label.
    pub fn is_of(&self, database: &str) -> bool {
        self.database.as_deref() == Some(database)
    }
}

fn child<K: Resource>(object: &K, essence: Option<u64>) -> Child {
    Child { database: object.labels().get(names::LABEL_DATABASE).map(|name| name.as_str().into()), essence }
}

/// How this operator keeps objects.
pub enum Kept {}

/// Kinds that are kept whole and of which every change counts.
macro_rules! whole {
    ($($kind:ty),*) => {$(
        impl Keep<$kind> for Kept {
            type Digest = Child;

            fn digest(object: &$kind) -> Child {
                child(object, None)
            }
        }
    )*};
}

whole!(
    StatefulSet,
    PersistentVolumeClaim,
    ConfigMap,
    Service,
    EndpointSlice,
    PodDisruptionBudget,
    ServiceAccount,
    Role,
    RoleBinding,
    BackupStore
);

/// Of Databases the BackupStore that the archive names.
impl Keep<Database> for Kept {
    type Digest = Option<Arc<str>>;

    fn digest(object: &Database) -> Self::Digest {
        object.spec.archive.as_ref().map(|archive| archive.store_ref.name.as_str().into())
    }
}

/// A Database, as the controller's own cache keeps it.
pub type PackedDatabase = Packed<Database, Kept>;

impl Keep<Lease> for Kept {
    type Digest = Child;

    /// A primary renews its Lease every other second, which must wake nobody.
    fn digest(lease: &Lease) -> Child {
        let spec = lease.spec.as_ref();
        let mut hasher = DefaultHasher::new();
        (
            spec.and_then(|s| s.holder_identity.as_ref()),
            spec.and_then(|s| s.lease_transitions),
            lease.metadata.labels.as_ref(),
            lease.annotations().get(operation::ANNOTATION_MODE),
            // Whom commits wait for.
            lease.annotations().get(names::ANNOTATION_RECORD),
            lease.metadata.uid.as_ref(),
            lease.metadata.deletion_timestamp.is_some(),
        )
            .hash(&mut hasher);
        child(lease, Some(hasher.finish()))
    }
}

impl Keep<Pod> for Kept {
    type Digest = Child;

    fn digest(pod: &Pod) -> Child {
        child(pod, None)
    }

    /// Of its template only the images and the claims are compared, see `plan::stateful_set::kept` and `plan::volumes::mounted`.
    fn lighten(pod: &mut Pod) {
        let Some(spec) = pod.spec.take() else { return };
        let light = |containers: Vec<Container>| -> Vec<Container> {
            let light = |c: Container| Container { name: c.name, image: c.image, ..Container::default() };
            containers.into_iter().map(light).collect()
        };
        let volumes = spec.volumes.into_iter().flatten().filter(|v| v.persistent_volume_claim.is_some());
        pod.spec = Some(PodSpec {
            containers: light(spec.containers),
            init_containers: spec.init_containers.map(light),
            volumes: Some(volumes.collect()),
            node_name: spec.node_name,
            ..PodSpec::default()
        });
    }
}

//! The Services and the EndpointSlice of the primary. Pure.

use crate::{plan::children, validate::ValidatedDatabase};
use holdfast_core::{crd::database::ServiceType, names};
use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort, ServiceSpec},
        discovery::v1::{EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use std::collections::BTreeMap;

/// Name of PostgreSQL's port in Services, pods and the EndpointSlice.
pub const PORT_NAME: &str = "postgresql";

fn port(name: &str, number: u16) -> ServicePort {
    ServicePort {
        name: Some(name.into()),
        port: i32::from(number),
        protocol: Some("TCP".into()),
        target_port: Some(IntOrString::Int(i32::from(number))),
        ..ServicePort::default()
    }
}

/// Labels of all instances of a database.
pub fn instance_selector(database: &str) -> BTreeMap<String, String> {
    [(names::LABEL_DATABASE, database), (names::LABEL_COMPONENT, "instance")]
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .into()
}

fn client_service(
    db: &ValidatedDatabase,
    name: String,
    selector: Option<BTreeMap<String, String>>,
) -> Service {
    let mut metadata = children::meta(db, name);
    let annotations = &db.spec.service.annotations;
    metadata.annotations = (!annotations.is_empty()).then(|| annotations.clone());
    let type_ = match db.spec.service.type_ {
        ServiceType::ClusterIP => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
    };
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(type_.into()),
            selector,
            ports: Some(vec![port(PORT_NAME, names::PORT_POSTGRESQL)]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// `-rw` (without selector: the primary's agent writes its EndpointSlice), `-ro`, `-r` and the headless one that names pods.
pub fn services(db: &ValidatedDatabase) -> [Service; 4] {
    let name = db.name.as_str();
    let mut replicas: BTreeMap<String, String> =
        [(names::LABEL_DATABASE, name), (names::LABEL_ROLE, "replica"), (names::LABEL_SERVES_READS, "true")]
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .into();
    replicas.insert(names::LABEL_COMPONENT.into(), "instance".into());
    let pods = Service {
        metadata: children::meta(db, names::service_pods(name)),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            // Agents find each other while none is ready yet.
            publish_not_ready_addresses: Some(true),
            selector: Some(instance_selector(name)),
            ports: Some(vec![port(PORT_NAME, names::PORT_POSTGRESQL), port("peers", names::PORT_PEERS)]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    };
    [
        client_service(db, names::service_rw(name), None),
        client_service(db, names::service_ro(name), Some(replicas)),
        client_service(db, names::service_r(name), Some(instance_selector(name))),
        pods,
    ]
}

/// The EndpointSlice of `-rw`, to be created once and empty; from then on only the primary's agent writes it. Its address
/// type cannot change later, so it waits for the Service, which knows the cluster's address family.
pub fn endpoint_slice(
    db: &ValidatedDatabase,
    service: Option<&Service>,
    live: Option<&EndpointSlice>,
) -> Option<EndpointSlice> {
    if live.is_some() {
        return None;
    }
    let families = service?.spec.as_ref()?.ip_families.as_deref().unwrap_or_default();
    let name = names::service_rw(db.name.as_str());
    let mut metadata = children::meta(db, name.clone());
    let labels = metadata.labels.get_or_insert_default();
    labels.insert("kubernetes.io/service-name".into(), name);
    labels.insert("endpointslice.kubernetes.io/managed-by".into(), "holdfast".into());
    Some(EndpointSlice {
        metadata,
        address_type: families.first().cloned().unwrap_or_else(|| "IPv4".into()),
        endpoints: Vec::new(),
        ports: Some(vec![EndpointPort {
            name: Some(PORT_NAME.into()),
            port: Some(i32::from(names::PORT_POSTGRESQL)),
            protocol: Some("TCP".into()),
            ..EndpointPort::default()
        }]),
    })
}

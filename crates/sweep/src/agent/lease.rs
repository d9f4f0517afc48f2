//! The Lease `<database>-primary` as the agent writes and reads it, and the EndpointSlice of `<database>-rw`.

use holdfast_core::{names, wire::AgentConfig};
use holdfast_postgresql::failover::Record;
use holdfast_runtime::apply::bounded;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::ObjectReference,
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, ResourceExt, api::PostParams};
use std::time::Duration;
use tokio::time::Instant;

/// Annotation with the term of whoever wrote the slice.
const ANNOTATION_TERM: &str = "holdfast.dev/term";

/// The Lease that says this.
fn to_lease(config: &AgentConfig, record: &Record, previous: Option<&Lease>, now: Timestamp) -> Lease {
    let mut labels = names::labels(&config.database);
    labels.insert(names::LABEL_DATA_SET.into(), record.data_set.clone());
    if !record.system_identifier.is_empty() {
        labels.insert(names::LABEL_SYSTEM_IDENTIFIER.into(), record.system_identifier.clone());
    }
    let term = i32::try_from(record.term).ok();
    let before = previous.and_then(|p| p.spec.as_ref()).filter(|s| s.lease_transitions == term);
    let text = serde_json::to_string(record).unwrap_or_default();
    Lease {
        metadata: ObjectMeta {
            name: Some(names::lease_primary(&config.database)),
            namespace: Some(config.namespace.clone()),
            resource_version: previous.and_then(ResourceExt::resource_version),
            uid: previous.and_then(ResourceExt::uid),
            labels: Some(labels),
            annotations: Some([(names::ANNOTATION_RECORD.to_string(), text)].into()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: record.holder.as_ref().map(|h| h.pod.clone()),
            lease_duration_seconds: Some(config.ttl_seconds),
            lease_transitions: term,
            acquire_time: before.and_then(|s| s.acquire_time.clone()).or(Some(MicroTime(now))),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}

/// What a Lease says. One that cannot be read is never a free one.
pub fn to_record(lease: &Lease) -> Result<Record, String> {
    let text = lease.annotations().get(names::ANNOTATION_RECORD);
    let text = text.ok_or_else(|| format!("the Lease carries no annotation {}", names::ANNOTATION_RECORD))?;
    serde_json::from_str(text).map_err(|e| e.to_string())
}

/// What a holder knows of its Lease.
#[derive(Clone, Debug)]
pub struct Held {
    /// What it says.
    pub record: Record,
    /// The object.
    pub lease: Lease,
    /// Until when others believe in it.
    pub until: Instant,
    /// When it is to be renewed.
    pub renew: Instant,
}

/// Writes the Lease: creates it, or replaces exactly `previous`.
pub async fn write(
    client: &Client,
    config: &AgentConfig,
    record: Record,
    previous: Option<&Lease>,
    now: Timestamp,
    pace: Duration,
) -> Result<Held, kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), &config.namespace);
    let lease = to_lease(config, &record, previous, now);
    let ttl = Duration::from_secs(u64::try_from(config.ttl_seconds).unwrap_or(6));
    let sent = Instant::now();
    let parameters =
        PostParams { field_manager: Some(names::managers::AGENT.into()), ..PostParams::default() };
    let call = async {
        match previous {
            Some(_) => api.replace(&names::lease_primary(&config.database), &parameters, &lease).await,
            None => api.create(&parameters, &lease).await,
        }
    };
    let lease = holdfast_runtime::apply::within(ttl / 4, call).await?;
    Ok(Held { record, lease, until: sent + ttl, renew: sent + pace.min(ttl * 2 / 3) })
}

/// The Lease, if it still says what this holder wrote, or nothing that can be read while all else is as it wrote it.
pub async fn current(client: &Client, config: &AgentConfig, held: &Held) -> Option<Lease> {
    let api: Api<Lease> = Api::namespaced(client.clone(), &config.namespace);
    let lease = bounded(api.get_opt(&names::lease_primary(&config.database))).await.ok()??;
    let ours = match to_record(&lease) {
        Ok(there) => there.holder == held.record.holder && there.term == held.record.term,
        Err(_) => {
            let said = |lease: &Lease| {
                let spec = lease.spec.as_ref();
                spec.map(|spec| (spec.holder_identity.clone(), spec.lease_transitions))
            };
            lease.metadata.uid == held.lease.metadata.uid && said(&lease) == said(&held.lease)
        }
    };
    ours.then_some(lease)
}

fn written(slice: &EndpointSlice) -> u64 {
    slice.annotations().get(ANNOTATION_TERM).and_then(|t| t.parse().ok()).unwrap_or(0)
}

/// The pod that the Service points to.
pub fn target(slice: &EndpointSlice) -> Option<String> {
    slice.endpoints.first()?.target_ref.as_ref()?.name.clone()
}

/// Points the Service here. `Some`: the slice carries this later term, and was left as it is.
pub async fn point(
    client: &Client,
    config: &AgentConfig,
    address: &str,
    pod: &str,
    term: u64,
) -> Result<Option<u64>, kube::Error> {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &config.namespace);
    let name = names::service_rw(&config.database);
    let slice = bounded(api.get(&name)).await?;
    if written(&slice) > term {
        return Ok(Some(written(&slice)));
    }
    let here: Vec<&str> =
        slice.endpoints.iter().flat_map(|e| e.addresses.iter().map(String::as_str)).collect();
    if written(&slice) == term && here == [address] {
        return Ok(None);
    }
    let mut new = slice.clone();
    new.metadata.managed_fields = None;
    new.annotations_mut().insert(ANNOTATION_TERM.into(), term.to_string());
    new.endpoints = vec![Endpoint {
        addresses: vec![address.into()],
        conditions: Some(EndpointConditions {
            ready: Some(true),
            serving: Some(true),
            terminating: Some(false),
        }),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            name: Some(pod.into()),
            namespace: slice.namespace(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }];
    new.ports = Some(vec![EndpointPort {
        name: Some("postgresql".into()),
        port: Some(i32::from(names::PORT_POSTGRESQL)),
        protocol: Some("TCP".into()),
        ..EndpointPort::default()
    }]);
    bounded(api.replace(&name, &PostParams::default(), &new)).await?;
    Ok(None)
}

/// Withdraws this instance, and only this one.
pub async fn withdraw(client: &Client, config: &AgentConfig, address: &str) -> Result<(), kube::Error> {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &config.namespace);
    let name = names::service_rw(&config.database);
    let slice = bounded(api.get(&name)).await?;
    if slice.endpoints.iter().any(|e| e.addresses.iter().any(|a| a == address)) {
        let new = EndpointSlice { endpoints: Vec::new(), ..slice };
        bounded(api.replace(&name, &PostParams::default(), &new)).await?;
    }
    Ok(())
}

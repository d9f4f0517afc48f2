//! Service `<database>-rw`: its one EndpointSlice, written by the primary's agent and nobody else.

use holdfast_core::{names, wire::AgentConfig};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use kube::{Api, ResourceExt, api::PostParams};

/// Annotation with the term of whoever wrote the slice.
const ANNOTATION_TERM: &str = "holdfast.dev/term";

fn written(slice: &EndpointSlice) -> u64 {
    slice.annotations().get(ANNOTATION_TERM).and_then(|t| t.parse().ok()).unwrap_or(0)
}

/// What a primary makes of the slice; `None`: it is as it should be, or a later term's.
fn wanted(slice: &EndpointSlice, address: &str, pod: &str, term: u64) -> Option<EndpointSlice> {
    let written = written(slice);
    if written > term {
        return None;
    }
    let addresses: Vec<&str> =
        slice.endpoints.iter().flat_map(|e| e.addresses.iter().map(String::as_str)).collect();
    if written == term && addresses == [address] {
        return None;
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
        target_ref: Some(k8s_openapi::api::core::v1::ObjectReference {
            kind: Some("Pod".into()),
            name: Some(pod.into()),
            namespace: slice.namespace(),
            ..Default::default()
        }),
        ..Endpoint::default()
    }];
    new.ports = Some(vec![EndpointPort {
        name: Some("postgresql".into()),
        port: Some(i32::from(names::PORT_POSTGRESQL)),
        protocol: Some("TCP".into()),
        ..EndpointPort::default()
    }]);
    Some(new)
}

/// Points the Service here. Conditional on what was read: an older primary that wakes up late fails. `Some`: the slice carries
/// this later term, and was left as it is.
pub async fn point_here(
    client: &kube::Client,
    config: &AgentConfig,
    address: &str,
    pod: &str,
    term: u64,
) -> Result<Option<u64>, kube::Error> {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &config.namespace);
    let name = names::service_rw(&config.database);
    let slice = holdfast_runtime::apply::bounded(api.get(&name)).await?;
    if written(&slice) > term {
        return Ok(Some(written(&slice)));
    }
    if let Some(new) = wanted(&slice, address, pod, term) {
        holdfast_runtime::apply::bounded(api.replace(&name, &PostParams::default(), &new)).await?;
        tracing::info!(term, address, "the Service points here");
    }
    Ok(None)
}

/// Withdraws this member, and only this one.
pub async fn withdraw(client: &kube::Client, config: &AgentConfig, address: &str) -> Result<(), kube::Error> {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &config.namespace);
    let name = names::service_rw(&config.database);
    let slice = holdfast_runtime::apply::bounded(api.get(&name)).await?;
    if slice.endpoints.iter().any(|e| e.addresses.iter().any(|a| a == address)) {
        let new = EndpointSlice { endpoints: Vec::new(), ..slice };
        holdfast_runtime::apply::bounded(api.replace(&name, &PostParams::default(), &new)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_terms_slice_is_left_alone() {
        let empty = EndpointSlice::default();
        let first = wanted(&empty, "10.0.0.1", "orders-0", 3).unwrap();
        assert!(wanted(&first, "10.0.0.1", "orders-0", 3).is_none());
        assert!(wanted(&first, "10.0.0.2", "orders-1", 2).is_none());
        let second = wanted(&first, "10.0.0.2", "orders-1", 4).unwrap();
        assert_eq!(second.endpoints.len(), 1);
        assert!(wanted(&second, "10.0.0.1", "orders-0", 3).is_none());
    }
}

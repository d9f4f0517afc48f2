//! Who the driver is.

use crate::{
    rpc::identity_server::Identity,
    rules,
    wire::{
        Capability, GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
        GetPluginInfoResponse, PluginCapability, PluginCapabilityType, ProbeRequest, ProbeResponse,
    },
};
use std::collections::HashMap;
use tonic::{Request, Response, Status};

/// Identity, the same at every socket.
pub struct IdentityService;

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: rules::DRIVER.into(),
            vendor_version: env!("CARGO_PKG_VERSION").into(),
            manifest: HashMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        // 1: there is a controller; 2: not every volume is reachable from everywhere.
        let services = [1, 2].map(|kind| PluginCapabilityType::Service(Capability { kind }));
        let online = PluginCapabilityType::VolumeExpansion(Capability { kind: 1 });
        let all = services.into_iter().chain([online]);
        Ok(Response::new(GetPluginCapabilitiesResponse {
            capabilities: all.map(|kind| PluginCapability { kind: Some(kind) }).collect(),
        }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        // The sockets appear when the pool is mounted, so who can ask is answered truly.
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}

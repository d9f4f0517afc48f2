//! How a kubelet learns of the driver: it watches a folder for sockets and asks those what they are.

use crate::{
    rpc::registration_server::Registration,
    rules,
    wire::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse},
};
use std::path::PathBuf;
use tonic::{Request, Response, Status};

/// The registration of one node.
pub struct RegistrationService {
    /// The node's name.
    pub node: String,
    /// The socket of the node's service.
    pub endpoint: PathBuf,
}

#[tonic::async_trait]
impl Registration for RegistrationService {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            kind: "CSIPlugin".into(),
            name: rules::DRIVER.into(),
            endpoint: self.endpoint.to_string_lossy().into_owned(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!(node = self.node, "the kubelet registered the driver");
        } else {
            tracing::error!(
                node = self.node,
                error = status.error,
                "the kubelet did not register the driver"
            );
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

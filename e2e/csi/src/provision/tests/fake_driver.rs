//! A driver behind a socket that keeps names only, and says no when it is told to.

use crate::{
    rpc::controller_server::{Controller, ControllerServer},
    wire::*,
};
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::{Arc, Mutex},
};
use tokio::net::UnixListener;
use tonic::{Code, Request, Response, Status};

#[derive(Default)]
pub struct Shelf {
    /// Names by id.
    pub volumes: BTreeMap<String, String>,
    /// What every call is answered with.
    pub refusal: Option<(Code, String)>,
    /// Requests for volumes so far.
    pub requests: Vec<CreateVolumeRequest>,
    /// Whether the source that is asked for is passed over.
    pub forgetful: bool,
}

/// Shared by the tests and the server.
#[derive(Clone, Default)]
pub struct FakeDriver {
    pub shelf: Arc<Mutex<Shelf>>,
}

impl FakeDriver {
    /// Serves at this socket until the runtime ends.
    pub fn serve(&self, socket: &Path) {
        let listener = UnixListener::bind(socket).unwrap();
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        let service = ControllerServer::new(self.clone());
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    }

    fn refused(&self) -> Result<(), Status> {
        match &self.shelf.lock().unwrap().refusal {
            Some((code, words)) => Err(Status::new(*code, words.clone())),
            None => Ok(()),
        }
    }
}

fn volume(id: &str, name: &str) -> Volume {
    Volume {
        capacity_bytes: 0,
        volume_id: id.into(),
        volume_context: HashMap::from([("name".to_string(), name.to_string())]),
        content_source: None,
        accessible_topology: Vec::new(),
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Controller for FakeDriver {
    async fn create_volume(&self, request: Request<CreateVolumeRequest>) -> Answer<CreateVolumeResponse> {
        let request = request.into_inner();
        self.shelf.lock().unwrap().requests.push(request.clone());
        self.refused()?;
        let mut shelf = self.shelf.lock().unwrap();
        let id = format!("vol-of-{}", request.name);
        shelf.volumes.insert(id.clone(), request.name.clone());
        let mut volume = volume(&id, &request.name);
        volume.capacity_bytes = request.capacity_range.map_or(0, |range| range.required_bytes);
        volume.content_source = request.volume_content_source.filter(|_| !shelf.forgetful);
        Ok(Response::new(CreateVolumeResponse { volume: Some(volume) }))
    }

    async fn delete_volume(&self, request: Request<DeleteVolumeRequest>) -> Answer<DeleteVolumeResponse> {
        self.refused()?;
        self.shelf.lock().unwrap().volumes.remove(&request.into_inner().volume_id);
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    /// One volume a page, whatever is asked for.
    async fn list_volumes(&self, request: Request<ListVolumesRequest>) -> Answer<ListVolumesResponse> {
        self.refused()?;
        let start: usize = request.into_inner().starting_token.parse().unwrap_or(0);
        let shelf = self.shelf.lock().unwrap();
        let listed = |(id, name): (&String, &String)| ListedVolume { volume: Some(volume(id, name)) };
        let entries = shelf.volumes.iter().skip(start).take(1).map(listed).collect();
        let next = start + 1;
        let next_token = if next < shelf.volumes.len() { next.to_string() } else { String::new() };
        Ok(Response::new(ListVolumesResponse { entries, next_token }))
    }

    async fn validate_volume_capabilities(
        &self,
        _: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Answer<ValidateVolumeCapabilitiesResponse> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn get_capacity(&self, _: Request<GetCapacityRequest>) -> Answer<GetCapacityResponse> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Answer<ControllerGetCapabilitiesResponse> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn create_snapshot(&self, _: Request<CreateSnapshotRequest>) -> Answer<CreateSnapshotResponse> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn delete_snapshot(&self, _: Request<DeleteSnapshotRequest>) -> Answer<DeleteSnapshotResponse> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn list_snapshots(&self, _: Request<ListSnapshotsRequest>) -> Answer<ListSnapshotsResponse> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn controller_expand_volume(
        &self,
        _: Request<ControllerExpandVolumeRequest>,
    ) -> Answer<ControllerExpandVolumeResponse> {
        Err(Status::unimplemented("not asked for"))
    }
}

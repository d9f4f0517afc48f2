//! The driver, through its controller's socket: as any client, so that faults put there are met here as well.

use crate::{
    rpc::controller_client::ControllerClient,
    wire::{CreateVolumeRequest, DeleteVolumeRequest, ListVolumesRequest, Volume},
};
use hyper_util::rt::TokioIo;
use std::{fmt, future::Future, path::Path, sync::Arc, time::Duration};
use tokio::net::UnixStream;
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint, Uri},
};

/// How long a call may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// Entries of a page of the list.
const PAGE: i32 = 500;
/// Pages that are read at most: a driver that never ends its list must not keep us for ever.
const PAGES: usize = 1000;

/// The driver said no, or nothing.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// gRPC code.
    pub code: Code,
    /// Its words.
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code, self.message)
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self { code: status.code(), message: status.message().to_string() }
    }
}

/// A connection that is opened when it is first needed, and anew after it broke.
#[derive(Clone)]
pub struct Driver {
    client: ControllerClient<Channel>,
}

impl Driver {
    /// The driver behind this socket.
    pub fn new(socket: &Path) -> Self {
        let socket: Arc<Path> = socket.into();
        let connect = tower::service_fn(move |_: Uri| {
            let socket = Arc::clone(&socket);
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The address is never used, but a client has to have one.
        let endpoint = Endpoint::from_static("http://localhost").connect_timeout(DEADLINE);
        Self { client: ControllerClient::new(endpoint.connect_with_connector_lazy(connect)) }
    }

    /// Makes a volume, or finds the one of this name.
    pub async fn create(&self, request: CreateVolumeRequest) -> Result<Volume, Refusal> {
        let asked = request.volume_content_source.clone();
        let mut client = self.client.clone();
        let answer = bounded("CreateVolume", client.create_volume(request)).await?;
        let malformed = |message: &str| Refusal { code: Code::Internal, message: message.into() };
        let volume = answer.volume.ok_or_else(|| malformed("CreateVolume answered without a volume"))?;
        if volume.volume_id.is_empty() {
            return Err(malformed("CreateVolume answered without a volume id"));
        }
        // A driver that passes over the source would hand out an empty volume as a restored one.
        if asked.is_some() && volume.content_source != asked {
            return Err(malformed("the new volume was not made from the source that was asked for"));
        }
        Ok(volume)
    }

    /// Deletes a volume; one that is not there is deleted.
    pub async fn delete(&self, volume_id: &str) -> Result<(), Refusal> {
        let request = DeleteVolumeRequest { volume_id: volume_id.into(), ..DeleteVolumeRequest::default() };
        let mut client = self.client.clone();
        bounded("DeleteVolume", client.delete_volume(request)).await.map(|_| ())
    }

    /// Ids of the volumes that were made under this name: the driver puts it into the volume's context.
    pub async fn find(&self, name: &str) -> Result<Vec<String>, Refusal> {
        let (mut client, mut found, mut token) = (self.client.clone(), Vec::new(), String::new());
        for _ in 0..PAGES {
            let request = ListVolumesRequest { max_entries: PAGE, starting_token: token };
            let page = bounded("ListVolumes", client.list_volumes(request)).await?;
            let volumes = page.entries.into_iter().filter_map(|entry| entry.volume);
            let named = volumes.filter(|v| v.volume_context.get("name").is_some_and(|n| n == name));
            found.extend(named.map(|volume| volume.volume_id));
            token = page.next_token;
            if token.is_empty() {
                return Ok(found);
            }
        }
        Err(Refusal { code: Code::Internal, message: "ListVolumes does not end".into() })
    }
}

async fn bounded<T>(
    call: &str,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Refusal> {
    match tokio::time::timeout(DEADLINE, answer).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => {
            let message = format!("{call} was not answered within {} s", DEADLINE.as_secs());
            Err(Refusal { code: Code::DeadlineExceeded, message })
        }
    }
}

//! Volumes and snapshots come, grow and go.

use crate::{
    device,
    pool::{Faults, Pool, Snapshot, Source, Volume, internal},
    rpc::controller_server::Controller,
    rules::{self, Kind, required},
    wire::{self, *},
};
use std::{collections::BTreeMap, sync::Arc};
use tonic::{Request, Response, Status};

/// The controller service.
pub struct ControllerService {
    /// The pool.
    pub pool: Arc<Pool>,
    /// The first node's zone: where a zonal volume goes when nobody says where.
    pub zone: Option<String>,
}

/// What a volume's source says.
struct Origin {
    source: Source,
    size: i64,
    zone: Option<String>,
}

fn source_of(request: &CreateVolumeRequest) -> Result<Option<Source>, Status> {
    let Some(content) = &request.volume_content_source else { return Ok(None) };
    let missing = || Status::invalid_argument("volume_content_source names neither a snapshot nor a volume");
    Ok(Some(match content.source.as_ref().ok_or_else(missing)? {
        ContentSource::Snapshot(one) => Source::Snapshot(required(&one.snapshot_id, "snapshot_id")?.into()),
        ContentSource::Volume(one) => {
            Source::Volume(required(&one.volume_id, "the source's volume_id")?.into())
        }
    }))
}

fn source_id(source: &Source) -> &str {
    match source {
        Source::Snapshot(id) | Source::Volume(id) => id,
    }
}

/// A volume as the interface shows it.
fn shown(id: &str, volume: &Volume) -> wire::Volume {
    let source = volume.source.clone().map(|source| match source {
        Source::Snapshot(snapshot_id) => ContentSource::Snapshot(SnapshotSource { snapshot_id }),
        Source::Volume(volume_id) => ContentSource::Volume(VolumeSource { volume_id }),
    });
    let mut context: BTreeMap<String, String> = volume.parameters.clone();
    context.insert("name".into(), volume.name.clone());
    wire::Volume {
        capacity_bytes: volume.capacity,
        volume_id: id.into(),
        volume_context: context.into_iter().collect(),
        content_source: source.map(|source| VolumeContentSource { source: Some(source) }),
        accessible_topology: volume.zone.iter().map(|zone| rules::place(zone)).collect(),
    }
}

/// A snapshot as the interface shows it.
fn shown_snapshot(id: &str, snapshot: &Snapshot) -> wire::Snapshot {
    wire::Snapshot {
        size_bytes: snapshot.size,
        snapshot_id: id.into(),
        source_volume_id: snapshot.volume.clone(),
        creation_time: Some(prost_types::Timestamp {
            seconds: snapshot.taken.as_second(),
            nanos: snapshot.taken.subsec_nanosecond(),
        }),
        ready_to_use: true,
        group_snapshot_id: String::new(),
    }
}

impl ControllerService {
    fn origin(&self, source: &Source) -> Result<Origin, Status> {
        let (size, zone) = match source {
            Source::Volume(id) => self.pool.intact(id).map(|volume| (volume.capacity, volume.zone))?,
            Source::Snapshot(id) => {
                let found = self.pool.snapshot(id)?;
                found
                    .map(|snapshot| (snapshot.size, snapshot.zone))
                    .ok_or_else(|| Status::not_found(format!("there is no snapshot {id:?}")))?
            }
        };
        Ok(Origin { source: source.clone(), size, zone })
    }

    /// Brings what is written to a mounted volume into its image, so that a copy has it.
    async fn flush(&self, id: &str) -> Result<(), Status> {
        let volume = self.pool.volume(id)?;
        let real = self.pool.real(id);
        let attached = self.pool.attachment(id, &volume).map_err(internal)?;
        let mounted = attached.is_some_and(|(_, mounts)| mounts.iter().any(|mount| mount.path == real));
        // After a shutdown there is nothing more to come.
        if mounted && !device::is_shut_down(&real) {
            device::run("sync", &["--file-system".as_ref(), real.as_os_str()]).await.map_err(internal)?;
        }
        Ok(())
    }

    async fn make_volume(&self, request: CreateVolumeRequest) -> Result<wire::Volume, Status> {
        let name = rules::name(&request.name)?;
        let parameters = rules::own_parameters(&request.parameters);
        let class = rules::class(&parameters)?;
        rules::all_usable(&class, &request.volume_capabilities)?;
        if let Some(key) = request.mutable_parameters.keys().next() {
            return Err(Status::invalid_argument(format!(
                "mutable parameter {key}: nothing can be modified later"
            )));
        }
        let source = source_of(&request)?;
        if class.uncloned && matches!(source, Some(Source::Volume(_))) {
            return Err(Status::invalid_argument("this class does not clone volumes (parameter clones)"));
        }
        let (id, range) = (rules::id(Kind::Volume, name), request.capacity_range.as_ref());
        let mut ids = vec![id.as_str()];
        ids.extend(source.as_ref().map(source_id));
        let _turn = self.pool.lock(&ids).await?;
        if let Some(volume) = self.pool.find(&id)? {
            if volume.name != name || volume.source != source || volume.parameters != parameters {
                return Err(Status::already_exists(format!(
                    "volume {id} is {}, made of another source or class; delete it first",
                    volume.name
                )));
            }
            if !rules::fits(range, volume.capacity)? {
                return Err(Status::already_exists(format!("volume {name} has {} bytes", volume.capacity)));
            }
            return Ok(shown(&id, &volume));
        }
        let origin = source.map(|source| self.origin(&source)).transpose()?;
        let from = origin.as_ref().and_then(|origin| origin.zone.as_deref());
        let zone =
            rules::zone(&class, request.accessibility_requirements.as_ref(), self.zone.as_deref(), from)?;
        let capacity = rules::size(range, origin.as_ref().map(|origin| origin.size))?;
        self.pool.room(capacity)?;
        let image = match origin.as_ref().map(|origin| &origin.source) {
            Some(Source::Volume(from)) => {
                self.flush(from).await?;
                Some(self.pool.image(Kind::Volume, from))
            }
            Some(Source::Snapshot(from)) => Some(self.pool.image(Kind::Snapshot, from)),
            None => None,
        };
        let volume = Volume {
            name: name.into(),
            capacity,
            parameters,
            zone,
            source: origin.map(|origin| origin.source),
            stagings: Vec::new(),
            faults: Faults::default(),
        };
        self.pool.make(Kind::Volume, &id, &volume, capacity, image.as_deref()).await.map_err(internal)?;
        tracing::info!(volume = id, name, capacity, source = ?volume.source, zone = ?volume.zone, "made a volume");
        Ok(shown(&id, &volume))
    }

    async fn drop_volume(&self, id: &str) -> Result<(), Status> {
        let _turn = self.pool.lock(&[id]).await?;
        let Some(volume) = self.pool.find(id)? else { return Ok(()) };
        if let Some((_, mounts)) = self.pool.attachment(id, &volume).map_err(internal)? {
            let real = self.pool.real(id);
            let users: Vec<_> = mounts.iter().filter(|mount| mount.path != real).collect();
            if !users.is_empty() {
                let places = users.iter().map(|mount| mount.path.display().to_string()).collect::<Vec<_>>();
                let words = format!("volume {id} ({}) is mounted at {}", volume.name, places.join(", "));
                return Err(Status::failed_precondition(words));
            }
            // Left by a process that ended in the middle of staging or unstaging.
            self.pool.release(id, &volume).await.map_err(internal)?;
        }
        self.pool.remove(Kind::Volume, id).await.map_err(internal)?;
        tracing::info!(volume = id, name = volume.name, "deleted a volume");
        Ok(())
    }

    async fn make_snapshot(&self, request: CreateSnapshotRequest) -> Result<wire::Snapshot, Status> {
        let name = rules::name(&request.name)?;
        let from = required(&request.source_volume_id, "source_volume_id")?;
        let id = rules::id(Kind::Snapshot, name);
        let _turn = self.pool.lock(&[&id, from]).await?;
        if let Some(snapshot) = self.pool.snapshot(&id)? {
            if snapshot.volume != from || snapshot.name != name {
                let words = format!("snapshot {id} is {} of volume {}", snapshot.name, snapshot.volume);
                return Err(Status::already_exists(words));
            }
            return Ok(shown_snapshot(&id, &snapshot));
        }
        let volume = self.pool.intact(from)?;
        self.flush(from).await?;
        let snapshot = Snapshot {
            name: name.into(),
            volume: from.into(),
            size: volume.capacity,
            zone: volume.zone,
            taken: jiff::Timestamp::now(),
        };
        let image = self.pool.image(Kind::Volume, from);
        let made = self.pool.make(Kind::Snapshot, &id, &snapshot, snapshot.size, Some(&image)).await;
        made.map_err(internal)?;
        tracing::info!(snapshot = id, name, volume = from, "made a snapshot");
        Ok(shown_snapshot(&id, &snapshot))
    }

    async fn grow(&self, request: ControllerExpandVolumeRequest) -> Result<i64, Status> {
        let id = required(&request.volume_id, "volume_id")?;
        rules::grown(request.capacity_range.as_ref(), 0)?;
        let _turn = self.pool.lock(&[id]).await?;
        let mut volume = self.pool.intact(id)?;
        if request.volume_capability.is_some() {
            rules::usable(&rules::class(&volume.parameters)?, request.volume_capability.as_ref())?;
        }
        let size = rules::grown(request.capacity_range.as_ref(), volume.capacity)?;
        if size > volume.capacity {
            self.pool.room(size - volume.capacity)?;
            device::set_size(&self.pool.image(Kind::Volume, id), size).map_err(internal)?;
            volume.capacity = size;
            self.pool.save(id, &volume)?;
            tracing::info!(volume = id, name = volume.name, size, "grew a volume");
        }
        Ok(size)
    }
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let volume = self.make_volume(request.into_inner()).await?;
        Ok(Response::new(CreateVolumeResponse { volume: Some(volume) }))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        self.drop_volume(required(&request.get_ref().volume_id, "volume_id")?).await?;
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let asked = request.into_inner();
        let id = required(&asked.volume_id, "volume_id")?;
        if asked.volume_capabilities.is_empty() {
            return Err(Status::invalid_argument("volume_capabilities are missing"));
        }
        let volume = self.pool.volume(id)?;
        // What cannot be is an answer here, not an error.
        let refusal = rules::all_usable(&rules::class(&volume.parameters)?, &asked.volume_capabilities).err();
        let response = match refusal {
            Some(refusal) => {
                ValidateVolumeCapabilitiesResponse { confirmed: None, message: refusal.message().into() }
            }
            None => ValidateVolumeCapabilitiesResponse {
                confirmed: Some(Confirmed {
                    volume_context: asked.volume_context,
                    volume_capabilities: asked.volume_capabilities,
                    parameters: asked.parameters,
                    mutable_parameters: asked.mutable_parameters,
                }),
                message: String::new(),
            },
        };
        Ok(Response::new(response))
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let asked = request.into_inner();
        let (page, next_token) =
            rules::page(Kind::Volume, self.pool.volumes()?, asked.max_entries, &asked.starting_token)?;
        let entries =
            page.iter().map(|(id, volume)| ListedVolume { volume: Some(shown(id, volume)) }).collect();
        Ok(Response::new(ListVolumesResponse { entries, next_token }))
    }

    async fn get_capacity(
        &self,
        _: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        Ok(Response::new(GetCapacityResponse {
            available_capacity: self.pool.free().map_err(internal)?,
            maximum_volume_size: Some(rules::LARGEST),
            minimum_volume_size: Some(rules::SMALLEST),
        }))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let capability = |kind| ControllerServiceCapability { rpc: Some(Capability { kind }) };
        let capabilities = [1, 3, 4, 5, 6, 7, 9, 13].map(capability).to_vec();
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        let snapshot = self.make_snapshot(request.into_inner()).await?;
        Ok(Response::new(CreateSnapshotResponse { snapshot: Some(snapshot) }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        let id = required(&request.get_ref().snapshot_id, "snapshot_id")?;
        let _turn = self.pool.lock(&[id]).await?;
        if self.pool.snapshot(id)?.is_some() {
            self.pool.remove(Kind::Snapshot, id).await.map_err(internal)?;
            tracing::info!(snapshot = id, "deleted a snapshot");
        }
        Ok(Response::new(DeleteSnapshotResponse {}))
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        let asked = request.into_inner();
        let mut all = self.pool.snapshots()?;
        all.retain(|(id, snapshot)| {
            (asked.snapshot_id.is_empty() || asked.snapshot_id == *id)
                && (asked.source_volume_id.is_empty() || asked.source_volume_id == snapshot.volume)
        });
        let (page, next_token) = rules::page(Kind::Snapshot, all, asked.max_entries, &asked.starting_token)?;
        let shown = page.iter().map(|(id, one)| ListedSnapshot { snapshot: Some(shown_snapshot(id, one)) });
        Ok(Response::new(ListSnapshotsResponse { entries: shown.collect(), next_token }))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        let capacity_bytes = self.grow(request.into_inner()).await?;
        Ok(Response::new(ControllerExpandVolumeResponse { capacity_bytes, node_expansion_required: true }))
    }
}

//! What a node does with volumes: stage once for the node, publish for each pod. There is one such service for each node; which node
//! is asked is known by the socket.

use crate::{
    attachment::{at, remove_folder, resolved, staged, targets},
    cli::Node as NodeOptions,
    device,
    pool::{Pool, Staging, Volume, internal},
    rpc::node_server::Node,
    rules::{self, Kind, many_nodes, reads_only, required},
    wire::*,
};
use std::{path::Path, sync::Arc};
use tonic::{Request, Response, Status};

/// The service of one node.
pub struct NodeService {
    /// The pool.
    pub pool: Arc<Pool>,
    /// Which node.
    pub node: NodeOptions,
}

impl NodeService {
    async fn stage(&self, request: NodeStageVolumeRequest) -> Result<(), Status> {
        let id = required(&request.volume_id, "volume_id")?;
        let path = resolved(required(&request.staging_target_path, "staging_target_path")?);
        // Before the volume is looked for: a malformed request is that whatever it names.
        request
            .volume_capability
            .as_ref()
            .ok_or_else(|| Status::invalid_argument("volume_capability is missing"))?;
        let _turn = self.pool.lock(&[id]).await?;
        let mut volume = self.pool.intact(id)?;
        let wanted = rules::usable(&rules::class(&volume.parameters)?, request.volume_capability.as_ref())?;
        if let Some(zone) = volume.zone.as_ref().filter(|zone| **zone != self.node.zone) {
            return Err(Status::failed_precondition(format!(
                "volume {id} ({}) is in zone {zone}, node {} is in {}",
                volume.name, self.node.name, self.node.zone
            )));
        }
        let all = self.pool.stagings(id, &volume)?;
        let mode = i32::from(wanted.mode);
        for other in all.iter().filter(|other| other.node != self.node.name) {
            let many = Mode::try_from(other.mode).is_ok_and(many_nodes) && many_nodes(wanted.mode);
            if !many {
                return Err(Status::failed_precondition(format!(
                    "volume {id} ({}) is in use on node {}; it can be on one node only",
                    volume.name, other.node
                )));
            }
        }
        if let Some(same) = all.iter().find(|one| one.path == path) {
            if same.mode != mode {
                let words = format!("volume {id} is staged at {} with another access mode", path.display());
                return Err(Status::already_exists(words));
            }
            return Ok(());
        }
        // What is mounted and not noted could be staged by two nodes; what is noted and not mounted does not count.
        volume.stagings = all;
        volume.stagings.push(Staging { node: self.node.name.clone(), path: path.clone(), mode });
        self.pool.save(id, &volume)?;
        self.pool.ensure_mounted(id, &mut volume, &wanted).await?;
        device::bind(&self.pool.real(id), &path, false).await.map_err(internal)?;
        tracing::info!(volume = id, name = volume.name, node = self.node.name, "staged");
        Ok(())
    }

    async fn unstage(&self, request: NodeUnstageVolumeRequest) -> Result<(), Status> {
        let id = required(&request.volume_id, "volume_id")?;
        let path = resolved(required(&request.staging_target_path, "staging_target_path")?);
        let _turn = self.pool.lock(&[id]).await?;
        let Some(mut volume) = self.pool.find(id)? else { return Ok(()) };
        let Some((_, mounts)) = self.pool.attachment(id, &volume).map_err(internal)? else { return Ok(()) };
        let all = staged(&volume, &mounts);
        let rest: Vec<_> = all.iter().filter(|one| one.path != path).cloned().collect();
        let real = self.pool.real(id);
        if rest.is_empty() {
            let used = targets(&real, &volume, &mounts);
            if !used.is_empty() {
                let words = used.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
                return Err(Status::failed_precondition(format!(
                    "volume {id} is still published at {words}"
                )));
            }
        }
        if at(&mounts, &path).is_some() {
            device::unmount(&path, false).await.map_err(internal)?;
        }
        if rest.is_empty() {
            self.pool.release(id, &volume).await.map_err(internal)?;
        }
        volume.stagings = rest;
        self.pool.save(id, &volume)?;
        tracing::info!(volume = id, name = volume.name, node = self.node.name, "unstaged");
        Ok(())
    }

    async fn publish(&self, request: NodePublishVolumeRequest) -> Result<(), Status> {
        let id = required(&request.volume_id, "volume_id")?;
        let target = resolved(required(&request.target_path, "target_path")?);
        request
            .volume_capability
            .as_ref()
            .ok_or_else(|| Status::invalid_argument("volume_capability is missing"))?;
        let _turn = self.pool.lock(&[id]).await?;
        let volume = self.pool.intact(id)?;
        let wanted = rules::usable(&rules::class(&volume.parameters)?, request.volume_capability.as_ref())?;
        let staging = required(&request.staging_target_path, "staging_target_path");
        let staging = staging.map(resolved).map_err(|e| Status::failed_precondition(e.message()))?;
        let attached = self.pool.attachment(id, &volume).map_err(internal)?;
        let mounts = attached.map(|(_, mounts)| mounts).unwrap_or_default();
        if at(&mounts, &staging).is_none() {
            let words = format!("volume {id} ({}) is not staged at {}", volume.name, staging.display());
            return Err(Status::failed_precondition(words));
        }
        let read_only = request.readonly || reads_only(wanted.mode) || volume.faults.read_only;
        if let Some(mount) = at(&mounts, &target) {
            if mount.read_only != read_only {
                let words = format!("{} is mounted with read_only {}", target.display(), mount.read_only);
                return Err(Status::already_exists(words));
            }
            return Ok(());
        }
        if wanted.mode == Mode::SingleNodeSingleWriter
            && let Some(other) = targets(&self.pool.real(id), &volume, &mounts).first()
        {
            return Err(Status::failed_precondition(format!(
                "volume {id} ({}) is for one pod only and in use at {}",
                volume.name,
                other.display()
            )));
        }
        device::bind(&staging, &target, read_only).await.map_err(internal)?;
        tracing::info!(volume = id, name = volume.name, node = self.node.name, read_only, "published");
        Ok(())
    }

    async fn unpublish(&self, request: NodeUnpublishVolumeRequest) -> Result<(), Status> {
        let id = required(&request.volume_id, "volume_id")?;
        let target = resolved(required(&request.target_path, "target_path")?);
        let _turn = self.pool.lock(&[id]).await?;
        let Some(volume) = self.pool.find(id)? else { return Ok(()) };
        let attached = self.pool.attachment(id, &volume).map_err(internal)?;
        if attached.is_some_and(|(_, mounts)| at(&mounts, &target).is_some()) {
            device::unmount(&target, false).await.map_err(internal)?;
            tracing::info!(volume = id, name = volume.name, node = self.node.name, "unpublished");
        }
        // Something of another volume, or of nobody, is left alone: then the folder is not empty or busy, and that is said.
        remove_folder(&target).map_err(internal)
    }

    /// The volume with this path, if it is mounted there.
    fn mounted(&self, id: &str, path: &str) -> Result<(Volume, bool), Status> {
        let volume = self.pool.volume(id)?;
        let path = resolved(path);
        let attached = self.pool.attachment(id, &volume).map_err(internal)?;
        let there = attached.is_some_and(|(_, mounts)| at(&mounts, &path).is_some());
        Ok((volume, there))
    }

    fn stats(&self, request: &NodeGetVolumeStatsRequest) -> Result<NodeGetVolumeStatsResponse, Status> {
        let id = required(&request.volume_id, "volume_id")?;
        let path = required(&request.volume_path, "volume_path")?;
        let (volume, there) = self.mounted(id, path)?;
        let faults = &volume.faults;
        if !there && !faults.lost && !faults.detached {
            return Err(Status::not_found(format!("volume {id} ({}) is not mounted at {path}", volume.name)));
        }
        let wrong = if faults.lost {
            "its content is lost"
        } else if !there {
            "its device went away; delete the pod, and it gets a new one"
        } else if device::is_shut_down(Path::new(path)) {
            "its file system was shut down after an error; delete the pod, and it is mounted again"
        } else if faults.read_only {
            "it takes no writes"
        } else {
            ""
        };
        let condition = VolumeCondition { abnormal: !wrong.is_empty(), message: wrong.into() };
        Ok(NodeGetVolumeStatsResponse {
            usage: if there { usage(Path::new(path))? } else { Vec::new() },
            volume_condition: Some(condition),
        })
    }

    async fn grow(&self, request: &NodeExpandVolumeRequest) -> Result<i64, Status> {
        let id = required(&request.volume_id, "volume_id")?;
        let path = required(&request.volume_path, "volume_path")?;
        let _turn = self.pool.lock(&[id]).await?;
        self.pool.intact(id)?;
        let (volume, there) = self.mounted(id, path)?;
        if !there {
            return Err(Status::not_found(format!("volume {id} ({}) is not mounted at {path}", volume.name)));
        }
        if volume.faults.read_only {
            let words = format!("volume {id} ({}) takes no writes, so it cannot grow", volume.name);
            return Err(Status::failed_precondition(words));
        }
        for one in device::loops_of(&self.pool.image(Kind::Volume, id)).map_err(internal)? {
            if !one.leaving {
                let device = one.path();
                let arguments = ["--set-capacity".as_ref(), device.as_os_str()];
                device::run("losetup", &arguments).await.map_err(internal)?;
            }
        }
        device::grow(&self.pool.real(id)).await.map_err(internal)?;
        tracing::info!(volume = id, name = volume.name, size = volume.capacity, "grew a file system");
        Ok(volume.capacity)
    }
}

/// Bytes and inodes of a file system.
fn usage(path: &Path) -> Result<Vec<VolumeUsage>, Status> {
    let stats = nix::sys::statvfs::statvfs(path)
        .map_err(|error| Status::internal(format!("asking for the room of {}: {error}", path.display())))?;
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let unit = stats.fragment_size();
    let bytes = VolumeUsage {
        available: number(stats.blocks_available() * unit),
        total: number(stats.blocks() * unit),
        used: number(stats.blocks().saturating_sub(stats.blocks_free()) * unit),
        unit: 1,
    };
    let inodes = VolumeUsage {
        available: number(stats.files_available()),
        total: number(stats.files()),
        used: number(stats.files().saturating_sub(stats.files_free())),
        unit: 2,
    };
    Ok(vec![bytes, inodes])
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        self.stage(request.into_inner()).await?;
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        self.unstage(request.into_inner()).await?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        self.publish(request.into_inner()).await?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        self.unpublish(request.into_inner()).await?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        self.stats(request.get_ref()).map(Response::new)
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let capacity_bytes = self.grow(request.get_ref()).await?;
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let capability = |kind| NodeServiceCapability { rpc: Some(Capability { kind }) };
        let capabilities = [1, 2, 3, 4, 5].map(capability).to_vec();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.node.name.clone(),
            max_volumes_per_node: 0,
            accessible_topology: Some(rules::place(&self.node.zone)),
        }))
    }
}

//! A driver of a test's own: a process, a pool and two nodes in a temporary folder, all gone with it.

use holdfast_devcsi::{
    device,
    rpc::{controller_client::ControllerClient, node_client::NodeClient},
    wire::*,
};
use hyper_util::rt::TokioIo;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

const BINARY: &str = env!("CARGO_BIN_EXE_holdfast-devcsi");
/// The driver's two nodes and their zones.
pub const NODES: [(&str, &str); 2] = [("amber", "west"), ("beryl", "east")];

/// One test at a time: a mount namespace that one of them makes has the mounts of all, and holds their devices.
static TURN: Mutex<()> = Mutex::new(());

pub struct Driver {
    folder: tempfile::TempDir,
    process: Child,
    _turn: MutexGuard<'static, ()>,
}

fn channel(socket: PathBuf) -> Channel {
    let connect = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost")
        .timeout(Duration::from_secs(30))
        .connect_with_connector_lazy(connect)
}

/// Waits for a condition.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(15), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Driver {
    pub fn start() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let process = Self::launch(folder.path());
        Self { folder, process, _turn: turn }
    }

    fn launch(folder: &Path) -> Child {
        let mut command = Command::new(BINARY);
        command.args(["serve", "--no-provisioner", "--pool-size", "3221225472"]);
        command.arg("--folder").arg(folder.join("csi")).arg("--pool").arg(folder.join("pool.img"));
        for (name, zone) in NODES {
            command.arg("--node").arg(format!("{name}={zone}={}/{name}", folder.display()));
        }
        let socket = folder.join("csi/controller.sock");
        let _ = std::fs::remove_file(&socket);
        // Refusals are what these tests ask for; RUST_LOG=info shows them.
        command.env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or("error".into()));
        let process = command.stdin(Stdio::null()).spawn().unwrap();
        until("the driver's socket", || socket.exists());
        process
    }

    /// Kills the process as a crash does, and starts another.
    pub fn restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = Self::launch(self.folder.path());
    }

    pub fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(channel(self.folder.path().join("csi/controller.sock")))
    }

    pub fn node(&self, node: usize) -> NodeClient<Channel> {
        let socket = format!("{}/plugins/xfs.devcluster.local/csi.sock", NODES[node].0);
        NodeClient::new(channel(self.folder.path().join(socket)))
    }

    pub fn staging(&self, node: usize) -> PathBuf {
        self.folder.path().join(NODES[node].0).join("staging")
    }

    pub fn target(&self, node: usize, pod: &str) -> PathBuf {
        self.folder.path().join(NODES[node].0).join("pods").join(pod)
    }

    pub fn fault(&self, words: &[&str]) -> Output {
        Command::new(BINARY)
            .arg("fault")
            .args(words)
            .arg("--folder")
            .arg(self.folder.path().join("csi"))
            .output()
            .unwrap()
    }

    /// As `fault`, which has to work; what it printed.
    pub fn order(&self, words: &[&str]) -> String {
        let output = self.fault(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_string()
    }

    /// The pool's folder.
    pub fn pool(&self) -> PathBuf {
        self.folder.path().join("csi/pool")
    }

    /// Devices of the volumes' images, by the kernel's table.
    pub fn devices(&self) -> Vec<device::Loop> {
        let volumes = self.pool().join("volumes");
        device::loops().unwrap().into_iter().filter(|one| one.file.starts_with(&volumes)).collect()
    }

    pub async fn create(
        &self,
        name: &str,
        with: impl FnOnce(&mut CreateVolumeRequest),
    ) -> Result<Volume, tonic::Status> {
        let mut request = CreateVolumeRequest {
            name: name.into(),
            volume_capabilities: vec![capability(Mode::SingleNodeMultiWriter)],
            capacity_range: Some(CapacityRange { required_bytes: 300 << 20, limit_bytes: 0 }),
            ..CreateVolumeRequest::default()
        };
        with(&mut request);
        Ok(self.controller().create_volume(request).await?.into_inner().volume.unwrap())
    }

    pub async fn stage(&self, node: usize, volume: &Volume, mode: Mode) -> Result<(), tonic::Status> {
        let request = NodeStageVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: self.staging(node).display().to_string(),
            volume_capability: Some(capability(mode)),
            ..NodeStageVolumeRequest::default()
        };
        self.node(node).node_stage_volume(request).await.map(|_| ())
    }

    pub async fn unstage(&self, node: usize, volume: &Volume) -> Result<(), tonic::Status> {
        let request = NodeUnstageVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: self.staging(node).display().to_string(),
        };
        self.node(node).node_unstage_volume(request).await.map(|_| ())
    }

    pub async fn publish(
        &self,
        node: usize,
        volume: &Volume,
        mode: Mode,
        pod: &str,
    ) -> Result<PathBuf, tonic::Status> {
        let target = self.target(node, pod);
        let request = NodePublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: self.staging(node).display().to_string(),
            target_path: target.display().to_string(),
            volume_capability: Some(capability(mode)),
            ..NodePublishVolumeRequest::default()
        };
        self.node(node).node_publish_volume(request).await.map(|_| target)
    }

    pub async fn unpublish(&self, node: usize, volume: &Volume, pod: &str) -> Result<(), tonic::Status> {
        let request = NodeUnpublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            target_path: self.target(node, pod).display().to_string(),
        };
        self.node(node).node_unpublish_volume(request).await.map(|_| ())
    }

    /// Stages and publishes; where the pod sees the volume.
    pub async fn open(&self, node: usize, volume: &Volume, pod: &str) -> PathBuf {
        self.stage(node, volume, Mode::SingleNodeMultiWriter).await.unwrap();
        self.publish(node, volume, Mode::SingleNodeMultiWriter, pod).await.unwrap()
    }

    pub async fn close(&self, node: usize, volume: &Volume, pod: &str) {
        self.unpublish(node, volume, pod).await.unwrap();
        self.unstage(node, volume).await.unwrap();
    }

    pub async fn stats(&self, node: usize, volume: &Volume, path: &Path) -> NodeGetVolumeStatsResponse {
        let request = NodeGetVolumeStatsRequest {
            volume_id: volume.volume_id.clone(),
            volume_path: path.display().to_string(),
            staging_target_path: String::new(),
        };
        self.node(node).node_get_volume_stats(request).await.unwrap().into_inner()
    }
}

pub fn capability(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

pub fn parameters(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

/// Writes a file so that it is on the disk.
pub fn write(file: &Path, text: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    let mut open = std::fs::File::create(file)?;
    open.write_all(text)?;
    open.sync_all()
}

/// What a container is to a volume: a mount namespace of its own that has it mounted, whatever becomes of the mounts outside.
pub struct Container(Child);

impl Container {
    pub fn start(pod: &Path) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", "read end"]).stdin(Stdio::piped());
        let container = Self(command.spawn().unwrap());
        let theirs = format!("/proc/{}/ns/mnt", container.0.id());
        let ours = std::fs::read_link("/proc/self/ns/mnt").unwrap();
        until("the container", || std::fs::read_link(&theirs).is_ok_and(|theirs| theirs != ours));
        assert!(std::fs::read_dir(container.sees(pod)).is_ok());
        container
    }

    /// A path as the container has it.
    pub fn sees(&self, path: &Path) -> PathBuf {
        format!("/proc/{}/root{}", self.0.id(), path.display()).into()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let here = self.folder.path().canonicalize().unwrap();
        // The names of the devices are read while the pool is mounted.
        let devices =
            device::loops().unwrap_or_default().into_iter().filter(|one| one.file.starts_with(&here));
        let devices: Vec<_> = devices.collect();
        for mount in device::mounts().unwrap_or_default().iter().rev().filter(|m| m.path.starts_with(&here)) {
            let _ = Command::new("umount").arg("-lc").arg(&mount.path).output();
        }
        for one in devices {
            let _ = Command::new("losetup").arg("-d").arg(one.path()).output();
        }
    }
}

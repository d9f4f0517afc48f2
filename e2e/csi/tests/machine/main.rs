//! The driver on this machine's kernel: loop devices, mounts and faults, as a kubelet would use them. Needs root:
//! `cargo test -p holdfast-devcsi --test machine -- --ignored`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

mod driver;

use driver::{Driver, parameters, until, write};
use holdfast_devcsi::{device, rules, wire::*};
use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use tonic::Code;

const ONE: Mode = Mode::SingleNodeMultiWriter;

fn code<T: std::fmt::Debug>(result: Result<T, tonic::Status>) -> Code {
    result.unwrap_err().code()
}

fn from_volume(volume: &Volume) -> Option<VolumeContentSource> {
    let source = VolumeSource { volume_id: volume.volume_id.clone() };
    Some(VolumeContentSource { source: Some(ContentSource::Volume(source)) })
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and loop devices"]
async fn a_volume_goes_from_node_to_node_one_at_a_time_with_its_data() {
    let driver = Driver::start();
    let volume = driver.create("pv-agate", |_| {}).await.unwrap();
    let pod = driver.open(0, &volume, "first").await;
    write(&pod.join("word"), b"kept").unwrap();
    // Again is the same, and another pod of the same node may have it too.
    assert_eq!(driver.open(0, &volume, "first").await, pod);
    let second = driver.open(0, &volume, "second").await;
    assert_eq!(std::fs::read(second.join("word")).unwrap(), b"kept");

    let refusal = driver.stage(1, &volume, ONE).await.unwrap_err();
    assert_eq!(refusal.code(), Code::FailedPrecondition);
    assert!(refusal.message().contains("amber"), "{}", refusal.message());
    let delete = DeleteVolumeRequest { volume_id: volume.volume_id.clone(), ..Default::default() };
    assert_eq!(code(driver.controller().delete_volume(delete.clone()).await), Code::FailedPrecondition);
    assert_eq!(code(driver.unstage(0, &volume).await), Code::FailedPrecondition);

    driver.unpublish(0, &volume, "second").await.unwrap();
    driver.close(0, &volume, "first").await;
    driver.close(0, &volume, "first").await;
    assert!(driver.devices().is_empty() && !pod.exists());

    let pod = driver.open(1, &volume, "third").await;
    assert_eq!(std::fs::read(pod.join("word")).unwrap(), b"kept");
    driver.close(1, &volume, "third").await;
    driver.controller().delete_volume(delete.clone()).await.unwrap();
    driver.controller().delete_volume(delete).await.unwrap();
    assert_eq!(code(driver.stage(0, &volume, ONE).await), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and loop devices"]
async fn a_size_is_a_limit_and_grows_while_in_use() {
    let driver = Driver::start();
    let volume = driver.create("pv-agate", |_| {}).await.unwrap();
    let pod = driver.open(0, &volume, "first").await;
    assert!(write(&pod.join("much"), &vec![7; 301 << 20]).is_err());
    std::fs::remove_file(pod.join("much")).unwrap();
    let total = driver.stats(0, &volume, &pod).await.usage[0].total;

    let range = Some(CapacityRange { required_bytes: 600 << 20, limit_bytes: 0 });
    let grow = ControllerExpandVolumeRequest {
        volume_id: volume.volume_id.clone(),
        capacity_range: range,
        ..Default::default()
    };
    let grown = driver.controller().controller_expand_volume(grow).await.unwrap().into_inner();
    assert_eq!((grown.capacity_bytes, grown.node_expansion_required), (600 << 20, true));
    let request = NodeExpandVolumeRequest {
        volume_id: volume.volume_id.clone(),
        volume_path: pod.display().to_string(),
        ..Default::default()
    };
    driver.node(0).node_expand_volume(request).await.unwrap();
    assert!(driver.stats(0, &volume, &pod).await.usage[0].total > total + (250 << 20));
    write(&pod.join("much"), &vec![7; 400 << 20]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and loop devices"]
async fn snapshots_and_clones_have_what_was_there_and_may_be_larger() {
    let driver = Driver::start();
    let volume = driver.create("pv-agate", |_| {}).await.unwrap();
    let pod = driver.open(0, &volume, "first").await;
    // Not synced: a snapshot has what the application has written all the same.
    std::fs::write(pod.join("word"), "early").unwrap();
    let request = CreateSnapshotRequest {
        source_volume_id: volume.volume_id.clone(),
        name: "snap-of-agate".into(),
        ..Default::default()
    };
    let snapshot = driver.controller().create_snapshot(request).await.unwrap().into_inner().snapshot.unwrap();
    assert!(snapshot.ready_to_use);
    std::fs::write(pod.join("word"), "late").unwrap();

    let restored = driver.create("pv-restored", |request| {
        let source = SnapshotSource { snapshot_id: snapshot.snapshot_id.clone() };
        request.volume_content_source =
            Some(VolumeContentSource { source: Some(ContentSource::Snapshot(source)) });
        request.capacity_range = Some(CapacityRange { required_bytes: 700 << 20, limit_bytes: 0 });
    });
    let restored = restored.await.unwrap();
    let clone = driver.create("pv-clone", |request| request.volume_content_source = from_volume(&volume));
    let clone = clone.await.unwrap();
    // All three have the same identity as file systems, and are mounted at once.
    let other = driver.open(1, &restored, "second").await;
    assert_eq!(std::fs::read(other.join("word")).unwrap(), b"early");
    assert!(driver.stats(1, &restored, &other).await.usage[0].total > 550 << 20);
    driver.close(1, &restored, "second").await;
    let other = driver.open(1, &clone, "third").await;
    assert_eq!(std::fs::read(other.join("word")).unwrap(), b"late");
    std::fs::write(other.join("word"), "other").unwrap();
    assert_eq!(std::fs::read(pod.join("word")).unwrap(), b"late");
    // A volume that was copied can still be attached anew.
    driver.close(0, &volume, "first").await;
    let pod = driver.open(0, &volume, "first").await;
    assert_eq!(std::fs::read(pod.join("word")).unwrap(), b"late");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and loop devices"]
async fn zonal_volumes_and_their_clones_stay_in_their_zone() {
    let driver = Driver::start();
    let zonal = |request: &mut CreateVolumeRequest, zone: &str| {
        request.parameters = parameters(&[("zonal", "true")]);
        request.accessibility_requirements =
            Some(TopologyRequirement { requisite: Vec::new(), preferred: vec![rules::place(zone)] });
    };
    let volume = driver.create("pv-agate", |request| zonal(request, "east")).await.unwrap();
    assert_eq!(volume.accessible_topology, [rules::place("east")]);
    assert_eq!(code(driver.stage(0, &volume, ONE).await), Code::FailedPrecondition);
    driver.stage(1, &volume, ONE).await.unwrap();
    let clone = |name: &'static str, zone: &'static str| {
        driver.create(name, |request| {
            zonal(request, zone);
            request.volume_content_source = from_volume(&volume);
        })
    };
    assert_eq!(code(clone("pv-far", "west").await), Code::ResourceExhausted);
    assert_eq!(clone("pv-near", "east").await.unwrap().accessible_topology, [rules::place("east")]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and loop devices"]
async fn shared_volumes_are_one_file_system_on_all_nodes_and_exclusive_ones_are_one_pods() {
    let driver = Driver::start();
    let many = Mode::MultiNodeMultiWriter;
    let shared = driver.create("pv-shared", |request| {
        request.parameters = parameters(&[("access", "shared")]);
        request.volume_capabilities = vec![driver::capability(many)];
    });
    let shared = shared.await.unwrap();
    let mut pods = Vec::new();
    for node in [0, 1] {
        driver.stage(node, &shared, many).await.unwrap();
        pods.push(driver.publish(node, &shared, many, "pod").await.unwrap());
    }
    std::fs::write(pods[0].join("word"), "seen").unwrap();
    assert_eq!(std::fs::read(pods[1].join("word")).unwrap(), b"seen");
    assert_eq!(driver.devices().len(), 1);
    driver.close(0, &shared, "pod").await;
    assert_eq!(std::fs::read(pods[1].join("word")).unwrap(), b"seen");
    driver.close(1, &shared, "pod").await;
    assert!(driver.devices().is_empty());

    let alone = Mode::SingleNodeSingleWriter;
    let volume = driver.create("pv-alone", |_| {}).await.unwrap();
    driver.stage(0, &volume, alone).await.unwrap();
    driver.publish(0, &volume, alone, "first").await.unwrap();
    driver.publish(0, &volume, alone, "first").await.unwrap();
    assert_eq!(code(driver.publish(0, &volume, alone, "second").await), Code::FailedPrecondition);
    let reader =
        driver.create("pv-many", |request| request.volume_capabilities = vec![driver::capability(many)]);
    assert_eq!(code(reader.await), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and loop devices"]
async fn another_process_takes_over_what_a_killed_one_left() {
    let mut driver = Driver::start();
    let volume = driver.create("pv-agate", |_| {}).await.unwrap();
    let pod = driver.open(0, &volume, "first").await;
    let before = driver.devices();
    // Killed in the middle: a device that was never mounted, and a volume that was never finished.
    let other = driver.create("pv-beryl", |_| {}).await.unwrap();
    let volumes = driver.pool().join("volumes");
    device::attach(&volumes.join(&other.volume_id).join("image")).await.unwrap();
    let unfinished = volumes.join("vol-0123456789ab.new");
    std::fs::create_dir(&unfinished).unwrap();
    driver.restart();
    assert!(!unfinished.exists());
    write(&pod.join("word"), b"kept").unwrap();
    assert_eq!(driver.devices(), before);
    assert_eq!(driver.open(0, &volume, "first").await, pod);
    assert_eq!(code(driver.stage(1, &volume, ONE).await), Code::FailedPrecondition);
    driver.close(0, &volume, "first").await;
    assert!(driver.devices().is_empty());
    let pod = driver.open(1, &volume, "second").await;
    assert_eq!(std::fs::read(pod.join("word")).unwrap(), b"kept");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and loop devices"]
async fn a_detached_volume_fails_at_once_and_is_staged_anew_while_the_old_pod_holds_on() {
    let driver = Driver::start();
    let volume = driver.create("pv-agate", |_| {}).await.unwrap();
    let pod = driver.open(0, &volume, "first").await;
    write(&pod.join("word"), b"kept").unwrap();
    let container = driver::Container::start(&pod);
    let text = driver.order(&["detach", "pv-agate"]);
    assert!(text.contains("went away"), "{text}");
    let error = std::fs::read(container.sees(&pod).join("word")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5));
    let health = driver.stats(0, &volume, &pod).await.volume_condition.unwrap();
    assert!(health.abnormal && health.message.contains("went away"), "{health:?}");
    assert!(driver.order(&["list"]).contains("detached"));

    let pod = driver.open(1, &volume, "second").await;
    assert_eq!(std::fs::read(pod.join("word")).unwrap(), b"kept");
    write(&pod.join("more"), b"new").unwrap();
    assert_eq!(driver.devices().len(), 2);
    // The first node's kubelet cleans up what is gone already.
    driver.close(0, &volume, "first").await;
    drop(container);
    until("the old device's end", || driver.devices().len() == 1);
    assert_eq!(std::fs::read(pod.join("more")).unwrap(), b"new");
    assert!(!driver.order(&["list"]).contains("detached"));
    driver.close(1, &volume, "second").await;
    assert!(driver.devices().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and loop devices"]
async fn a_read_only_volume_fails_then_is_read_and_takes_writes_again() {
    let driver = Driver::start();
    let volume = driver.create("pv-agate", |_| {}).await.unwrap();
    let pod = driver.open(0, &volume, "first").await;
    write(&pod.join("word"), b"kept").unwrap();
    driver.order(&["read-only", "pv-agate"]);
    assert_eq!(write(&pod.join("word"), b"lost").unwrap_err().raw_os_error(), Some(5));
    assert!(driver.stats(0, &volume, &pod).await.volume_condition.unwrap().abnormal);
    driver.close(0, &volume, "first").await;
    let pod = driver.open(0, &volume, "second").await;
    assert_eq!(std::fs::read(pod.join("word")).unwrap(), b"kept");
    assert_eq!(write(&pod.join("word"), b"no").unwrap_err().raw_os_error(), Some(30));
    assert!(driver.stats(0, &volume, &pod).await.volume_condition.unwrap().abnormal);
    driver.order(&["read-only", &volume.volume_id, "off"]);
    let pod = driver.open(0, &volume, "third").await;
    write(&pod.join("word"), b"again").unwrap();
    assert!(!driver.stats(0, &volume, &pod).await.volume_condition.unwrap().abnormal);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and loop devices"]
async fn a_lost_volume_stays_lost_and_can_be_deleted() {
    let driver = Driver::start();
    let volume = driver.create("pv-agate", |_| {}).await.unwrap();
    let pod = driver.open(0, &volume, "first").await;
    write(&pod.join("word"), b"gone").unwrap();
    let _container = driver::Container::start(&pod);
    driver.order(&["lose", "pv-agate"]);
    assert!(!pod.join("word").exists());
    assert!(driver.stats(0, &volume, &pod).await.volume_condition.unwrap().message.contains("lost"));
    driver.close(0, &volume, "first").await;
    assert_eq!(code(driver.stage(0, &volume, ONE).await), Code::NotFound);
    assert!(driver.order(&["clear"]).contains("lost"));
    let clone = driver.create("pv-clone", |request| request.volume_content_source = from_volume(&volume));
    assert_eq!(code(clone.await), Code::NotFound);
    let delete = DeleteVolumeRequest { volume_id: volume.volume_id.clone(), ..Default::default() };
    driver.controller().delete_volume(delete).await.unwrap();
    // The same name later is a new volume, though a container still has the old one.
    assert_eq!(driver.devices().len(), 1);
    let volume = driver.create("pv-agate", |_| {}).await.unwrap();
    assert!(!driver.open(0, &volume, "first").await.join("word").exists());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and loop devices"]
async fn a_slow_volume_is_slow_in_containers_too_and_only_while_it_is() {
    let group = Path::new("/sys/fs/cgroup/blkio/holdfast-agate");
    if !Path::new("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device").exists() {
        eprintln!("this machine cannot slow devices");
        return;
    }
    let driver = Driver::start();
    let volume = driver.create("pv-agate", |_| {}).await.unwrap();
    let pod = driver.open(0, &volume, "first").await;
    driver.order(&["slow", "pv-agate", "2097152"]);
    // A group that comes later, as a container's does.
    std::fs::create_dir(group).unwrap();
    let bounds =
        || std::fs::read_to_string(group.join("blkio.throttle.write_bps_device")).unwrap_or_default();
    until("the group's bound", || bounds().contains("2097152"));
    let seconds = |pod: &Path| {
        let file = pod.join("much");
        let script = "echo $$ > \"$0/cgroup.procs\"; dd if=/dev/zero of=\"$1\" bs=1M count=4 conv=fsync";
        let begun = Instant::now();
        let done = Command::new("sh").args(["-c", script]).arg(group).arg(file).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        begun.elapsed()
    };
    let slow = seconds(&pod);
    driver.order(&["clear"]);
    let quick = seconds(&pod);
    let free = bounds();
    std::fs::remove_dir(group).unwrap();
    assert!(slow > Duration::from_millis(1500), "{slow:?}");
    assert!(quick < Duration::from_millis(500) && !free.contains("2097152"), "{quick:?} {free}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and loop devices"]
async fn calls_fail_and_wait_on_demand() {
    let driver = Driver::start();
    driver.order(&["fail", "CreateVolume", "1", "out", "of", "agate"]);
    let refusal = driver.create("pv-agate", |_| {}).await.unwrap_err();
    assert_eq!((refusal.code(), refusal.message()), (Code::Unavailable, "out of agate"));
    let volume = driver.create("pv-agate", |_| {}).await.unwrap();
    driver.order(&["delay", "NodeStageVolume", "0.7", "1"]);
    let begun = Instant::now();
    driver.stage(0, &volume, ONE).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(700));
    driver.order(&["fail", "NodePublishVolume", "9"]);
    assert_eq!(code(driver.publish(0, &volume, ONE, "first").await), Code::Unavailable);
    driver.order(&["clear"]);
    driver.publish(0, &volume, ONE, "first").await.unwrap();
    let wrong = driver.fault(&["fail", "StageVolume", "1"]);
    assert!(!wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("NodeStageVolume"));
    let unknown = driver.fault(&["lose", "pv-beryl"]);
    assert!(!unknown.status.success());
    assert!(device::mounts().unwrap().iter().any(|mount| mount.path.ends_with("pods/first")));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and loop devices"]
async fn a_full_pool_says_so() {
    let driver = Driver::start();
    let volume = driver.create("pv-agate", |_| {}).await.unwrap();
    let free = async || {
        let answer = driver.controller().get_capacity(GetCapacityRequest::default()).await.unwrap();
        answer.into_inner().available_capacity
    };
    let ballast = driver.pool().join("ballast");
    let bytes = free().await - (100 << 20);
    let done = Command::new("fallocate").args(["-l", &bytes.to_string()]).arg(&ballast).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let refusal = driver.create("pv-beryl", |_| {}).await.unwrap_err();
    assert_eq!(refusal.code(), Code::ResourceExhausted);
    assert!(refusal.message().contains("delete volumes"), "{}", refusal.message());
    // What is there already can be used.
    driver.open(0, &volume, "first").await;
    std::fs::remove_file(&ballast).unwrap();
    driver.create("pv-beryl", |_| {}).await.unwrap();
}

//! How full the volumes are, as the agents report it. Pure.

use crate::{
    observe::Instance,
    plan::{Problem, trouble::DISK_FULL},
};
use holdfast_core::{
    crd::database::MemberVolume,
    report::{VolumeReport, VolumeStage},
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Stage: room for now, but not for long.
pub const LOW: &str = "Low";
/// Stage: writes are refused.
pub const FULL: &str = "Full";
const MIB: i64 = 1 << 20;

/// As status shows it.
fn word(stage: VolumeStage) -> &'static str {
    match stage {
        VolumeStage::Ample => "Ample",
        VolumeStage::Low => LOW,
        VolumeStage::Full => FULL,
    }
}

/// Whether an instance's volume is so full that it refuses writes.
pub fn is_full(instance: &Instance) -> bool {
    instance.report.volume.as_ref().is_some_and(|space| space.stage == VolumeStage::Full)
}

/// A number of bytes in whole MiB, rounded down: a status that named every byte would be written anew all the time.
fn mebibytes(bytes: i64) -> Quantity {
    Quantity(format!("{}Mi", bytes.max(0) / MIB))
}

/// For `status.members`.
pub fn member(instance: &Instance) -> Option<MemberVolume> {
    instance.report.volume.as_ref().map(|space| MemberVolume {
        capacity: mebibytes(space.capacity_bytes),
        available: mebibytes(space.available_bytes),
        wal: mebibytes(space.wal_bytes),
        stage: word(space.stage).into(),
    })
}

/// "volume of orders-0: 7 % left, WAL takes 400 MiB of it"
fn left(instance: &Instance) -> Option<String> {
    let space = instance.report.volume.as_ref()?;
    let percent = space.available_bytes.max(0).saturating_mul(100) / space.capacity_bytes.max(1);
    let wal = space.wal_bytes.max(0) / MIB;
    Some(format!("volume of {}: {percent} % left, WAL takes {wal} MiB of it", instance.name))
}

/// What a message adds about volumes that get full; empty: none does.
pub fn remarks(instances: &[Instance]) -> String {
    let scarce = |i: &&Instance| i.report.volume.as_ref().is_some_and(|s| s.stage != VolumeStage::Ample);
    let told = instances.iter().filter(|i| !i.terminating).filter(scarce).filter_map(left);
    told.fold(String::new(), |text, one| format!("{text}; {one}"))
}

/// How much room there is where WAL waits: ", 71 MiB are left on the volume of orders-0".
pub fn room(instance: &Instance) -> String {
    let room = |space: &VolumeReport| {
        let available = space.available_bytes.max(0) / MIB;
        format!(", {available} MiB are left on the volume of {}", instance.name)
    };
    instance.report.volume.as_ref().map(room).unwrap_or_default()
}

/// The primary's volume is full: only more room ends that.
pub fn full(primary: &Instance) -> Option<Problem> {
    is_full(primary).then(|| {
        let message = format!(
            "{}; writes are refused and reads go on: raise spec.storage.size, or free space \
             (SET default_transaction_read_only = off lets a session delete)",
            left(primary).unwrap_or_default()
        );
        Problem::new(DISK_FULL, message)
    })
}

//! What may be asked of a volume, and what it then is: pure decisions about names, sizes, capabilities, zones and pages.

use crate::wire::{
    AccessMode, AccessType, CapacityRange, Mode, Topology, TopologyRequirement, VolumeCapability,
};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use tonic::Status;

/// The driver's name: in CSIDriver, StorageClasses and PersistentVolumes.
pub const DRIVER: &str = "xfs.devcluster.local";
/// The only key of a place.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// What sizes are rounded up to, bytes.
pub const UNIT: i64 = 1 << 20;
/// The smallest file system that mkfs.xfs makes, bytes.
pub const SMALLEST: i64 = 300 << 20;
/// The largest volume, bytes: a sparse file costs nothing, but mkfs writes its log, which grows with the size.
pub const LARGEST: i64 = 16 << 40;
/// What a request without a size gets, bytes.
const ORDINARY: i64 = 1 << 30;
/// Longest name that the interface allows, bytes.
const LONGEST_NAME: usize = 128;
/// Parameters that Kubernetes' own programs add to a class's.
const KUBERNETES: &str = "csi.storage.k8s.io/";

/// Which kind of thing an id is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A volume.
    Volume,
    /// A snapshot.
    Snapshot,
}

impl Kind {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Volume => "vol-",
            Self::Snapshot => "snap-",
        }
    }
}

/// The id of what has this name: the same name is the same thing, without a table.
pub fn id(kind: Kind, name: &str) -> String {
    format!("{}{}", kind.prefix(), &digest(name)[..12])
}

/// SHA-256 in hexadecimal digits.
pub fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether this can be an id. Ids become names of folders, so nothing else may ever reach a path.
pub fn is_id(kind: Kind, text: &str) -> bool {
    text.strip_prefix(kind.prefix()).is_some_and(|hex| {
        hex.len() == 12 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

/// A name that was given for something new.
pub fn name(text: &str) -> Result<&str, Status> {
    match text.len() {
        0 => Err(Status::invalid_argument("a name is missing")),
        n if n > LONGEST_NAME => {
            Err(Status::invalid_argument(format!("the name is longer than {LONGEST_NAME} bytes")))
        }
        _ => Ok(text),
    }
}

/// A field that has to be there.
pub fn required<'a>(text: &'a str, field: &str) -> Result<&'a str, Status> {
    if text.is_empty() { Err(Status::invalid_argument(format!("{field} is missing"))) } else { Ok(text) }
}

/// The bounds of a range, bytes; 0 is none.
fn bounds(range: Option<&CapacityRange>) -> Result<(i64, i64), Status> {
    let (required, limit) = range.map_or((0, 0), |r| (r.required_bytes, r.limit_bytes));
    if required < 0 || limit < 0 {
        return Err(Status::invalid_argument("a size cannot be negative"));
    }
    if limit > 0 && required > limit {
        return Err(Status::invalid_argument(format!("{required} bytes required, but the limit is {limit}")));
    }
    if required > LARGEST {
        return Err(Status::out_of_range(format!("{required} bytes; a volume has at most {LARGEST}")));
    }
    Ok((required, limit))
}

/// The size of a new volume, bytes: what is required, rounded up; not less than its source's, if it has one.
pub fn size(range: Option<&CapacityRange>, source: Option<i64>) -> Result<i64, Status> {
    let (required, limit) = bounds(range)?;
    let wanted = match (required, source) {
        (0, Some(source)) => source,
        (0, None) if limit > 0 => ORDINARY.min(limit / UNIT * UNIT),
        (0, None) => ORDINARY,
        _ => required,
    };
    let size = round(wanted);
    if let Some(source) = source.filter(|source| size < *source) {
        return Err(Status::out_of_range(format!(
            "{size} bytes for a copy of {source} bytes; ask for at least those"
        )));
    }
    within(size, limit)
}

/// The size of a volume that is to grow from `now`, bytes. Volumes never shrink.
pub fn grown(range: Option<&CapacityRange>, now: i64) -> Result<i64, Status> {
    let range = range.ok_or_else(|| Status::invalid_argument("capacity_range is missing"))?;
    let (required, limit) = bounds(Some(range))?;
    within(round(required).max(now), limit)
}

/// Whether an existing volume of this size is what a repeated request asks for.
pub fn fits(range: Option<&CapacityRange>, size: i64) -> Result<bool, Status> {
    let (required, limit) = bounds(range)?;
    Ok(size >= required && (limit == 0 || size <= limit))
}

fn round(bytes: i64) -> i64 {
    (bytes.max(SMALLEST) + UNIT - 1) / UNIT * UNIT
}

fn within(size: i64, limit: i64) -> Result<i64, Status> {
    if limit > 0 && size > limit {
        return Err(Status::out_of_range(format!(
            "sizes are multiples of {UNIT} bytes from {SMALLEST} on; the next is {size}, above the limit of {limit}"
        )));
    }
    Ok(size)
}

/// What a StorageClass says about its volumes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Class {
    /// The volume exists in one zone only.
    pub zonal: bool,
    /// Several nodes may use the volume at once.
    pub shared: bool,
    /// Volumes are not cloned, as many drivers cannot.
    pub uncloned: bool,
    /// Bytes a second that can be written; 0 is no bound.
    pub write: u64,
    /// Bytes a second that can be read; 0 is no bound.
    pub read: u64,
}

/// The class's own parameters, without those that Kubernetes added.
pub fn own_parameters(parameters: &HashMap<String, String>) -> BTreeMap<String, String> {
    let own = parameters.iter().filter(|(key, _)| !key.starts_with(KUBERNETES));
    own.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Reads a class's own parameters. A word that means nothing is refused: passed over, it would be a promise not kept.
pub fn class(parameters: &BTreeMap<String, String>) -> Result<Class, Status> {
    let mut class = Class::default();
    for (key, value) in parameters {
        let wrong = |expected: &str| {
            Status::invalid_argument(format!("parameter {key} is {value:?}; it must be {expected}"))
        };
        match key.as_str() {
            "zonal" => class.zonal = value.parse().map_err(|_| wrong("true or false"))?,
            "access" if value == "shared" => class.shared = true,
            "access" => return Err(wrong("shared, or absent")),
            "clones" => class.uncloned = !value.parse().map_err(|_| wrong("true or false"))?,
            "writeBytesPerSecond" => class.write = value.parse().map_err(|_| wrong("a number"))?,
            "readBytesPerSecond" => class.read = value.parse().map_err(|_| wrong("a number"))?,
            _ => {
                return Err(Status::invalid_argument(format!(
                    "parameter {key} is not known; there are zonal, access, clones, writeBytesPerSecond and readBytesPerSecond"
                )));
            }
        }
    }
    Ok(class)
}

/// Whether a mode lets several nodes use a volume at once.
pub fn many_nodes(mode: Mode) -> bool {
    matches!(mode, Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter)
}

/// Whether a mode never writes.
pub fn reads_only(mode: Mode) -> bool {
    matches!(mode, Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly)
}

/// What one capability asks for: its mode, and options for the mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// Who may use the volume at once.
    pub mode: Mode,
    /// Options of the file system, such as noatime.
    pub flags: Vec<String>,
}

/// Whether a volume of this class can be used so.
pub fn usable(class: &Class, capability: Option<&VolumeCapability>) -> Result<Use, Status> {
    let capability = capability.ok_or_else(|| Status::invalid_argument("volume_capability is missing"))?;
    let mount = match &capability.access_type {
        Some(AccessType::Mount(mount)) => mount,
        Some(AccessType::Block(_)) => {
            return Err(Status::invalid_argument(
                "access type block is not supported: these are file systems",
            ));
        }
        None => return Err(Status::invalid_argument("the capability has no access type")),
    };
    if !matches!(mount.fs_type.as_str(), "" | "xfs") {
        let message = format!("file system {} is not supported: there is only xfs", mount.fs_type);
        return Err(Status::invalid_argument(message));
    }
    let mode = capability.access_mode.as_ref().map_or(Mode::Unknown, AccessMode::mode);
    if mode == Mode::Unknown {
        return Err(Status::invalid_argument("the capability has no access mode"));
    }
    if many_nodes(mode) && !class.shared {
        return Err(Status::invalid_argument(format!(
            "access mode {mode:?} needs a StorageClass with the parameter access: shared"
        )));
    }
    Ok(Use { mode, flags: mount.mount_flags.clone() })
}

/// As `usable`, for all that a new volume is to be able to do.
pub fn all_usable(class: &Class, capabilities: &[VolumeCapability]) -> Result<(), Status> {
    if capabilities.is_empty() {
        return Err(Status::invalid_argument("volume_capabilities are missing"));
    }
    capabilities.iter().try_for_each(|capability| usable(class, Some(capability)).map(|_| ()))
}

/// The zone of a new volume: none unless the class is zonal; then the first that is preferred, else required, else `first`, the
/// first node's. The copy of a zonal volume is made where its source is, or not at all.
pub fn zone(
    class: &Class,
    asked: Option<&TopologyRequirement>,
    first: Option<&str>,
    source: Option<&str>,
) -> Result<Option<String>, Status> {
    if !class.zonal {
        return Ok(None);
    }
    let named = |places: &[Topology]| places.iter().find_map(|place| place.segments.get(ZONE).cloned());
    let zone = asked
        .and_then(|asked| named(&asked.preferred).or_else(|| named(&asked.requisite)))
        .or_else(|| first.map(str::to_string))
        .ok_or_else(|| {
            Status::invalid_argument(format!("a zonal volume needs a place with the key {ZONE}"))
        })?;
    match source {
        Some(source) if source != zone => Err(Status::resource_exhausted(format!(
            "the source is in zone {source}, so the copy cannot be made in {zone}"
        ))),
        _ => Ok(Some(zone)),
    }
}

/// A place of this zone.
pub fn place(zone: &str) -> Topology {
    Topology { segments: HashMap::from([(ZONE.to_string(), zone.to_string())]) }
}

/// One page of a list sorted by id: the entries after `token`, which is the last id of the page before, so that what was
/// deleted in between shifts nothing. The second is the next page's token.
pub fn page<T>(
    kind: Kind,
    sorted: Vec<(String, T)>,
    max: i32,
    token: &str,
) -> Result<(Vec<(String, T)>, String), Status> {
    let max = usize::try_from(max).map_err(|_| Status::invalid_argument("max_entries is negative"))?;
    if !token.is_empty() && !is_id(kind, token) {
        return Err(Status::aborted(format!("{token:?} is no token of this list; begin without one")));
    }
    let mut rest: Vec<_> = sorted.into_iter().filter(|(id, _)| id.as_str() > token).collect();
    let mut next = String::new();
    if max > 0 && rest.len() > max {
        rest.truncate(max);
        next = rest.last().map(|(id, _)| id.clone()).unwrap_or_default();
    }
    Ok((rest, next))
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;

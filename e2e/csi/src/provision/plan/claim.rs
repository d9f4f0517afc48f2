//! What is to be done about a PersistentVolumeClaim.

use super::{
    names::{self, FS_TYPE, FS_TYPE_PARAMETER, KUBERNETES_PARAMETERS, SELECTED_NODE},
    origin::{self, Origin, Wanted},
    quantity,
    topology::{self, Nowhere},
};
use crate::wire::{
    AccessMode, AccessType, CapacityRange, CreateVolumeRequest, Mode, MountVolume, VolumeCapability,
};
use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec},
    storage::v1::{CSINode, StorageClass},
};
use kube::ResourceExt;
use std::sync::Arc;

/// What was seen beside the claim.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// The driver's name.
    pub driver: &'a str,
    /// The claim's class.
    pub class: Option<&'a StorageClass>,
    /// All nodes.
    pub nodes: &'a [Arc<Node>],
    /// What drivers run on them.
    pub csi_nodes: &'a [Arc<CSINode>],
    /// The PersistentVolume that bears the name of the claim's volume.
    pub volume: Option<&'a PersistentVolume>,
    /// What the volume is to begin with.
    pub origin: &'a Origin,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing, until something changes.
    Ignore,
    /// Another program fills this volume: say so, once.
    Leave(String),
    /// Read this source, then decide again.
    Read(Wanted),
    /// The source is not there yet: look again soon.
    Wait(String),
    /// The scheduler has to choose another node.
    Reschedule(String),
    /// It cannot be done as things are.
    Refuse(String),
    /// Ask the driver for the volume.
    Provision(Box<CreateVolumeRequest>),
}

/// Whether the class's volumes are made only where the first pod goes.
pub fn waits_for_pod(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

/// Decides.
pub fn claim(claim: &PersistentVolumeClaim, facts: Facts<'_>) -> Step {
    decide(claim, facts).unwrap_or_else(|step| step)
}

/// `Err` ends the decision early; it is no failure.
fn decide(claim: &PersistentVolumeClaim, facts: Facts<'_>) -> Result<Step, Step> {
    let refuse = |words: String| Step::Refuse(words);
    let (Some(spec), Some(name)) = (claim.spec.as_ref(), names::volume_of(claim)) else {
        return Ok(Step::Ignore);
    };
    let class_name = spec.storage_class_name.as_deref().unwrap_or_default();
    if class_name.is_empty() || !names::asks(claim, facts.driver) {
        return Ok(Step::Ignore);
    }
    let class =
        facts.class.ok_or_else(|| refuse(format!("StorageClass {class_name} does not exist; create it")))?;
    if class.provisioner != facts.driver {
        return Ok(Step::Ignore);
    }
    let selected = claim.annotations().get(SELECTED_NODE).filter(|_| waits_for_pod(class));
    if waits_for_pod(class) && selected.is_none() {
        return Ok(Step::Ignore);
    }
    if let Some(volume) = facts.volume {
        let theirs = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).and_then(|r| r.uid.as_ref());
        return Ok(if theirs == claim.metadata.uid.as_ref() {
            // Made; Kubernetes binds it.
            Step::Ignore
        } else {
            refuse(format!("PersistentVolume {name} exists and belongs to another claim; delete it"))
        });
    }
    let wanted = origin::wanted(claim);
    if let Wanted::Foreign(kind) = &wanted {
        return Ok(Step::Leave(format!(
            "a volume with a data source of kind {kind} is filled by another program"
        )));
    }
    refuse_what_cannot_be(claim, spec, class).map_err(refuse)?;
    let bytes = requested(spec).map_err(refuse)?;
    let limit = spec.resources.as_ref().and_then(|r| r.limits.as_ref()).and_then(|l| l.get("storage"));
    let volume_content_source = match (&wanted, facts.origin) {
        (Wanted::Nothing, _) => None,
        (Wanted::Elsewhere(what), _) => {
            return Err(refuse(format!("the data source {what} is in another namespace")));
        }
        (_, Origin::Unread) => return Ok(Step::Read(wanted)),
        (Wanted::Claim(source) | Wanted::Snapshot(source) | Wanted::Foreign(source), origin) => {
            let source = origin::source(facts.driver, source, origin).map_err(Step::Wait)?;
            Some(origin::on_wire(source))
        }
    };
    let accessibility_requirements = topology::requirement(
        facts.driver,
        (facts.nodes, facts.csi_nodes),
        selected.map(String::as_str),
        class.allowed_topologies.as_deref().unwrap_or_default(),
        topology::turn(&claim.name_any()),
    )
    .map_err(|nowhere| match nowhere {
        Nowhere::NodeGone(node) => Step::Reschedule(format!("node {node} does not exist any more")),
        Nowhere::Refused(words) => Step::Refuse(words),
    })?;
    let parameters = class.parameters.iter().flatten();
    Ok(Step::Provision(Box::new(CreateVolumeRequest {
        name,
        capacity_range: Some(CapacityRange {
            required_bytes: bytes,
            limit_bytes: limit.and_then(quantity::bytes).unwrap_or(0),
        }),
        volume_capabilities: capabilities(spec, class).map_err(refuse)?,
        parameters: parameters
            .filter(|(key, _)| !key.starts_with(KUBERNETES_PARAMETERS))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        volume_content_source,
        accessibility_requirements,
        ..CreateVolumeRequest::default()
    })))
}

/// Bytes that a claim asks for.
pub fn requested(spec: &PersistentVolumeClaimSpec) -> Result<i64, String> {
    let asked = spec.resources.as_ref().and_then(|r| r.requests.as_ref()).and_then(|r| r.get("storage"));
    let asked = asked.ok_or("the claim requests no storage")?;
    quantity::bytes(asked).ok_or_else(|| format!("the claim requests {}, which is no size", asked.0))
}

fn refuse_what_cannot_be(
    claim: &PersistentVolumeClaim,
    spec: &PersistentVolumeClaimSpec,
    class: &StorageClass,
) -> Result<(), String> {
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err("volumeMode Block is not supported: this driver makes file systems only".into());
    }
    if spec.selector.is_some() {
        return Err("spec.selector is not supported: new volumes have no labels to select by".into());
    }
    let asked = class.parameters.iter().flatten().find(|(key, _)| *key == FS_TYPE_PARAMETER);
    match asked {
        Some((key, other)) if other != FS_TYPE => Err(format!(
            "StorageClass {} asks for {key} {other}, but the only file system here is {FS_TYPE} (claim {})",
            class.name_any(),
            claim.name_any()
        )),
        _ => Ok(()),
    }
}

/// One capability for each access mode.
fn capabilities(
    spec: &PersistentVolumeClaimSpec,
    class: &StorageClass,
) -> Result<Vec<VolumeCapability>, String> {
    let modes = spec.access_modes.as_deref().filter(|modes| !modes.is_empty());
    let capability = |mode: &String| {
        let mode = match mode.as_str() {
            "ReadWriteOnce" => Mode::SingleNodeMultiWriter,
            "ReadWriteOncePod" => Mode::SingleNodeSingleWriter,
            "ReadOnlyMany" => Mode::MultiNodeReaderOnly,
            "ReadWriteMany" => Mode::MultiNodeMultiWriter,
            other => return Err(format!("access mode {other} is not known")),
        };
        let mount = MountVolume {
            fs_type: FS_TYPE.into(),
            mount_flags: class.mount_options.clone().unwrap_or_default(),
            volume_mount_group: String::new(),
        };
        Ok(VolumeCapability {
            access_type: Some(AccessType::Mount(mount)),
            access_mode: Some(AccessMode { mode: mode.into() }),
        })
    };
    modes.ok_or("the claim names no access mode")?.iter().map(capability).collect()
}

//! The loop over PersistentVolumeClaims: from a decision to the driver's volume and Kubernetes' object for it.

use super::{
    Context, RESYNC, call, log,
    plan::{
        self, Facts, Step,
        claim::{requested, waits_for_pod},
        names::{self, SELECTED_NODE},
        origin::{Origin, SNAPSHOT_GROUP, Wanted},
    },
};
use crate::wire::{CreateVolumeRequest, Volume};
use futures::{Stream, StreamExt};
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, Patch, PatchParams, PostParams},
    core::{DynamicObject, GroupVersionKind},
    runtime::{
        Config, Controller, WatchStreamExt,
        controller::Action,
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use serde_json::json;
use std::{
    convert::Infallible,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};
use tonic::Code;

/// Claims at once.
const CONCURRENCY: u16 = 32;
/// While a source is not there yet: how long a restore takes is measured.
const SOON: Duration = Duration::from_millis(500);
/// After a volume was saved: caches may be behind for so long.
const SETTLE: Duration = Duration::from_secs(30);

/// Runs until it is dropped.
pub async fn run(
    watch: impl Stream<Item = watcher::Result<watcher::Event<PersistentVolumeClaim>>> + Send + 'static,
    store: Store<PersistentVolumeClaim>,
    context: Arc<Context>,
) {
    Controller::for_stream(watch.applied_objects(), store)
        .with_config(Config::default().concurrency(CONCURRENCY))
        .run(reconcile, |_, _: &Infallible, _| Action::await_change(), context)
        .for_each(|result| {
            log("PersistentVolumeClaims", result);
            std::future::ready(())
        })
        .await;
}

pub(super) async fn reconcile(
    claim: Arc<PersistentVolumeClaim>,
    context: Arc<Context>,
) -> Result<Action, Infallible> {
    let uid = claim.uid().unwrap_or_default();
    if !names::asks(&claim, &context.name) {
        return Ok(Action::await_change());
    }
    let class_name = claim.spec.as_ref().and_then(|s| s.storage_class_name.clone()).unwrap_or_default();
    let class = context.classes.get(&ObjectRef::new(&class_name));
    let essence = essence(&claim, class.as_deref());
    if let Some(wait) = context.claims.wait(&uid, essence, Instant::now()) {
        return Ok(Action::requeue(wait));
    }
    let again = match step(&context, &claim, class.as_deref(), essence).await {
        Ok(pause) => pause,
        Err(words) => {
            context.events.warning(claim.as_ref(), "ProvisioningFailed", &words);
            context.claims.failed(&uid, essence, Instant::now())
        }
    };
    Ok(Action::requeue(again))
}

/// What an attempt depends on: a change of it is worth a new one at once.
fn essence(claim: &PersistentVolumeClaim, class: Option<&StorageClass>) -> u64 {
    let mut hasher = DefaultHasher::new();
    let spec = serde_json::to_string(&claim.spec).unwrap_or_default();
    let class = class.map(|class| (class.uid(), class.resource_version()));
    (spec, claim.annotations().get(SELECTED_NODE), class).hash(&mut hasher);
    hasher.finish()
}

/// One attempt. Answers when to look again; errors are the words for the claim's event, after which it is tried again.
async fn step(
    context: &Context,
    claim: &PersistentVolumeClaim,
    class: Option<&StorageClass>,
    essence: u64,
) -> Result<Duration, String> {
    let (nodes, csi_nodes) = (context.nodes.state(), context.csi_nodes.state());
    let volume = names::volume_of(claim).and_then(|name| context.volumes.get(&ObjectRef::new(&name)));
    let decide = |origin: &Origin| {
        let (driver, volume) = (context.name.as_str(), volume.as_deref());
        plan::claim(claim, Facts { driver, class, nodes: &nodes, csi_nodes: &csi_nodes, volume, origin })
    };
    let mut decided = decide(&Origin::Unread);
    if let Step::Read(wanted) = &decided {
        decided = decide(&read(context, claim, wanted).await?);
    }
    match (decided, class) {
        (Step::Ignore, _) | (Step::Provision(_), None) => Ok(RESYNC),
        (Step::Leave(words), _) => {
            context.events.normal(claim, "Provisioning", &words);
            Ok(RESYNC)
        }
        (Step::Read(_), _) => Ok(SOON),
        (Step::Wait(words), _) => {
            context.events.warning(claim, "ProvisioningFailed", &format!("waiting: {words}"));
            Ok(SOON)
        }
        (Step::Refuse(words), _) => Err(words),
        (Step::Reschedule(words), _) => {
            reschedule(context, claim).await;
            Err(format!("{words}; the scheduler is asked to choose another node"))
        }
        (Step::Provision(request), Some(class)) => provision(context, claim, class, *request, essence).await,
    }
}

/// Reads a source from the API server: a cache may not show yet that it is ready, or any more that it is.
async fn read(context: &Context, claim: &PersistentVolumeClaim, wanted: &Wanted) -> Result<Origin, String> {
    let namespace = claim.namespace().unwrap_or_default();
    let client = || context.client.clone();
    let failed = |error| format!("cannot read the data source: {error}");
    match wanted {
        Wanted::Claim(name) => {
            let claims: Api<PersistentVolumeClaim> = Api::namespaced(client(), &namespace);
            let source = call(claims.get_opt(name)).await.map_err(failed)?;
            let volume = source.as_ref().and_then(|s| s.spec.as_ref()?.volume_name.clone());
            let volume = match volume.filter(|name| !name.is_empty()) {
                Some(name) => {
                    let volumes: Api<PersistentVolume> = Api::all(client());
                    call(volumes.get_opt(&name)).await.map_err(failed)?
                }
                None => None,
            };
            Ok(Origin::Claim(source.map(Box::new), volume.map(Box::new)))
        }
        Wanted::Snapshot(name) => {
            let kind = |kind| ApiResource::from_gvk(&GroupVersionKind::gvk(SNAPSHOT_GROUP, "v1", kind));
            let snapshots: Api<DynamicObject> =
                Api::namespaced_with(client(), &namespace, &kind("VolumeSnapshot"));
            let snapshot = call(snapshots.get_opt(name)).await.map_err(failed)?;
            let content = snapshot.as_ref().and_then(|snapshot| {
                snapshot.data.pointer("/status/boundVolumeSnapshotContentName")?.as_str().map(String::from)
            });
            let content = match content {
                Some(name) => {
                    let contents: Api<DynamicObject> =
                        Api::all_with(client(), &kind("VolumeSnapshotContent"));
                    call(contents.get_opt(&name)).await.map_err(failed)?
                }
                None => None,
            };
            Ok(Origin::Snapshot(snapshot.map(Box::new), content.map(Box::new)))
        }
        Wanted::Nothing | Wanted::Foreign(_) | Wanted::Elsewhere(_) => Ok(Origin::Unread),
    }
}

/// Takes the scheduler's choice off the claim, so that it chooses anew. A failure shows in the log; the claim is tried again.
async fn reschedule(context: &Context, claim: &PersistentVolumeClaim) {
    let api: Api<PersistentVolumeClaim> =
        Api::namespaced(context.client.clone(), &claim.namespace().unwrap_or_default());
    // Only on what was seen: by now the scheduler may have chosen another node.
    let patch = json!({"metadata": {
        "uid": claim.uid(),
        "resourceVersion": claim.resource_version(),
        "annotations": {SELECTED_NODE: null},
    }});
    match call(api.patch(&claim.name_any(), &PatchParams::default(), &Patch::Merge(&patch))).await {
        Ok(_) => {}
        Err(error) if error.conflict() || error.not_found() => {}
        Err(error) => {
            tracing::warn!(claim = claim.name_any(), %error, "cannot take the selected node off a claim")
        }
    }
}

async fn provision(
    context: &Context,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    request: CreateVolumeRequest,
    essence: u64,
) -> Result<Duration, String> {
    let (name, uid, class_name) = (request.name.clone(), claim.uid().unwrap_or_default(), class.name_any());
    let failed = |why: String| format!("cannot provision a volume of StorageClass {class_name}: {why}");
    if context.claims.fresh(&uid, essence) {
        let words = format!("driver {} is asked for a volume of StorageClass {class_name}", context.name);
        context.events.normal(claim, "Provisioning", &words);
    }
    // First the note, then the volume: after a crash in between, the sweep finds it.
    context.intents.begin(&name, claim).await.map_err(&failed)?;
    let volume = match context.driver.create(request).await {
        Ok(volume) => volume,
        Err(refusal) => {
            // There may be room elsewhere. The scheduler alone knows where the pod can go.
            if refusal.code == Code::ResourceExhausted && waits_for_pod(class) {
                reschedule(context, claim).await;
            }
            return Err(failed(refusal.to_string()));
        }
    };
    save(context, claim, class, &name, &volume).await.map_err(&failed)?;
    context.intents.end(&name).await;
    context.claims.done(&uid, SETTLE, Instant::now());
    let words = format!("volume {name} ({}) is there", volume.volume_id);
    context.events.normal(claim, "ProvisioningSucceeded", &words);
    Ok(SETTLE)
}

/// Writes the PersistentVolume; one that is there and belongs to this claim is it.
async fn save(
    context: &Context,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    name: &str,
    volume: &Volume,
) -> Result<(), String> {
    let asked = claim.spec.as_ref().map(requested).transpose()?.unwrap_or_default();
    let by = (context.name.as_str(), context.identity.as_str());
    let object = plan::persistent_volume(name, claim, class, by, asked, volume);
    let api: Api<PersistentVolume> = Api::all(context.client.clone());
    let failed = |error| format!("cannot save PersistentVolume {name}: {error}");
    match call(api.create(&PostParams::default(), &object)).await {
        Ok(_) => Ok(()),
        Err(error) if error.already_exists() => {
            let there = call(api.get(name)).await.map_err(failed)?;
            let theirs = there.spec.and_then(|s| s.claim_ref).and_then(|claim| claim.uid);
            if theirs == claim.uid() {
                return Ok(());
            }
            Err(format!("PersistentVolume {name} exists and belongs to another claim; delete it"))
        }
        Err(error) => Err(failed(error)),
    }
}

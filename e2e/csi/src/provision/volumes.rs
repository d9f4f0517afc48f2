//! The loop over PersistentVolumes: deletes what is released, and keeps the finalizer in step with the reclaim policy.

use super::{
    CallError, Context, RESYNC, call, log,
    plan::{self, VolumeStep, names::FINALIZER},
};
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    runtime::{Config, Controller, WatchStreamExt, controller::Action, reflector::Store, watcher},
};
use serde_json::json;
use std::{
    convert::Infallible,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Instant,
};

/// Volumes at once.
const CONCURRENCY: u16 = 16;
/// Others change a volume's finalizers at the same time; so often we try again at once.
const CONFLICTS: usize = 5;

/// Runs until it is dropped.
pub async fn run(
    watch: impl Stream<Item = watcher::Result<watcher::Event<PersistentVolume>>> + Send + 'static,
    store: Store<PersistentVolume>,
    context: Arc<Context>,
) {
    Controller::for_stream(watch.applied_objects(), store)
        .with_config(Config::default().concurrency(CONCURRENCY))
        .run(reconcile, |_, _: &Infallible, _| Action::await_change(), context)
        .for_each(|result| {
            log("PersistentVolumes", result);
            std::future::ready(())
        })
        .await;
}

pub(super) async fn reconcile(
    volume: Arc<PersistentVolume>,
    context: Arc<Context>,
) -> Result<Action, Infallible> {
    if plan::volume(&volume, &context.name) == VolumeStep::Ignore {
        return Ok(Action::requeue(RESYNC));
    }
    let (uid, essence) = (volume.uid().unwrap_or_default(), essence(&volume));
    if let Some(wait) = context.releases.wait(&uid, essence, Instant::now()) {
        return Ok(Action::requeue(wait));
    }
    let again = match step(&context, &volume).await {
        Ok(()) => RESYNC,
        Err(words) => {
            context.events.warning(volume.as_ref(), "VolumeFailedDelete", &words);
            context.releases.failed(&uid, essence, Instant::now())
        }
    };
    Ok(Action::requeue(again))
}

/// What an attempt depends on: a change of it is worth a new one at once.
fn essence(volume: &PersistentVolume) -> u64 {
    let mut hasher = DefaultHasher::new();
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_ref());
    let phase = volume.status.as_ref().and_then(|s| s.phase.as_ref());
    (policy, phase, volume.finalizers(), volume.metadata.deletion_timestamp.is_some()).hash(&mut hasher);
    hasher.finish()
}

/// One attempt. Errors are the words for the volume's event, after which it is tried again.
async fn step(context: &Context, seen: &PersistentVolume) -> Result<(), String> {
    let api: Api<PersistentVolume> = Api::all(context.client.clone());
    let name = seen.name_any();
    // A cache may be behind, and what is deleted is gone: decided anew on what the API server says now.
    let read = call(api.get_opt(&name)).await.map_err(|error| format!("cannot read the volume: {error}"))?;
    let Some(live) = read.filter(|live| live.uid() == seen.uid()) else { return Ok(()) };
    let result = match plan::volume(&live, &context.name) {
        VolumeStep::Ignore => return Ok(()),
        VolumeStep::Protect => finalizer(&api, live, true).await,
        VolumeStep::Release => finalizer(&api, live, false).await,
        VolumeStep::Delete => return delete(context, &api, live).await,
    };
    result.map_err(|error| format!("cannot change the finalizers: {error}"))
}

async fn delete(
    context: &Context,
    api: &Api<PersistentVolume>,
    live: PersistentVolume,
) -> Result<(), String> {
    let name = live.name_any();
    let spec = live.spec.as_ref();
    if let Some(claim) = spec.and_then(|s| s.claim_ref.as_ref()) {
        let namespace = claim.namespace.as_deref().unwrap_or_default();
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace);
        let there = call(claims.get_opt(claim.name.as_deref().unwrap_or_default())).await;
        let there = there.map_err(|error| format!("cannot read the volume's claim: {error}"))?;
        // Kubernetes says Released only when the claim is gone. If it is not, the data may be in use.
        if there.is_some_and(|there| there.metadata.uid == claim.uid) {
            return Err("the volume's claim still exists; the volume is kept until it is gone".into());
        }
    }
    let handle = spec.and_then(|s| s.csi.as_ref()).map(|csi| csi.volume_handle.clone()).unwrap_or_default();
    let deleted = context.driver.delete(&handle).await;
    deleted.map_err(|refusal| format!("cannot delete volume {handle}: {refusal}"))?;
    tracing::info!(volume = name, handle, "deleted a released volume");
    // Exactly this object: one of the same name may have been made since.
    let only = Preconditions { uid: live.uid(), resource_version: None };
    let going = match call(api.delete(&name, &DeleteParams::default().preconditions(only))).await {
        Ok(going) => going.left(),
        Err(error) if error.not_found() || error.conflict() => return Ok(()),
        Err(error) => return Err(format!("cannot delete the PersistentVolume: {error}")),
    };
    match going {
        Some(going) => finalizer(api, going, false)
            .await
            .map_err(|error| format!("cannot take the finalizer off the PersistentVolume: {error}")),
        None => Ok(()),
    }
}

/// Puts our finalizer on or takes it off, on exactly this object.
async fn finalizer(
    api: &Api<PersistentVolume>,
    mut volume: PersistentVolume,
    wanted: bool,
) -> Result<(), CallError> {
    let (name, uid) = (volume.name_any(), volume.uid());
    let mut conflicts = 0;
    loop {
        let mut finalizers = volume.finalizers().to_vec();
        let there = finalizers.iter().any(|name| name == FINALIZER);
        if there == wanted {
            return Ok(());
        }
        finalizers.retain(|name| name != FINALIZER);
        if wanted {
            finalizers.push(FINALIZER.into());
        }
        // With the version that was read: a list replaces a list, and others change theirs at the same time.
        let patch = json!({"metadata": {
            "uid": uid,
            "resourceVersion": volume.resource_version(),
            "finalizers": finalizers,
        }});
        match call(api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch))).await {
            Ok(_) => return Ok(()),
            Err(error) if error.not_found() => return Ok(()),
            Err(error) if error.conflict() && conflicts < CONFLICTS => conflicts += 1,
            Err(error) => return Err(error),
        }
        match call(api.get_opt(&name)).await?.filter(|live| live.uid() == uid) {
            Some(live) => volume = live,
            None => return Ok(()),
        }
    }
}

//! Databases: made, scaled, grown, changed, stopped.

use super::{DB, Workload, apply_database, no_pods, nothing, patch_database, ready, spec};
use crate::world::{World, get};
use futures::future::LocalBoxFuture;
use serde_json::json;
use std::time::Duration;

type Done<'a> = LocalBoxFuture<'a, Result<(), String>>;

pub(super) fn all() -> Vec<Workload> {
    vec![
        Workload { name: "create", setup: nothing, act: |w| Box::pin(create(w, 3)) },
        Workload { name: "scale-up", setup: |w| Box::pin(create(w, 1)), act: |w| Box::pin(scale(w, 3)) },
        Workload { name: "scale-down", setup: |w| Box::pin(create(w, 3)), act: |w| Box::pin(scale(w, 2)) },
        Workload { name: "grow", setup: |w| Box::pin(create(w, 2)), act: grow },
        Workload { name: "reload", setup: |w| Box::pin(create(w, 2)), act: reload },
        Workload { name: "roll", setup: |w| Box::pin(create(w, 3)), act: roll },
        Workload { name: "stop-start", setup: |w| Box::pin(create(w, 2)), act: stop_start },
        Workload { name: "change-of-mind", setup: shrunk, act: change_of_mind },
        Workload { name: "lose-pod", setup: |w| Box::pin(create(w, 3)), act: lose_pod },
    ]
}

async fn create(world: &mut World, instances: i32) -> Result<(), String> {
    apply_database(world, spec(instances)).await?;
    ready(world, DB).await
}

/// Two instances, and the volume of a third one that is kept: it is there whether the third comes back for a moment or not.
fn shrunk(world: &mut World) -> Done<'_> {
    Box::pin(async {
        create(world, 3).await?;
        world.settle().await?;
        scale(world, 2).await
    })
}

async fn scale(world: &mut World, instances: i32) -> Result<(), String> {
    patch_database(world, json!({"instances": instances})).await?;
    ready(world, DB).await
}

fn grow(world: &mut World) -> Done<'_> {
    Box::pin(async {
        patch_database(world, json!({"storage": {"size": "2Gi"}})).await?;
        ready(world, DB).await
    })
}

fn reload(world: &mut World) -> Done<'_> {
    Box::pin(async {
        patch_database(world, json!({"postgresql": {"parameters": {"work_mem": "16MB"}}})).await?;
        ready(world, DB).await
    })
}

/// Every pod is replaced: standbys first.
fn roll(world: &mut World) -> Done<'_> {
    Box::pin(async {
        patch_database(world, json!({"resources": {"requests": {"memory": "256Mi"}}})).await?;
        ready(world, DB).await
    })
}

fn stop_start(world: &mut World) -> Done<'_> {
    Box::pin(async {
        patch_database(world, json!({"stopped": true})).await?;
        world.until("no pod runs", no_pods).await?;
        patch_database(world, json!({"stopped": false})).await?;
        ready(world, DB).await
    })
}

/// Larger, then an image that cannot be pulled, then smaller, back, and other settings, none of it waited for.
fn change_of_mind(world: &mut World) -> Done<'_> {
    Box::pin(async {
        patch_database(world, json!({"instances": 3})).await?;
        world.pass(Duration::from_secs(2)).await;
        patch_database(world, json!({"resources": {"requests": {"memory": "256Mi"}}})).await?;
        world.pass(Duration::from_secs(1)).await;
        patch_database(world, json!({"instances": 1, "resources": null})).await?;
        world.pass(Duration::from_secs(2)).await;
        patch_database(world, json!({"instances": 2})).await?;
        ready(world, DB).await
    })
}

/// The primary's pod is deleted by force.
fn lose_pod(world: &mut World) -> Done<'_> {
    Box::pin(async {
        use k8s_openapi::api::core::v1::Pod;
        let primary = world.agents.primary(crate::world::NAMESPACE, DB).ok_or("no primary")?;
        let uid = world.get::<Pod>(&primary).await.and_then(|p| p.metadata.uid);
        let pods: kube::Api<Pod> = kube::Api::namespaced(world.user(), crate::world::NAMESPACE);
        pods.delete(&primary, &kube::api::DeleteParams::default().grace_period(0))
            .await
            .map_err(|error| error.to_string())?;
        let (name, gone) = (primary.clone(), uid.clone());
        world
            .until("another pod has its place", move |client| {
                let (name, gone) = (name.clone(), gone.clone());
                async move { get::<Pod>(client, &name).await.is_some_and(|p| p.metadata.uid != gone) }
            })
            .await?;
        ready(world, DB).await
    })
}

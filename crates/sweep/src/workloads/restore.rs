//! Restores: in place, into a new Database, and one whose check fails, so that everything goes back.

use super::{
    DB, STORE, Workload, backed_up, database_ready, failure, make_archived, make_backup, make_restore, ready,
    restored,
};
use crate::{agent::Kind, world::World};
use futures::future::LocalBoxFuture;
use holdfast_core::Restore;
use serde_json::json;

type Done<'a> = LocalBoxFuture<'a, Result<(), String>>;

pub(super) fn all() -> Vec<Workload> {
    vec![
        Workload { name: "restore-in-place", setup: backed, act: in_place },
        Workload { name: "restore-rolled-back", setup: backed, act: rolled_back },
        Workload { name: "restore-new", setup: backed, act: new },
    ]
}

fn backed(world: &mut World) -> Done<'_> {
    Box::pin(async {
        make_archived(world, 2).await?;
        make_backup(world, "monday", json!({})).await?;
        backed_up(world, "monday").await
    })
}

pub(super) fn in_place(world: &mut World) -> Done<'_> {
    Box::pin(async {
        make_restore(world).await?;
        restored(world, "undo", true).await?;
        ready(world, DB).await
    })
}

fn rolled_back(world: &mut World) -> Done<'_> {
    Box::pin(async {
        world.agents.fail_next(Kind::Restore, 1, &failure(true));
        make_restore(world).await?;
        restored(world, "undo", false).await?;
        ready(world, DB).await
    })
}

fn new(world: &mut World) -> Done<'_> {
    Box::pin(async {
        let spec = json!({"source": {"database": {"name": DB, "storeRef": {"name": STORE}}},
            "newDatabase": {"name": "ledger-copy", "overrides": {"instances": 1}}, "approve": true});
        world.apply::<Restore>("copy", json!({"spec": spec})).await?;
        restored(world, "copy", true).await?;
        world
            .until("the new Database is Ready", |client| async {
                database_ready(client, "ledger-copy").await
            })
            .await
    })
}

//! The restore operator's process.

use holdfast_restore_operator::{Settings, run};
use holdfast_runtime::operator::{self, Setup};

// The first lists take several times what is kept of them; this allocator gives that back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let setup = Setup {
        name: "holdfast-restore-operator",
        crds: &["restores.holdfast.dev", "databases.holdfast.dev"],
    };
    operator::run(setup, |process| run(process, Settings::from_environment())).await
}

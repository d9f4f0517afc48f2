//! Entry point of the database operator's process.

use holdfast_database_operator::{Settings, run};
use holdfast_runtime::operator::{self, Setup};

// The first lists take several times what is kept of them; this allocator gives that back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::from_env()?;
    let setup = Setup { name: "holdfast-database-operator", crds: &["databases.holdfast.dev"] };
    operator::run(setup, |process| run(process, settings)).await
}

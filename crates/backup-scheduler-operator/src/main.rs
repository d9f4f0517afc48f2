//! Entry point of the backup-scheduler operator.

use anyhow::Context;
use holdfast_backup_scheduler_operator::{CRDS, NAME, run};
use holdfast_runtime::operator::{self, Setup, setting};

// The first lists take several times what is kept of them; this allocator gives that back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let agent_image = setting("HOLDFAST_AGENT_IMAGE").context(
        "HOLDFAST_AGENT_IMAGE is not set: set it to the image of the agent, which all workers run",
    )?;
    operator::run(Setup { name: NAME, crds: CRDS }, |process| run(process, agent_image)).await
}

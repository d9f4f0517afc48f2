//! Entry point of the backup-scheduler operator.

use holdfast_backup_scheduler_operator::{CRDS, NAME, run};
use holdfast_runtime::operator::{self, Setup};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    operator::run(Setup { name: NAME, crds: CRDS }, run).await
}

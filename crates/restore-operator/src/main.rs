//! The restore operator's process.

use holdfast_restore_operator::{Settings, run};
use holdfast_runtime::operator::{self, Setup};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let setup = Setup {
        name: "holdfast-restore-operator",
        crds: &["restores.holdfast.dev", "databases.holdfast.dev"],
    };
    operator::run(setup, |process| run(process, Settings::from_environment())).await
}

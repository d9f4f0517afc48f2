//! Entry point of the database operator's process.

use holdfast_database_operator::{Settings, run};
use holdfast_runtime::operator::{self, Setup};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::from_env()?;
    let setup = Setup { name: "holdfast-database-operator", crds: &["databases.holdfast.dev"] };
    operator::run(setup, |process| run(process, settings)).await
}

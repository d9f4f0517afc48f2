//! End-to-end tests on a running cluster to which the operators are deployed.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    holdfast_e2e::runner::main(holdfast_e2e::tests::all()).await
}

//! Tests of the custom resources and of the operators' permissions, against an API server. No pod needs to run.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    holdfast_e2e::runner::main(holdfast_e2e::api::all()).await
}

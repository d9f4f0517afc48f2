//! The in-memory API server of the sweep and the real one, asked the same at random.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    holdfast_e2e::runner::main(holdfast_e2e::api::comparisons()).await
}

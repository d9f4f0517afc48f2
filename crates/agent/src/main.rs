//! `holdfast-agent`: PID 1 of a database pod, and the worker in all Jobs.

use holdfast_agent::{entry, install, instance, memory};
use std::{path::PathBuf, process::ExitCode};

// Archiving takes megabytes for a moment; this allocator gives them back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn usage() -> ExitCode {
    eprintln!("holdfast-agent install PATH | run | work | wal-push NAME PATH | wal-fetch NAME PATH");
    ExitCode::from(64)
}

fn code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "ended");
            ExitCode::FAILURE
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if words == ["run"] {
        memory::give_back_at_once();
    }
    // The commands that PostgreSQL calls for each segment stay small: no threads, no TLS.
    let small = matches!(words.first(), Some(&"wal-push" | &"wal-fetch" | &"install"));
    let mut builder = if small {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    let runtime = match builder.worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let exit = |number: i32| ExitCode::from(u8::try_from(number).unwrap_or(125));
    match words.as_slice() {
        ["install", path] => code(install::install(&PathBuf::from(path))),
        ["wal-push", name, path] => {
            exit(runtime.block_on(instance::archiver::push_command(name.to_string(), path.into())))
        }
        ["wal-fetch", name, path] => exit(runtime.block_on(entry::fetch(name.to_string(), path.into()))),
        ["run"] => {
            holdfast_runtime::telemetry::init("agent");
            holdfast_runtime::client::install_tls();
            code(runtime.block_on(instance::run()))
        }
        ["work"] => {
            holdfast_runtime::telemetry::init("worker");
            holdfast_runtime::client::install_tls();
            code(runtime.block_on(entry::work()))
        }
        _ => usage(),
    }
}

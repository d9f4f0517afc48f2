//! Volumes of the development cluster.

use holdfast_devcsi::{
    cli::{self, Command},
    serve,
};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let command = match cli::parse(std::env::args().skip(1)) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("{error}\n\n{}", cli::HELP);
            return ExitCode::from(2);
        }
    };
    let result = match command {
        Command::Help => {
            print!("{}", cli::HELP);
            Ok(())
        }
        Command::Fault(folder, order) => serve::tell(&folder, &order).await.and_then(|answer| {
            if !answer.ok {
                anyhow::bail!(answer.text);
            }
            if !answer.text.is_empty() {
                println!("{}", answer.text);
            }
            Ok(())
        }),
        Command::Serve(options) => {
            let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
            tracing_subscriber::fmt()
                .with_env_filter(filter)
                .with_ansi(false)
                .with_writer(std::io::stderr)
                .init();
            // Only one provider is compiled in, but rustls wants it chosen; a second choice would be the same one.
            let _ = rustls::crypto::ring::default_provider().install_default();
            serve::serve(options).await
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

//! Chores of the project: `cargo run -p xtask -- crds [--check]`.

use anyhow::{Result, bail};
use std::path::Path;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    match words.as_slice() {
        ["crds"] => xtask::files::write(&project, &xtask::crds::files()?),
        ["crds", "--check"] => xtask::files::check(&project, &xtask::crds::files()?),
        _ => bail!("usage: cargo run -p xtask -- crds [--check]"),
    }
}

//! `install PATH`: the init container's whole work: the binary copies itself into the pod.

use anyhow::Context;
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

/// Copies the running binary to `path`, whole or not at all.
pub fn install(path: &Path) -> anyhow::Result<()> {
    let own = std::env::current_exe().context("finding the own binary")?;
    let temporary = path.with_extension("new");
    fs::copy(&own, &temporary).with_context(|| format!("copying to {}", temporary.display()))?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755))?;
    fs::rename(&temporary, path)?;
    Ok(())
}

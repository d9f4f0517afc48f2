//! Generated files: writes them, or says which differ. Touches only the files it is given.

use anyhow::{Context, Result, bail};
use std::{fs, path::Path};

/// A generated file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// Path below the project's folder.
    pub path: String,
    /// Content.
    pub text: String,
}

/// Writes all files. Errors: a folder or file that cannot be written.
pub fn write(project: &Path, files: &[Generated]) -> Result<()> {
    for file in files {
        let path = project.join(&file.path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        if fs::read_to_string(&path).is_ok_and(|old| old == file.text) {
            continue;
        }
        fs::write(&path, &file.text).with_context(|| format!("cannot write {}", file.path))?;
        println!("wrote {}", file.path);
    }
    Ok(())
}

/// Errors: files that differ from what would be generated, by name.
pub fn check(project: &Path, files: &[Generated]) -> Result<()> {
    let stale: Vec<&str> = files
        .iter()
        .filter(|file| !fs::read_to_string(project.join(&file.path)).is_ok_and(|old| old == file.text))
        .map(|file| file.path.as_str())
        .collect();
    if !stale.is_empty() {
        bail!("not what the code says, run `cargo run -p xtask -- crds`: {}", stale.join(", "));
    }
    Ok(())
}

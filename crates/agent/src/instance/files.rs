//! Files that the agent writes for the server: configuration, access rules, the key, libpq's passwords.

use anyhow::Context;
use holdfast_core::{names, wire, wire::AgentConfig};
use holdfast_postgresql::settings::{self, Instance};
use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The files.
pub struct Files;

impl Files {
    /// postgresql.conf.
    pub fn configuration() -> PathBuf {
        Path::new(wire::RUN_FOLDER).join("postgresql.conf")
    }

    /// libpq's password file.
    pub fn passfile() -> PathBuf {
        Path::new(wire::RUN_FOLDER).join("pgpass")
    }

    /// Writes everything; `true`: something changed, so the server must read it again.
    pub fn write(config: &AgentConfig, instance: &Instance) -> anyhow::Result<bool> {
        let run = Path::new(wire::RUN_FOLDER);
        let mut changed =
            replace(&Self::configuration(), settings::postgresql_conf(config, instance).as_bytes())?;
        changed |= replace(&run.join("pg_hba.conf"), settings::pg_hba(config).as_bytes())?;
        // The mounted key belongs to root and is readable for the group; a copy of our own satisfies every version's rules.
        let key = fs::read(Path::new(wire::TLS_FOLDER).join("tls.key")).context("reading the TLS key")?;
        changed |= replace(&run.join("tls.key"), &key)?;
        write_passfile(&Self::passfile(), &secret(wire::REPLICATION_FOLDER, "password")?)?;
        Ok(changed)
    }
}

/// Writes libpq's password file for the replication role.
pub fn write_passfile(path: &Path, password: &str) -> anyhow::Result<()> {
    let escaped = password.replace('\\', "\\\\").replace(':', "\\:");
    replace(path, format!("*:*:*:{}:{escaped}\n", names::REPLICATION_ROLE).as_bytes()).map(drop)
}

/// One value of a mounted Secret.
pub fn secret(folder: &str, key: &str) -> anyhow::Result<String> {
    let path = Path::new(folder).join(key);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(text.trim_end_matches('\n').to_string())
}

/// Replaces a file readable for nobody else, in one step; `true`: the content is new.
fn replace(path: &Path, content: &[u8]) -> anyhow::Result<bool> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    let temporary = path.with_extension("tmp");
    let _ = fs::remove_file(&temporary);
    let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    out.write_all(content)?;
    fs::rename(&temporary, path).with_context(|| format!("writing {}", path.display()))?;
    Ok(true)
}

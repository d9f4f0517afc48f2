//! What lies in the store, and that tar and zstd suffice to bring it back.

use crate::{
    database::Db,
    objects::condition,
    runner::Scene,
    store,
    tests::stores::archived,
    wait::{Seen, seconds, wait_for},
};
use anyhow::{Context, Result, bail, ensure};
use holdfast_core::{Database, conditions::types};
use kube::ResourceExt;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// WAL and a base backup are in the store, laid out as promised, and unpack to a data directory without Holdfast.
pub async fn archive_and_backup(scene: Scene) -> Result<()> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let store = store::make(cluster, ns, "main").await?;
    let db = Db::start(cluster, ns, "orders", &archived(2, "main")).await?;
    db.fill("line", 20_000).await?;
    condition::<Database>(&db.api(), "orders", types::ARCHIVING, "True", seconds(60)).await?;
    let backup = store::backup(&db, "by-hand").await?;
    let status = backup.status.clone().unwrap_or_default();
    let facts = status.postgresql.clone().context("status.postgresql is empty")?;
    ensure!(
        Some(&facts.system_identifier) == db.get().await?.status.and_then(|s| s.system_identifier).as_ref(),
        "{facts:?}"
    );
    ensure!(facts.server_version.starts_with("17"), "{facts:?}");
    ensure!(
        status.backup_time.is_some() && status.completion_time.is_some(),
        "times are missing: {status:?}"
    );
    let location = status.backup_location.clone().context("status.backupLocation is empty")?;
    let uid = backup.uid().context("no uid")?;
    ensure!(location.contains(&uid), "status.backupLocation {location} does not name {uid}");
    if store.files.is_none() {
        println!(
            "        archive_and_backup: the store's files cannot be seen from here, only the status was checked"
        );
        return Ok(());
    }

    let history = store.history_folder(&db).await?;
    // history.json names the parent, and this history has none.
    json(&history.join("owner.json"))?;
    let base = history.join("base").join(&uid);
    json(&base.join("manifest.json"))?;
    json(&base.join("backup_manifest"))?;
    // Every segment from the start of the backup to its stop is there; at least the one with the start.
    let wal = history.join("wal").join(format!("{:08X}", facts.timeline));
    let segments = listing(&wal)?;
    let first = segment(facts.timeline, &facts.start_lsn)?;
    ensure!(segments.contains(&format!("{first}.zst")), "{} has no {first}.zst: {segments:?}", wal.display());

    let folder = tempfile(ns)?;
    let result = by_hand(&base, &folder).await;
    let _ = std::fs::remove_dir_all(&folder);
    result?;

    // Closed segments follow by themselves.
    let before = listing(&wal)?.len();
    db.superuser()
        .await?
        .run("select pg_logical_emit_message(true, 'e2e', 'x'); select pg_switch_wal()")
        .await?;
    wait_for("the next segment in the store", seconds(60), || async {
        let now = listing(&wal)?.len();
        Ok(if now > before { Seen::Yes(()) } else { Seen::NotYet(format!("{now} segments")) })
    })
    .await
}

/// `for p in *.tar.zst; do zstd -dc $p | tar x; done`, then every file of backup_manifest must be there with its size.
async fn by_hand(base: &Path, folder: &Path) -> Result<()> {
    let script = format!(
        "set -eu; cd '{}'; for p in '{}'/*.tar.zst; do zstd -qdc \"$p\" | tar x; done",
        folder.display(),
        base.display()
    );
    let output = Command::new("bash").args(["-o", "pipefail", "-c", &script]).output().await?;
    ensure!(output.status.success(), "unpacking by hand: {}", String::from_utf8_lossy(&output.stderr));
    let version = std::fs::read_to_string(folder.join("PG_VERSION")).context("PG_VERSION")?;
    ensure!(version.trim() == "17", "PG_VERSION says {version}");
    let manifest = json(&base.join("backup_manifest"))?;
    let files = manifest["Files"].as_array().context("backup_manifest has no Files")?;
    ensure!(files.len() > 100, "backup_manifest lists only {} files", files.len());
    for file in files {
        let (Some(path), Some(size)) = (file["Path"].as_str(), file["Size"].as_u64()) else { continue };
        let there =
            std::fs::metadata(folder.join(path)).with_context(|| format!("{path} of backup_manifest"))?;
        ensure!(there.len() == size, "{path} has {} bytes instead of {size}", there.len());
    }
    Ok(())
}

fn tempfile(name: &str) -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("holdfast-by-hand-{name}"));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// Names in a folder.
pub fn listing(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Name of the 16 MiB segment that holds a position.
pub fn segment(timeline: i64, lsn: &str) -> Result<String> {
    let Some((high, low)) = lsn.split_once('/') else { bail!("{lsn} is no WAL position") };
    let (high, low) = (u32::from_str_radix(high, 16)?, u32::from_str_radix(low, 16)?);
    Ok(format!("{timeline:08X}{high:08X}{:08X}", low >> 24))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_lies_in_a_segment() {
        assert_eq!(segment(1, "0/2000028").unwrap(), "000000010000000000000002");
        assert_eq!(segment(18, "1A/FF000000").unwrap(), "000000120000001A000000FF");
        assert!(segment(1, "5000060").is_err());
    }
}

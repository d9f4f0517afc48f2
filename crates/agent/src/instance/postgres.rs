//! The server as a process: make, start, promote, stop, clone, rewind. Bounded waits everywhere.

use super::{files::Files, guard::NoSpace};
use crate::state::{State, data_directory, sync_folder};
use anyhow::{Context, bail};
use holdfast_core::{names, wire, wire::AgentConfig};
use holdfast_postgresql::{Lsn, settings, wal::WalFile};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    process::{Child, Command},
    time::{Instant, timeout},
};

/// Processes that tokio waits for itself; the reaper leaves them alone.
pub type Children = Arc<Mutex<std::collections::HashSet<i32>>>;

/// The server of this pod.
pub struct Postgres {
    volume: PathBuf,
    children: Children,
    server: Option<(Child, i32)>,
    /// It ended by itself, and what is left of it was not collected yet.
    died: bool,
}

/// How the server was found when asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Running {
    /// It runs.
    Yes,
    /// It never ran, or was stopped on purpose.
    No,
    /// It ended by itself; so until it is collected.
    Died,
}

impl Postgres {
    /// The server that keeps its data on this volume.
    pub fn new(volume: &Path, children: Children) -> Self {
        Self { volume: volume.to_path_buf(), children, server: None, died: false }
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        data_directory(&self.volume)
    }

    /// Whether the data directory is that of a standby.
    pub fn is_standby_data(&self) -> bool {
        self.data().join("standby.signal").exists()
    }

    /// Whether the process runs.
    pub fn running(&mut self) -> Running {
        let Some((child, _)) = &mut self.server else {
            return if self.died { Running::Died } else { Running::No };
        };
        match child.try_wait() {
            Ok(None) => return Running::Yes,
            Ok(Some(status)) => tracing::error!(%status, "postgres ended by itself"),
            Err(error) => tracing::error!(%error, "postgres cannot be waited for"),
        }
        self.forget();
        self.died = true;
        Running::Died
    }

    fn forget(&mut self) {
        if let Some((_, pid)) = self.server.take()
            && let Ok(mut all) = self.children.lock()
        {
            all.remove(&pid);
        }
    }

    fn spawn(&self, command: &mut Command) -> anyhow::Result<Child> {
        // The lock is held across the spawn: the reaper must not meet a child that is not in the list yet.
        let mut all = self.children.lock().map_err(|_| anyhow::anyhow!("list of children poisoned"))?;
        crate::memory::leave_out(command.as_std_mut());
        let child =
            command.spawn().with_context(|| format!("starting {:?}", command.as_std().get_program()))?;
        if let Some(pid) = child.id() {
            all.insert(i32::try_from(pid)?);
        }
        Ok(child)
    }

    /// Runs a program to its end and returns what it wrote to stderr when it fails.
    async fn program(&self, command: &mut Command, limit: Duration) -> anyhow::Result<()> {
        let name = command.as_std().get_program().to_string_lossy().into_owned();
        // Its words are read below, and end in messages.
        command.env("LC_MESSAGES", "C");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let child = self.spawn(command)?;
        let pid = child.id().map(|p| i32::try_from(p).unwrap_or(0));
        let result = timeout(limit, child.wait_with_output()).await;
        if let (Some(pid), Ok(mut all)) = (pid, self.children.lock()) {
            all.remove(&pid);
        }
        let output = result.with_context(|| format!("{name} took longer than {limit:?}"))??;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let tail: String = text
                .lines()
                .rev()
                .take(6)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .collect::<Vec<_>>()
                .join("; ");
            if ["No space left on device", "Disk quota exceeded"].iter().any(|w| text.contains(w)) {
                return Err(NoSpace { program: name, words: tail }.into());
            }
            bail!("{name} failed ({}): {tail}", output.status);
        }
        Ok(())
    }

    /// Makes the data directory. Called only by the holder of the Lease, and only when no data exists anywhere.
    pub async fn initialise(&self, config: &AgentConfig) -> anyhow::Result<()> {
        // A directory without a state file is a try that did not end: nothing was ever acknowledged on it.
        let target = self.data();
        let fresh = self.volume.join("pgdata.new");
        for leftover in [&target, &fresh] {
            remove_tree(leftover)?;
        }
        self.program(
            Command::new("initdb")
                .arg("-D")
                .arg(&fresh)
                .args(["-U", "postgres", "--data-checksums", "--auth=reject", "--no-instructions"])
                .arg(format!("--encoding={}", config.encoding))
                .arg(format!("--locale={}", config.locale))
                .arg(format!("--wal-segsize={}", config.wal_segment_size_mb)),
            Duration::from_secs(120),
        )
        .await?;
        fs::rename(&fresh, &target)?;
        sync_folder(&self.volume)
    }

    /// Starts the server; as a standby when `standby`.
    pub fn start(&mut self, standby: bool) -> anyhow::Result<()> {
        let data = self.data();
        let signal = data.join("standby.signal");
        if standby {
            fs::write(&signal, "")?;
            self.forget_allotted()?;
        } else {
            remove_file(&signal)?;
        }
        remove_file(&data.join("recovery.signal"))?;
        // It would override postgresql.conf, for good or ill without anybody seeing it.
        // Written only when it is not so yet: a full volume must not keep the server from starting.
        let (auto, empty) = (
            data.join("postgresql.auto.conf"),
            "# Holdfast keeps this file empty: use spec.postgresql.parameters.\n",
        );
        if !fs::read(&auto).is_ok_and(|found| found == empty.as_bytes()) {
            fs::write(&auto, empty)?;
        }
        // Left by a killed container: the process ids in them belong to a PID namespace that is gone, and in this one they may be those
        // of the agent's own threads. The server would not start as long as these live.
        remove_file(&data.join("postmaster.pid"))?;
        remove_file(&Path::new(wire::RUN_FOLDER).join(format!(".s.PGSQL.{}.lock", names::PORT_POSTGRESQL)))?;
        let child = self.spawn(
            Command::new("postgres")
                .arg("-D")
                .arg(&data)
                .arg(format!("--config-file={}", Files::configuration().display()))
                .stdin(Stdio::null()),
        )?;
        let pid = child.id().and_then(|p| i32::try_from(p).ok()).context("postgres ended at once")?;
        tracing::info!(standby, pid, "postgres started");
        self.server = Some((child, pid));
        Ok(())
    }

    /// Reads the configuration again.
    pub fn reload(&self) {
        self.signal(Signal::SIGHUP);
    }

    fn signal(&self, signal: Signal) {
        if let Some((_, pid)) = self.server.as_ref()
            && let Err(error) = kill(Pid::from_raw(*pid), signal)
        {
            tracing::warn!(%error, ?signal, "signal did not reach postgres");
        }
    }

    /// Stops the server: fast, and when that takes too long, at once. `true`: it ended well.
    pub async fn stop(&mut self, limit: Duration) -> bool {
        self.signal(Signal::SIGINT);
        let Some((child, _)) = &mut self.server else { return true };
        let clean = match timeout(limit, child.wait()).await {
            Ok(Ok(status)) => status.success(),
            _ => {
                tracing::warn!("fast shutdown took longer than {limit:?}: ending it at once");
                super::fence::kill_everything();
                let _ = timeout(Duration::from_secs(10), child.wait()).await;
                false
            }
        };
        self.forget();
        clean
    }

    /// After everything was killed: waits until the server's process is collected.
    pub async fn collect(&mut self) {
        if let Some((child, _)) = &mut self.server {
            let _ = timeout(Duration::from_secs(10), child.wait()).await;
        }
        self.forget();
        self.died = false;
    }

    /// Removes what earlier copies left, which would take the room of the next: the half of one that was cut short, and older data
    /// moved aside where there is newer data to move aside.
    pub fn clear_leftovers(&self) -> anyhow::Result<()> {
        remove_tree(&self.volume.join("pgdata.new"))?;
        match self.data().exists() {
            true => remove_tree(&self.volume.join("pgdata.aside")),
            false => Ok(()),
        }
    }

    /// Copies the data from an instance that runs. The old data is moved aside, not removed.
    pub async fn clone_from(
        &self,
        host: &str,
        config: &AgentConfig,
        pod: &str,
        expected: &str,
    ) -> anyhow::Result<String> {
        let fresh = self.volume.join("pgdata.new");
        remove_tree(&fresh)?;
        self.program(
            Command::new("pg_basebackup")
                .arg("-D")
                .arg(&fresh)
                .args(["-X", "stream", "-c", "fast", "--no-password"])
                .arg("-d")
                .arg(settings::conninfo(
                    host,
                    &format!("{pod}-basebackup"),
                    &Files::passfile().display().to_string(),
                )),
            Duration::from_secs(24 * 3600),
        )
        .await?;
        let identifier = system_identifier(&fresh).await?;
        if !expected.is_empty() && identifier != expected {
            remove_tree(&fresh)?;
            bail!("{host} has system identifier {identifier}, the database has {expected}: not copied");
        }
        let target = self.data();
        if target.exists() {
            let aside = self.volume.join("pgdata.aside");
            remove_tree(&aside)?;
            State::remove(&self.volume)?;
            fs::rename(&target, &aside)?;
        }
        fs::write(fresh.join("standby.signal"), "")?;
        fs::rename(&fresh, &target)?;
        sync_folder(&self.volume)?;
        State {
            data_set: config.data_set.clone(),
            system_identifier: identifier.clone(),
            history: config.history.clone(),
            unled: false,
            member: pod.into(),
        }
        .store(&self.volume)?;
        Ok(identifier)
    }

    /// Removes what `clone_from` moved aside, once the clone has proved itself.
    pub fn remove_aside(&self) -> anyhow::Result<()> {
        remove_tree(&self.volume.join("pgdata.aside"))
    }

    /// Takes back what this former primary wrote and nobody else has, so that it can follow.
    pub async fn rewind(&self, host: &str, pod: &str) -> anyhow::Result<()> {
        remove_file(&self.data().join("postmaster.pid"))?;
        self.program(
            Command::new("pg_rewind")
                .arg("-D")
                .arg(self.data())
                .arg(format!("--config-file={}", Files::configuration().display()))
                .arg("--source-server")
                .arg(settings::conninfo(
                    host,
                    &format!("{pod}-rewind"),
                    &Files::passfile().display().to_string(),
                )),
            Duration::from_secs(3600),
        )
        .await
    }

    /// Has the next promotion begin this timeline and none before it. PostgreSQL takes the first number above its own that has no history
    /// file, and one that the Lease allotted before may be in use on a volume that is away: with the same number for two
    /// timelines neither pg_rewind nor a standby could tell them apart. An empty history file is a timeline that is nobody's parent.
    pub fn allot(&self, own: u32, next: u32) -> anyhow::Result<()> {
        let folder = self.data().join("pg_wal");
        for timeline in (own + 1).max(2)..next {
            let path = folder.join(WalFile::History(timeline).to_string());
            if !path.exists() {
                tracing::info!(timeline, "allotted before: left out");
                crate::state::write_durably(&path, b"")?;
            }
        }
        Ok(())
    }

    /// Removes what `allot` wrote. A standby that starts takes the newest history file for its goal, and from an empty one it cannot
    /// see that it descends from it: it would end at every start.
    fn forget_allotted(&self) -> anyhow::Result<()> {
        let folder = self.data().join("pg_wal");
        let Ok(entries) = fs::read_dir(&folder) else { return Ok(()) };
        for entry in entries {
            let entry = entry?;
            let history = entry.file_name().to_str().is_some_and(|name| name.ends_with(".history"));
            if history && entry.metadata()?.len() == 0 {
                remove_file(&entry.path())?;
            }
        }
        sync_folder(&folder)
    }

    /// Promotes the standby and waits until it accepts writes.
    pub async fn promote(&self, limit: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        let session = crate::sql::local("postgres").await?;
        session.row("select pg_promote(false)").await?;
        loop {
            if let Ok(Some(recovering)) = session.value("select pg_is_in_recovery()").await
                && recovering == "f"
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("promotion took longer than {limit:?}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn control_data(data: &Path) -> anyhow::Result<String> {
    let output = Command::new("pg_controldata")
        .arg("-D")
        .arg(data)
        .env("LC_ALL", "C")
        .output()
        .await
        .context("pg_controldata")?;
    anyhow::ensure!(
        output.status.success(),
        "pg_controldata: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// PostgreSQL's system identifier of a data directory.
pub async fn system_identifier(data: &Path) -> anyhow::Result<String> {
    let text = control_data(data).await?;
    let line = text.lines().find_map(|l| l.strip_prefix("Database system identifier:"));
    Ok(line.context("pg_controldata names no system identifier")?.trim().to_string())
}

/// The timeline of the newest that the control file knows of a standby's data: it may be on a later one.
pub async fn timeline(data: &Path) -> anyhow::Result<u32> {
    Ok(newest_timeline(&control_data(data).await?))
}

fn newest_timeline(control_data: &str) -> u32 {
    let value = |label: &str| -> u32 {
        control_data.lines().find_map(|l| l.strip_prefix(label)?.trim().parse().ok()).unwrap_or(0)
    };
    value("Latest checkpoint's TimeLineID:").max(value("Min recovery ending loc's timeline:"))
}

/// Where the record of the shutdown checkpoint begins, the last one in the WAL.
///
/// Errors: the data was not shut down in good order.
pub async fn shut_down_at(data: &Path) -> anyhow::Result<Lsn> {
    last_checkpoint(&control_data(data).await?)
}

fn last_checkpoint(control_data: &str) -> anyhow::Result<Lsn> {
    let value = |label: &str| control_data.lines().find_map(|l| l.strip_prefix(label)).map(str::trim);
    let state = value("Database cluster state:").context("pg_controldata names no state")?;
    anyhow::ensure!(state == "shut down", "the data is {state}, not shut down");
    Ok(value("Latest checkpoint location:").context("pg_controldata names no checkpoint")?.parse()?)
}

/// Settings that whoever wrote the data's WAL had, of those that a standby must not have lower.
pub async fn settings_of_the_wal(data: &Path) -> anyhow::Result<std::collections::BTreeMap<String, i64>> {
    Ok(settings_in(&control_data(data).await?))
}

fn settings_in(control_data: &str) -> std::collections::BTreeMap<String, i64> {
    const NAMES: [(&str, &str); 5] = [
        ("max_connections setting:", "max_connections"),
        ("max_worker_processes setting:", "max_worker_processes"),
        ("max_wal_senders setting:", "max_wal_senders"),
        ("max_prepared_xacts setting:", "max_prepared_transactions"),
        ("max_locks_per_xact setting:", "max_locks_per_transaction"),
    ];
    let value = |label: &str| control_data.lines().find_map(|l| l.strip_prefix(label)?.trim().parse().ok());
    NAMES.iter().filter_map(|(label, name)| Some((name.to_string(), value(label)?))).collect()
}

fn remove_file(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn remove_tree(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clean_shutdown_can_be_handed_over() {
        let text = |state: &str| {
            format!(
                "Database cluster state:               {state}\nLatest checkpoint location:           0/5000060\n"
            )
        };
        assert_eq!(last_checkpoint(&text("shut down")).unwrap(), Lsn(0x500_0060));
        for state in ["in production", "shut down in recovery", "shutting down"] {
            assert!(last_checkpoint(&text(state)).is_err(), "{state}");
        }
    }

    #[test]
    fn timelines_that_were_allotted_before_are_left_out() {
        let volume = tempfile::tempdir().unwrap();
        let wal = data_directory(volume.path()).join("pg_wal");
        fs::create_dir_all(&wal).unwrap();
        fs::write(wal.join("00000003.history"), "2\t0/5\tx\n").unwrap();
        let postgres = Postgres::new(volume.path(), Children::default());
        postgres.allot(2, 5).unwrap();
        assert_eq!(fs::read(wal.join("00000003.history")).unwrap(), b"2\t0/5\tx\n");
        assert_eq!(fs::read(wal.join("00000004.history")).unwrap(), b"");
        assert!(!wal.join("00000002.history").exists() && !wal.join("00000005.history").exists());
        postgres.forget_allotted().unwrap();
        assert!(wal.join("00000003.history").exists() && !wal.join("00000004.history").exists());
    }

    #[test]
    fn the_control_file_tells_the_timeline_as_far_as_it_knows() {
        let text = "Latest checkpoint's TimeLineID:       3\nMin recovery ending loc's timeline:   4\n";
        assert_eq!(newest_timeline(text), 4);
        assert_eq!(newest_timeline("Latest checkpoint's TimeLineID:       3\n"), 3);
    }

    #[test]
    fn the_control_file_tells_what_a_standby_needs() {
        let found = settings_in(
            "max_connections setting:              100\nmax_prepared_xacts setting:           200\n",
        );
        assert_eq!(found.len(), 2);
        assert_eq!(found["max_prepared_transactions"], 200);
    }
}

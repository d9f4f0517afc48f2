//! What a full volume means for the server: a primary refuses writes, and whatever needs room waits for it instead of making
//! things worse. How full it is, `disk` knows.

use super::{disk::Known, member::Member, sql::Look};
use crate::sql;
use holdfast_core::report::VolumeStage;
use holdfast_postgresql::disk::size;
use std::time::Duration;
use tokio::{task::JoinHandle, time::Instant};
use tokio_postgres::error::SqlState;

/// How long whatever failed for lack of room waits before it is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// A server that ends within this time of its start has not survived it.
const SOON: Duration = Duration::from_secs(60);
/// How often the server is made to let go of WAL while it is full: an idle one would not do so by itself when the archive has
/// caught up.
const CHECKPOINT_AGAIN: Duration = Duration::from_secs(30);
/// How long such a checkpoint may take.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(300);
/// Turns until every session has read that writes are refused.
const CLOSING: u32 = 2;

/// What is remembered between turns.
#[derive(Default)]
pub struct Guard {
    /// Until when nothing that needs room is begun, and why.
    held: Option<(Instant, String)>,
    /// Writes are refused.
    closed: Option<Closed>,
    checkpoint: Option<(Instant, JoinHandle<()>)>,
}

#[derive(Default)]
struct Closed {
    /// Turns since.
    turns: u32,
    /// By the server's clock: a transaction that began earlier did so before writes were refused.
    since: String,
}

/// A program ended because the volume is full.
#[derive(Debug, thiserror::Error)]
#[error("{program} found no room: {words}")]
pub struct NoSpace {
    /// The program.
    pub program: String,
    /// Its last words.
    pub words: String,
}

/// Whether this is how a full volume shows.
pub fn lacks_room(error: &anyhow::Error) -> bool {
    error.chain().any(|e| {
        e.is::<NoSpace>()
            || e.downcast_ref::<std::io::Error>().is_some_and(|e| {
                matches!(e.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
            })
            || e.downcast_ref::<tokio_postgres::Error>().and_then(|e| e.code()) == Some(&SqlState::DISK_FULL)
    })
}

/// Whether this is how a volume shows that went away, lost its device or turned read-only. None of these ends by itself in a container
/// that has it mounted.
fn broken_volume(error: &anyhow::Error) -> bool {
    use nix::errno::Errno::{EIO, ENODEV, ENXIO, EROFS, ESTALE, EUCLEAN};
    let signs = [EIO, EROFS, ENXIO, ENODEV, ESTALE, EUCLEAN].map(|errno| errno as i32);
    let number = |e: &(dyn std::error::Error + 'static)| e.downcast_ref::<std::io::Error>()?.raw_os_error();
    error.chain().filter_map(number).any(|n| signs.contains(&n))
}

/// Ends the sessions that write. Those that only wait for a standby have written all they had to.
///
/// `since`: only transactions that began before. A later one was told to write by a person who makes room.
fn end_writers(since: Option<&str>) -> String {
    // A procedure that commits in a loop begins transactions without end, all in one statement.
    let earlier =
        since.map(|t| format!(" and (xact_start < '{t}' or query_start < '{t}')")).unwrap_or_default();
    format!(
        "select count(*) filter (where pg_terminate_backend(pid)) from pg_stat_activity
         where backend_type = 'client backend' and backend_xid is not null and pid <> pg_backend_pid()
         and application_name <> 'holdfast-agent' and wait_event is distinct from 'SyncRep'{earlier}"
    )
}

/// What a full volume means for this server; `None`: it is not full.
fn verdict(known: &Known, waiting: i64, look: Option<&Look>) -> Option<String> {
    if known.stage != VolumeStage::Full {
        return None;
    }
    let means = match look {
        None => "the server needs more to run: let spec.storage.size grow",
        Some(look) if look.recovering => {
            "this standby ends when nothing is left: let spec.storage.size grow, or free space on the primary"
        }
        Some(_) => {
            "writes are refused until spec.storage.size grows or space is freed \
             (SET default_transaction_read_only = off lets a session delete)"
        }
    };
    Some(format!("DiskFull: {}; {means}", known.volume.words(waiting)))
}

impl Member {
    /// What a full volume means for this server; `None`: it is not full.
    pub(super) fn disk_full(&self, look: Option<&Look>) -> Option<String> {
        let waiting = self.archiver.report().map_or(0, |a| a.behind_segments);
        verdict(&self.disk.known(), waiting, look)
    }

    /// The server ended by itself: if that was for lack of room, says so, gives it what is held back, and keeps this death from
    /// counting as a sign of bad data.
    pub(super) async fn after_death(&mut self) {
        let known = self.disk.look(true).await;
        if known.lowest >= known.volume.closes_below() {
            return;
        }
        let volume = known.volume.words(0);
        // One that answered and soon ends again would go on so without a pause.
        let soon = self.memory.began.is_some_and(|at| at.elapsed() < SOON);
        if known.released || !soon {
            tracing::error!(
                volume,
                "disk full: postgres ended; it starts again in what is left and was held back"
            );
        } else {
            tracing::error!(
                volume,
                "disk full: postgres ended soon after its start, and nothing is held back any more"
            );
            // It cannot run: whoever has room may lead. The pause outlasts the Lease, or it would be renewed by the next try.
            self.memory.starting = None;
            self.keeper.healthy_for(Duration::ZERO);
            let words = self.disk_full(None).unwrap_or_else(|| format!("DiskFull: {volume}"));
            self.hold(words);
        }
        self.memory.starts = self.memory.starts.saturating_sub(1);
    }

    fn hold(&mut self, words: String) {
        let ttl = u64::try_from(self.config.borrow().ttl_seconds).unwrap_or(6);
        let pause = AGAIN.max(Duration::from_secs(3 * ttl));
        self.memory.guard.held = Some((Instant::now() + pause, words));
    }

    /// Why a start, a copy or a rewind must wait, if it must.
    pub(super) fn held(&mut self) -> Option<String> {
        let (until, words) = self.memory.guard.held.as_ref()?;
        if Instant::now() < *until {
            return Some(words.clone());
        }
        self.memory.guard.held = None;
        None
    }

    /// Refuses to begin what does not fit. `doing`: "the copy".
    pub(super) fn room_for(&mut self, doing: &str, needs: u64) -> anyhow::Result<()> {
        let available = self.disk.known().volume.available;
        if needs <= available {
            return Ok(());
        }
        self.refuse(format!("{doing} needs about {}, the volume has {}", size(needs), size(available)))
    }

    /// Refuses what changes data in place while the volume is full: it would end half-way.
    pub(super) fn room_to(&mut self, doing: &str) -> anyhow::Result<()> {
        let known = self.disk.known();
        if known.stage != VolumeStage::Full {
            return Ok(());
        }
        self.refuse(format!("{}, too little to {doing}", known.volume.words(0)))
    }

    fn refuse(&mut self, why: String) -> anyhow::Result<()> {
        let words = format!("DiskFull: {why}; let spec.storage.size grow");
        self.hold(words.clone());
        Err(anyhow::Error::msg(words))
    }

    /// Compares a copy from `host` with the room that there is. Data that is here already stays until the copy streams.
    pub(super) async fn room_for_copy(&mut self, host: &str) -> anyhow::Result<()> {
        let question = "select sum(pg_database_size(oid))::bigint from pg_database";
        let asked = async { sql::connect(host, "postgres").await?.value(question).await };
        match asked.await {
            Ok(bytes) => {
                let bytes = bytes.and_then(|b| b.parse().ok()).unwrap_or(0);
                let volume = self.disk.look(false).await.volume;
                self.room_for("the copy", volume.copy_needs(bytes))
            }
            // The copy itself will say what is wrong with the source.
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), host, "the source's size is not known");
                Ok(())
            }
        }
    }

    /// The error of something that needed room: when it found none, says so with numbers and has it wait.
    pub(super) async fn ended(&mut self, error: anyhow::Error) -> anyhow::Error {
        if !lacks_room(&error) {
            return error;
        }
        let volume = self.disk.look(false).await.volume.words(0);
        let words = format!("DiskFull: {volume}; let spec.storage.size grow: {error:#}");
        self.hold(words.clone());
        anyhow::Error::msg(words)
    }

    /// A turn's error, for the report.
    pub(super) fn in_words(&self, error: &anyhow::Error) -> String {
        match self.disk_full(None) {
            Some(full) if lacks_room(error) => format!("{full}: {error:#}"),
            _ if broken_volume(error) => format!(
                "VolumeFailed: {error:#}; delete the pod, so that its volume is mounted anew; if the volume is lost for good and \
                 another instance has the data, delete its claim, too"
            ),
            _ => format!("{error:#}"),
        }
    }

    /// A turn ended with this. On a broken volume nothing can be promised any more: whatever still runs there ends, and only then is the
    /// Lease given back, so that another instance need not wait for its TTL.
    pub(super) async fn after_error(&mut self, error: &anyhow::Error) {
        if !broken_volume(error) || self.keeper.held().is_none() {
            return;
        }
        tracing::error!(
            error = format!("{error:#}"),
            "the volume has failed: this server ends and gives the Lease back"
        );
        super::fence::kill_everything();
        self.postgres.collect().await;
        self.session = None;
        if let Err(error) = self.keeper.release(None).await {
            tracing::warn!(error = format!("{error:#}"), "releasing the Lease: others wait for its TTL");
        }
    }

    /// The primary's turn: its settings already say whether writes are refused.
    pub(super) async fn guard(&mut self) -> anyhow::Result<()> {
        let known = self.disk.known();
        if known.stage != VolumeStage::Full {
            if self.memory.guard.closed.take().is_some() {
                tracing::info!(volume = known.volume.words(0), "writes are accepted again");
            }
            return Ok(());
        }
        let Some(session) = self.session.as_ref() else { return Ok(()) };
        if self.memory.guard.closed.is_none() {
            tracing::error!(volume = known.volume.words(0), "disk full: writes are refused");
        }
        let closed = self.memory.guard.closed.get_or_insert_default();
        if closed.turns < CLOSING {
            closed.turns += 1;
            closed.since = session.value("select clock_timestamp()").await?.unwrap_or_default();
        }
        // With nothing held back the next WAL segment ends the server, and whoever makes room with it.
        let nothing_left = known.reserve == 0 && known.volume.available < known.volume.last();
        let since = Some(closed.since.as_str()).filter(|_| !nothing_left);
        let ended = session.value(&end_writers(since)).await?.unwrap_or_default();
        if ended != "0" {
            tracing::warn!(sessions = ended, "disk full: ended the sessions that were writing");
        }
        self.let_go_of_wal();
        Ok(())
    }

    /// What the store has not got yet cannot be let go: then a checkpoint would only add to the WAL.
    fn let_go_of_wal(&mut self) {
        if self.archiver.report().is_some_and(|a| a.behind_segments > 0 || !a.error.is_empty()) {
            return;
        }
        let due = self
            .memory
            .guard
            .checkpoint
            .as_ref()
            .is_none_or(|(at, task)| at.elapsed() > CHECKPOINT_AGAIN && task.is_finished());
        if !due {
            return;
        }
        let task = tokio::spawn(async {
            let work = async { sql::local("postgres").await?.execute("checkpoint", CHECKPOINT_LIMIT).await };
            if let Err(error) = work.await {
                tracing::warn!(error = format!("{error:#}"), "checkpoint on a full volume");
            }
        });
        self.memory.guard.checkpoint = Some((Instant::now(), task));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;
    use holdfast_postgresql::disk::Volume;

    fn known(stage: VolumeStage) -> Known {
        let volume = Volume { capacity: 960 << 20, available: 12 << 20, wal: 320 << 20, segment: 16 << 20 };
        Known { volume, stage, ..Known::default() }
    }

    #[test]
    fn a_full_volume_says_what_it_means_and_what_to_do() {
        let full = known(VolumeStage::Full);
        let primary = Look::default();
        let standby = Look { recovering: true, ..Look::default() };
        assert_eq!(
            verdict(&full, 4, Some(&primary)).unwrap(),
            "DiskFull: 12 MiB of 960 MiB are left (320 MiB of it WAL, 4 segments of which wait for the store); writes are refused \
             until spec.storage.size grows or space is freed (SET default_transaction_read_only = off lets a session delete)"
        );
        for look in [None, Some(&standby)] {
            let words = verdict(&full, 0, look).unwrap();
            assert!(words.starts_with("DiskFull: 12 MiB") && words.contains("spec.storage.size"), "{words}");
        }
        assert_eq!(verdict(&known(VolumeStage::Low), 4, Some(&primary)), None);
    }

    #[test]
    fn lack_of_room_is_seen_through_whatever_is_said_about_it() {
        let file = std::io::Error::from_raw_os_error(nix::errno::Errno::ENOSPC as i32);
        assert!(lacks_room(&anyhow::Error::from(file).context("storing the state")));
        let program: anyhow::Result<()> =
            Err(NoSpace { program: "initdb".into(), words: "No space left on device".into() }.into());
        assert!(lacks_room(&program.context("initialising").unwrap_err()));
        assert!(!lacks_room(&anyhow::anyhow!("initdb failed")));
    }

    #[test]
    fn a_volume_that_failed_is_no_file_that_is_missing() {
        let with = |errno: nix::errno::Errno| {
            anyhow::Error::from(std::io::Error::from_raw_os_error(errno as i32)).context("reading the state")
        };
        assert!(
            broken_volume(&with(nix::errno::Errno::EIO)) && broken_volume(&with(nix::errno::Errno::EROFS))
        );
        for other in [nix::errno::Errno::ENOENT, nix::errno::Errno::ENOSPC, nix::errno::Errno::ECONNREFUSED] {
            assert!(!broken_volume(&with(other)));
        }
    }

    #[test]
    fn only_writers_of_before_are_ended_while_there_is_something_left() {
        assert!(
            end_writers(Some("2026-11-21 09:00:00+00")).ends_with(
                "(xact_start < '2026-11-21 09:00:00+00' or query_start < '2026-11-21 09:00:00+00')"
            )
        );
        assert!(!end_writers(None).contains("query_start"));
    }
}

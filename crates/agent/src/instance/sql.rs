//! What one look at the local server shows.

use crate::sql::Session;
use holdfast_postgresql::{Lsn, failover::Server};
use std::time::Duration;
use tokio::time::Instant;

/// What one look at the local server shows.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// It is in recovery.
    pub recovering: bool,
    /// Timeline.
    pub timeline: u32,
    /// Flushed end of WAL.
    pub flushed: Lsn,
    /// Everything on its disk is replayed: the startup process waits for more. Before that the end is not known.
    pub replayed: bool,
    /// End of the last record replayed, and of what was received.
    pub ends: (Lsn, Lsn),
    /// The startup process has found nothing anywhere, and waits so long before it looks again; zero: it does something else.
    pub waits: Duration,
    /// Pages with a wrong checksum that the server met; `None`: it writes no checksums.
    pub checksum_failures: Option<i64>,
    /// The WAL receiver streams.
    pub streaming: bool,
    /// Bytes received but not yet known to be everything: distance to the upstream's last word.
    pub lag_bytes: i64,
    /// Seconds since the last replayed commit, while there is something left to replay.
    pub lag_seconds: f64,
    /// Version.
    pub version: String,
    /// System identifier.
    pub system_identifier: String,
    /// A parameter waits for a restart.
    pub pending_restart: bool,
    /// Standbys that stream from here.
    pub streams_to: Vec<String>,
}

impl Look {
    /// As the decision wants it.
    pub fn server(&self) -> Server {
        if self.recovering {
            Server::Standby {
                timeline: if self.replayed { self.timeline } else { 0 },
                flushed: self.flushed,
                streaming: self.streaming,
            }
        } else {
            Server::Primary { timeline: self.timeline }
        }
    }
}

/// Beyond one wait of the startup process: then it has looked everywhere once more in between.
const LOOKED_AGAIN: Duration = Duration::from_millis(250);

/// A standby whose primary was lost in the middle of a record can never replay the last of what it received. That it tried shows in
/// two waits of the startup process for more, with a look at everything on its disk between them, that found nothing.
#[derive(Default)]
pub struct Settled {
    since: Option<((Lsn, Lsn), Instant)>,
    settled: bool,
}

impl Settled {
    /// Whether everything that can be replayed is.
    pub fn all_replayed(&mut self, look: &Look, now: Instant) -> bool {
        match self.since {
            Some((ends, since)) if ends == look.ends => {
                let waited = look.waits > Duration::ZERO;
                self.settled |= waited && now.duration_since(since) > look.waits + LOOKED_AGAIN;
            }
            _ => {
                self.settled = false;
                self.since = (look.waits > Duration::ZERO).then_some((look.ends, now));
            }
        }
        look.replayed || self.settled
    }
}

/// The timeline of a standby is nowhere to be read: the control file knows it only from the next restartpoint on, and the WAL
/// receiver only while it lives. The newest timeline that has the segment with the last byte received is it.
const LOOK: &str = "select pg_is_in_recovery(),
 case when pg_is_in_recovery() then greatest(
   (select timeline_id from pg_control_checkpoint()),
   (select min_recovery_end_timeline from pg_control_recovery()),
   coalesce((select received_tli from pg_stat_wal_receiver), 0),
   (select max(('x' || substr(name, 1, 8))::bit(32)::int)
    from pg_ls_waldir(), (select pg_size_bytes(current_setting('wal_segment_size')) as bytes) s,
      (select pg_wal_lsn_diff(greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()), '0/1') as last) l
    where name ~ '^[0-9A-F]{24}$'
      and ('x' || substr(name, 9, 8))::bit(32)::bigint * (4294967296 / bytes) + ('x' || substr(name, 17, 8))::bit(32)::bigint
        = div(last, bytes)))
 else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end,
 case when pg_is_in_recovery() then greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) else pg_current_wal_flush_lsn() end,
 case when pg_is_in_recovery() then coalesce(pg_last_wal_replay_lsn() >= pg_last_wal_receive_lsn(), true)
   and exists (select from pg_stat_activity where backend_type = 'startup'
     and wait_event in ('RecoveryRetrieveRetryInterval', 'RecoveryWalStream')) else true end,
 coalesce((select status = 'streaming' from pg_stat_wal_receiver), false),
 coalesce((select pg_wal_lsn_diff(latest_end_lsn, pg_last_wal_replay_lsn())::bigint from pg_stat_wal_receiver), 0),
 case when pg_is_in_recovery() and pg_last_wal_replay_lsn() < pg_last_wal_receive_lsn()
   then coalesce(extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp()), 0) else 0 end,
 current_setting('server_version'),
 (select system_identifier from pg_control_system()),
 (select count(*) > 0 from pg_settings where pending_restart),
 (select string_agg(application_name, ',' order by application_name) from pg_stat_replication where state = 'streaming' and application_name !~ 'basebackup'),
 coalesce(pg_last_wal_replay_lsn(), '0/0'), coalesce(pg_last_wal_receive_lsn(), '0/0'),
 case when exists (select from pg_stat_activity where backend_type = 'startup' and wait_event = 'RecoveryRetrieveRetryInterval')
   then extract(epoch from current_setting('wal_retrieve_retry_interval')::interval) else 0 end,
 case when current_setting('data_checksums') = 'on'
   then (select coalesce(sum(checksum_failures), 0) from pg_stat_database) end";

/// Looks at the local server.
pub async fn look(session: &Session) -> anyhow::Result<Look> {
    let row = session.row(LOOK).await?;
    let text = |i: usize| row.get(i).cloned().flatten().unwrap_or_default();
    let yes = |i: usize| text(i) == "t";
    let version = text(7);
    Ok(Look {
        recovering: yes(0),
        timeline: text(1).parse().unwrap_or(0),
        flushed: text(2).parse().unwrap_or_default(),
        replayed: yes(3),
        streaming: yes(4),
        lag_bytes: text(5).parse::<i64>().unwrap_or(0).max(0),
        lag_seconds: text(6).parse().unwrap_or(0.0),
        version: version.split_whitespace().next().unwrap_or_default().to_string(),
        system_identifier: text(8),
        pending_restart: yes(9),
        ends: (text(11).parse().unwrap_or_default(), text(12).parse().unwrap_or_default()),
        waits: Duration::from_secs_f64(text(13).parse::<f64>().unwrap_or(0.0).clamp(0.0, 3600.0)),
        checksum_failures: text(14).parse().ok(),
        streams_to: text(10).split(',').filter(|s| !s.is_empty()).map(String::from).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(replayed: u64, received: u64, waits: bool) -> Look {
        let waits = Duration::from_millis(if waits { 500 } else { 0 });
        Look { recovering: true, ends: (Lsn(replayed), Lsn(received)), waits, ..Look::default() }
    }

    #[test]
    fn wal_that_ends_inside_a_record_is_replayed_once_the_server_looked_everywhere_again() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut settled = Settled::default();
        assert!(!settled.all_replayed(&look(90, 100, true), at(0)));
        assert!(!settled.all_replayed(&look(90, 100, true), at(400)), "the same wait");
        assert!(!settled.all_replayed(&look(90, 100, false), at(900)), "it looks just now");
        assert!(settled.all_replayed(&look(90, 100, true), at(950)));
        assert!(settled.all_replayed(&look(90, 100, false), at(960)), "nothing has come since");
        assert!(!settled.all_replayed(&look(90, 120, true), at(1000)), "more has come");
        assert!(!settled.all_replayed(&look(110, 120, true), at(1900)), "it got further");
        assert!(settled.all_replayed(&look(110, 120, true), at(2700)));
    }

    #[test]
    fn a_server_that_replays_or_streams_is_never_settled() {
        let start = Instant::now();
        let mut settled = Settled::default();
        for second in 0..100 {
            let now = start + Duration::from_secs(second);
            assert!(!settled.all_replayed(&look(second, 1000, false), now));
            assert!(
                !settled.all_replayed(&look(50, 1000, false), now),
                "it waits for the upstream, not for its own next try"
            );
        }
        let all = Look { replayed: true, ..look(1000, 1000, false) };
        assert!(settled.all_replayed(&all, start));
    }
}

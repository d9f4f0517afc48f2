//! What one look at the local server shows.

use crate::sql::Session;
use holdfast_postgresql::{Lsn, failover::Server};

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
 (select string_agg(application_name, ',' order by application_name) from pg_stat_replication where state = 'streaming' and application_name !~ 'basebackup')";

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
        streams_to: text(10).split(',').filter(|s| !s.is_empty()).map(String::from).collect(),
    })
}

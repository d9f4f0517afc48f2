//! What PostgreSQL counts, as metrics. Asked for when somebody scrapes, not more often than every few seconds, in a session of its own
//! that gives up soon: nothing that decides waits for it.

use super::archiver;
use crate::sql::{self, Session};
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

/// Scrapes within this time get the same answer.
const FRESH: Duration = Duration::from_secs(5);
/// The same for sizes of databases, for which the server looks at every file.
const SIZES_FRESH: Duration = Duration::from_secs(60);
/// How long the server may take for one question.
const STATEMENT_LIMIT: Duration = Duration::from_secs(2);
/// How long everything together may take.
const LIMIT: Duration = Duration::from_secs(5);

/// The server as a whole: one row.
const SERVER: &str = "select current_setting('max_connections'),
 (select max(age(datfrozenxid)) from pg_database),
 (select max(mxid_age(datminmxid)) from pg_database),
 pg_wal_lsn_diff(case when pg_is_in_recovery() then greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
   else pg_current_wal_lsn() end, '0/0'),
 case when pg_is_in_recovery() and pg_last_wal_replay_lsn() < pg_last_wal_receive_lsn()
   then extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp()) else 0 end,
 current_setting('server_version_num'),
 extract(epoch from pg_postmaster_start_time())";

/// Sessions of clients by what they do.
const SESSIONS: &str = "select coalesce(state, 'unknown'), count(*), coalesce(max(extract(epoch from clock_timestamp() - xact_start)), 0),
 count(*) filter (where wait_event_type = 'Lock')
 from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid() group by 1";

/// One row a database; what all of them share has no name.
const DATABASES: &str =
    "select coalesce(datname, ''), xact_commit, xact_rollback, deadlocks, temp_files, temp_bytes,
 coalesce(checksum_failures, 0), conflicts, blks_read, blks_hit
 from pg_stat_database order by xact_commit desc limit 100";

const SIZES: &str = "select datname, pg_database_size(oid) from pg_database order by 1 limit 100";

/// One row a standby.
const STANDBYS: &str = "select application_name, pg_wal_lsn_diff(last, flush_lsn), pg_wal_lsn_diff(last, replay_lsn),
 coalesce(extract(epoch from flush_lag), 0), coalesce(extract(epoch from replay_lag), 0)
 from pg_stat_replication,
   (select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end as last) l
 where state in ('streaming', 'catchup') and application_name !~ '-(basebackup|rewind)$' limit 100";

/// Checkpoints have a view of their own since version 17.
fn checkpoints(version: u32) -> &'static str {
    match version {
        0..170_000 => {
            "select checkpoints_timed, checkpoints_req, checkpoint_write_time / 1000, checkpoint_sync_time / 1000
             from pg_stat_bgwriter"
        }
        _ => "select num_timed, num_requested, write_time / 1000, sync_time / 1000 from pg_stat_checkpointer",
    }
}

/// Sessions that are always listed, so that none is missing when it is zero.
const STATES: [&str; 4] = ["active", "idle", "idle in transaction", "idle in transaction (aborted)"];

type Row = Vec<Option<String>>;

fn text(row: &Row, column: usize) -> &str {
    row.get(column).and_then(|v| v.as_deref()).unwrap_or_default()
}

fn number(row: &Row, column: usize) -> Option<f64> {
    text(row, column).parse().ok()
}

/// Metrics that are told, not counted here.
#[derive(Default)]
struct Told(Vec<MetricFamily>);

impl Told {
    fn add(&mut self, kind: MetricType, name: &str, help: &str, samples: Vec<(Vec<(&str, &str)>, f64)>) {
        if samples.is_empty() {
            return;
        }
        let metrics = samples.into_iter().map(|(labels, value)| {
            let mut metric = Metric::default();
            let labels = labels.into_iter().map(|(name, value)| {
                let mut pair = LabelPair::default();
                pair.set_name(name.into());
                pair.set_value(value.into());
                pair
            });
            metric.set_label(labels.collect());
            if kind == MetricType::COUNTER {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            } else {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
            metric
        });
        let mut family = MetricFamily::default();
        family.set_metric(metrics.collect());
        family.set_name(name.into());
        family.set_help(help.into());
        family.set_field_type(kind);
        self.0.push(family);
    }

    fn gauge(&mut self, name: &str, help: &str, value: Option<f64>) {
        self.add(MetricType::GAUGE, name, help, value.map(|v| (Vec::new(), v)).into_iter().collect());
    }

    /// One column of many rows, each labelled with its first.
    fn column(
        &mut self,
        kind: MetricType,
        (name, help): (&str, &str),
        label: &str,
        rows: &[Row],
        column: usize,
    ) {
        let sample = |row: &'_ Row| number(row, column);
        let samples = rows.iter().filter_map(|r| Some((vec![(label, text(r, 0))], sample(r)?)));
        self.add(kind, name, help, samples.collect());
    }

    fn server(&mut self, row: &Row) {
        self.gauge("holdfast_postgresql_max_connections", "Sessions that the server allows", number(row, 0));
        self.gauge(
            "holdfast_postgresql_oldest_xid_age",
            "Transactions since the oldest that is not frozen; the server stops before 2 billion",
            number(row, 1),
        );
        self.gauge("holdfast_postgresql_oldest_multixact_age", "The same for multixacts", number(row, 2));
        let position = number(row, 3).map(|v| (Vec::new(), v)).into_iter().collect();
        self.add(
            MetricType::COUNTER,
            "holdfast_postgresql_wal_bytes_total",
            "End of the WAL, written here or received: its rate is the WAL rate",
            position,
        );
        self.gauge(
            "holdfast_instance_replay_lag_seconds",
            "Age of the last commit that a replica replayed, while there is WAL left to replay",
            number(row, 4),
        );
        self.gauge(
            "holdfast_postgresql_start_time_seconds",
            "When the server was started, seconds since 1970",
            number(row, 6),
        );
    }

    fn sessions(&mut self, rows: &[Row]) {
        let count = |state: &str| rows.iter().find(|r| text(r, 0) == state).and_then(|r| number(r, 1));
        let others = rows.iter().map(|r| text(r, 0)).filter(|s| !STATES.contains(s));
        let samples = STATES.into_iter().chain(others);
        let samples = samples.map(|s| (vec![("state", s)], count(s).unwrap_or(0.0))).collect();
        self.add(
            MetricType::GAUGE,
            "holdfast_postgresql_connections",
            "Sessions of clients by what they do",
            samples,
        );
        let oldest = rows.iter().filter_map(|r| number(r, 2)).fold(0.0, f64::max);
        self.gauge(
            "holdfast_postgresql_oldest_transaction_seconds",
            "Age of the oldest transaction of a client",
            Some(oldest),
        );
        let waiting = rows.iter().filter_map(|r| number(r, 3)).sum();
        self.gauge(
            "holdfast_postgresql_connections_waiting_for_locks",
            "Sessions that wait for a lock",
            Some(waiting),
        );
    }

    fn databases(&mut self, rows: &[Row]) {
        let each = [("committed", 1), ("rolled back", 2)];
        let samples = rows.iter().flat_map(|r| {
            each.into_iter().filter_map(|(outcome, column)| {
                Some((vec![("database", text(r, 0)), ("outcome", outcome)], number(r, column)?))
            })
        });
        self.add(
            MetricType::COUNTER,
            "holdfast_postgresql_transactions_total",
            "Transactions by database and outcome",
            samples.collect(),
        );
        for (name, help, column) in [
            ("holdfast_postgresql_deadlocks_total", "Deadlocks", 3),
            ("holdfast_postgresql_temp_files_total", "Temporary files", 4),
            ("holdfast_postgresql_temp_bytes_total", "Bytes written to temporary files", 5),
            ("holdfast_postgresql_checksum_failures_total", "Pages whose checksum was wrong", 6),
            ("holdfast_postgresql_conflicts_total", "Queries on a replica that replay has cancelled", 7),
            ("holdfast_postgresql_blocks_read_total", "Blocks read from outside the server's own cache", 8),
            ("holdfast_postgresql_blocks_hit_total", "Blocks found in the server's own cache", 9),
        ] {
            self.column(MetricType::COUNTER, (name, help), "database", rows, column);
        }
    }

    fn standbys(&mut self, rows: &[Row]) {
        for (name, help, columns) in [
            (
                "holdfast_replication_lag_bytes",
                "WAL of this server that a standby has not flushed, or not replayed yet",
                [1, 2],
            ),
            (
                "holdfast_replication_lag_seconds",
                "Time until a standby has flushed, or replayed, recent WAL; 0 when nothing is written",
                [3, 4],
            ),
        ] {
            let samples = rows.iter().flat_map(|r| {
                ["flush", "replay"].into_iter().zip(columns).filter_map(|(stage, column)| {
                    Some((vec![("standby", text(r, 0)), ("stage", stage)], number(r, column)?))
                })
            });
            self.add(MetricType::GAUGE, name, help, samples.collect());
        }
    }

    fn checkpoints(&mut self, row: &Row) {
        let two = |labels: [&'static str; 2], name: &'static str, from: usize| {
            let samples = labels.into_iter().enumerate();
            samples
                .filter_map(|(i, label)| Some((vec![(name, label)], number(row, from + i)?)))
                .collect::<Vec<_>>()
        };
        self.add(
            MetricType::COUNTER,
            "holdfast_postgresql_checkpoints_total",
            "Checkpoints by what asked for them",
            two(["timed", "requested"], "kind", 0),
        );
        self.add(
            MetricType::COUNTER,
            "holdfast_postgresql_checkpoint_seconds_total",
            "Time that checkpoints took",
            two(["write", "sync"], "phase", 2),
        );
    }
}

/// What was last told.
#[derive(Default)]
struct Last {
    at: Option<Instant>,
    families: Vec<MetricFamily>,
    sizes_at: Option<Instant>,
    sizes: Vec<Row>,
}

/// Asks the server, and remembers for a moment what it said.
pub struct Statistics {
    volume: PathBuf,
    last: Mutex<Last>,
}

impl Statistics {
    /// Of the server on this volume.
    pub fn new(volume: &Path) -> Self {
        Self { volume: volume.into(), last: Mutex::default() }
    }

    /// What there is to tell. Bounded; when the server does not answer in time, only that.
    pub async fn families(&self) -> Vec<MetricFamily> {
        let mut last = self.last.lock().await;
        if last.at.is_some_and(|at| at.elapsed() < FRESH) {
            return last.families.clone();
        }
        let began = Instant::now();
        let mut told = Told::default();
        let asked = timeout(LIMIT, ask(&mut told, &mut last)).await;
        if let Err(error) = asked.map_err(anyhow::Error::from).flatten() {
            tracing::debug!(error = format!("{error:#}"), "PostgreSQL's statistics");
            told = Told::default();
        }
        let up = f64::from(u8::from(!told.0.is_empty()));
        told.gauge("holdfast_postgresql_up", "1 when the server told its statistics in time", Some(up));
        let volume = self.volume.clone();
        let waits = tokio::task::spawn_blocking(move || archiver::oldest_waiting(&volume));
        // A volume that hangs: the number is missing, the rest is told.
        if let Ok(Ok(age)) = timeout(STATEMENT_LIMIT, waits).await {
            told.gauge(
                "holdfast_instance_archive_lag_seconds",
                "Age of the oldest WAL file that waits for the store; 0 when none does",
                Some(age.map_or(0.0, |a| a.as_secs_f64())),
            );
        }
        told.gauge(
            "holdfast_instance_statistics_seconds",
            "How long it took to ask for all this",
            Some(began.elapsed().as_secs_f64()),
        );
        last.families = told.0;
        last.at = Some(Instant::now());
        last.families.clone()
    }
}

async fn ask(told: &mut Told, last: &mut Last) -> anyhow::Result<()> {
    let session: Session = sql::local_within("postgres", STATEMENT_LIMIT).await?;
    let server = session.row(SERVER).await?;
    let version = text(&server, 5).parse().unwrap_or(0);
    told.server(&server);
    told.sessions(&session.rows(SESSIONS).await?);
    told.databases(&session.rows(DATABASES).await?);
    told.standbys(&session.rows(STANDBYS).await?);
    told.checkpoints(&session.row(checkpoints(version)).await?);
    if last.sizes_at.is_none_or(|at| at.elapsed() > SIZES_FRESH) {
        // Slow where there are very many files: then this number alone is missing.
        last.sizes_at = Some(Instant::now());
        last.sizes = session.rows(SIZES).await.unwrap_or_default();
    }
    told.column(
        MetricType::GAUGE,
        ("holdfast_postgresql_database_size_bytes", "Size of a database on disk; up to a minute old"),
        "database",
        &last.sizes,
        1,
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::{Encoder, TextEncoder};

    fn row(columns: &[&str]) -> Row {
        columns.iter().map(|c| (!c.is_empty()).then(|| c.to_string())).collect()
    }

    fn shown(told: &Told) -> String {
        let mut text = Vec::new();
        TextEncoder::new().encode(&told.0, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn what_the_server_says_becomes_series_of_the_right_kind() {
        let mut told = Told::default();
        told.server(&row(&["100", "751", "3", "83886176", "0", "170005", "1700000000.5"]));
        told.sessions(&[row(&["active", "2", "7.5", "1"]), row(&["disabled", "1", "0", "0"])]);
        told.databases(&[row(&["heron", "12", "1", "0", "2", "4096", "0", "0", "5", "6"])]);
        told.standbys(&[row(&["heron-1", "16", "4096", "0.25", "0.5"])]);
        told.checkpoints(&row(&["4", "2", "1.5", "0.25"]));
        let text = shown(&told);
        for line in [
            "# TYPE holdfast_postgresql_wal_bytes_total counter",
            "holdfast_postgresql_wal_bytes_total 83886176",
            "holdfast_postgresql_connections{state=\"active\"} 2",
            "holdfast_postgresql_connections{state=\"idle in transaction\"} 0",
            "holdfast_postgresql_connections{state=\"disabled\"} 1",
            "holdfast_postgresql_oldest_transaction_seconds 7.5",
            "holdfast_postgresql_connections_waiting_for_locks 1",
            "holdfast_postgresql_transactions_total{database=\"heron\",outcome=\"rolled back\"} 1",
            "holdfast_postgresql_temp_bytes_total{database=\"heron\"} 4096",
            "holdfast_replication_lag_bytes{standby=\"heron-1\",stage=\"replay\"} 4096",
            "holdfast_replication_lag_seconds{standby=\"heron-1\",stage=\"flush\"} 0.25",
            "holdfast_postgresql_checkpoints_total{kind=\"requested\"} 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }

    #[test]
    fn what_the_server_does_not_know_is_left_out_not_zero() {
        let mut told = Told::default();
        told.server(&row(&["100", "", "", "", "", "", ""]));
        told.standbys(&[]);
        let text = shown(&told);
        assert!(text.contains("max_connections 100"));
        assert!(!text.contains("replication_lag") && !text.contains("xid_age"), "{text}");
    }

    #[tokio::test]
    async fn without_a_server_the_answer_is_that_there_is_none_and_stands_for_a_moment() {
        let volume = tempfile::tempdir().unwrap();
        let statistics = Statistics::new(volume.path());
        let text = shown(&Told(statistics.families().await));
        assert!(
            text.contains("holdfast_postgresql_up 0") && text.contains("archive_lag_seconds 0"),
            "{text}"
        );
        assert_eq!(shown(&Told(statistics.families().await)), text);
    }
}

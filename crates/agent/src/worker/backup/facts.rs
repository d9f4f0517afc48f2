//! What the database says of itself. Asks the instance that is read and the primary.

use super::BackupError;
use crate::sql::{self, Session};
use holdfast_archive::manifest::Settings;
use jiff::Timestamp;

/// Facts about the instance that is read.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Version, such as 17.11.
    pub server_version: String,
    /// Segment size, bytes.
    pub wal_segment_size: u64,
    /// It is a standby.
    pub standby: bool,
    /// Settings that a restore must have at least as high.
    pub settings: Settings,
}

const QUESTION: &str = "select (select system_identifier from pg_control_system()),
 current_setting('server_version'), pg_is_in_recovery(),
 (select setting from pg_settings where name = 'wal_segment_size'),
 current_setting('max_connections'), current_setting('max_worker_processes'), current_setting('max_wal_senders'),
 current_setting('max_prepared_transactions'), current_setting('max_locks_per_transaction'),
 (select string_agg(spcname, ', ' order by spcname) from pg_tablespace where spcname not in ('pg_default', 'pg_global'))";

impl Facts {
    /// Asks the host, and makes sure that it holds the data that is meant and nothing that a backup cannot hold.
    pub async fn of(host: &str, system_identifier: &str) -> Result<Self, BackupError> {
        let session = connect(host).await?;
        let row = session.row(QUESTION).await.map_err(|e| database(host, &e))?;
        Self::read(host, system_identifier, &row)
    }

    fn read(host: &str, system_identifier: &str, row: &[Option<String>]) -> Result<Self, BackupError> {
        let text = |i: usize| row.get(i).cloned().flatten().unwrap_or_default();
        let number = |i: usize| {
            text(i)
                .parse::<i64>()
                .map_err(|e| BackupError::Database(format!("{host}: column {i}, {:?}: {e}", text(i))))
        };
        if text(0) != system_identifier {
            return Err(BackupError::OtherSystem {
                host: host.into(),
                found: text(0),
                wanted: system_identifier.into(),
            });
        }
        if !text(9).is_empty() {
            return Err(BackupError::Tablespaces(text(9)));
        }
        Ok(Self {
            // Distributions add their own words: "15.14 (Debian 15.14-0+deb12u1)".
            server_version: text(1).split_whitespace().next().unwrap_or_default().into(),
            standby: text(2) == "t",
            wal_segment_size: u64::try_from(number(3)?).unwrap_or_default().max(1 << 20),
            settings: Settings {
                max_connections: number(4)?,
                max_worker_processes: number(5)?,
                max_wal_senders: number(6)?,
                max_prepared_transactions: number(7)?,
                max_locks_per_transaction: number(8)?,
            },
        })
    }
}

fn database(host: &str, error: &anyhow::Error) -> BackupError {
    BackupError::Database(format!("{host}: {error:#}"))
}

/// A session with an instance, in the database that is always there.
pub async fn connect(host: &str) -> Result<Session, BackupError> {
    sql::connect(host, "postgres").await.map_err(|e| database(host, &e))
}

/// The time by the server's clock, which commits are stamped with.
pub async fn now(session: &Session) -> Result<Timestamp, BackupError> {
    let question =
        "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let text = session.value(question).await.map_err(|e| database("the primary", &e))?.unwrap_or_default();
    text.parse().map_err(|e| BackupError::Database(format!("the primary says that it is {text:?}: {e}")))
}

/// Ends the current segment, so that it is archived. Does nothing if nothing was written since the last time.
pub async fn switch_wal(primary: &Session) -> Result<(), BackupError> {
    primary.row("select pg_switch_wal()").await.map(drop).map_err(|e| database("the primary", &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(tablespaces: Option<&str>) -> Vec<Option<String>> {
        let values = ["7501", "17.11 (Debian 17.11-1)", "t", "16777216", "100", "8", "10", "0", "64"];
        let mut row: Vec<Option<String>> = values.iter().map(|v| Some((*v).to_string())).collect();
        row.push(tablespaces.map(String::from));
        row
    }

    #[test]
    fn reads_what_the_server_says() {
        let facts = Facts::read("orders-1", "7501", &row(None)).unwrap();
        assert_eq!(
            (facts.server_version.as_str(), facts.standby, facts.wal_segment_size),
            ("17.11", true, 16 << 20)
        );
        assert_eq!(facts.settings.max_locks_per_transaction, 64);
    }

    #[test]
    fn refuses_other_data_and_tablespaces() {
        assert_eq!(
            Facts::read("orders-1", "7502", &row(None)).unwrap_err().reason(),
            "OtherSystemIdentifier"
        );
        let error = Facts::read("orders-1", "7501", &row(Some("fast"))).unwrap_err();
        assert!(error.permanent() && error.to_string().contains("fast"));
        assert_eq!(
            Facts::read("orders-1", "7501", &row(None)[..5]).unwrap_err().reason(),
            "DatabaseUnreachable"
        );
    }
}

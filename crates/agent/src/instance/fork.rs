//! Before a standby is pointed at a new primary: whether its WAL is on the way to that one's timeline. A standby whose data has parted
//! would report its own position until the primary refuses it, and that may look like a confirmation.

use super::{member::Member, sql::Look};
use crate::sql;
use anyhow::Context;
use holdfast_postgresql::{
    Lsn,
    failover::{Record, View},
    history::TimelineHistory,
    wal::WalFile,
};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How long the new primary may take to tell its history.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// How long that is waited for. After that PostgreSQL itself refuses whoever has parted; the new primary's first segment has then ended,
/// and its commits lie beyond whatever an other position can be.
const PATIENCE: Duration = Duration::from_secs(15);
/// No history is longer.
const LONGEST: u32 = 1 << 20;

/// A primary on a timeline: its incarnation, and the timeline.
type Leader = (String, u32);

/// What is remembered between turns.
#[derive(Default)]
pub struct Compared {
    /// This one may be followed.
    with: Option<Leader>,
    /// This one is asked, since.
    asked: Option<(Leader, Instant)>,
}

/// Whether a standby may be pointed at its primary.
#[derive(Debug, PartialEq, Eq)]
pub enum Fit {
    /// It may.
    Yes,
    /// Not known yet.
    Unknown(&'static str),
    /// Its data has parted, in words.
    Parted(String),
}

fn leader(record: &Record) -> Option<Leader> {
    Some((record.holder.as_ref()?.nonce.clone(), record.timeline))
}

/// Whether what was replayed up to `end` of a timeline is part of this history; else in words where it left.
fn on_its_way(timeline: u32, end: Lsn, history: &TimelineHistory) -> Result<(), String> {
    if history.contains(timeline, end) {
        return Ok(());
    }
    let new = history.timeline;
    Err(match history.forks.iter().find(|f| f.timeline == timeline) {
        Some(fork) => {
            format!(
                "its WAL ends at {end} of timeline {timeline}, which timeline {new} left at {}",
                fork.until
            )
        }
        None => format!("its WAL is on timeline {timeline}, from which timeline {new} does not descend"),
    })
}

/// Whether a standby may follow a primary with this history. What it has replayed is what it would report; what it has only received
/// may end inside a record, which the fork cuts off.
fn judge(look: &Look, history: &TimelineHistory) -> Fit {
    let (replayed, received) = look.ends;
    if let Err(words) = on_its_way(look.timeline, replayed, history) {
        return Fit::Parted(words);
    }
    let all_common = received > Lsn(0) && history.contains(look.timeline, received.max(replayed));
    if all_common || look.replayed {
        return Fit::Yes;
    }
    Fit::Unknown("replaying its own WAL")
}

impl Member {
    /// Whether the server, which runs as a standby, may be pointed at the holder of the Lease.
    pub(super) async fn fits(&mut self, view: &View, look: &Look, host: &str) -> Fit {
        let Some(record) = view.lease.as_ref() else { return Fit::Yes };
        let Some(leader) = leader(record) else { return Fit::Yes };
        // 0: the Lease does not say it yet.
        if self.memory.compared.with.as_ref() == Some(&leader)
            || [0, look.timeline].contains(&record.timeline)
        {
            self.may_follow(view);
            return Fit::Yes;
        }
        let now = Instant::now();
        let since = match &self.memory.compared.asked {
            Some((asked, since)) if *asked == leader => *since,
            _ => now,
        };
        self.memory.compared.asked = Some((leader, since));
        let history = ask(host, record.timeline).await;
        let fit = match &history {
            Ok(Some(history)) => judge(look, history),
            _ => Fit::Unknown("waiting for its timeline's history"),
        };
        match fit {
            Fit::Unknown(what) if now.duration_since(since) > PATIENCE => {
                let error = history.err().map(|e| format!("{e:#}")).unwrap_or_default();
                tracing::warn!(host, what, error, "followed without a comparison of timelines");
                self.may_follow(view);
                Fit::Yes
            }
            Fit::Yes => {
                self.may_follow(view);
                Fit::Yes
            }
            other => other,
        }
    }

    /// The data is known to be on the way to the holder's timeline.
    pub(super) fn may_follow(&mut self, view: &View) {
        self.memory.compared = Compared { with: view.lease.as_ref().and_then(leader), asked: None };
    }

    /// Where a server that does not run may be pointed from its start: what it has is known only once it is replayed.
    pub(super) async fn upstream_at_start(&self, view: &View, host: &str) -> anyhow::Result<String> {
        let record = view.lease.as_ref();
        let same = match record {
            None => true,
            Some(record) => {
                leader(record) == self.memory.compared.with
                    || record.timeline == super::postgres::timeline(&self.postgres.data()).await?
            }
        };
        Ok(if same { host.to_string() } else { String::new() })
    }
}

/// The history of the new primary's timeline; `None`: it has not begun it yet.
async fn ask(host: &str, timeline: u32) -> anyhow::Result<Option<TimelineHistory>> {
    let file = WalFile::History(timeline);
    let question =
        format!("select convert_from(pg_read_binary_file('pg_wal/{file}', 0, {LONGEST}, true), 'UTF8')");
    let asked = async { sql::connect(host, "postgres").await?.value(&question).await };
    // An empty one only keeps the number from being used, see `Postgres::allot`.
    let text = timeout(ASK_LIMIT, asked).await.context("no answer in time")??.filter(|text| !text.is_empty());
    Ok(text.map(|text| TimelineHistory::parse(timeline, &text)).transpose()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_follows_up_to_the_fork_of_its_own_timeline_and_not_past_it() {
        let text = "1\t0/4000110\tno recovery target specified\n2\t0/6000000\tno recovery target specified\n";
        let history = TimelineHistory::parse(3, text).unwrap();
        for (timeline, end) in [(1, 0x300_0000), (1, 0x400_0110), (2, 0x600_0000), (3, 0x900_0000)] {
            assert_eq!(on_its_way(timeline, Lsn(end), &history), Ok(()), "{timeline} {end:X}");
        }
        let past = on_its_way(2, Lsn(0x600_0028), &history).unwrap_err();
        assert!(
            past.contains("0/6000028 of timeline 2") && past.contains("timeline 3 left at 0/6000000"),
            "{past}"
        );
        assert!(
            on_its_way(1, Lsn(0x400_0111), &history).is_err(),
            "the fork of its own timeline counts, not the last"
        );
        let stranger = on_its_way(4, Lsn(0x100), &history).unwrap_err();
        assert!(stranger.contains("does not descend"), "{stranger}");
    }

    #[test]
    fn what_was_received_but_is_no_record_yet_does_not_part() {
        let history = TimelineHistory::parse(2, "1\t0/4000110\tx\n").unwrap();
        let look = |replayed, received, all| Look {
            timeline: 1,
            ends: (Lsn(replayed), Lsn(received)),
            replayed: all,
            ..Look::default()
        };
        assert_eq!(
            judge(&look(0x400_0000, 0x400_0110, false), &history),
            Fit::Yes,
            "nothing of it is past the fork"
        );
        let waits = Fit::Unknown("replaying its own WAL");
        assert_eq!(judge(&look(0x400_0000, 0x400_2000, false), &history), waits);
        assert_eq!(judge(&look(0x400_0110, 0x400_2000, true), &history), Fit::Yes);
        assert_eq!(judge(&look(0x300_0000, 0, false), &history), waits, "its own WAL may go further");
        assert!(matches!(judge(&look(0x400_0138, 0x400_2000, false), &history), Fit::Parted(_)));
    }

    #[test]
    fn another_incarnation_or_timeline_is_another_leader() {
        let record = |nonce: &str, timeline| -> Record {
            serde_json::from_value(serde_json::json!({"holder": {"pod": "kelp-1", "uid": "u", "nonce": nonce},
                "last_holder": "kelp-1", "term": 2, "timeline": timeline, "data_set": "d", "system_identifier": "7",
                "synchronous": [], "confirmations": 0}))
            .unwrap()
        };
        let known = leader(&record("n1", 3));
        assert!(known.is_some() && known == leader(&record("n1", 3)));
        assert!(known != leader(&record("n2", 3)) && known != leader(&record("n1", 4)));
        assert_eq!(leader(&Record { holder: None, ..record("n1", 3) }), None);
    }
}

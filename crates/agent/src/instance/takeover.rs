//! What a change of primary cost: counted by whoever accepts writes afterwards, as far as it knows when they ended. Nothing is decided
//! by this.

use super::{clock, member::Member, watches::SeenLease};
use holdfast_postgresql::failover::Record;
use prometheus::{Counter, Histogram, HistogramOpts, IntCounterVec, Opts, Registry};
use std::time::Duration;

/// Why the last primary's time ended.
const CAUSES: [&str; 4] = ["expired", "terminated", "released", "switchover"];

/// Counts of this process.
#[derive(Clone)]
pub struct Counters {
    failovers: IntCounterVec,
    duration: Histogram,
    unavailable: Counter,
}

impl Counters {
    /// Registers them. Errors: none in practice; a name registered twice.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let failovers = IntCounterVec::new(
            Opts::new(
                "holdfast_failovers_total",
                "Times that this instance became primary in place of another, by what ended the other's time",
            ),
            &["cause"],
        )?;
        let duration = Histogram::with_opts(
            HistogramOpts::new(
                "holdfast_failover_duration_seconds",
                "From the last that was known good of the old primary until this instance accepted writes",
            )
            .buckets(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0]),
        )?;
        let unavailable = Counter::new(
            "holdfast_write_unavailability_seconds",
            "Seconds without a primary that accepts writes, counted by the one that accepts them again",
        )?;
        registry.register(Box::new(failovers.clone()))?;
        registry.register(Box::new(duration.clone()))?;
        registry.register(Box::new(unavailable.clone()))?;
        // A rate over a series that appears later misses its first count.
        for cause in CAUSES {
            failovers.with_label_values(&[cause]);
        }
        Ok(Self { failovers, duration, unavailable })
    }

    fn count(&self, closed: Duration, cause: Option<&'static str>) {
        self.unavailable.inc_by(closed.as_secs_f64());
        if let Some(cause) = cause {
            self.failovers.with_label_values(&[cause]).inc();
            self.duration.observe(closed.as_secs_f64());
        }
    }
}

/// What is remembered between turns.
#[derive(Default)]
pub struct Closed {
    /// Since when nothing can be written, by this machine's clock.
    pub since: Option<Duration>,
    /// Why this member takes over from another.
    cause: Option<&'static str>,
    /// When this primary was last seen to accept writes.
    open: Option<Duration>,
}

/// What ended the last primary's time. `None`: there was none, or it was this very pod.
fn cause(record: &Record, me: &str, holder_terminated: bool) -> Option<&'static str> {
    if record.system_identifier.is_empty() || record.last_holder.is_empty() || record.last_holder == me {
        return None;
    }
    Some(match (&record.holder, &record.hand_over) {
        (Some(_), _) if holder_terminated => "terminated",
        (Some(_), _) => "expired",
        (None, Some(hand_over)) if hand_over.asked => "switchover",
        (None, _) => "released",
    })
}

/// Since when nothing can be written. A holder that says good-bye knows that better than who watched it.
fn closed_since(record: &Record, seen: &SeenLease) -> Option<Duration> {
    if record.system_identifier.is_empty() {
        return None;
    }
    let said = record.hand_over.as_ref().filter(|_| record.holder.is_none());
    Some(said.map_or(seen.alive, |h| seen.changed.saturating_sub(Duration::from_millis(h.closed_millis))))
}

impl Member {
    /// This member is about to take the Lease that says this.
    pub(super) fn takes_over(&mut self, record: Option<&Record>, holder_terminated: bool) {
        let Some(record) = record else { return };
        let closed = &mut self.memory.closed;
        closed.cause = cause(record, &self.identity.holder.pod, holder_terminated);
        // One that stopped its own server knows when.
        closed.since = closed.since.or_else(|| closed_since(record, &self.lease.borrow()));
    }

    /// Another one leads: it counts.
    pub(super) fn gives_way(&mut self) {
        self.memory.closed = Closed::default();
    }

    /// The server of this primary ended and is to be started again in its place.
    pub(super) fn server_ended(&mut self) {
        let closed = &mut self.memory.closed;
        closed.since = closed.since.or(closed.open.take());
    }

    /// Writes are accepted here.
    pub(super) fn accepts_writes(&mut self) {
        let now = clock::now();
        let closed = &mut self.memory.closed;
        closed.open = Some(now);
        let cause = closed.cause.take();
        let Some(since) = closed.since.take() else { return };
        let closed = now.saturating_sub(since);
        self.counters.count(closed, cause);
        tracing::info!(seconds = closed.as_secs_f64(), cause, "writes are accepted again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_postgresql::failover::{HandOver, Holder};

    fn record(holder: Option<&str>, hand_over: Option<HandOver>) -> Record {
        let holder = holder.map(|pod| Holder { pod: pod.into(), uid: "u".into(), nonce: "n".into() });
        Record {
            holder,
            last_holder: "reef-0".into(),
            term: 3,
            timeline: 2,
            data_set: "d".into(),
            system_identifier: "7".into(),
            synchronous: Vec::new(),
            confirmations: 0,
            members: Vec::new(),
            hand_over,
            switchover: None,
        }
    }

    #[test]
    fn what_ended_the_last_primary_is_told_from_the_lease() {
        let asked = |asked| Some(HandOver { to: "reef-1".into(), asked, ..HandOver::default() });
        let held = record(Some("reef-0"), None);
        assert_eq!(cause(&held, "reef-1", false), Some("expired"));
        assert_eq!(cause(&held, "reef-1", true), Some("terminated"));
        assert_eq!(cause(&record(None, None), "reef-1", false), Some("released"));
        assert_eq!(cause(&record(None, asked(false)), "reef-1", false), Some("released"));
        assert_eq!(cause(&record(None, asked(true)), "reef-1", false), Some("switchover"));
        assert_eq!(cause(&held, "reef-0", true), None, "its own return is no failover");
        let new = Record { system_identifier: String::new(), ..held };
        assert_eq!(cause(&new, "reef-1", false), None, "there was nothing to take over");
    }

    #[test]
    fn the_time_without_writes_begins_where_the_old_primary_was_last_known_good() {
        let seen = SeenLease {
            changed: Duration::from_secs(100),
            alive: Duration::from_secs(93),
            ..SeenLease::default()
        };
        let since = |record: &Record| closed_since(record, &seen);
        assert_eq!(since(&record(Some("reef-0"), None)), Some(Duration::from_secs(93)));
        assert_eq!(since(&record(None, None)), Some(Duration::from_secs(93)));
        let said = HandOver { closed_millis: 1500, ..HandOver::default() };
        assert_eq!(since(&record(None, Some(said))), Some(Duration::from_millis(98_500)));
        assert_eq!(since(&Record { system_identifier: String::new(), ..record(Some("reef-0"), None) }), None);
    }

    #[test]
    fn a_failover_is_counted_by_its_cause_and_time_away_in_any_case() {
        let registry = Registry::new();
        let counters = Counters::new(&registry).unwrap();
        counters.count(Duration::from_millis(2500), Some("expired"));
        counters.count(Duration::from_millis(500), None);
        assert_eq!(counters.failovers.with_label_values(&["expired"]).get(), 1);
        assert_eq!(counters.failovers.with_label_values(&["released"]).get(), 0);
        assert_eq!(counters.duration.get_sample_count(), 1);
        assert!((counters.unavailable.get() - 3.0).abs() < 1e-9);
    }
}

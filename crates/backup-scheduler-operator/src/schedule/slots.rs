//! Which slot of a schedule is due, and which were missed. Pure: everything follows from status, the spec and `now`.

use crate::cron::{self, Cron, CronError};
use holdfast_core::{
    BackupSchedule,
    crd::schedule::{CatchUp, ConcurrencyPolicy},
};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};

/// Missed slots are counted up to so many at once: a schedule of every minute and a year of absence must not cost seconds.
const COUNTED: usize = 10_000;
/// Slots looked at to find the longest pause: more than a week of a schedule for office hours.
const LOOKED_AT: usize = 64;

/// A schedule, read.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The slots.
    pub cron: Cron,
    /// The zone that they are read in.
    pub zone: TimeZone,
    /// How long after its slot a run of this very schedule is due.
    pub jitter: SignedDuration,
    /// Fields and zone, to see whether they were changed.
    pub text: String,
}

/// Reads a schedule. Errors name the field that is wrong.
pub fn parse(schedule: &BackupSchedule) -> Result<Parsed, CronError> {
    let spec = &schedule.spec;
    Ok(Parsed {
        cron: Cron::parse(&spec.schedule)?,
        zone: cron::zone(&spec.time_zone)?,
        jitter: jitter(schedule.metadata.uid.as_deref().unwrap_or_default(), spec.jitter_seconds),
        text: format!("{} {}", spec.schedule.trim(), spec.time_zone),
    })
}

/// The same for every run of one schedule, different between schedules. FNV-1a, because it must never change.
fn jitter(uid: &str, seconds: i64) -> SignedDuration {
    let hash =
        uid.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let within = u64::try_from(seconds).unwrap_or(0);
    SignedDuration::from_secs(hash.checked_rem(within).and_then(|s| i64::try_from(s).ok()).unwrap_or(0))
}

/// The longest pause between two slots.
pub fn expected_interval(parsed: &Parsed, from: Timestamp) -> Option<SignedDuration> {
    parsed.cron.longest_pause(from, LOOKED_AT, &parsed.zone)
}

/// The newest slot after `handled` whose run is due.
pub fn newest_due(parsed: &Parsed, handled: Timestamp, now: Timestamp) -> Option<Timestamp> {
    parsed.cron.latest(handled, now - parsed.jitter, &parsed.zone)
}

/// When the run of the first slot after `handled` is due.
pub fn next_due(parsed: &Parsed, handled: Timestamp) -> Option<Timestamp> {
    parsed.cron.next(handled, &parsed.zone).map(|slot| slot + parsed.jitter)
}

/// Lets all slots up to now pass: neither run nor missed.
pub fn skip(parsed: &Parsed, handled: Timestamp, now: Timestamp) -> Timestamp {
    parsed.cron.latest(handled, now, &parsed.zone).unwrap_or(handled)
}

/// Name of the Backup of a slot. The slot in UTC: the hour that comes twice in autumn has two names.
pub fn backup_name(schedule: &str, slot: Timestamp) -> String {
    format!("{schedule}-{}", slot.strftime("%Y%m%dt%H%M"))
}

/// What is to be done about the slots up to now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The slot to make a Backup for.
    pub run: Option<Timestamp>,
    /// Up to here slots are dealt with.
    pub handled: Timestamp,
    /// Slots missed since the last time.
    pub missed: i64,
    /// A due run waits for another Backup: until then, and is missed after that.
    pub waits_until: Option<Timestamp>,
}

/// Decides. `blocked`: a Backup of the Database is unfinished.
pub fn decide(
    parsed: &Parsed,
    schedule: &BackupSchedule,
    handled: Timestamp,
    blocked: bool,
    now: Timestamp,
) -> Decision {
    let spec = &schedule.spec;
    let nothing = Decision { run: None, handled, missed: 0, waits_until: None };
    let Some(slot) = newest_due(parsed, handled, now) else { return nothing };
    let blocked = blocked && spec.concurrency_policy == ConcurrencyPolicy::Forbid;
    let deadline = slot + parsed.jitter + SignedDuration::from_secs(spec.starting_deadline_seconds);
    let late = now > deadline;
    if blocked && !late {
        return Decision { waits_until: Some(deadline), ..nothing };
    }
    let passed = parsed.cron.slots(handled, slot, &parsed.zone).take(COUNTED).count();
    let passed = i64::try_from(passed).unwrap_or(i64::MAX);
    // Late and not blocked: nobody was looking. Late and blocked: it has waited for as long as it may.
    if late && (blocked || spec.catch_up == CatchUp::None) {
        return Decision { handled: slot, missed: passed, ..nothing };
    }
    Decision { run: Some(slot), handled: slot, missed: passed - 1, waits_until: None }
}

/// The one run right at the creation: as a slot at that moment, which nobody catches up.
pub fn decide_immediate(
    schedule: &BackupSchedule,
    created: Timestamp,
    blocked: bool,
    now: Timestamp,
) -> Decision {
    let spec = &schedule.spec;
    let blocked = blocked && spec.concurrency_policy == ConcurrencyPolicy::Forbid;
    let deadline = created + SignedDuration::from_secs(spec.starting_deadline_seconds);
    match (blocked, now > deadline) {
        (true, false) => Decision { run: None, handled: created, missed: 0, waits_until: Some(deadline) },
        (true, true) => Decision { run: None, handled: created, missed: 1, waits_until: None },
        (false, _) => Decision { run: Some(created), handled: created, missed: 0, waits_until: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn schedule(spec: Value) -> BackupSchedule {
        let mut all = json!({"apiVersion": "holdfast.dev/v1alpha1", "kind": "BackupSchedule",
            "metadata": {"name": "nightly", "namespace": "shop", "uid": "n-1"},
            "spec": {"databaseRef": {"name": "orders"}, "schedule": "0 * * * *"}});
        for (key, value) in spec.as_object().unwrap() {
            all["spec"][key] = value.clone();
        }
        serde_json::from_value(all).unwrap()
    }

    fn at(time: &str) -> Timestamp {
        format!("2026-11-21T{time}:00Z").parse().unwrap()
    }

    #[test]
    fn the_table_of_slots() {
        // (spec, handled, blocked, now) -> (run, handled, missed, waits until)
        type Line = (
            Value,
            &'static str,
            bool,
            &'static str,
            Option<&'static str>,
            &'static str,
            i64,
            Option<&'static str>,
        );
        let table: Vec<Line> = vec![
            (json!({}), "01:00", false, "01:59", None, "01:00", 0, None),
            (json!({}), "01:00", false, "02:00", Some("02:00"), "02:00", 0, None),
            // Late, but within an hour.
            (json!({}), "01:00", false, "02:59", Some("02:00"), "02:00", 0, None),
            // Three hours of absence: two are missed, the newest runs.
            (json!({}), "01:00", false, "04:10", Some("04:00"), "04:00", 2, None),
            // Beyond the deadline the newest is caught up, or not.
            (
                json!({"startingDeadlineSeconds": 60}),
                "01:00",
                false,
                "04:10",
                Some("04:00"),
                "04:00",
                2,
                None,
            ),
            (
                json!({"startingDeadlineSeconds": 60, "catchUp": "None"}),
                "01:00",
                false,
                "04:10",
                None,
                "04:00",
                3,
                None,
            ),
            // Another Backup runs: wait, and when the deadline is over, it is missed even with catchUp Latest.
            (json!({}), "01:00", true, "02:10", None, "01:00", 0, Some("03:00")),
            (
                json!({"startingDeadlineSeconds": 300}),
                "01:00",
                true,
                "02:05",
                None,
                "01:00",
                0,
                Some("02:05"),
            ),
            (json!({"startingDeadlineSeconds": 300}), "01:00", true, "02:06", None, "02:00", 1, None),
            (json!({"concurrencyPolicy": "Queue"}), "01:00", true, "02:10", Some("02:00"), "02:00", 0, None),
        ];
        for (number, (spec, handled, blocked, now, run, then, missed, waits)) in table.into_iter().enumerate()
        {
            let schedule = schedule(spec);
            let parsed = parse(&schedule).unwrap();
            let decision = decide(&parsed, &schedule, at(handled), blocked, at(now));
            let expected =
                Decision { run: run.map(at), handled: at(then), missed, waits_until: waits.map(at) };
            assert_eq!(decision, expected, "line {number}");
        }
    }

    #[test]
    fn deciding_twice_runs_once() {
        let schedule = schedule(json!({}));
        let parsed = parse(&schedule).unwrap();
        let first = decide(&parsed, &schedule, at("01:00"), false, at("02:00"));
        let second = decide(&parsed, &schedule, first.handled, false, at("02:00"));
        assert_eq!((first.run, second.run, second.missed), (Some(at("02:00")), None, 0));
    }

    #[test]
    fn jitter_shifts_the_run_and_not_its_name() {
        let schedule = schedule(json!({"jitterSeconds": 600}));
        let parsed = parse(&schedule).unwrap();
        assert!(parsed.jitter < SignedDuration::from_secs(600) && parsed.jitter > SignedDuration::ZERO);
        assert_eq!(parse(&schedule).unwrap().jitter, parsed.jitter);
        let due = next_due(&parsed, at("01:00")).unwrap();
        assert_eq!(due, at("02:00") + parsed.jitter);
        let second = SignedDuration::from_secs(1);
        assert_eq!(decide(&parsed, &schedule, at("01:00"), false, due - second).run, None);
        assert_eq!(decide(&parsed, &schedule, at("01:00"), false, due).run, Some(at("02:00")));
    }

    #[test]
    fn a_name_is_the_slot_in_utc() {
        assert_eq!(backup_name("nightly", at("01:30")), "nightly-20261121t0130");
    }

    #[test]
    fn what_passes_while_suspended_is_neither_run_nor_missed() {
        let schedule = schedule(json!({}));
        let parsed = parse(&schedule).unwrap();
        let handled = skip(&parsed, at("01:00"), at("05:20"));
        assert_eq!(handled, at("05:00"));
        assert_eq!(decide(&parsed, &schedule, handled, false, at("05:20")).run, None);
        assert_eq!(skip(&parsed, at("05:00"), at("05:20")), at("05:00"));
    }

    #[test]
    fn the_immediate_run_comes_once_and_waits_like_any_other() {
        let schedule = schedule(json!({"immediate": true, "startingDeadlineSeconds": 60}));
        let created = at("01:10");
        assert_eq!(decide_immediate(&schedule, created, false, at("01:10")).run, Some(created));
        assert_eq!(decide_immediate(&schedule, created, true, at("01:11")).waits_until, Some(at("01:11")));
        let given_up = decide_immediate(&schedule, created, true, at("01:12"));
        assert_eq!((given_up.run, given_up.missed), (None, 1));
    }
}

//! The cron adapter against a table written by hand and against an oracle that walks minute by minute.

// Helpers of tests are not tests to clippy.
#![allow(clippy::unwrap_used)]

use holdfast_backup_scheduler_operator::cron::{Cron, CronError, zone};
use jiff::{Timestamp, ToSpan, civil::DateTime, tz::TimeZone};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn slots(text: &str, zone_name: &str, after: &str, until: &str) -> Vec<String> {
    let (cron, zone) = (Cron::parse(text).unwrap(), zone(zone_name).unwrap());
    cron.slots(after.parse().unwrap(), until.parse().unwrap(), &zone).map(|t| t.to_string()).collect()
}

#[test]
fn the_table() {
    // (schedule, zone, after, until, slots)
    let table: &[(&str, &str, &str, &str, &[&str])] = &[
        ("30 2 * * *", "Etc/UTC", "2026-11-20T02:30:00Z", "2026-11-22T00:00:00Z", &["2026-11-21T02:30:00Z"]),
        (
            "30 2 * * *",
            "Europe/Paris",
            "2026-11-20T12:00:00Z",
            "2026-11-21T12:00:00Z",
            &["2026-11-21T01:30:00Z"],
        ),
        // Sunday is 0, 7 and Sun; 2026-11-22 is one.
        ("0 0 * * 0", "Etc/UTC", "2026-11-20T00:00:00Z", "2026-11-28T00:00:00Z", &["2026-11-22T00:00:00Z"]),
        ("0 0 * * 7", "Etc/UTC", "2026-11-20T00:00:00Z", "2026-11-28T00:00:00Z", &["2026-11-22T00:00:00Z"]),
        ("0 0 * * Sun", "Etc/UTC", "2026-11-20T00:00:00Z", "2026-11-28T00:00:00Z", &["2026-11-22T00:00:00Z"]),
        ("@weekly", "Etc/UTC", "2026-11-20T00:00:00Z", "2026-11-28T00:00:00Z", &["2026-11-22T00:00:00Z"]),
        (
            "0 0 * * fri-sun",
            "Etc/UTC",
            "2026-11-20T00:00:00Z",
            "2026-11-27T00:00:00Z",
            &["2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z", "2026-11-27T00:00:00Z"],
        ),
        // Both day fields restricted: either suffices. The 13th of November 2026 is a Friday.
        (
            "0 0 15 * 5",
            "Etc/UTC",
            "2026-11-10T00:00:00Z",
            "2026-11-21T00:00:00Z",
            &["2026-11-13T00:00:00Z", "2026-11-15T00:00:00Z", "2026-11-20T00:00:00Z"],
        ),
        // One begins with a star: both must match.
        ("0 0 13 * *", "Etc/UTC", "2026-11-10T00:00:00Z", "2026-11-21T00:00:00Z", &["2026-11-13T00:00:00Z"]),
        ("0 0 */2 * 5", "Etc/UTC", "2026-11-10T00:00:00Z", "2026-11-21T00:00:00Z", &["2026-11-13T00:00:00Z"]),
        (
            "*/20 9-10 * jan,Nov ?",
            "Etc/UTC",
            "2026-11-10T00:00:00Z",
            "2026-11-10T23:00:00Z",
            &[
                "2026-11-10T09:00:00Z",
                "2026-11-10T09:20:00Z",
                "2026-11-10T09:40:00Z",
                "2026-11-10T10:00:00Z",
                "2026-11-10T10:20:00Z",
                "2026-11-10T10:40:00Z",
            ],
        ),
        ("@yearly", "Etc/UTC", "2026-11-10T00:00:00Z", "2027-11-10T00:00:00Z", &["2027-01-01T00:00:00Z"]),
        (
            "@hourly",
            "Etc/UTC",
            "2026-11-10T00:00:00Z",
            "2026-11-10T02:00:00Z",
            &["2026-11-10T01:00:00Z", "2026-11-10T02:00:00Z"],
        ),
        ("0 0 29 2 *", "Etc/UTC", "2024-03-01T00:00:00Z", "2032-01-01T00:00:00Z", &["2028-02-29T00:00:00Z"]),
        // Berlin, 2026-03-29: 02:00 becomes 03:00 at 01:00Z. Two appointments inside the gap are one run after it.
        (
            "15,45 2 * * *",
            "Europe/Berlin",
            "2026-03-28T12:00:00Z",
            "2026-03-30T12:00:00Z",
            &["2026-03-29T01:00:00Z", "2026-03-30T00:15:00Z", "2026-03-30T00:45:00Z"],
        ),
        (
            "0 2,3 * * *",
            "Europe/Berlin",
            "2026-03-28T12:00:00Z",
            "2026-03-29T12:00:00Z",
            &["2026-03-29T01:00:00Z"],
        ),
        (
            "30 * * * *",
            "Europe/Berlin",
            "2026-03-28T23:45:00Z",
            "2026-03-29T02:00:00Z",
            &["2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z"],
        ),
        // Berlin, 2026-10-25: 03:00 becomes 02:00 at 01:00Z.
        (
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-24T12:00:00Z",
            "2026-10-26T12:00:00Z",
            &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
        ),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-26T00:00:00Z", &[]),
        (
            "30 * * * *",
            "Europe/Berlin",
            "2026-10-24T23:45:00Z",
            "2026-10-25T03:00:00Z",
            &["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"],
        ),
        (
            "*/30 2 * * *",
            "Europe/Berlin",
            "2026-10-24T12:00:00Z",
            "2026-10-25T12:00:00Z",
            &["2026-10-25T00:00:00Z", "2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T01:30:00Z"],
        ),
        // Chicago, 2026-03-08: 02:00 becomes 03:00 at 08:00Z; a monthly run is not lost for a whole month.
        (
            "0 2 8 * *",
            "America/Chicago",
            "2026-02-09T00:00:00Z",
            "2026-03-09T00:00:00Z",
            &["2026-03-08T08:00:00Z"],
        ),
        (
            "30 2 * * *",
            "America/Chicago",
            "2026-03-08T08:00:00Z",
            "2026-03-09T12:00:00Z",
            &["2026-03-09T07:30:00Z"],
        ),
        // Chicago, 2026-11-01: 02:00 becomes 01:00 at 07:00Z.
        (
            "30 1 * * *",
            "America/Chicago",
            "2026-10-31T12:00:00Z",
            "2026-11-02T12:00:00Z",
            &["2026-11-01T06:30:00Z", "2026-11-02T07:30:00Z"],
        ),
        // Midnight itself can fall into the gap: Santiago, 2026-09-06 begins at 01:00.
        (
            "@daily",
            "America/Santiago",
            "2026-09-05T12:00:00Z",
            "2026-09-06T12:00:00Z",
            &["2026-09-06T04:00:00Z"],
        ),
        // Half an hour of change.
        (
            "15 2 * * *",
            "Australia/Lord_Howe",
            "2026-10-03T00:00:00Z",
            "2026-10-04T00:00:00Z",
            &["2026-10-03T15:30:00Z"],
        ),
    ];
    for (text, zone, after, until, expected) in table {
        assert_eq!(slots(text, zone, after, until), *expected, "{text} in {zone} after {after}");
    }
}

#[test]
fn what_cannot_be_read_is_refused_with_the_field() {
    for (text, part) in [
        ("0 30 2 * * *", "6 fields"),
        ("30 2 * *", "4 fields"),
        ("@nightly", "@daily"),
        ("60 2 * * *", "minute"),
        ("0 24 * * *", "hour"),
        ("0 0 0 * *", "day of month"),
        ("0 0 * 13 *", "month"),
        ("0 0 * * 8", "day of week"),
        ("0 0 * * monday", "day of week"),
        ("*/0 * * * *", "step"),
        ("5-3 * * * *", "ends before"),
        ("? * * * *", "minute"),
        ("1,, * * * *", "minute"),
        ("+1 * * * *", "minute"),
        ("0 0 30 2 *", "never"),
    ] {
        let error = Cron::parse(text).unwrap_err();
        let said = error.to_string();
        assert!(
            said.contains(part) || (part == "never" && matches!(error, CronError::Never(_))),
            "{text}: {said}"
        );
    }
    assert!(zone("Mars/Olympus").unwrap_err().to_string().contains("spec.timeZone"));
}

#[test]
fn the_newest_slot_is_found_without_walking_through_years() {
    let (cron, zone) = (Cron::parse("* * * * *").unwrap(), zone("Europe/Berlin").unwrap());
    let (after, until) = ("2010-01-01T00:00:00Z".parse().unwrap(), "2026-11-21T04:10:30Z".parse().unwrap());
    assert_eq!(cron.latest(after, until, &zone).unwrap().to_string(), "2026-11-21T04:10:00Z");
    let yearly = Cron::parse("@yearly").unwrap();
    assert_eq!(yearly.latest(after, until, &zone).unwrap().to_string(), "2025-12-31T23:00:00Z");
    assert_eq!(yearly.latest("2026-01-01T00:00:00Z".parse().unwrap(), until, &zone), None);
    let office = Cron::parse("0 9-17 * * 1-5").unwrap();
    assert_eq!(office.longest_pause(until, 64, &zone).unwrap().as_hours(), 64);
}

/// A field as the oracle sees it: the allowed values, and whether it is written as a star.
#[derive(Clone, Debug)]
struct Allowed {
    star: bool,
    step: Option<u32>,
    values: BTreeSet<u32>,
}

impl Allowed {
    fn text(&self) -> String {
        match (self.star, self.step) {
            (true, None) => "*".into(),
            (true, Some(step)) => format!("*/{step}"),
            _ => self.values.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
        }
    }

    fn allows(&self, value: i8) -> bool {
        self.values.contains(&u32::try_from(value).unwrap())
    }
}

fn field(min: u32, max: u32) -> impl Strategy<Value = Allowed> {
    prop_oneof![
        2 => Just(Allowed { star: true, step: None, values: (min..=max).collect() }),
        1 => (2u32..20).prop_map(move |step| Allowed {
            star: true, step: Some(step), values: (min..=max).step_by(step as usize).collect()
        }),
        3 => proptest::collection::btree_set(min..=max, 1..4)
            .prop_map(|values| Allowed { star: false, step: None, values }),
    ]
}

/// Walks through every minute there is, with a wall clock in hand.
fn oracle(f: &[Allowed; 5], after: Timestamp, until: Timestamp, zone: &TimeZone) -> Vec<Timestamp> {
    let [minute, hour, day, month, weekday] = f;
    let fixed = !minute.star && !hour.star;
    let matches = |c: DateTime| {
        let by_day = day.allows(c.day());
        let by_week = weekday.allows(c.weekday().to_sunday_zero_offset());
        minute.allows(c.minute())
            && hour.allows(c.hour())
            && month.allows(c.month())
            && if day.star || weekday.star { by_day && by_week } else { by_day || by_week }
    };
    let mut found = Vec::new();
    // One day earlier, so that the wall clock's highest reading so far is known at `after`.
    let mut now = after - 24.hours();
    let mut highest = zone.to_datetime(now);
    while now < until {
        now += 1.minutes();
        let wall = zone.to_datetime(now);
        let mut due = !fixed && matches(wall);
        if fixed {
            // Every reading that the clock shows for the first time, or jumps over, counts once.
            while highest < wall {
                highest += 1.minutes();
                due |= matches(highest);
            }
        }
        if due && now > after {
            found.push(now);
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn agrees_with_the_minute_by_minute_oracle(
        fields in (field(0, 59), field(0, 23), field(1, 31), field(1, 12), field(0, 6)),
        zone_name in prop_oneof![
            Just("Europe/Berlin"), Just("America/Chicago"), Just("Etc/UTC"), Just("Australia/Lord_Howe"),
            Just("America/Santiago"), Just("Asia/Kolkata")
        ],
        // Around the changes of the clock more often than not.
        around in prop_oneof![
            Just("2026-03-29T01:00:00Z"), Just("2026-10-25T01:00:00Z"), Just("2026-03-08T08:00:00Z"),
            Just("2026-11-01T07:00:00Z"), Just("2026-10-03T15:30:00Z"), Just("2026-04-04T15:00:00Z"),
            Just("2026-09-06T04:00:00Z"), Just("2026-04-05T03:00:00Z"), Just("2027-12-31T20:00:00Z"),
        ],
        shift in -3000i64..3000,
    ) {
        let all = [fields.0, fields.1, fields.2, fields.3, fields.4];
        let text = all.iter().map(Allowed::text).collect::<Vec<_>>().join(" ");
        let zone = zone(zone_name).unwrap();
        let middle: Timestamp = around.parse().unwrap();
        let after = middle + shift.minutes();
        let until = after + 72.hours();
        match Cron::parse(&text) {
            Ok(cron) => {
                let ours: Vec<_> = cron.slots(after, until, &zone).collect();
                let theirs = oracle(&all, after, until, &zone);
                prop_assert_eq!(&ours, &theirs, "{} in {}", text, zone_name);
                prop_assert_eq!(cron.latest(after, until, &zone), theirs.last().copied());
            }
            Err(CronError::Never(_)) => prop_assert!(oracle(&all, after, until, &zone).is_empty()),
            Err(error) => prop_assert!(false, "{}: {}", text, error),
        }
    }
}

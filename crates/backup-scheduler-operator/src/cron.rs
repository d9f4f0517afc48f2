//! Five-field cron in a time zone, as people paste it from a CronJob or a crontab. Pure.
//!
//! The `cron` crate finds civil times, behind an adapter, because its own dialect differs: it wants a field for seconds,
//! counts Sunday as 1, ANDs the two day fields and drops runs that fall into a gap of the clock. It is therefore asked
//! about a clock without gaps (UTC), and `jiff` then says which instant a civil time is.
//!
//! Daylight saving: an entry with a fixed hour and minute runs right after a spring gap that swallowed it, and once in an
//! autumn overlap. An entry with a wildcard or a step in its hour or minute follows elapsed time: it runs whenever the
//! clock on the wall matches, so in both passes of an overlap and not in a gap.

use chrono::{Datelike, NaiveDate, Timelike, Utc};
use jiff::{
    Timestamp, ToSpan,
    civil::DateTime,
    tz::{AmbiguousOffset, TimeZone},
};
use std::str::FromStr;

/// Why a schedule cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CronError {
    /// Not five fields and not a macro.
    #[error(
        "spec.schedule {0:?} has {1} fields instead of five: minute hour day-of-month month day-of-week, such as \"30 2 * * *\""
    )]
    Fields(String, usize),
    /// A macro that is not known.
    #[error("spec.schedule {0:?}: of the macros @hourly, @daily, @weekly, @monthly and @yearly are known")]
    Macro(String),
    /// A field that cannot be read.
    #[error("spec.schedule: {field} {text:?}: {why}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it says.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A date that does not exist, such as 30 February.
    #[error("spec.schedule {0:?} names no date that ever comes")]
    Never(String),
    /// An unknown time zone.
    #[error("spec.timeZone {0:?} is not an IANA time zone such as Europe/Paris")]
    Zone(String),
}

/// A time zone by its IANA name, from the system or else from the compiled-in copy. Errors: an unknown name.
pub fn zone(name: &str) -> Result<TimeZone, CronError> {
    TimeZone::get(name).map_err(|_| CronError::Zone(name.into()))
}

/// A parsed schedule.
#[derive(Clone, Debug)]
pub struct Cron {
    /// One schedule, or two when either day field suffices.
    schedules: Vec<cron::Schedule>,
    /// No wildcard or step in hour and minute: an appointment rather than an interval.
    fixed: bool,
}

/// What one field allows.
struct Field {
    /// Bit n: value n is allowed.
    bits: u64,
    /// It begins with a star: as a day field it restricts nothing of the other one (Vixie's rule, `*/2` included).
    star: bool,
    /// It has a wildcard or a step.
    wild: bool,
}

/// What a field may hold.
struct Kind {
    name: &'static str,
    min: u32,
    max: u32,
    names: &'static [&'static str],
}

const MINUTE: Kind = Kind { name: "minute", min: 0, max: 59, names: &[] };
const HOUR: Kind = Kind { name: "hour", min: 0, max: 23, names: &[] };
const DAY: Kind = Kind { name: "day of month", min: 1, max: 31, names: &[] };
const MONTH: Kind = Kind {
    name: "month",
    min: 1,
    max: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAY: Kind =
    Kind { name: "day of week", min: 0, max: 7, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

impl Kind {
    fn wrong(&self, text: &str, why: impl Into<String>) -> CronError {
        CronError::Field { field: self.name, text: text.into(), why: why.into() }
    }

    fn value(&self, text: &str, field: &str) -> Result<u32, CronError> {
        let lower = text.to_ascii_lowercase();
        if let Some(at) = self.names.iter().position(|n| *n == lower) {
            return Ok(self.min + u32::try_from(at).unwrap_or_default());
        }
        let bounds = format!("{text:?} is not a value from {} to {}", self.min, self.max);
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(self.wrong(field, bounds));
        }
        match text.parse::<u32>() {
            Ok(value) if (self.min..=self.max).contains(&value) => Ok(value),
            _ => Err(self.wrong(field, bounds)),
        }
    }

    fn field(&self, text: &str) -> Result<Field, CronError> {
        let is_day = self.name.starts_with("day");
        // 7 is another word for Sunday, not an eighth day of a star or of an open range.
        let last = if self.max == 7 { 6 } else { self.max };
        let mut bits = 0u64;
        for item in text.split(',') {
            let (base, step) = match item.split_once('/') {
                Some((base, step)) => match step.parse::<u32>() {
                    Ok(step) if step > 0 => (base, Some(step)),
                    _ => return Err(self.wrong(text, format!("{step:?} is not a step of at least 1"))),
                },
                None => (item, None),
            };
            let (from, to) = if base == "*" || (base == "?" && is_day) {
                (self.min, last)
            } else if let Some((from, to)) = base.split_once('-') {
                let (from, to) = (self.value(from, text)?, self.value(to, text)?);
                // "fri-sun" ends on the Sunday after the Friday.
                if self.max == 7 && to == 0 && from > 0 { (from, 7) } else { (from, to) }
            } else {
                let from = self.value(base, text)?;
                (from, if step.is_some() { last.max(from) } else { from })
            };
            if from > to {
                return Err(self.wrong(text, format!("the range {base} ends before it begins")));
            }
            let mut value = from;
            while value <= to {
                bits |= 1 << if self.max == 7 { value % 7 } else { value };
                value += step.unwrap_or(1);
            }
        }
        Ok(Field { bits, star: text.starts_with(['*', '?']), wild: text.contains(['*', '/']) })
    }

    /// The field in the `cron` crate's words: a plain list, because lists mean the same in every dialect.
    fn list(&self, field: &Field) -> String {
        let last = if self.max == 7 { 6 } else { self.max };
        let all: Vec<u32> = (self.min..=last).filter(|v| field.bits & (1 << v) != 0).collect();
        if u32::try_from(all.len()).unwrap_or_default() == last - self.min + 1 {
            return "*".into();
        }
        let shift = u32::from(self.max == 7);
        all.iter().map(|v| (v + shift).to_string()).collect::<Vec<_>>().join(",")
    }
}

impl Cron {
    /// Reads five fields or a macro. Errors say which field is wrong and how; a date that never comes is one, too.
    pub fn parse(text: &str) -> Result<Self, CronError> {
        let trimmed = text.trim();
        let expanded = match trimmed {
            "@hourly" => "0 * * * *",
            "@daily" | "@midnight" => "0 0 * * *",
            "@weekly" => "0 0 * * 0",
            "@monthly" => "0 0 1 * *",
            "@yearly" | "@annually" => "0 0 1 1 *",
            other if other.starts_with('@') => return Err(CronError::Macro(other.into())),
            other => other,
        };
        let fields: Vec<&str> = expanded.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(CronError::Fields(trimmed.into(), fields.len()));
        };
        let (minute, hour) = (MINUTE.field(minute)?, HOUR.field(hour)?);
        let (day, month, weekday) = (DAY.field(day)?, MONTH.field(month)?, WEEKDAY.field(weekday)?);
        let six = |days: &str, weekdays: &str| {
            let text = format!(
                "0 {} {} {days} {} {weekdays}",
                MINUTE.list(&minute),
                HOUR.list(&hour),
                MONTH.list(&month)
            );
            cron::Schedule::from_str(&text).map_err(|e| CronError::Field {
                field: "schedule",
                text: trimmed.into(),
                why: e.to_string(),
            })
        };
        let schedules = if day.star || weekday.star {
            vec![six(&DAY.list(&day), &WEEKDAY.list(&weekday))?]
        } else {
            vec![six(&DAY.list(&day), "*")?, six("*", &WEEKDAY.list(&weekday))?]
        };
        let cron = Self { schedules, fixed: !minute.wild && !hour.wild };
        // A leap day comes at least once in eight years; what has no date in such a span has none.
        match cron.civil_after(DateTime::constant(2024, 1, 1, 0, 0, 0, 0)) {
            Some(_) => Ok(cron),
            None => Err(CronError::Never(trimmed.into())),
        }
    }

    /// The next slot after this instant, exclusively. None: beyond the year 2100.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if self.fixed { self.next_fixed(after, zone) } else { self.next_elapsed(after, zone) }
    }

    /// The slots in (after, until], in order.
    pub fn slots<'a>(
        &'a self,
        after: Timestamp,
        until: Timestamp,
        zone: &'a TimeZone,
    ) -> impl Iterator<Item = Timestamp> + 'a {
        std::iter::successors(self.next(after, zone), move |slot| self.next(*slot, zone))
            .take_while(move |slot| *slot <= until)
    }

    /// The newest slot in (after, until]. Looks back from `until`, so a long absence costs no more than a short one.
    pub fn latest(&self, after: Timestamp, until: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut back = 3600;
        loop {
            let from = until.as_second().saturating_sub(back).max(after.as_second());
            let from = Timestamp::from_second(from).ok().filter(|f| *f > after).unwrap_or(after);
            if let Some(slot) = self.slots(from, until, zone).last() {
                return Some(slot);
            }
            if from <= after {
                return None;
            }
            back = back.saturating_mul(4);
        }
    }

    /// The longest pause between neighbouring slots, over the `count` slots after `after`: what to expect at worst.
    pub fn longest_pause(
        &self,
        after: Timestamp,
        count: usize,
        zone: &TimeZone,
    ) -> Option<jiff::SignedDuration> {
        let mut last = self.next(after, zone)?;
        let mut longest = None;
        for _ in 0..count {
            let Some(slot) = self.next(last, zone) else { break };
            longest = longest.max(Some(slot.duration_since(last)));
            last = slot;
        }
        longest
    }

    /// Civil times come in order, and the instants they stand for do, too; so the first one that is later will do.
    fn next_fixed(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut civil = zone.to_datetime(after);
        loop {
            civil = self.civil_after(civil)?;
            let instant = appointment(civil, zone)?;
            if instant > after {
                return Some(instant);
            }
        }
    }

    /// Goes from one change of the clock to the next: in between civil time is elapsed time.
    fn next_elapsed(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut offset = zone.to_offset(after);
        let mut from = after;
        let mut civil = offset.to_datetime(after);
        loop {
            let change = zone.following(from).take(16).find(|t| t.offset() != offset);
            let candidate = self.civil_after(civil)?;
            let instant = offset.to_timestamp(candidate).ok()?;
            match change {
                Some(change) if instant >= change.timestamp() => {
                    from = change.timestamp();
                    offset = change.offset();
                    // The first moment after the change counts, too, and what is asked for is strictly later.
                    civil = offset.to_datetime(from).checked_sub(1.nanosecond()).ok()?;
                }
                _ => return Some(instant),
            }
        }
    }

    /// The next civil time after this one, on a clock without gaps.
    fn civil_after(&self, after: DateTime) -> Option<DateTime> {
        let date = NaiveDate::from_ymd_opt(
            i32::from(after.year()),
            u32::try_from(after.month()).ok()?,
            u32::try_from(after.day()).ok()?,
        )?;
        // Slots are whole minutes: dropping the fraction of a second passes none.
        let start = date
            .and_hms_opt(
                u32::try_from(after.hour()).ok()?,
                u32::try_from(after.minute()).ok()?,
                u32::try_from(after.second()).ok()?,
            )?
            .and_local_timezone(Utc)
            .single()?;
        let next = self.schedules.iter().filter_map(|s| s.after(&start).next()).min()?;
        DateTime::new(
            i16::try_from(next.year()).ok()?,
            i8::try_from(next.month()).ok()?,
            i8::try_from(next.day()).ok()?,
            i8::try_from(next.hour()).ok()?,
            i8::try_from(next.minute()).ok()?,
            0,
            0,
        )
        .ok()
    }
}

/// The instant of an appointment at this civil time: in an overlap the first pass, in a gap its end.
fn appointment(civil: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    match zone.to_ambiguous_timestamp(civil).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(civil).ok(),
        AmbiguousOffset::Fold { before, .. } => before.to_timestamp(civil).ok(),
        AmbiguousOffset::Gap { before, after } => {
            let earlier = after.to_timestamp(civil).ok()?;
            let later = before.to_timestamp(civil).ok()?;
            zone.following(earlier)
                .take_while(|t| t.timestamp() <= later)
                .find(|t| t.offset() == after)
                .map(|t| t.timestamp())
                .or(Some(later))
        }
    }
}

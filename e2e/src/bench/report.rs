//! The figures: what was measured, which goals they meet, and how they are printed.

use crate::bench::{
    audit::{Counts, Purpose},
    process::Usage,
};

/// From the creation of objects until an operator rests.
pub struct Settled {
    /// The operator.
    pub operator: &'static str,
    /// Databases there were before, and are now.
    pub databases: (usize, usize),
    /// Seconds from the first created object to its last request.
    pub seconds: f64,
    /// Its requests.
    pub counts: Counts,
    /// What it used at the end.
    pub usage: Usage,
}

/// A start with everything there.
pub struct Cold {
    /// The operator.
    pub operator: &'static str,
    /// What was there.
    pub objects: String,
    /// Seconds from the start of the process until all caches were filled.
    pub synced: f64,
    /// Seconds until it rested.
    pub settled: f64,
    /// Processor seconds until it rested.
    pub cpu: f64,
    /// Its requests.
    pub counts: Counts,
    /// What it used when it rested.
    pub usage: Usage,
}

/// A while of rest.
pub struct Rest {
    /// The operator.
    pub operator: &'static str,
    /// What was there.
    pub objects: String,
    /// Length, minutes.
    pub minutes: f64,
    /// Its requests.
    pub counts: Counts,
    /// At the beginning.
    pub before: Usage,
    /// At the end.
    pub after: Usage,
}

/// A goal, and whether it was reached.
pub struct Goal {
    /// What should be.
    pub goal: String,
    /// What is.
    pub measured: String,
    /// Whether that is so.
    pub met: bool,
}

#[allow(clippy::cast_precision_loss)] // Kibibytes and counts stay far below 2^52.
fn mebibytes(kibibytes: u64) -> f64 {
    kibibytes as f64 / 1024.0
}

#[allow(clippy::cast_precision_loss)]
fn per(count: usize, of: f64) -> f64 {
    count as f64 / of.max(f64::MIN_POSITIVE)
}

fn list(parts: &[(String, usize)], of: f64, digits: usize) -> String {
    let parts: Vec<String> =
        parts.iter().map(|(name, n)| format!("{name} {:.digits$}", per(*n, of))).collect();
    if parts.is_empty() { "none".into() } else { parts.join(", ") }
}

impl Settled {
    /// Heading of [`Self::row`].
    pub const HEADING: [&'static str; 7] =
        ["created while it runs", "databases", "settled s", "requests", "a database", "of these", "peak MiB"];

    /// A line of the table.
    pub fn row(&self) -> Vec<String> {
        let (before, now) = self.databases;
        #[allow(clippy::cast_precision_loss)]
        let new = (now - before) as f64;
        vec![
            self.operator.into(),
            format!("{before} + {}", now - before),
            format!("{:.1}", self.seconds),
            self.counts.work().to_string(),
            format!("{:.1}", per(self.counts.work(), new)),
            list(&self.counts.by_verb(), new, 1),
            format!("{:.1}", mebibytes(self.usage.peak)),
        ]
    }
}

impl Cold {
    /// Heading of [`Self::row`].
    pub const HEADING: [&'static str; 8] =
        ["cold start", "with", "synced s", "settled s", "CPU s", "requests", "MiB", "peak MiB"];

    /// A line of the table.
    pub fn row(&self) -> Vec<String> {
        vec![
            self.operator.into(),
            self.objects.clone(),
            format!("{:.2}", self.synced),
            format!("{:.2}", self.settled),
            format!("{:.2}", self.cpu),
            format!("{} ({})", self.counts.work(), list(&self.counts.by_verb(), 1.0, 0)),
            format!("{:.1}", mebibytes(self.usage.resident)),
            format!("{:.1}", mebibytes(self.usage.peak)),
        ]
    }
}

impl Rest {
    /// Heading of [`Self::row`].
    pub const HEADING: [&'static str; 9] = [
        "at rest",
        "with",
        "minutes",
        "requests/min",
        "watches/min",
        "MiB",
        "MiB at the end",
        "peak MiB",
        "CPU s/min",
    ];

    /// A line of the table.
    pub fn row(&self) -> Vec<String> {
        let Self { before, after, .. } = self;
        vec![
            self.operator.into(),
            self.objects.clone(),
            format!("{:.1}", self.minutes),
            format!(
                "{:.2} ({})",
                per(self.counts.work(), self.minutes),
                list(&self.counts.by_kind(), self.minutes, 2)
            ),
            format!("{:.1}", per(self.counts.purpose(Purpose::Watch), self.minutes)),
            format!("{:.1}", mebibytes(before.resident)),
            format!("{:.1}", mebibytes(after.resident)),
            format!("{:.1}", mebibytes(after.peak)),
            format!("{:.3}", (after.cpu - before.cpu) / self.minutes),
        ]
    }

    /// The goal that nothing but the leader Lease is written or read at rest.
    pub fn quiet(&self) -> Goal {
        Goal {
            goal: format!(
                "{}, {}: no request at rest but the leader Lease and watches",
                self.operator, self.objects
            ),
            measured: format!("{} in {:.1} minutes", self.counts.work(), self.minutes),
            met: self.counts.work() == 0,
        }
    }

    /// The goal that memory does not grow with time: what an allocator moves about is less than this.
    pub fn steady(&self) -> Goal {
        const SLACK_KIB: u64 = 1024;
        let (before, after) = (self.before.resident, self.after.resident);
        Goal {
            goal: format!("{}, {}: memory does not grow by more than 1 MiB", self.operator, self.objects),
            measured: format!(
                "{:+.1} MiB in {:.1} minutes",
                mebibytes(after) - mebibytes(before),
                self.minutes
            ),
            met: after <= before + SLACK_KIB,
        }
    }

    /// The goal that no more than this is resident.
    pub fn below(&self, limit: u64) -> Goal {
        let most = self.before.resident.max(self.after.resident);
        Goal {
            goal: format!("{}, {}: less than {limit} MiB resident at rest", self.operator, self.objects),
            measured: format!("{:.1} MiB", mebibytes(most)),
            met: most < limit * 1024,
        }
    }
}

impl Cold {
    /// The goal that caches are filled in this time.
    pub fn within(&self, limit: f64) -> Goal {
        Goal {
            goal: format!("{}, {}: synced within {limit} s of a cold start", self.operator, self.objects),
            measured: format!("{:.2} s", self.synced),
            met: self.synced < limit,
        }
    }

    /// The goal that it rests this soon after its caches are filled: nothing has to change.
    pub fn settles_within(&self, limit: f64) -> Goal {
        let seconds = self.settled - self.synced;
        Goal {
            goal: format!("{}, {}: rests within {limit} s of synced", self.operator, self.objects),
            measured: format!("{seconds:.1} s"),
            met: seconds < limit,
        }
    }
}

/// A table with aligned columns.
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = heading.iter().map(|h| (*h).to_string()).collect();
    let all: Vec<&Vec<String>> = std::iter::once(&head).chain(rows).collect();
    let width = |column: usize| {
        all.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let mut text = String::new();
    for (number, row) in all.iter().enumerate() {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
        if number == 0 {
            let lines: Vec<String> = widths.iter().map(|w| "-".repeat(*w)).collect();
            text.push_str(&format!("|-{}-|\n", lines.join("-|-")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned() {
        let text =
            table(&["kind", "n"], &[vec!["shelf".into(), "12".into()], vec!["book".into(), "3".into()]]);
        assert_eq!(text, "| kind  | n  |\n|-------|----|\n| shelf | 12 |\n| book  | 3  |\n");
    }

    #[test]
    fn memory_may_move_a_little_and_must_not_grow() {
        let rest = |after| Rest {
            operator: "keeper",
            objects: "3 shelves".into(),
            minutes: 10.0,
            counts: Counts::default(),
            before: Usage { resident: 50_000, ..Usage::default() },
            after: Usage { resident: after, ..Usage::default() },
        };
        assert!(rest(50_900).steady().met);
        assert!(!rest(51_100).steady().met);
        assert!(rest(50_900).below(50).met);
        assert!(!rest(51_300).below(50).met);
        assert!(rest(50_000).quiet().met);
    }
}

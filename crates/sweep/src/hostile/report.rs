//! What came of all changes, as a table and one line for each finding.

use super::{change::Change, options::Moment, oracle::Verdict};
use std::{collections::BTreeMap, fmt};

/// What became of one change.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The change.
    pub change: Change,
    /// When it came.
    pub moment: Moment,
    /// What became of it, there and back.
    pub verdict: Verdict,
    /// Why it is not taken back, where that is so by design.
    pub lasting: Option<&'static str>,
}

impl Outcome {
    /// The command that tries this alone.
    pub fn again(&self) -> String {
        let name = self.change.to_string().replace('\'', r"'\''");
        format!("sweep hostile --moment {} --only '{name}'", self.moment)
    }
}

/// What became of all.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In the order in which they were tried.
    pub outcomes: Vec<Outcome>,
    /// What kept changes from being tried.
    pub failures: Vec<String>,
}

impl Report {
    /// The outcomes that are findings.
    pub fn findings(&self) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(|o| matches!(o.verdict, Verdict::Finding(_)))
    }

    /// Whether nothing was found, and everything was tried.
    pub fn is_clean(&self) -> bool {
        self.findings().next().is_none() && self.failures.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table: BTreeMap<(&str, Moment), [usize; 6]> = BTreeMap::new();
        for outcome in &self.outcomes {
            let row = table.entry((outcome.change.kind, outcome.moment)).or_default();
            let column = match outcome.verdict {
                Verdict::Refused => 1,
                Verdict::CarriedOut => 2,
                Verdict::Stalled(_) => 3,
                Verdict::Waiting(_) => 4,
                Verdict::Finding(_) => 5,
            };
            row[0] += 1;
            row[column] += 1;
        }
        writeln!(
            f,
            "{:16} {:8} {:>6} {:>8} {:>12} {:>8} {:>8} {:>9}",
            "kind", "moment", "tried", "refused", "carried out", "stalled", "waiting", "findings"
        )?;
        for ((kind, moment), row) in &table {
            let [tried, refused, done, stalled, waiting, found] = row;
            writeln!(
                f,
                "{kind:16} {:8} {tried:>6} {refused:>8} {done:>12} {stalled:>8} {waiting:>8} {found:>9}",
                moment.to_string()
            )?;
        }
        let mut lasting: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for outcome in &self.outcomes {
            if let Some(why) = outcome.lasting {
                *lasting.entry((outcome.change.kind, why)).or_default() += 1;
            }
        }
        for ((kind, why), count) in lasting {
            writeln!(f, "not taken back by design: {count} of {kind}: {why}")?;
        }
        for outcome in self.findings() {
            writeln!(f, "{}\n    {}", outcome.again(), outcome.verdict)?;
        }
        for failure in &self.failures {
            writeln!(f, "FAILED: {failure}")?;
        }
        writeln!(f, "{} tried, {} findings", self.outcomes.len(), self.findings().count())
    }
}

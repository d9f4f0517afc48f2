//! What to try, and when.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// When a change comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Moment {
    /// All is at rest, and comes to rest before the way back.
    Rest,
    /// All is at rest, and the way back comes before the change is carried out.
    Early,
    /// In the middle of the first rollout, before pods are ready.
    Rollout,
}

impl Moment {
    /// All of them, in the order in which they are tried.
    pub const ALL: [Self; 3] = [Self::Rest, Self::Early, Self::Rollout];
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rest => "rest",
            Self::Early => "early",
            Self::Rollout => "rollout",
        })
    }
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|m| m.to_string() == text);
        found.ok_or_else(|| format!("no moment {text:?}; there are rest, early, rollout"))
    }
}

/// What to try.
#[derive(Clone, Debug)]
pub struct Options {
    /// The change with this very name, else all changes whose names have this text in them. None: all.
    pub only: Option<String>,
    /// Kinds to try. Empty: all.
    pub kinds: Vec<String>,
    /// Moments to try.
    pub moments: Vec<Moment>,
    /// Of so many changes only each one of a kind's is tried: 1 tries all.
    pub every: usize,
    /// Varies uids.
    pub seed: u64,
    /// So many lines of what differs are shown of each finding.
    pub lines: usize,
    /// Threads, each with clusters of its own.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            only: None,
            kinds: Vec::new(),
            moments: Moment::ALL.into(),
            every: 1,
            seed: 1,
            lines: 4,
            threads,
        }
    }
}

/// How the arguments are used.
pub const HELP: &str = "  sweep hostile                   every field of every spec, wrong in every way, and taken back
  sweep hostile --only 'TEXT'     changes whose names have this text in them, as a finding prints it
  sweep hostile --kind A,B        changes of these kinds
  sweep hostile --moment M,N      when they come: rest, early (taken back at once), rollout (before pods are ready)
  sweep hostile --every N         each Nth change alone
  sweep hostile --lines N         shows so many differences of each finding (4)
  sweep hostile --seed N          draws other uids (1)";

impl Options {
    /// Reads what follows `hostile` on the command line. Errors: something is not understood.
    pub fn from_arguments(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--only" => options.only = Some(value()?),
                "--kind" => options.kinds = value()?.split(',').map(Into::into).collect(),
                "--moment" => {
                    options.moments = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?;
                }
                "--every" => options.every = number(&value()?)?.max(1),
                "--lines" => options.lines = number(&value()?)?.max(1),
                "--seed" => options.seed = value()?.parse().map_err(|e| format!("--seed: {e}"))?,
                "--threads" => options.threads = number(&value()?)?.max(1),
                _ => return Err(HELP.into()),
            }
        }
        Ok(options)
    }
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|e| format!("{text:?} is no number: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read() {
        let read = |text: &[&str]| Options::from_arguments(text.iter().map(|t| t.to_string()));
        let options =
            read(&["--only", "Database spec.image", "--moment", "early,rollout", "--every", "7"]).unwrap();
        assert_eq!(options.only.as_deref(), Some("Database spec.image"));
        assert_eq!((options.moments, options.every), (vec![Moment::Early, Moment::Rollout], 7));
        assert!(read(&["--moment", "never"]).unwrap_err().contains("rollout"));
        assert!(read(&["--onyl", "x"]).is_err() && read(&["--only"]).is_err());
    }
}

//! Status conditions: how to set and how to read them.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// Condition types, as users wait for them.
pub mod types {
    /// This generation is carried out and every wanted part is ready.
    pub const READY: &str = "Ready";
    /// Something only a person can put right is in the way; the message says what.
    pub const STALLED: &str = "Stalled";
    /// Work towards this generation goes on.
    pub const RECONCILING: &str = "Reconciling";
    /// Database: `-rw` accepts writes now.
    pub const AVAILABLE: &str = "Available";
    /// Database: every instance on one timeline, synchronous where promised, within the lag limit.
    pub const CONSISTENT: &str = "Consistent";
    /// Database: WAL reaches the store.
    pub const ARCHIVING: &str = "Archiving";
    /// Database: stopped for the operation whose token is in the message.
    pub const QUIESCED: &str = "Quiesced";
    /// Backup, Restore: it ended well.
    pub const SUCCEEDED: &str = "Succeeded";
    /// Backup: a drill restored this very backup.
    pub const VERIFIED: &str = "Verified";
    /// BackupSchedule: no good backup within what it promises.
    pub const OVERDUE: &str = "Overdue";
    /// Restore: the plan was proven possible.
    pub const VALIDATED: &str = "Validated";
    /// Restore: data in place and checked, not yet serving.
    pub const RESTORED: &str = "Restored";
    /// Restore: the database is back on what it had before.
    pub const ROLLED_BACK: &str = "RolledBack";
}

/// A condition's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// Yes.
    True,
    /// No.
    False,
    /// Not decided yet.
    Unknown,
}

impl Truth {
    /// As Kubernetes spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Truth {
    fn from(yes: bool) -> Self {
        if yes { Self::True } else { Self::False }
    }
}

/// Makes a condition. `reason` is CamelCase; `message` a sentence for people, naming fields as in the spec.
pub fn condition(
    type_: &str,
    truth: Truth,
    reason: &str,
    message: impl Into<String>,
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    Condition {
        type_: type_.into(),
        status: truth.as_str().into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: generation,
        last_transition_time: Time(now),
    }
}

/// Sets a condition in a list. The transition time moves only when the status does.
pub fn set(all: &mut Vec<Condition>, mut new: Condition) {
    match all.iter_mut().find(|c| c.type_ == new.type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
        None => all.push(new),
    }
}

/// Finds a condition.
pub fn find<'a>(all: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    all.iter().find(|c| c.type_ == type_)
}

/// Reason of `Available=False`: the primary serves sessions, and no commit ends, since standbys are missing that must confirm it.
pub const COMMITS_WAIT: &str = "CommitsWait";

/// Whether the primary serves sessions: it is Available, or only commits wait for standbys.
pub fn serves(conditions: &[Condition]) -> bool {
    find(conditions, types::AVAILABLE).is_some_and(|c| c.status == "True" || c.reason == COMMITS_WAIT)
}

/// Whether a condition is True, whatever generation it speaks of.
pub fn is_true(all: &[Condition], type_: &str) -> bool {
    find(all, type_).is_some_and(|c| c.status == "True")
}

/// Whether a condition is False.
pub fn is_false(all: &[Condition], type_: &str) -> bool {
    find(all, type_).is_some_and(|c| c.status == "False")
}

/// Whether a condition is True and speaks of this generation.
pub fn is_true_for(all: &[Condition], type_: &str, generation: Option<i64>) -> bool {
    find(all, type_).is_some_and(|c| c.status == "True" && c.observed_generation == generation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transition_time_moves_only_with_the_status() {
        let (early, late) = (Timestamp::from_second(1_000).unwrap(), Timestamp::from_second(2_000).unwrap());
        let mut all = vec![condition("Ready", Truth::False, "Waiting", "a", Some(1), early)];
        set(&mut all, condition("Ready", Truth::False, "Other", "b", Some(2), late));
        assert_eq!(all[0].last_transition_time.0, early);
        assert_eq!((all[0].reason.as_str(), all[0].observed_generation), ("Other", Some(2)));
        set(&mut all, condition("Ready", Truth::True, "Done", "", Some(2), late));
        assert_eq!(all[0].last_transition_time.0, late);
        assert!(is_true_for(&all, "Ready", Some(2)) && !is_true_for(&all, "Ready", Some(1)));
    }
}

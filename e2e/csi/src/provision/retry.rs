//! When an object that failed may be tried again. Pure, but for the map.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Delay after the first failure.
const FIRST: Duration = Duration::from_secs(1);
/// The delay never grows beyond this.
const LONGEST: Duration = Duration::from_secs(30);
/// What has not been tried for so long is forgotten: the object is gone.
const FORGET: Duration = Duration::from_secs(600);

struct Attempt {
    failures: u32,
    until: Instant,
    /// What the object said when it was tried: a change of it is worth a new attempt at once. `None`: wait whatever changes.
    essence: Option<u64>,
}

/// Attempts, by uid.
#[derive(Default)]
pub struct Retry {
    attempts: Mutex<HashMap<String, Attempt>>,
}

impl Retry {
    fn attempts(&self) -> MutexGuard<'_, HashMap<String, Attempt>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long to leave an object alone that says `essence`; `None`: it may be tried.
    pub fn wait(&self, uid: &str, essence: u64, now: Instant) -> Option<Duration> {
        let attempts = self.attempts();
        let attempt = attempts.get(uid)?;
        let same = attempt.essence.is_none_or(|before| before == essence);
        (same && attempt.until > now).then(|| attempt.until - now)
    }

    /// Whether this would be the first attempt, or the first since the object changed.
    pub fn fresh(&self, uid: &str, essence: u64) -> bool {
        self.attempts().get(uid).is_none_or(|attempt| attempt.essence != Some(essence))
    }

    /// Counts a failure and says how long to wait: 1 s, doubling to 30 s.
    pub fn failed(&self, uid: &str, essence: u64, now: Instant) -> Duration {
        let mut attempts = self.attempts();
        attempts.retain(|_, attempt| now < attempt.until + FORGET);
        let failures = attempts.get(uid).map_or(0, |attempt| attempt.failures).saturating_add(1);
        let delay = FIRST.saturating_mul(1 << (failures - 1).min(10)).min(LONGEST);
        let attempt = Attempt { failures, until: now + delay, essence: Some(essence) };
        attempts.insert(uid.to_string(), attempt);
        delay
    }

    /// It went well: leave the object alone for a while, whatever an old view of it says.
    pub fn done(&self, uid: &str, pause: Duration, now: Instant) {
        let attempt = Attempt { failures: 0, until: now + pause, essence: None };
        self.attempts().insert(uid.to_string(), attempt);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_the_longest_and_are_waited_out() {
        let (retry, now) = (Retry::default(), Instant::now());
        let delays: Vec<u64> = (0..8).map(|_| retry.failed("u1", 7, now).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(retry.wait("u1", 7, now), Some(LONGEST));
        assert_eq!(retry.wait("u1", 7, now + LONGEST), None);
        assert_eq!(retry.wait("u2", 7, now), None);
    }

    #[test]
    fn a_changed_object_is_tried_at_once_but_not_after_success() {
        let (retry, now) = (Retry::default(), Instant::now());
        assert!(retry.fresh("u1", 7));
        retry.failed("u1", 7, now);
        assert!(!retry.fresh("u1", 7));
        assert!(retry.fresh("u1", 8));
        assert_eq!(retry.wait("u1", 8, now), None);
        retry.done("u1", LONGEST, now);
        assert_eq!(retry.wait("u1", 9, now), Some(LONGEST));
        assert_eq!(retry.failed("u1", 9, now + LONGEST), FIRST);
    }

    #[test]
    fn objects_that_are_gone_are_forgotten() {
        let (retry, now) = (Retry::default(), Instant::now());
        retry.failed("u1", 7, now);
        retry.failed("u2", 7, now + FORGET * 2);
        assert_eq!(retry.attempts().len(), 1);
    }
}

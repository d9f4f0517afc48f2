//! Per-object exponential backoff with jitter. Pure, but for the one map that counts failures.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Delay after the first failure.
pub const FIRST: Duration = Duration::from_secs(1);
/// The delay never grows beyond this.
pub const LONGEST: Duration = Duration::from_secs(300);

/// Delay after so many failures in a row, with jitter: between half of it and all of it, as `random` in 0..1 says.
///
/// Jitter keeps a hundred objects that failed together from coming back together.
pub fn delay(failures: u32, random: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(30);
    let full = FIRST.saturating_mul(1 << doublings).min(LONGEST);
    full.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
}

/// A number in 0..1 that differs from call to call. Not for secrets.
pub fn random() -> f64 {
    // Every RandomState has keys of its own: enough for jitter, without a dependency.
    (RandomState::new().hash_one(0_u8) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Failures in a row, by object.
#[derive(Debug)]
pub struct Backoff<Key> {
    failures: Mutex<HashMap<Key, u32>>,
}

impl<Key> Default for Backoff<Key> {
    fn default() -> Self {
        Self { failures: Mutex::new(HashMap::new()) }
    }
}

impl<Key: Hash + Eq> Backoff<Key> {
    /// Counts a failure and says how long to wait.
    pub fn failed(&self, key: Key) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(key).or_insert(0);
        *count = count.saturating_add(1);
        delay(*count, random())
    }

    /// Forgets an object: it went well, or it is gone.
    pub fn forget(&self, key: &Key) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Objects that failed last time.
    pub fn failing(&self) -> usize {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_and_stop_at_the_longest() {
        let full: Vec<u64> = (1..=12).map(|n| delay(n, 1.0).as_secs()).collect();
        assert_eq!(full, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(delay(u32::MAX, 1.0), LONGEST);
        assert_eq!(delay(3, 0.0), Duration::from_secs(2));
    }

    #[test]
    fn jitter_stays_between_half_and_all() {
        for failures in 0..40 {
            for _ in 0..20 {
                let random = random();
                assert!((0.0..1.0).contains(&random));
                let delay = delay(failures, random);
                assert!(delay >= FIRST / 2 && delay <= LONGEST);
            }
        }
    }

    #[test]
    fn one_objects_failures_are_not_anothers_and_success_resets() {
        let backoff = Backoff::default();
        for _ in 0..6 {
            backoff.failed("shop/orders");
        }
        assert!(backoff.failed("shop/orders") >= Duration::from_secs(32));
        assert!(backoff.failed("shop/carts") <= FIRST);
        backoff.forget(&"shop/orders");
        assert!(backoff.failed("shop/orders") <= FIRST);
        assert_eq!(backoff.failing(), 2);
    }
}

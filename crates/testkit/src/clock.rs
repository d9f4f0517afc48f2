//! The server's clock and its source of uids: the same run gives the same values.

use jiff::{SignedDuration, Timestamp};
use std::time::Duration;
use tokio::time::Instant;

/// A point in time that moves with tokio's clock, also with a paused one.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    base: Timestamp,
    origin: Instant,
}

impl Clock {
    /// `base` is now. Call it within the runtime whose clock is to be followed.
    pub fn starting(base: Timestamp) -> Self {
        Self { base, origin: Instant::now() }
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        let passed = SignedDuration::try_from(self.origin.elapsed()).unwrap_or(SignedDuration::ZERO);
        self.base.checked_add(passed).unwrap_or(self.base)
    }

    /// The time as objects carry it: whole seconds.
    pub fn stamp(&self) -> String {
        stamp(self.now())
    }

    /// The time after a pause, as objects carry it.
    pub fn stamp_after(&self, pause: Duration) -> String {
        let pause = SignedDuration::try_from(pause).unwrap_or(SignedDuration::ZERO);
        let now = self.now();
        stamp(now.checked_add(pause).unwrap_or(now))
    }
}

/// A time as objects carry it: whole seconds, UTC.
pub fn stamp(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A seeded source of uids and name suffixes (SplitMix64): not random to anyone, never the same value twice in practice.
#[derive(Clone, Debug)]
pub(crate) struct Ids(u64);

impl Ids {
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In the form of a random UUID (version 4).
    pub(crate) fn uid(&mut self) -> String {
        let (a, b) = (self.next(), self.next());
        format!(
            "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
            a >> 32,
            (a >> 16) & 0xffff,
            a & 0xfff,
            0x8000 | ((b >> 48) & 0x3fff),
            b & 0xffff_ffff_ffff
        )
    }

    /// Five characters, from the alphabet that Kubernetes uses for generated names.
    pub(crate) fn suffix(&mut self) -> String {
        const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let mut bits = self.next();
        let mut text = String::new();
        for _ in 0..5 {
            let index = usize::try_from(bits % 27).unwrap_or(0);
            text.push(char::from(ALPHABET[index]));
            bits /= 27;
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_ids_and_another_gives_others() {
        let (mut a, mut b, mut c) = (Ids::seeded(7), Ids::seeded(7), Ids::seeded(8));
        let uid = a.uid();
        assert_eq!(uid, b.uid());
        assert_ne!(uid, c.uid());
        assert_eq!(uid.len(), 36);
        assert_eq!(a.suffix(), b.suffix());
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_follows_a_paused_runtime() {
        let clock = Clock::starting("2026-01-01T00:00:00Z".parse().unwrap());
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(clock.stamp(), "2026-01-01T00:01:01Z");
        assert_eq!(clock.stamp_after(Duration::from_secs(9)), "2026-01-01T00:01:10Z");
    }
}

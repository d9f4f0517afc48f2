//! The clock that leases are measured with: it goes on while the machine sleeps and never jumps.

use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Time since the machine started, suspended or not (CLOCK_BOOTTIME).
pub fn now() -> Duration {
    match clock_gettime(ClockId::CLOCK_BOOTTIME) {
        Ok(time) => Duration::new(
            u64::try_from(time.tv_sec()).unwrap_or(0),
            u32::try_from(time.tv_nsec()).unwrap_or(0),
        ),
        // Cannot happen on Linux. The furthest future makes every lease look run out: fencing is the safe side.
        Err(_) => Duration::MAX,
    }
}

//! The clock, for what has to carry a date.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time since 1970.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The time since this node was booted, sleep included: it only goes forward, and is one for all processes.
pub fn since_boot() -> Duration {
    let clock = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    clock.map(Duration::from).unwrap_or_default()
}

/// Up to half a second by chance, so that guests that start together do not all try again together.
pub fn jitter() -> Duration {
    Duration::from_millis(u64::from(now().subsec_nanos()) % 500)
}

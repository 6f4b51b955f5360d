//! The one place that waits: conditions of real processes, which announce nothing.

use std::thread;
use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_millis(10);

/// Asks `condition` until it gives a value; `None` when `bound` has passed without one.
#[expect(
    clippy::disallowed_methods,
    reason = "other processes start and end in the machine's time, not in a simulated one"
)]
pub(crate) fn until<T>(bound: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if started.elapsed() >= bound {
            return None;
        }
        thread::sleep(STEP);
    }
}

//! Limits on what a client may ask for: never more than so much in any window of time.
//!
//! - [`Windows`] count one client's permits. They are the algorithm, without a clock and without I/O.
//! - [`Permits`] is the port of a counter that all instances share. Its implementations do what
//!   [`Windows`] do, on one clock.
//! - [`RateLimiter`] decides requests. It takes permits from the shared counter in chunks, so that most
//!   requests are decided in memory, and goes on by itself while the counter cannot be reached.

mod limiter;
mod shared;
mod window;
mod windows;

pub use limiter::{Admission, RateLimiter};
pub use shared::{Permits, SharedPermits};
pub use window::Quota;
pub use windows::{Quotas, Taken, Wanted, Windows};

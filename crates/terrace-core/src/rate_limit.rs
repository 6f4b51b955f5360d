//! Limits on what a client may ask for: never more than so much in any window of time.
//!
//! - [`Window`] counts one client's permits. It is the algorithm, without a clock and without I/O.
//! - [`Permits`] is the port of a counter that all instances share. Its implementations do what
//!   [`Window`] does, on one clock.
//! - [`RateLimiter`] decides requests. It takes permits from the shared counter in chunks, so that most
//!   requests are decided in memory, and goes on by itself while the counter cannot be reached.

mod limiter;
mod shared;
mod window;

pub use limiter::{Admission, RateLimiter};
pub use shared::{Permits, SharedPermits};
pub use window::{Quota, Taken, Window};

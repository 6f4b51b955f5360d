//! Pure functions from a history to a [`Verdict`](crate::Verdict).
//!
//! Values identify writes: each write of a history has a value of its own. A checker judges by
//! values and real time first, as versions are among what is checked.

mod conditions;
mod freshness;
#[cfg(test)]
mod hand_made;
mod idempotency;
mod linearizability;
mod lost_writes;
mod sessions;
mod sources;

pub use conditions::conditions;
pub use freshness::{Exception, Freshness, freshness};
pub use idempotency::idempotency;
pub use linearizability::linearizability;
pub use lost_writes::lost_writes;
pub use sessions::sessions;

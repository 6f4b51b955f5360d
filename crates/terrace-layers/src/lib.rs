//! One behaviour a layer: stores around stores.
//!
//! Every layer's page has the same order: what it is; on read; on write; on delete; on failure;
//! defaults with units; where it belongs in a stack; what it gives up. This crate's manifest lists
//! no database driver: that is the proof that a layer works over every store.

mod cache_aside;
mod coalesce;
mod concurrency_limit;
mod flusher;
mod near_cache;
mod observe;
mod single_flight;
mod timeout;
mod write_buffer;

pub use cache_aside::{CacheAside, CacheAsideOptions};
pub use coalesce::{Coalesce, CoalesceOptions};
pub use concurrency_limit::{ConcurrencyLimit, ConcurrencyLimitOptions};
#[cfg(feature = "mutants")]
#[doc(hidden)]
pub use flusher::FlusherMutant;
pub use flusher::{Flusher, FlusherOptions};
pub use near_cache::{NearCache, NearCacheOptions};
pub use observe::Observe;
pub use single_flight::SingleFlight;
pub use timeout::{Timeout, TimeoutOptions};
pub use write_buffer::{WriteBuffer, WriteBufferOptions};

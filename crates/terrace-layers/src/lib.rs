//! One behaviour a layer: stores around stores.
//!
//! Every layer's page has the same order: what it is; on read; on write; on delete; on failure;
//! defaults with units; where it belongs in a stack; what it gives up. This crate's manifest lists
//! no database driver: that is the proof that a layer works over every store.

mod alarm;
mod budget;
mod cache_aside;
mod cached_ledger;
mod circuit_breaker;
mod coalesce;
mod concurrency_limit;
mod cqrs;
mod fill_on_write;
mod flusher;
mod follow;
mod geo_router;
mod heads;
mod histogram;
mod late;
mod layered_documents;
mod live_copy;
mod near_cache;
mod observe;
mod partial;
mod region_set;
mod replica_router;
pub mod resharding;
mod retry;
mod rollups;
mod shard_router;
mod single_flight;
mod summaries;
mod timeout;
mod write_buffer;

pub use cache_aside::{CacheAside, CacheAsideOptions};
pub use cached_ledger::{CachedLedger, Latest};
pub use circuit_breaker::{CircuitBreaker, CircuitBreakerOptions};
pub use coalesce::{Coalesce, CoalesceOptions};
pub use concurrency_limit::{ConcurrencyLimit, ConcurrencyLimitOptions, Turns};
pub use cqrs::{CommandSide, Cqrs, CqrsOptions, rebuild};
pub use fill_on_write::FillOnWrite;
pub use flusher::{Acceptor, Flusher, FlusherOptions};
pub use follow::{FirstRows, Follow, FollowOptions, Following};
pub use geo_router::{GeoRouter, GeoRouterOptions, Home, RegionLink, RegionParts};
pub use late::{DocumentSide, Late};
pub use layered_documents::LayeredDocuments;
pub use near_cache::{NearCache, NearCacheOptions};
pub use observe::Observe;
pub use region_set::{DrillReport, LagState, RegionLag, RegionSet, RowDifference};
pub use replica_router::{Member, ReplicaRouter, ReplicaRouterOptions};
pub use resharding::{Resharding, ReshardingOptions};
pub use retry::{Retry, RetryOptions};
pub use rollups::{ByShard, Rollups};
pub use shard_router::{
    Around, GeoPartitioner, HashPartitioner, Partitioner, RangePartitioner, ShardOpener,
    ShardRouter, ShardRouterOptions, partitioner,
};
pub use single_flight::SingleFlight;
pub use summaries::{Reconciled, Summaries, Summary, SummaryStore, reconcile};
pub use timeout::{Timeout, TimeoutOptions};
pub use write_buffer::{WriteBuffer, WriteBufferOptions};

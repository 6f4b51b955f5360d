//! The contract of Terrace: what every store, layer and cache is made of.
//!
//! A [`Store`] keeps records. Leaf stores talk to an engine; layers are stores around stores and add
//! one behaviour each; a level is a stack of them. This crate holds the contract and what checks it:
//!
//! - the values: [`Key`], [`Value`], [`Version`], [`Record`], [`Token`];
//! - which database answers, how far it has come, whether caches may be believed: [`history`];
//! - the contract: [`Store`], five methods, batches first, with [`StoreExt`] for one key;
//! - the port of caches that cannot be filled with something old: [`Cache`], [`Invalidations`];
//! - the port of a database's committed changes, in commit order: [`ChangeLog`], and of what follows
//!   them: [`Follower`];
//! - the port of what one server of a primary and its replicas says of itself: [`Node`];
//! - the port of a database that is one of several shards: [`Shard`];
//! - the ports of documents and of transactions: [`Documents`], [`Ledger`];
//! - the port of a database that is one of several regions: [`RegionStore`];
//! - the port of durable, ordered queues of accepted writes: [`Journal`];
//! - limits on what a client may ask for, over all instances: [`RateLimiter`], [`Permits`];
//! - one [`Error`], with a kind for each way in which a caller would act differently;
//! - time, randomness and background work as parameters: [`Runtime`];
//! - [`MemoryStore`] and [`MemoryCache`], which need no engine;
//! - `testkit` (a feature): the contract suites that every store and cache passes, a scripted store
//!   and a store with faults.
//!
//! ```
//! use terrace_core::{Key, MemoryStore, StoreExt, Value};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> terrace_core::Result<()> {
//! let store = MemoryStore::default();
//! let key = Key::new("greeting")?;
//! let receipt = store.put(key.clone(), Value::new("hello")?).await?;
//! let record = store.get(&key).await?.expect("just written");
//! assert_eq!(record.value.as_str(), "hello");
//! assert_eq!(record.version, receipt.version);
//! # Ok(()) }
//! ```

mod answer;
mod backoff;
mod batcher;
mod breaker;
pub mod cache;
pub mod change_log;
mod decide;
mod documents;
mod durations;
mod error;
mod follower;
pub mod history;
mod inspection;
pub mod journal;
pub mod json;
mod key;
pub mod ledger;
mod line;
mod locked_keys;
mod memory_cache;
mod memory_store;
pub mod node;
pub mod opaque;
mod rate_limit;
pub mod read_model;
mod record;
pub mod region;
pub mod rollup;
mod runtime;
pub mod shard;
mod store;
#[cfg(feature = "testkit")]
#[allow(clippy::expect_used, reason = "a suite fails by panicking")]
pub mod testkit;
mod token;

pub use answer::{
    Change, Durability, Idempotency, Origin, Outcome, Page, Precondition, Read, Receipt, Scan,
    Tier, Write,
};
pub use backoff::Backoff;
pub use batcher::{BatchCounts, BatchItem, BatchLimits, Batcher, Merge};
pub use breaker::{Breaker, BreakerState, Pass, Trip};
pub use cache::{Cache, Entry, Invalidations, Lease, Lookup, Notice, Offer};
pub use change_log::{ChangeLog, Changes, HeldBack, LogPosition, Logged, PositionLost};
pub use decide::{Current, Decision, decide};
pub use documents::{Documents, Selection};
pub use durations::{Durations, Times};
pub use error::{Error, ErrorKind, Result};
pub use follower::{Batch, Checkpoint, Follower, LeaderLease};
/// What asynchronous methods of object-safe traits answer.
pub use futures_util::future::BoxFuture;
pub use history::{Generation, Generations, Histories, Position, Proof, Standing};
pub use inspection::{Fact, Figure, Inspection, Measure, PartKind, Spread, Status, Unit};
/// A moment in UTC.
pub use jiff::Timestamp;
pub use journal::{
    Append, Appended, DeadLetter, Entry as JournalEntry, Journal, JournalLimits, MemoryJournal,
    Place, Progress, Sequence, Settled, Span,
};
pub use json::Json;
pub use key::Key;
pub use ledger::Ledger;
pub use line::{Line, LineCounts, Load, Refused, Ticket};
pub use locked_keys::LockedKeys;
pub use memory_cache::{MemoryCache, MemoryCacheOptions};
pub use memory_store::MemoryStore;
pub use node::{Node, NodeState, Role};
pub use rate_limit::{
    Admission, Permits, Quota, Quotas, RateLimiter, SharedPermits, Taken, Wanted, Windows,
};
pub use read_model::ReadModel;
pub use record::{Record, Value, Version};
pub use region::{
    Ancestry, Checkpoints, Conflict, KeyRange, KeyState, RangeDigest, RegionId, RegionName,
    RegionOptions, RegionStore, Seen,
};
pub use rollup::{RolledUp, Rollup, RollupQuery};
pub use runtime::{Clock, Deadline, Rng, Runtime, Spawn, Task};
pub use shard::{Member, Move, Plan, Rows, SLOTS, Shard, ShardState, Slot, SlotSet};
pub use store::{Budget, Consistency, ReadOptions, Store, StoreExt, WriteOptions, one};
pub use token::Token;

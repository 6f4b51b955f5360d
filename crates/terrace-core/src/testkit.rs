//! What checks stores, layers and caches: contract suites, a scripted store, stores with faults.
//!
//! - [`store_contract!`](crate::store_contract) makes one test of each property that every
//!   [`Store`] keeps, leaf or layer, on any engine.
//! - [`cache_contract!`](crate::cache_contract) does the same for every [`Cache`],
//!   [`change_log_contract!`](crate::change_log_contract) for every [`ChangeLog`](crate::ChangeLog),
//!   [`journal_contract!`](crate::journal_contract) for every [`Journal`],
//!   [`document_contract!`](crate::document_contract) for every [`Documents`](crate::Documents),
//!   [`ledger_contract!`](crate::ledger_contract) for every [`Ledger`](crate::Ledger) and
//!   [`region_contract!`](crate::region_contract) for every [`RegionStore`](crate::RegionStore).
//! - [`Scripted`] hands each call to the test, which answers when and how it likes: the way to force
//!   a race without a sleep.
//! - [`MemoryShard`] is a shard in memory, for routers and for what moves slots; [`MemoryRegion`] is a
//!   region and [`MemoryLedger`] a ledger.
//! - [`ScriptedGenerations`] are generations that the test raises, holds and fails.
//! - [`BrokenStore`] and [`BrokenCache`] have one flaw each: a checker that does not catch it shows
//!   nothing.
//! - [`fuzzed`] tries a property on inputs [like those](bytes_like) that come from outside, for a time.
//! - [`FaultyStore`], [`FaultyCache`] and [`FaultyGenerations`] delay, fail, and lose replies as a seed
//!   decides.

mod broken;
pub mod cache_contract;
pub mod change_log_contract;
pub mod document_contract;
mod faults;
mod fuzzed;
mod generations;
pub mod journal_contract;
pub mod ledger_contract;
mod memory_ledger;
mod memory_region;
pub(crate) mod memory_shard;
pub mod region_contract;
mod scripted;
pub mod shard_contract;
pub mod store_contract;

use std::any::Any;
use std::fmt;
use std::sync::Arc;

pub use broken::{BrokenCache, BrokenStore, CacheFlaw, StoreFlaw};
pub use faults::{FaultRates, FaultyCache, FaultyStore};
pub use fuzzed::{bytes_like, fuzzed};
pub use generations::{FaultyGenerations, ScriptedGenerations};
pub use memory_ledger::MemoryLedger;
pub use memory_region::MemoryRegion;
pub use memory_shard::MemoryShard;
pub use scripted::{Call, Hand, ReadCall, ScanCall, Scripted, WriteCall, proof_of};

pub use change_log_contract::WithLog;
pub use document_contract::DocumentsFixture;
pub use ledger_contract::WithAccounts;
pub use region_contract::Regions;

use crate::{Cache, Journal, Key, Store, Value};

/// A store under test, with whatever must live as long as it (a directory, a server).
pub struct Fixture<T: ?Sized> {
    /// The thing under test.
    pub subject: Arc<T>,
    _guard: Box<dyn Any + Send + Sync>,
}

/// A store under test.
pub type StoreFixture = Fixture<dyn Store>;
/// A cache under test.
pub type CacheFixture = Fixture<dyn Cache>;
/// A journal under test.
pub type JournalFixture = Fixture<dyn Journal>;

impl<T: ?Sized> Fixture<T> {
    /// A subject that needs nothing beside it.
    pub fn new(subject: Arc<T>) -> Self {
        Self::guarded(subject, ())
    }

    /// A subject that needs `guard` to live as long as itself.
    pub fn guarded(subject: Arc<T>, guard: impl Any + Send + Sync) -> Self {
        Self { subject, _guard: Box::new(guard) }
    }
}

impl<T: ?Sized> fmt::Debug for Fixture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fixture")
    }
}

/// A key in a test.
///
/// # Panics
/// When the text is no key.
pub fn key(text: impl AsRef<str>) -> Key {
    Key::new(text).expect("the test gives a good key")
}

/// A value in a test.
///
/// # Panics
/// When the text is no value.
pub fn value(text: impl AsRef<str>) -> Value {
    Value::new(text).expect("the test gives a good value")
}

//! The reference store keeps the contract that it is the reference of.

use std::sync::Arc;

use terrace_core::testkit::journal_contract::{LIMITS, TAKEOVER};
use terrace_core::testkit::{
    FaultRates, FaultyStore, Fixture, JournalFixture, MemoryLedger, StoreFixture, WithAccounts,
};
use terrace_core::{MemoryJournal, MemoryStore, Runtime};

async fn memory() -> StoreFixture {
    StoreFixture::new(Arc::new(MemoryStore::default()))
}

terrace_core::store_contract!(memory);

async fn journal() -> JournalFixture {
    JournalFixture::new(Arc::new(MemoryJournal::new(LIMITS, TAKEOVER, Runtime::system())))
}

terrace_core::journal_contract!(journal);

async fn ledger() -> Fixture<WithAccounts> {
    let ledger = Arc::new(MemoryLedger::new(Runtime::system()));
    let accounts = Arc::clone(ledger.accounts());
    Fixture::new(Arc::new(WithAccounts { ledger, accounts }))
}

terrace_core::ledger_contract!(ledger);

mod without_faults {
    use super::*;

    async fn faultless() -> StoreFixture {
        let inner = Arc::new(MemoryStore::default());
        let layer = FaultyStore::new(inner, FaultRates::default(), Runtime::seeded(1));
        StoreFixture::new(Arc::new(layer))
    }

    terrace_core::store_contract!(faultless);
}

#[tokio::test]
async fn a_shard_in_memory_keeps_its_promises() {
    use terrace_core::testkit::{MemoryShard, shard_contract};
    let shard = || Arc::new(MemoryShard::new(Runtime::system()));
    shard_contract::keeps_its_promises(shard(), shard()).await;
}

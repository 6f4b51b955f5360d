//! The reference store keeps the contract that it is the reference of.

use std::sync::Arc;

use terrace_core::testkit::journal_contract::{LIMITS, TAKEOVER};
use terrace_core::testkit::{
    FaultRates, FaultyStore, Fixture, JournalFixture, MemoryLedger, MemoryRegion, Regions,
    StoreFixture, WithAccounts,
};
use terrace_core::{MemoryJournal, MemoryStore, RegionStore, Runtime};

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

fn region(number: u8) -> MemoryRegion {
    MemoryRegion::new(Regions::options(number), Runtime::system())
}

async fn regions() -> Fixture<Regions> {
    let all = [1, 2, 3].map(|number| Arc::new(region(number)));
    let stores = all.clone().map(|region| region as Arc<dyn RegionStore>);
    let set_clock = Box::new(move |at: usize, ahead| {
        all[at].set_clock(ahead);
        Box::pin(async {}) as _
    });
    Fixture::new(Arc::new(Regions { stores, set_clock }))
}

terrace_core::region_contract!(regions);

mod one_region {
    use super::*;

    async fn a_region() -> StoreFixture {
        StoreFixture::new(Arc::new(region(1)))
    }

    terrace_core::store_contract!(a_region);
}

#[tokio::test]
async fn a_shard_in_memory_keeps_its_promises() {
    use terrace_core::testkit::{MemoryShard, shard_contract};
    let shard = || Arc::new(MemoryShard::new(Runtime::system()));
    shard_contract::keeps_its_promises(shard(), shard()).await;
}

//! With every write applied before its answer, the buffer keeps the contract of every store.

use std::fmt;

use terrace_core::testkit::StoreFixture;
use terrace_core::{BoxFuture, Inspection, Key, Page, Read, Scan};

use super::*;

/// Asks of each write that it is committed.
#[derive(Debug)]
struct Waits(WriteBuffer);

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Store for Waits {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        self.0.read(keys, how)
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async move {
            let how = WriteOptions { durability: Some(Durability::Committed), ..how.clone() };
            self.0.write(batch, &how).await
        })
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        self.0.scan(scan, how)
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        self.0.inspect()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.0.close()
    }
}

async fn waiting() -> StoreFixture {
    let runtime = Runtime::system();
    let inner = Arc::new(MemoryStore::new(runtime.clone()));
    let store = open(inner, &journal(&runtime), WriteBufferOptions::default()).await;
    StoreFixture::new(Arc::new(Waits(store)))
}

terrace_core::store_contract!(waiting);

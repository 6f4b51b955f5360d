//! Single flight as it is usually built: readers join the read under way.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt as _;
use futures_util::future::WeakShared;
use terrace_core::{
    BoxFuture, Inspection, Key, Page, Read, ReadOptions, Receipt, Result, Scan, Store, Write,
    WriteOptions,
};

type Flight = BoxFuture<'static, Result<Vec<Read>>>;

#[derive(Debug)]
pub(super) struct JoiningFlight {
    inner: Arc<dyn Store>,
    running: Mutex<HashMap<Key, WeakShared<Flight>>>,
}

impl JoiningFlight {
    pub(super) fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner, running: Mutex::default() }
    }
}

impl Store for JoiningFlight {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        let mut running = self.running.lock().unwrap();
        if let Some(flight) = running.get(&keys[0]).and_then(WeakShared::upgrade) {
            return Box::pin(flight);
        }
        let (inner, keys, how) = (Arc::clone(&self.inner), keys.to_vec(), how.clone());
        let first = keys[0].clone();
        let flight: Flight = Box::pin(async move { inner.read(&keys, &how).await });
        let flight = flight.shared();
        running.insert(first, flight.downgrade().expect("it has not ended"));
        Box::pin(flight)
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        self.inner.write(batch, how)
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        self.inner.scan(scan, how)
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        self.inner.inspect()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.close()
    }
}

impl fmt::Display for JoiningFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

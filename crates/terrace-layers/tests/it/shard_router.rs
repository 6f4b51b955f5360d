//! The router over shards in memory.

mod failures;
mod generations;
mod routes;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use terrace_core::testkit::{MemoryShard, StoreFixture};
use terrace_core::{BoxFuture, Error, ErrorKind, Result, Runtime, Shard, Store};
use terrace_layers::{
    Coalesce, CoalesceOptions, HashPartitioner, ShardOpener, ShardRouter, ShardRouterOptions,
};

/// Shards in memory, by address.
#[derive(Debug, Default)]
pub(crate) struct Shards {
    by_address: Mutex<HashMap<String, Arc<MemoryShard>>>,
}

impl Shards {
    /// So many, with the addresses "0", "1", ...
    pub(crate) fn of(count: usize, runtime: &Runtime) -> Arc<Self> {
        let shards = Arc::new(Self::default());
        (0..count).for_each(|number| shards.add(number, MemoryShard::new(runtime.clone())));
        shards
    }

    pub(crate) fn add(&self, number: usize, shard: MemoryShard) {
        self.by_address.lock().unwrap().insert(number.to_string(), Arc::new(shard));
    }

    pub(crate) fn shard(&self, number: usize) -> Arc<MemoryShard> {
        Arc::clone(&self.by_address.lock().unwrap()[&number.to_string()])
    }

    /// A router of its own, as another instance has one.
    pub(crate) async fn router(self: &Arc<Self>, count: usize, runtime: &Runtime) -> ShardRouter {
        self.try_router(count, runtime).await.unwrap()
    }

    pub(crate) async fn try_router(
        self: &Arc<Self>,
        count: usize,
        runtime: &Runtime,
    ) -> Result<ShardRouter> {
        self.router_with(count, ShardRouterOptions::default(), runtime).await
    }

    pub(crate) async fn router_with(
        self: &Arc<Self>,
        count: usize,
        options: ShardRouterOptions,
        runtime: &Runtime,
    ) -> Result<ShardRouter> {
        let addresses = (0..count).map(|number| number.to_string()).collect::<Vec<_>>();
        let on = runtime.clone();
        let around = move |store: Arc<dyn Store>| -> Arc<dyn Store> {
            Arc::new(Coalesce::new(store, CoalesceOptions::default(), on.clone()))
        };
        ShardRouter::open(
            &addresses,
            Arc::new(HashPartitioner),
            Arc::clone(self) as _,
            Arc::new(around),
            options,
            runtime.clone(),
        )
        .await
    }
}

impl ShardOpener for Shards {
    fn open<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Arc<dyn Shard>>> {
        let shard = self.by_address.lock().unwrap().get(address).cloned();
        let shard = shard.map(|shard| shard as Arc<dyn Shard>);
        let nobody = || Error::new(ErrorKind::Unavailable, "no shard is there");
        Box::pin(async move { shard.ok_or_else(nobody) })
    }
}

async fn three() -> StoreFixture {
    let runtime = Runtime::system();
    StoreFixture::new(Arc::new(Shards::of(3, &runtime).router(3, &runtime).await))
}

terrace_core::store_contract!(three);

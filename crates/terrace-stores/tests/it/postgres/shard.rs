//! Databases that are shards.

use std::sync::Arc;

use terrace_core::testkit::{StoreFixture, shard_contract};
use terrace_core::{Runtime, Shard, ShardState};
use terrace_lab::testing;
use terrace_stores::{PostgresOptions, PostgresShard};

async fn shard() -> Arc<dyn Shard> {
    let options = PostgresOptions::new(testing::fresh_database());
    Arc::new(PostgresShard::connect(options, Runtime::system()).await.expect("a database"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_as_a_shard_keeps_its_promises() {
    shard_contract::keeps_its_promises(shard().await, shard().await).await;
}

async fn under_an_epoch() -> StoreFixture {
    let shard = shard().await;
    shard.found(ShardState { epoch: 4, ..ShardState::default() }).await.expect("a shard");
    StoreFixture::new(shard.at(4))
}

terrace_core::store_contract!(under_an_epoch);

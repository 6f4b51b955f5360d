//! Files that are shards.
#![expect(clippy::expect_used, reason = "a test's helpers fail it by panicking")]

use std::sync::Arc;

use terrace_core::testkit::{StoreFixture, shard_contract};
use terrace_core::{Runtime, Shard, ShardState};
use terrace_stores::{SqliteOptions, SqliteShard};

fn shard(directory: &tempfile::TempDir, name: &str) -> Arc<dyn Shard> {
    let options = SqliteOptions::new(directory.path().join(name));
    Arc::new(SqliteShard::open(options, Runtime::system()).expect("a file"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_as_a_shard_keeps_its_promises() {
    let directory = tempfile::tempdir().expect("a directory");
    shard_contract::keeps_its_promises(shard(&directory, "a"), shard(&directory, "b")).await;
}

async fn under_an_epoch() -> StoreFixture {
    let directory = tempfile::tempdir().expect("a directory");
    let shard = shard(&directory, "a");
    shard.found(ShardState { epoch: 4, ..ShardState::default() }).await.expect("a shard");
    StoreFixture::guarded(shard.at(4), directory)
}

terrace_core::store_contract!(under_an_epoch);

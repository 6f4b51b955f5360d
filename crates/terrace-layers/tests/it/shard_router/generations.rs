//! What the router tells the caches above it of all its shards.

use std::time::Duration;

use terrace_core::testkit::key;
use terrace_core::{
    Consistency, Deadline, Generations as _, Key, Proof, ReadOptions, Shard as _, StoreExt as _,
};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A key of each of two shards.
fn keys(router: &ShardRouter) -> [Key; 2] {
    [0, 1].map(|shard| {
        let mut all = (0..100).map(|number| key(format!("key{number}")));
        all.find(|key| router.shard_of(key) == Some(shard)).unwrap()
    })
}

async fn proof(router: &ShardRouter, key: &Key) -> Proof {
    let how = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
    router.get_read(key, &how).await.unwrap().proof.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_raise_is_of_the_shards_that_have_the_keys() {
    let runtime = Runtime::system();
    let shards = Shards::of(2, &runtime);
    let router = shards.router(2, &runtime).await;
    let keys = keys(&router);
    let proofs = [proof(&router, &keys[0]).await, proof(&router, &keys[1]).await];
    let admitted = || proofs.each_ref().map(|proof| router.admits(proof, None));
    assert_eq!(admitted(), [true, true]);
    router.raise(&keys[..1]).await.unwrap();
    assert_eq!(admitted(), [false, true]);
    router.raise(&[]).await.unwrap();
    assert_eq!(admitted(), [false, false]);
    assert!(router.admits(&proof(&router, &keys[0]).await, None));
    let another = Proof { history: "another.1".into(), ..proof(&router, &keys[0]).await };
    assert!(!router.admits(&another, None));
}

/// A near cache forgets what it has, also when nobody asks the far cache for anything.
#[tokio::test(start_paused = true)]
async fn what_a_shard_hears_by_itself_is_told() {
    let runtime = Runtime::system();
    let shards = Shards::of(2, &runtime);
    let router = shards.router(2, &runtime).await;
    let mut changes = router.changes();
    for number in [0, 1, 0] {
        runtime.sleep(SECOND).await;
        changes.mark_unchanged();
        shards.shard(number).generations().raise(&[]).await.unwrap();
        let until = Deadline::at(runtime.now() + SECOND);
        assert!(runtime.within(until, changes.changed()).await.is_some(), "shard {number}");
    }
    runtime.sleep(SECOND).await;
    changes.mark_unchanged();
    runtime.sleep(60 * SECOND).await;
    assert!(!changes.has_changed().unwrap(), "nothing has changed");
}

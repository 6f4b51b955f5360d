//! Shards that are down, and maps that are old.

use terrace_core::testkit::{key, value};
use terrace_core::{
    ErrorKind, Key, Outcome, ReadOptions, Runtime, Scan, Shard as _, ShardState, Status,
    Store as _, StoreExt as _, Version, Write, WriteOptions,
};
use terrace_layers::ShardRouter;

use super::Shards;

fn on_each(router: &ShardRouter) -> [Key; 3] {
    [0, 1, 2].map(|number| {
        let keys = (0..).map(|it| key(format!("key-{it}")));
        keys.into_iter().find(|it| router.shard_of(it) == Some(number)).unwrap()
    })
}

#[tokio::test]
async fn a_shard_that_is_down_takes_its_own_keys_with_it_and_no_others() {
    let runtime = Runtime::system();
    let shards = Shards::of(3, &runtime);
    let router = shards.router(3, &runtime).await;
    let keys = on_each(&router);
    shards.shard(1).set_down(true);
    for (number, it) in keys.iter().enumerate() {
        let written = router.put(it.clone(), value("v")).await;
        let read = router.get(it).await;
        if number == 1 {
            assert_eq!(written.unwrap_err().kind(), ErrorKind::Unavailable);
            assert_eq!(read.unwrap_err().kind(), ErrorKind::Unavailable);
        } else {
            assert_eq!(written.unwrap().outcome, Outcome::Created);
            assert!(read.unwrap().is_some());
        }
    }
    let batch = keys.iter().map(|it| Write::put(it.clone(), value("w"))).collect();
    let receipts = router.write(batch, &WriteOptions::default()).await.unwrap();
    let outcomes = receipts.into_iter().map(|receipt| receipt.outcome).collect::<Vec<_>>();
    assert_eq!(outcomes, [Outcome::Replaced, Outcome::Unavailable, Outcome::Replaced]);
    assert_eq!(router.inspect().await.status, Status::Degraded);
    shards.shard(1).set_down(false);
    assert!(router.get(&keys[1]).await.unwrap().is_none(), "nothing was written there");
}

#[tokio::test(start_paused = true)]
async fn an_instance_starts_while_a_shard_is_down_and_finds_it_later() {
    let runtime = Runtime::system();
    let shards = Shards::of(3, &runtime);
    let keys = on_each(&shards.router(3, &runtime).await);
    shards.shard(2).set_down(true);
    let router = shards.router(3, &runtime).await;
    router.put(keys[0].clone(), value("v")).await.unwrap();
    let refused = router.put(keys[2].clone(), value("v")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    shards.shard(2).set_down(false);
    runtime.sleep(std::time::Duration::from_secs(3)).await;
    router.put(keys[2].clone(), value("v")).await.unwrap();
}

/// Each shard alone says that its set is whole, also of a set of which one shard alone said it.
#[tokio::test(start_paused = true)]
async fn an_instance_starts_with_any_one_shard() {
    let runtime = Runtime::system();
    let shards = Shards::of(3, &runtime);
    let keys = on_each(&shards.router(3, &runtime).await);
    for only in 0..3 {
        // As an earlier build left it.
        for number in 1..3 {
            let shard = shards.shard(number);
            let known = shard.state().await.unwrap().unwrap();
            let alone = ShardState { founded: false, ..known.clone() };
            shard.change(known.epoch, alone, Version::NONE).await.unwrap();
        }
        drop(shards.router(3, &runtime).await);
        (0..3).filter(|it| *it != only).for_each(|it| shards.shard(it).set_down(true));
        let router = shards.router(3, &runtime).await;
        for (number, it) in keys.iter().enumerate() {
            let written = router.put(it.clone(), value("v")).await;
            assert_eq!(written.is_ok(), number == only, "{number} with {only} alone");
        }
        (0..3).for_each(|it| shards.shard(it).set_down(false));
        runtime.sleep(std::time::Duration::from_secs(3)).await;
        assert_eq!(router.inspect().await.status, Status::Healthy);
        router.put(keys[0].clone(), value("v")).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_breaker_decides_when_a_shard_is_looked_at() {
    let runtime = Runtime::system();
    let shards = Shards::of(2, &runtime);
    let router = shards.router(2, &runtime).await;
    shards.shard(1).set_down(true);
    // The router looks about once a second; a pause may be a little longer than that.
    runtime.sleep(std::time::Duration::from_secs(20)).await;
    let figures = async |names: [&str; 3]| {
        let tree = router.inspect().await;
        names.map(|name| tree.children[1].number(name).unwrap())
    };
    let names = ["breaker_opened", "breaker_probes", "breaker_refused"];
    let [opened, probes, refused] = figures(names).await;
    assert_eq!(opened, 1);
    assert!(probes > 5 && refused > 0, "{probes} and {refused}");
    shards.shard(1).set_down(false);
    runtime.sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(router.inspect().await.status, Status::Healthy);
}

#[tokio::test]
async fn every_call_of_a_shard_is_timed_also_one_that_fails() {
    let runtime = Runtime::system();
    let shards = Shards::of(3, &runtime);
    let router = shards.router(3, &runtime).await;
    let calls = async || {
        let tree = router.inspect().await;
        let count = |number: usize| tree.children[number].timed("call_time").unwrap().count();
        [0, 1, 2].map(count)
    };
    let keys = on_each(&router);
    router.put(keys[0].clone(), value("v")).await.unwrap();
    router.get(&keys[0]).await.unwrap();
    assert_eq!(calls().await, [2, 0, 0]);
    router.scan(&Scan::prefix(""), &ReadOptions::default()).await.unwrap();
    assert_eq!(calls().await, [3, 1, 1]);
    shards.shard(1).set_down(true);
    router.get(&keys[1]).await.unwrap_err();
    assert_eq!(calls().await, [3, 2, 1]);
}

#[tokio::test]
async fn a_new_set_is_not_founded_without_all_of_its_shards() {
    let runtime = Runtime::system();
    let shards = Shards::of(3, &runtime);
    shards.shard(1).set_down(true);
    assert!(shards.try_router(3, &runtime).await.is_err());
    shards.shard(1).set_down(false);
    let router = shards.router(3, &runtime).await;
    // More databases than shards: the further one is none.
    shards.add(3, terrace_core::testkit::MemoryShard::new(runtime.clone()));
    let other = shards.router(4, &runtime).await;
    for number in 0..100 {
        let it = key(number.to_string());
        assert_eq!(router.shard_of(&it), other.shard_of(&it));
    }
}

/// Gives slots to another shard, as a reshard does, but with nothing in them.
async fn hand_over(shards: &Shards, from: usize, to: usize) {
    let (from, to) = (shards.shard(from), shards.shard(to));
    let giver = from.state().await.unwrap().unwrap();
    let taker = to.state().await.unwrap().unwrap();
    let next = giver.epoch.max(taker.epoch) + 1;
    let slots = giver.owned.clone();
    let fenced = ShardState { owned: Default::default(), epoch: next, ..giver.clone() };
    let floor = from.change(giver.epoch, fenced, Version::NONE).await.unwrap();
    let owned = taker.owned.with(&slots);
    to.change(taker.epoch, ShardState { owned, epoch: next + 1, ..taker.clone() }, floor)
        .await
        .unwrap();
}

#[tokio::test]
async fn an_old_map_is_refused_and_drawn_anew() {
    let runtime = Runtime::system();
    let shards = Shards::of(3, &runtime);
    let router = shards.router(3, &runtime).await;
    let keys = on_each(&router);
    for _ in 0..9 {
        router.put(keys[0].clone(), value("old")).await.unwrap();
    }
    let before = router.get(&keys[0]).await.unwrap().unwrap().version;
    hand_over(&shards, 0, 1).await;
    assert!(router.get(&keys[0]).await.unwrap().is_none(), "an empty shard has it now");
    let receipt = router.put(keys[0].clone(), value("new")).await.unwrap();
    assert_eq!(receipt.origin, terrace_core::Origin::PRIMARY.on_shard(1));
    assert!(receipt.version > before, "versions grow over the move");
    assert!(shards.shard(0).rows_now().iter().all(|row| row.version <= before));
}

/// The same without the fence: the old owner goes on taking writes that nobody will find.
#[tokio::test]
async fn without_the_fence_an_old_map_loses_writes() {
    let runtime = Runtime::system();
    let shards = std::sync::Arc::new(Shards::default());
    for number in 0..3 {
        let shard = terrace_core::testkit::MemoryShard::new(runtime.clone()).without_fence();
        shards.add(number, shard);
    }
    let router = shards.router(3, &runtime).await;
    let it = on_each(&router)[0].clone();
    hand_over(&shards, 0, 1).await;
    router.put(it.clone(), value("lost")).await.unwrap();
    let other = shards.router(3, &runtime).await;
    assert!(other.get(&it).await.unwrap().is_none(), "this must be seen to be lost");
}

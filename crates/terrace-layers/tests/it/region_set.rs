//! `RegionSet`: what differs is found and merged, a lost region is given up, a new one is seeded.

use std::sync::Arc;
use std::time::Duration;

use terrace_core::testkit::{MemoryRegion, key, value};
use terrace_core::{
    Deadline, KeyRange, ReadOptions, RegionId, RegionOptions, RegionStore, Runtime, Scan,
    Store as _, StoreExt as _,
};
use terrace_layers::{LagState, RegionSet};

fn regions(count: u8) -> (Vec<Arc<MemoryRegion>>, Runtime) {
    let runtime = Runtime::seeded(1);
    let regions = (1..=count).map(|number| {
        let id = RegionId::new(number).expect("a number");
        let name = format!("region-{number}").parse().expect("a name");
        Arc::new(MemoryRegion::new(RegionOptions::new(id, name), runtime.clone()))
    });
    (regions.collect(), runtime)
}

fn set(regions: &[Arc<MemoryRegion>], runtime: &Runtime) -> RegionSet {
    let ports = regions.iter().map(|region| Arc::clone(region) as Arc<dyn RegionStore>);
    RegionSet::new(ports.collect(), runtime.clone())
}

async fn digests(regions: &[Arc<MemoryRegion>]) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    for region in regions {
        let digest = region.digest(&KeyRange::default()).await.expect("a digest");
        found.push((digest.rows, digest.sum));
    }
    found
}

fn soon(runtime: &Runtime) -> Deadline {
    Deadline::at(runtime.now() + Duration::from_secs(1))
}

#[tokio::test(start_paused = true)]
async fn what_differs_is_found_by_halving_and_merged() {
    let (regions, runtime) = regions(3);
    let all = set(&regions, &runtime);
    for number in 0..500 {
        regions[0].put(key(format!("k{number:04}")), value("1")).await.expect("a write");
    }
    all.repair().await.expect("a repair");
    assert_eq!(all.differences(10).await.expect("an answer"), []);
    regions[2].put(key("k0250"), value("2")).await.expect("a write");
    regions[2].delete(key("k0499")).await.expect("a write");
    regions[1].put(key("new"), value("1")).await.expect("a write");
    let found = all.differences(10).await.expect("an answer");
    let mut keys = found.iter().map(|it| it.key.as_str()).collect::<Vec<_>>();
    keys.dedup();
    assert_eq!(keys, ["k0250", "k0499", "new"]);
    all.repair().await.expect("a repair");
    assert_eq!(all.differences(10).await.expect("an answer"), []);
    let digests = digests(&regions).await;
    assert!(digests.iter().all(|it| *it == digests[0]), "{digests:?}");
    let record = regions[0].get(&key("k0250")).await.expect("a read").expect("a record");
    assert_eq!(record.value.as_str(), "2");
}

#[tokio::test(start_paused = true)]
async fn sync_tells_who_is_behind_and_ends_when_nobody_is() {
    let (regions, runtime) = regions(2);
    let all = set(&regions, &runtime);
    all.repair().await.expect("a repair");
    regions[0].put(key("a"), value("1")).await.expect("a write");
    let behind = all.sync(soon(&runtime)).await.expect("an answer");
    assert_eq!(behind.len(), 1);
    assert_eq!(behind[0].region.as_str(), "region-2");
    assert!(matches!(behind[0].state, LagState::Behind(1, Some(_))), "{behind:?}");
    all.seed(behind[0].region).await.expect("a seed");
    assert_eq!(all.sync(soon(&runtime)).await.expect("an answer"), []);
}

#[tokio::test(start_paused = true)]
async fn survivors_tell_each_other_what_they_have_of_a_lost_region() {
    let (regions, runtime) = regions(3);
    regions[2].put(key("a"), value("1")).await.expect("a write");
    // Only one of the two has heard it.
    let id = regions[2].region().id;
    set(&[Arc::clone(&regions[2]), Arc::clone(&regions[0])], &runtime)
        .seed(regions[0].region().name)
        .await
        .expect("a seed");
    regions[2].set_down(true);
    let survivors = set(&regions[..2], &runtime);
    assert_eq!(survivors.give_up(id).await.expect("given up"), 1);
    assert!(regions[1].get(&key("a")).await.expect("a read").is_some());
    for region in &regions[..2] {
        assert!(region.checkpoints().await.expect("checkpoints").of(id).is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn neighbours_with_more_values_than_a_page_holds_are_merged_to_the_end() {
    let (regions, runtime) = regions(3);
    let large = "x".repeat(1 << 20);
    for number in 0..40 {
        regions[2].put(key(format!("k{number}")), value(large.as_str())).await.expect("a write");
    }
    set(&[Arc::clone(&regions[2]), Arc::clone(&regions[0])], &runtime)
        .seed(regions[0].region().name)
        .await
        .expect("a seed");
    let survivors = set(&regions[..2], &runtime);
    let merged = survivors.give_up(regions[2].region().id).await.expect("given up");
    let digests = digests(&regions[..2]).await;
    assert_eq!((merged, digests[0]), (40, digests[1]));
}

#[tokio::test(start_paused = true)]
async fn a_new_region_gets_everything_and_a_restored_one_is_followed_after_a_repair() {
    let (regions, runtime) = regions(3);
    let all = set(&regions, &runtime);
    regions[0].put(key("a"), value("1")).await.expect("a write");
    regions[1].put(key("b"), value("1")).await.expect("a write");
    all.seed(regions[2].region().name).await.expect("a seed");
    for name in ["a", "b"] {
        assert!(regions[2].get(&key(name)).await.expect("a read").is_some(), "{name}");
    }
    regions[0].begin_history();
    let lags = all.lags().await;
    let stopped = lags.iter().filter(|it| it.state == LagState::Stopped).count();
    assert_eq!(stopped, 1, "of those that had followed it: {lags:?}");
    all.repair().await.expect("a repair");
    assert!(all.lags().await.iter().all(|it| it.state == LagState::Behind(0, None)));
}

#[tokio::test(start_paused = true)]
async fn a_drill_measures_what_a_loss_would_cost_and_leaves_nothing_behind() {
    let (regions, runtime) = regions(3);
    let all = set(&regions, &runtime);
    let name = regions[0].region().name;
    let writing = Duration::from_millis(100);
    let measured = all.drill(name, writing).await.expect("a drill");
    assert!(measured.written > 10 && measured.missing == measured.written, "nobody follows");
    let point = measured.recovery_point;
    assert!(point > Duration::from_millis(50) && point <= writing, "{measured:?}");
    let time = measured.recovery_time;
    assert!(time >= Duration::from_secs(1) && time < Duration::from_secs(2), "one try: {time:?}");
    assert_eq!(measured.taken_by, regions[1].region().name);
    all.repair().await.expect("a repair");
    for region in &regions {
        let page = region.scan(&Scan::prefix(""), &ReadOptions::default()).await.expect("a list");
        assert!(page.records.is_empty(), "{region}");
    }
}

//! `GeoRouter`: regions that are cut off, tokens that hop, homes, what is asked of other regions.

mod partitions;
mod world;

use std::sync::Arc;
use std::time::Duration;

use terrace_core::testkit::{key, value};
use terrace_core::{
    Batch, Deadline, Durability, ErrorKind, Idempotency, KeyRange, LogPosition, Origin, Outcome,
    Read, ReadOptions, Receipt, RegionStore, Result, Status, Store as _, StoreExt as _, Tier,
    Write, WriteOptions,
};
use terrace_layers::{GeoRouterOptions, Home, LagState, RegionSet};

use world::{Wanted, World, name};

fn there(place: usize) -> ReadOptions {
    ReadOptions { region: Some(name(place)), ..ReadOptions::default() }
}

fn into(place: usize) -> WriteOptions {
    WriteOptions { region: Some(name(place)), ..WriteOptions::default() }
}

async fn put(world: &World, place: usize, name: &str, text: &str) -> Result<Receipt> {
    let write = Write::put(key(name), value(text));
    Ok(world.router.write(vec![write], &into(place)).await?.remove(0))
}

async fn read(world: &World, place: usize, name: &str) -> Result<Read> {
    world.router.get_read(&key(name), &there(place)).await
}

fn text(read: &Read) -> Option<&str> {
    read.record.as_ref().map(|record| record.value.as_str())
}

/// Nothing follows, so that only fallbacks and strong reads show what others have.
fn apart() -> Wanted {
    let options = GeoRouterOptions { replicates: false, ..GeoRouterOptions::default() };
    Wanted { options, ..Wanted::default() }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_a_region_has_never_heard_of_is_asked_of_the_others_once() {
    let world = World::new(1, apart());
    assert_eq!(text(&read(&world, 0, "a").await.unwrap()), None);
    put(&world, 1, "b", "1").await.unwrap();
    let found = read(&world, 0, "b").await.unwrap();
    assert_eq!(text(&found), Some("1"));
    assert_eq!(found.origin, Origin::PRIMARY.in_region(name(1)), "who has answered is told");

    // Written past this process, within the time for which its absence is remembered.
    world.regions[1].put(key("a"), value("1")).await.unwrap();
    assert_eq!(text(&read(&world, 0, "a").await.unwrap()), None, "remembered");
    world.runtime.sleep(Duration::from_secs(1)).await;
    assert_eq!(text(&read(&world, 0, "a").await.unwrap()), Some("1"), "and forgotten");

    // A deletion is an answer.
    world.regions[0].put(key("c"), value("1")).await.unwrap();
    world.regions[0].delete(key("c")).await.unwrap();
    world.regions[1].put(key("c"), value("elsewhere")).await.unwrap();
    assert_eq!(text(&read(&world, 0, "c").await.unwrap()), None);
}

#[tokio::test(start_paused = true)]
async fn a_region_that_is_down_is_answered_for_by_the_next_one_which_says_so() {
    let world = World::new(2, Wanted::default());
    put(&world, 0, "a", "1").await.unwrap();
    world.settle().await;
    world.regions[0].set_down(true);
    let found = read(&world, 0, "a").await.unwrap();
    assert_eq!((text(&found), found.origin.region), (Some("1"), Some(name(1))));
    let receipt = put(&world, 0, "a", "2").await.unwrap();
    assert_eq!(receipt.origin.region, Some(name(1)));
    let tree = world.router.inspect().await;
    assert_eq!(tree.status, Status::Degraded, "{}", tree.reason());

    world.regions[0].set_down(false);
    world.settle().await;
    // Looks notice that it answers again.
    world.runtime.sleep(Duration::from_secs(10)).await;
    let found = read(&world, 0, "a").await.unwrap();
    assert_eq!((text(&found), found.origin.region), (Some("2"), Some(name(0))));
    assert_eq!(world.router.inspect().await.status, Status::Healthy);
    for region in &world.regions {
        region.set_down(true);
    }
    assert_eq!(read(&world, 0, "a").await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(put(&world, 0, "a", "3").await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_strong_read_is_the_newest_of_all_or_none() {
    let world = World::new(3, apart());
    put(&world, 0, "a", "old").await.unwrap();
    world.runtime.sleep(Duration::from_millis(5)).await;
    put(&world, 2, "a", "new").await.unwrap();
    let strong = ReadOptions { region: Some(name(0)), ..ReadOptions::strong(Deadline::NEVER) };
    let found = world.router.get_read(&key("a"), &strong).await.unwrap();
    assert_eq!((text(&found), found.origin.region), (Some("new"), Some(name(2))));
    assert_eq!(text(&read(&world, 0, "a").await.unwrap()), Some("old"), "what the region has");
    world.regions[2].set_down(true);
    let refused = world.router.get_read(&key("a"), &strong).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.message().contains("asia-pac"), "{refused}");
}

fn at_home(resides: bool) -> Wanted {
    let home = Home { prefix: "eu:".into(), region: name(1), resides };
    Wanted { homes: vec![home], ..Wanted::default() }
}

#[tokio::test(start_paused = true)]
async fn keys_with_a_home_are_written_there_and_nowhere_else() {
    let world = World::new(4, at_home(false));
    let receipt = put(&world, 0, "eu:a", "1").await.unwrap();
    assert_eq!(receipt.origin.region, Some(name(1)));
    world.settle().await;
    let found = read(&world, 0, "eu:a").await.unwrap();
    assert_eq!((text(&found), found.origin.region), (Some("1"), Some(name(0))), "read where asked");

    let batch = ["eu:b", "c"].map(|name| Write::put(key(name), value("1")));
    let receipts = world.router.write(batch.to_vec(), &into(0)).await.unwrap();
    let regions = receipts.iter().map(|it| it.origin.region).collect::<Vec<_>>();
    assert_eq!(regions, [Some(name(1)), Some(name(0))]);

    world.regions[1].set_down(true);
    let refused = put(&world, 0, "eu:a", "2").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.message().contains("eu-west"), "{refused}");
    let batch = ["eu:b", "c"].map(|name| Write::put(key(name), value("2")));
    let receipts = world.router.write(batch.to_vec(), &into(0)).await.unwrap();
    let outcomes = receipts.iter().map(|it| it.outcome).collect::<Vec<_>>();
    assert_eq!(outcomes, [Outcome::Unavailable, Outcome::Replaced]);
}

#[tokio::test(start_paused = true)]
async fn keys_that_reside_somewhere_are_in_no_other_region() {
    let world = World::new(5, at_home(true));
    put(&world, 0, "eu:secret", "1").await.unwrap();
    put(&world, 0, "a", "1").await.unwrap();
    world.settle().await;
    for place in [0, 2] {
        let rows = world.regions[place].rows(&KeyRange::default(), 100).await.unwrap();
        let keys = rows.iter().map(|row| row.key.as_str()).collect::<Vec<_>>();
        assert_eq!(keys, ["a"]);
        let found = read(&world, place, "eu:secret").await.unwrap();
        assert_eq!((text(&found), found.origin.region), (Some("1"), Some(name(1))));
    }
    world.regions[1].set_down(true);
    let refused = read(&world, 0, "eu:secret").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "nobody else can tell whether it is there");
}

#[tokio::test(start_paused = true)]
async fn a_write_is_replicated_when_most_regions_have_it() {
    let world = World::new(6, Wanted::default());
    let replicated = |everywhere| WriteOptions {
        durability: Some(Durability::Replicated),
        deadline: Deadline::at(world.runtime.now() + Duration::from_secs(2)),
        everywhere,
        ..into(0)
    };
    let write = |text: &str| vec![Write::put(key("a"), value(text))];
    let receipt = world.router.write(write("1"), &replicated(true)).await.unwrap().remove(0);
    assert_eq!(receipt.durability, Durability::Replicated);
    let by = Deadline::at(world.runtime.now() + Duration::from_millis(250));
    assert_eq!(world.router.confirmed(&key("a"), &receipt, by).await, [name(1), name(2)]);

    world.cut(0, 2, true);
    world.router.write(write("2"), &replicated(false)).await.expect("most");
    let unknown = world.router.write(write("3"), &replicated(true)).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::OutcomeUnknown);
    assert!(unknown.message().contains("committed in us-east, and eu-west confirmed"), "{unknown}");
    assert_eq!(text(&read(&world, 0, "a").await.unwrap()), Some("3"), "it is committed");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_repeated_in_another_region_makes_no_second_version() {
    let world = World::new(7, Wanted::default());
    let request = Arc::new(Idempotency::new("request-1", [7; 32]).unwrap());
    let how = |place| WriteOptions { idempotency: Some(Arc::clone(&request)), ..into(place) };
    let write = || vec![Write::put(key("a"), value("1"))];
    let first = world.router.write(write(), &how(0)).await.unwrap().remove(0);
    world.settle().await;
    let again = world.router.write(write(), &how(1)).await.unwrap().remove(0);
    assert_eq!(first.version, again.version);
    let found = read(&world, 2, "a").await.unwrap();
    assert_eq!(found.version, first.version);
    let other = WriteOptions {
        idempotency: Some(Arc::new(Idempotency::new("request-1", [8; 32]).unwrap())),
        ..into(2)
    };
    let refused = world.router.write(write(), &other).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput, "another request under this key");
}

/// What another region has answered stands in the log of the one that did the write.
#[tokio::test(start_paused = true)]
async fn a_repeated_request_is_replicated_where_the_write_is_followed() {
    let world = World::new(13, Wanted::default());
    put(&world, 1, "other", "1").await.unwrap();
    world.settle().await;
    world.cut(0, 2, true);
    let request = Arc::new(Idempotency::new("request-1", [7; 32]).unwrap());
    let how = |place, everywhere, durability| WriteOptions {
        idempotency: Some(Arc::clone(&request)),
        deadline: Deadline::at(world.runtime.now() + Duration::from_secs(2)),
        durability,
        everywhere,
        ..into(place)
    };
    let write = || vec![Write::put(key("a"), value("1"))];
    world.router.write(write(), &how(0, false, None)).await.expect("a write");
    while world.regions[1].get(&key("a")).await.unwrap().is_none() {
        world.runtime.sleep(Duration::from_millis(20)).await;
    }
    let replicated = Some(Durability::Replicated);
    world.router.write(write(), &how(1, false, replicated)).await.expect("two regions have it");
    let unknown = world.router.write(write(), &how(1, true, replicated)).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::OutcomeUnknown);
    assert!(unknown.message().contains("committed in us-east, and eu-west confirmed"), "{unknown}");
    let again = world.router.write(write(), &how(1, false, None)).await.unwrap().remove(0);
    assert_eq!(again.origin.region, Some(name(1)));
    let by = || Deadline::at(world.runtime.now() + Duration::from_millis(250));
    assert_eq!(world.router.confirmed(&key("a"), &again, by()).await, [name(0)]);
    world.cut(0, 2, false);
    world.runtime.sleep(Duration::from_secs(10)).await;
    assert_eq!(world.router.confirmed(&key("a"), &again, by()).await, [name(0), name(2)]);
}

#[tokio::test(start_paused = true)]
async fn what_resides_in_its_home_is_replicated_nowhere() {
    let world = World::new(14, at_home(true));
    let receipt = put(&world, 0, "eu:a", "1").await.unwrap();
    world.settle().await;
    let by = Deadline::at(world.runtime.now() + Duration::from_millis(250));
    assert_eq!(world.router.confirmed(&key("eu:a"), &receipt, by).await, []);
    let deadline = Deadline::at(world.runtime.now() + Duration::from_secs(2));
    let how = WriteOptions { durability: Some(Durability::Replicated), deadline, ..into(0) };
    let batch = ["b", "eu:a"].map(|name| Write::put(key(name), value("2"))).to_vec();
    let refused = world.router.write(batch, &how).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
    let found = [read(&world, 0, "eu:a").await.unwrap(), read(&world, 0, "b").await.unwrap()];
    assert_eq!(found.each_ref().map(text), [Some("1"), None], "nothing was written");
}

#[tokio::test(start_paused = true)]
async fn a_cache_forgets_what_another_region_has_written() {
    let world = World::new(8, Wanted { cached: true, ..Wanted::default() });
    put(&world, 0, "a", "1").await.unwrap();
    world.settle().await;
    read(&world, 1, "a").await.unwrap();
    let cached = read(&world, 1, "a").await.unwrap();
    assert_eq!((cached.origin.tier, cached.origin.region), (Tier::Far, Some(name(1))));
    put(&world, 0, "a", "2").await.unwrap();
    world.settle().await;
    world.runtime.sleep(Duration::from_millis(1)).await;
    let found = read(&world, 1, "a").await.unwrap();
    assert_eq!((text(&found), found.origin.tier), (Some("2"), Tier::Database));
}

#[tokio::test(start_paused = true)]
async fn a_cache_is_not_believed_after_somebody_else_has_followed() {
    let world = World::new(11, Wanted { cached: true, ..Wanted::default() });
    put(&world, 0, "a", "1").await.unwrap();
    world.settle().await;
    read(&world, 1, "a").await.unwrap();
    assert_eq!(read(&world, 1, "a").await.unwrap().origin.tier, Tier::Far);
    // Another instance applies a change, and dies before it tells the cache.
    world.cut(0, 1, true);
    world.runtime.sleep(Duration::from_secs(4)).await;
    put(&world, 0, "a", "2").await.unwrap();
    let follower = world.regions[1].follower_of(world.regions[0].region().id);
    let from = follower.checkpoint().await.unwrap();
    let page = world.regions[0].own_log().after(from.position, 10).await.unwrap();
    let to = from.at(page.position);
    let batch = Batch { from, to, changes: page.changes, ..Batch::default() };
    assert!(follower.apply(&batch).await.unwrap());
    assert_eq!(text(&read(&world, 1, "a").await.unwrap()), Some("1"), "the cache has not heard");
    world.cut(0, 1, false);
    world.runtime.sleep(Duration::from_secs(5)).await;
    assert_eq!(text(&read(&world, 1, "a").await.unwrap()), Some("2"));
}

#[tokio::test(start_paused = true)]
async fn a_region_that_comes_back_as_another_is_not_followed_until_it_is_repaired() {
    let world = World::new(9, Wanted::default());
    put(&world, 0, "a", "1").await.unwrap();
    world.settle().await;
    world.regions[0].begin_history();
    put(&world, 0, "a", "2").await.unwrap();
    world.runtime.sleep(Duration::from_secs(10)).await;
    assert_eq!(text(&read(&world, 1, "a").await.unwrap()), Some("1"), "it is not followed");
    let tree = world.router.inspect().await;
    assert_eq!(tree.status, Status::Degraded);
    assert!(tree.reason().contains("terrace regions repair"), "{}", tree.reason());

    let log = world.regions[0].own_log().name();
    for place in [1, 2] {
        let id = world.regions[0].region().id;
        world.regions[place].follower_of(id).begin_anew(&log).await.unwrap();
    }
    world.settle().await;
    assert_eq!(text(&read(&world, 1, "a").await.unwrap()), Some("2"));
}

/// The name of its log is the same: its database was overwritten in place.
#[tokio::test(start_paused = true)]
async fn an_origin_that_has_lost_what_was_followed_is_not_followed_until_it_is_repaired() {
    let world = World::new(12, Wanted::default());
    put(&world, 0, "a", "1").await.unwrap();
    world.settle().await;
    let origin = world.regions[0].region().id;
    let follower = world.regions[1].follower_of(origin);
    let from = follower.checkpoint().await.unwrap();
    let lost = LogPosition { offset: from.position.offset + 1, ..from.position };
    let batch = Batch { to: from.at(lost), from, ..Batch::default() };
    assert!(follower.apply(&batch).await.unwrap());
    put(&world, 0, "a", "2").await.unwrap();
    world.runtime.sleep(Duration::from_secs(10)).await;
    assert_eq!(text(&read(&world, 1, "a").await.unwrap()), Some("1"), "it is not followed");
    let tree = world.router.inspect().await;
    assert_eq!(tree.status, Status::Degraded);
    assert!(tree.reason().contains("terrace regions repair"), "{}", tree.reason());

    let ports = world.regions.iter().map(|region| Arc::clone(region) as Arc<dyn RegionStore>);
    let set = RegionSet::new(ports.collect(), world.runtime.clone());
    let lags = set.lags().await;
    let stopped = lags.iter().filter(|it| it.state == LagState::Stopped).collect::<Vec<_>>();
    assert_eq!(stopped.len(), 1, "{lags:?}");
    assert_eq!((stopped[0].origin, stopped[0].region), (name(0), name(1)));
    set.repair().await.unwrap();
    world.settle().await;
    assert_eq!(text(&read(&world, 1, "a").await.unwrap()), Some("2"));
}

#[tokio::test(start_paused = true)]
async fn a_change_that_cannot_be_applied_is_named_by_its_key() {
    let world = World::new(15, Wanted::default());
    put(&world, 0, "a", "1").await.unwrap();
    world.settle().await;
    world.regions[1].refuse(Some(key("bad")));
    for name in ["good", "bad", "after"] {
        put(&world, 0, name, "1").await.unwrap();
    }
    world.runtime.sleep(Duration::from_secs(20)).await;
    let here = async |name: &str| world.regions[1].get(&key(name)).await.unwrap().is_some();
    assert_eq!([here("good").await, here("bad").await, here("after").await], [true, false, false]);
    let tree = world.router.inspect().await;
    assert_eq!(tree.status, Status::Degraded);
    let why = "the change of key bad cannot be applied, and nothing after it is: the test says so";
    assert!(tree.reason().contains(why), "{}", tree.reason());
    let ports = world.regions.iter().map(|region| Arc::clone(region) as Arc<dyn RegionStore>);
    let set = RegionSet::new(ports.collect(), world.runtime.clone());
    let lags = set.lags().await;
    let next = lags.iter().filter_map(|lag| lag.next.as_ref()).collect::<Vec<_>>();
    assert_eq!(next, [&key("bad")], "{lags:?}");
    let stands = set.repair().await.unwrap_err();
    assert!(stands.message().contains(why), "{stands}");
    world.regions[1].refuse(None);
    world.settle().await;
    assert_eq!(world.router.inspect().await.status, Status::Healthy);
}

#[tokio::test(start_paused = true)]
async fn what_may_be_stale_for_a_time_comes_from_a_region_that_has_heard_all_within_it() {
    let world = World::new(10, Wanted::default());
    put(&world, 0, "a", "1").await.unwrap();
    world.settle().await;
    // Several looks at where the logs end.
    world.runtime.sleep(Duration::from_secs(5)).await;
    let stale = ReadOptions {
        consistency: terrace_core::Consistency::MaxStale(Duration::from_secs(3)),
        ..there(1)
    };
    let found = world.router.get_read(&key("a"), &stale).await.unwrap();
    assert_eq!((text(&found), found.origin.region), (Some("1"), Some(name(1))));
    world.cut(0, 1, true);
    put(&world, 0, "a", "2").await.unwrap();
    world.runtime.sleep(Duration::from_secs(5)).await;
    let refused = world.router.get_read(&key("a"), &stale).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "it has not heard us-east for five seconds");
}

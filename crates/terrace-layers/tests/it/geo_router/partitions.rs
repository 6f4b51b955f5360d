//! Partitions with writes on all sides: healed, all regions are equal, and what was lost is listed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use terrace_core::testkit::{key, value};
use terrace_core::{
    Ancestry, Error, ErrorKind, Key, KeyRange, LogPosition, Outcome, ReadOptions, RegionStore as _,
    Result, Store as _, StoreExt as _, Token, Version, Write, WriteOptions,
};

use super::world::{Wanted, World, name};

/// `TERRACE_SEEDS` runs so many.
fn seeds() -> u64 {
    std::env::var("TERRACE_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(100)
}

/// Everything that was ever written, by key: each version, and what it has replaced.
async fn updates(world: &World) -> BTreeMap<Key, Vec<(Version, Version)>> {
    let mut all = BTreeMap::<Key, Vec<_>>::new();
    for region in &world.regions {
        let log = region.own_log();
        let page = log.after(LogPosition::default(), usize::MAX).await.expect("the log");
        for change in page.changes {
            let replaced = match change.ancestry.as_deref() {
                Some(Ancestry::Change { replaced, .. }) => *replaced,
                other => panic!("a change says what it replaced: {other:?}"),
            };
            all.entry(change.key).or_default().push((change.version, replaced));
        }
    }
    all
}

/// What is lost of all updates, by a model that knows all of them at once.
fn lost(updates: &BTreeMap<Key, Vec<(Version, Version)>>) -> Vec<(Key, Version)> {
    let each = updates.iter().flat_map(|(key, all)| {
        let replaced = all.iter().map(|(_, replaced)| *replaced).collect::<BTreeSet<_>>();
        let newest = all.iter().map(|(version, _)| *version).max();
        let lost = all.iter().map(|(version, _)| *version);
        let lost = lost.filter(|it| Some(*it) != newest && !replaced.contains(it));
        let mut lost = lost.map(|version| (key.clone(), version)).collect::<Vec<_>>();
        lost.sort();
        lost
    });
    each.collect()
}

async fn run(seed: u64) -> usize {
    let world = World::new(seed, Wanted::default());
    let random = |below: u64| usize::try_from(world.runtime.random() % below).expect("small");
    world.regions.iter().for_each(|it| it.set_delay(Duration::from_millis(seed % 7)));
    let mut acknowledged = Vec::new();
    for step in 0..120 {
        if random(10) == 0 {
            world.cut(random(3), random(3), random(2) == 0);
        }
        let how = WriteOptions { region: Some(name(random(3))), ..WriteOptions::default() };
        let key = key(format!("k{}", random(4)));
        let write = match random(5) {
            0 => Write::delete(key.clone()),
            _ => Write::put(key.clone(), value(format!("{seed}-{step}"))),
        };
        match world.router.write(vec![write], &how).await {
            Ok(receipts) if receipts[0].outcome.is_applied() => {
                acknowledged.push((key, receipts[0].version));
            }
            Ok(receipts) => assert_eq!(receipts[0].outcome, Outcome::Absent),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "seed {seed}"),
        }
        world.runtime.sleep(Duration::from_millis(world.runtime.random() % 30)).await;
    }
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        world.cut(one, other, false);
    }
    for place in 0..3 {
        world.cut(place, place, false);
    }
    world.settle().await;

    let whole = KeyRange::default();
    let first = world.regions[0].digest(&whole).await.expect("a digest");
    let all = updates(&world).await;
    let model = lost(&all);
    for region in &world.regions {
        assert_eq!(region.digest(&whole).await.expect("a digest"), first, "seed {seed}, {region}");
        let listed = region.conflicts(None, usize::MAX).await.expect("conflicts");
        let listed = listed.into_iter().map(|it| (it.key, it.loser)).collect::<Vec<_>>();
        assert_eq!(listed, model, "seed {seed}, {region}");
    }
    for (key, version) in acknowledged {
        let known = all[&key].iter().any(|(known, _)| *known == version);
        assert!(known, "seed {seed}: an acknowledged write of {key} is in no log");
    }
    world.router.close().await.expect("an end");
    model.len()
}

#[tokio::test(start_paused = true)]
async fn regions_are_equal_after_a_partition_and_what_was_lost_is_listed() {
    let mut lost = 0;
    for seed in 0..seeds() {
        lost += run(seed).await;
    }
    assert!(lost > 100, "the partitions made no conflicts: {lost}");
}

/// A client that hops between regions and carries its token along.
#[derive(Default)]
struct Hopper {
    token: Token,
    /// The highest version that it has seen of each key.
    seen: BTreeMap<Key, Version>,
    reads: usize,
}

impl Hopper {
    async fn read(&mut self, world: &World, place: usize, key: &Key) -> Result<()> {
        let token = Some(self.token.clone());
        let region = Some(name(place));
        let how = ReadOptions { token, region, ..ReadOptions::default() };
        let read = world.router.get_read(key, &how).await?;
        let known = self.seen.entry(key.clone()).or_default();
        assert!(read.version >= *known, "{key} in {}: {} < {known}", name(place), read.version);
        *known = read.version;
        self.token.merge(&read.token);
        self.reads += 1;
        Ok(())
    }

    async fn write(&mut self, world: &World, place: usize, key: &Key) -> Result<()> {
        let how = WriteOptions { region: Some(name(place)), ..WriteOptions::default() };
        let write = Write::put(key.clone(), value("x"));
        let receipts = world.router.write(vec![write], &how).await?;
        self.token.merge(&receipts[0].token);
        let known = self.seen.entry(key.clone()).or_default();
        // Of two regions' updates of one key the higher version counts, so it may have lost already.
        *known = receipts[0].version.max(*known);
        Ok(())
    }
}

async fn hop(seed: u64, cached: bool) -> (usize, usize) {
    let world = World::new(seed, Wanted { cached, ..Wanted::default() });
    let random = |below: u64| usize::try_from(world.runtime.random() % below).expect("small");
    world.regions.iter().for_each(|it| it.set_delay(Duration::from_millis(seed % 5)));
    let (mut hoppers, mut refused) = ([Hopper::default(), Hopper::default()], 0);
    for _ in 0..150 {
        if random(12) == 0 {
            world.cut(random(3), random(3), random(3) == 0);
        }
        let (who, place) = (random(2), random(3));
        let key = key(format!("k{}", random(3)));
        let done = match random(3) {
            0 => hoppers[who].write(&world, place, &key).await,
            _ => hoppers[who].read(&world, place, &key).await,
        };
        if let Err(error) = done {
            let fits = |error: &Error| {
                matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::DeadlineExceeded)
            };
            assert!(fits(&error), "seed {seed}: {error}");
            refused += 1;
        }
        world.runtime.sleep(Duration::from_millis(world.runtime.random() % 8)).await;
    }
    world.router.close().await.expect("an end");
    (hoppers.iter().map(|it| it.reads).sum(), refused)
}

#[tokio::test(start_paused = true)]
async fn a_token_that_hops_between_regions_never_goes_back() {
    let (mut reads, mut refused) = (0, 0);
    for seed in 0..seeds() {
        let (some, others) = hop(seed, seed % 2 == 1).await;
        (reads, refused) = (reads + some, refused + others);
    }
    assert!(reads > 5000, "{reads} reads, {refused} refused");
}

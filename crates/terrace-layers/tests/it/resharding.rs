//! Moving slots under seeds: clients at work through two instances, delays, crashes of what moves.

mod checker;
mod histories;

use std::sync::Arc;
use std::time::Duration;

use terrace_core::testkit::{MemoryShard, key, value};
use terrace_core::{
    ErrorKind, Idempotency, Runtime, Shard as _, ShardState, SlotSet, StoreExt as _, WriteOptions,
};
use terrace_layers::resharding::{Change, Progress};
use terrace_layers::{Resharding, ReshardingOptions, ShardRouterOptions};

use crate::shard_router::Shards;
use checker::{Clients, Verdict};

/// What is broken on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Broken {
    #[cfg(feature = "mutants")]
    mutant: Option<terrace_layers::resharding::Mutant>,
    no_fence: bool,
    not_raised: bool,
    /// One of the two routers looks at the shards only when one refuses it.
    stale_router: bool,
}

async fn opened(shards: &Arc<Shards>, runtime: &Runtime, broken: Broken) -> Resharding {
    let addresses = ["0", "1", "2"].map(str::to_owned);
    let options = ReshardingOptions { group: 512, batch: 40, ..ReshardingOptions::default() };
    let watch = Arc::new(|_: Progress| {});
    let opener = Arc::clone(shards) as _;
    let opened = Resharding::open(&addresses, opener, options, watch, runtime.clone()).await;
    let resharding = opened.unwrap();
    let _ = broken;
    #[cfg(feature = "mutants")]
    if let Some(mutant) = broken.mutant {
        return resharding.broken(mutant);
    }
    resharding
}

fn shard(runtime: &Runtime, broken: Broken) -> MemoryShard {
    let shard = MemoryShard::new(runtime.clone());
    shard.set_delay(Duration::from_millis(3));
    let shard = if broken.no_fence { shard.without_fence() } else { shard };
    if broken.not_raised { shard.without_raising() } else { shard }
}

/// What happens to the plan in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Finish,
    Back,
}

/// One run: 3 shards become 4 under load, what moves is killed now and then, and it ends this way.
async fn run(seed: u64, kills: u32, end: End, broken: Broken) -> Verdict {
    let runtime = Runtime::seeded(seed);
    let shards = Arc::new(Shards::default());
    for number in 0..4 {
        shards.add(number, shard(&runtime, broken));
    }
    let a = shards.router(3, &runtime).await;
    let mut options = ShardRouterOptions::default();
    if broken.stale_router {
        options.refresh = Duration::from_secs(3600);
    }
    let b = shards.router_with(3, options, &runtime).await.unwrap();
    let clients = Clients::start([Arc::new(a), Arc::new(b)], kills > 0, &runtime);
    runtime.sleep(Duration::from_millis(300)).await;

    let mut left = kills;
    loop {
        let work = async {
            let mut work = opened(&shards, &runtime, broken).await;
            match work.plan().is_some() {
                true => work.resume().await,
                false => work.begin(&Change::Add("3".into())).await,
            }
        };
        if left == 0 {
            work.await.unwrap();
            break;
        }
        left -= 1;
        let life = Duration::from_millis(runtime.random() % 1500);
        let end = terrace_core::Deadline::at(runtime.now() + life);
        if let Some(done) = runtime.within(end, work).await {
            done.unwrap();
            break;
        }
    }
    runtime.sleep(Duration::from_millis(100)).await;
    let mut work = opened(&shards, &runtime, broken).await;
    match end {
        End::Finish => work.finish().await.unwrap(),
        End::Back => {
            work.back().await.unwrap();
            runtime.sleep(Duration::from_millis(100)).await;
            work.finish().await.unwrap();
        }
    }
    runtime.sleep(Duration::from_millis(100)).await;
    let verdict = clients.stop().await;
    if broken == Broken::default() {
        check_shares(&shards, end).await;
    }
    verdict
}

async fn check_shares(shards: &Arc<Shards>, end: End) {
    let count = if end == End::Finish { 4 } else { 3 };
    let mut all = SlotSet::default();
    for number in 0..count {
        let state: ShardState = shards.shard(number).state().await.unwrap().unwrap();
        assert!(all.within(&state.owned).is_empty(), "no slot has two owners");
        assert_eq!((state.plan, state.members.len()), (None, count));
        all = all.with(&state.owned);
        if number == 3 {
            let quarter = usize::from(terrace_core::SLOTS) / 4;
            assert!(state.owned.len() <= quarter + 328, "no more than a quarter and 2 % moved");
        }
        // Nothing is left where it does not belong.
        use terrace_layers::Partitioner as _;
        let slot = |it: &terrace_core::Key| terrace_layers::HashPartitioner.slot(it);
        assert!(
            shards.shard(number).rows_now().iter().all(|it| state.owned.contains(slot(&it.key)))
        );
    }
    assert_eq!(all.len(), usize::from(terrace_core::SLOTS));
}

#[tokio::test(start_paused = true)]
async fn three_shards_become_four_under_load_and_nobody_notices() {
    for seed in 0..checker::seeds(5) {
        let verdict = run(seed, 0, End::Finish, Broken::default()).await;
        assert!(verdict.is_good() && verdict.errors == 0, "seed {seed}: {verdict:?}");
        assert!(verdict.reads > 1000 && verdict.writes > 500, "{verdict:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_moves_slots_may_be_killed_at_any_point() {
    for seed in 0..checker::seeds(10) {
        let verdict = run(seed, 4, End::Finish, Broken::default()).await;
        assert!(verdict.is_good(), "seed {seed}: {verdict:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_way_back_is_as_safe() {
    for seed in 0..checker::seeds(5) {
        let verdict = run(seed, 2, End::Back, Broken::default()).await;
        assert!(verdict.is_good(), "seed {seed}: {verdict:?}");
    }
}

/// Each broken variant is noticed within some seeds: how many depends on what happens at the same moment.
async fn is_noticed(broken: Broken, end: End) {
    for seed in 0..64 {
        if !run(seed, 0, end, broken).await.is_good() {
            return;
        }
    }
    panic!("nobody noticed that {broken:?}");
}

#[tokio::test(start_paused = true)]
async fn versions_that_are_not_raised_are_noticed() {
    is_noticed(Broken { not_raised: true, ..Broken::default() }, End::Finish).await;
}

#[tokio::test(start_paused = true)]
async fn a_fence_that_lets_old_maps_in_is_noticed() {
    is_noticed(Broken { no_fence: true, ..Broken::default() }, End::Finish).await;
}

/// Without the fence nobody refuses it.
#[tokio::test(start_paused = true)]
async fn an_instance_that_never_looks_again_is_noticed() {
    let broken = Broken { stale_router: true, no_fence: true, ..Broken::default() };
    is_noticed(broken, End::Finish).await;
}

#[cfg(feature = "mutants")]
mod mutants {
    use terrace_layers::resharding::Mutant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_take_before_the_tail_is_noticed() {
        let mutant = Some(Mutant::TakesEarly);
        is_noticed(Broken { mutant, ..Broken::default() }, End::Finish).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_take_before_the_fence_is_noticed() {
        let mutant = Some(Mutant::NoFence);
        is_noticed(Broken { mutant, ..Broken::default() }, End::Finish).await;
    }
}

/// Two at once exclude each other, and the last step says what is wrong with the next.
#[tokio::test]
async fn one_moves_at_a_time_and_steps_have_an_order() {
    let runtime = Runtime::system();
    let shards = Shards::of(4, &runtime);
    let router = shards.router(3, &runtime).await;
    router.put(key("a"), value("1")).await.unwrap();
    let mut work = opened(&shards, &runtime, Broken::default()).await;
    for refused in [work.resume().await, work.back().await, work.finish().await] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    assert!(work.draw(&Change::Rebalance).is_err(), "they are even");
    work.begin(&Change::Add("3".into())).await.unwrap();
    let mut other = opened(&shards, &runtime, Broken::default()).await;
    assert_eq!(other.resume().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(other.draw(&Change::Remove(0)).is_err(), "one plan at a time");
    drop(other);
    work.finish().await.unwrap();
    work.begin(&Change::Remove(1)).await.unwrap();
    work.finish().await.unwrap();
    assert!(router.get(&key("a")).await.unwrap().is_some());
    let left = opened(&shards, &runtime, Broken::default()).await.shares();
    let numbers = left.iter().map(|share| share.number).collect::<Vec<_>>();
    assert_eq!(numbers, [0, 2, 3]);
    assert_eq!(left.iter().map(|share| share.slots.len()).sum::<usize>(), 16384);
}

#[tokio::test]
async fn the_result_of_a_request_moves_with_its_key() {
    let runtime = Runtime::system();
    let shards = Shards::of(4, &runtime);
    let router = shards.router(3, &runtime).await;
    let write = |number: u32| {
        let request = Idempotency::new(&format!("once-{number}"), [1; 32]).unwrap();
        let how = WriteOptions { idempotency: Some(Arc::new(request)), ..Default::default() };
        let it = key(format!("key-{number}"));
        (vec![terrace_core::Write::put(it, value("v"))], how)
    };
    let mut versions = Vec::new();
    for number in 0..40 {
        let (batch, how) = write(number);
        versions.push(terrace_core::Store::write(&router, batch, &how).await.unwrap()[0].version);
    }
    let mut work = opened(&shards, &runtime, Broken::default()).await;
    work.begin(&Change::Add("3".into())).await.unwrap();
    for number in 0..40 {
        let (batch, how) = write(number);
        let again = terrace_core::Store::write(&router, batch, &how).await.unwrap();
        assert_eq!(again[0].version, versions[number as usize], "it was done once");
    }
    assert!(!shards.shard(3).rows_now().is_empty(), "some have moved");
}

/// Takes shard 0 down as soon as the new one is opened.
#[derive(Debug)]
struct DownMeanwhile(Arc<Shards>);

impl terrace_layers::ShardOpener for DownMeanwhile {
    fn open<'a>(
        &'a self,
        address: &'a str,
    ) -> terrace_core::BoxFuture<'a, terrace_core::Result<Arc<dyn terrace_core::Shard>>> {
        if address == "3" {
            self.0.shard(0).set_down(true);
        }
        self.0.open(address)
    }
}

/// Who begins and fails before any shard knows of the plan has nothing to resume, and begins again.
#[tokio::test(start_paused = true)]
async fn a_plan_that_no_shard_knows_was_not_begun() {
    let runtime = Runtime::seeded(1);
    let shards = Shards::of(4, &runtime);
    let router = shards.router(3, &runtime).await;
    router.put(key("a"), value("1")).await.unwrap();
    let addresses = ["0", "1", "2"].map(str::to_owned);
    let opener = Arc::new(DownMeanwhile(Arc::clone(&shards)));
    let options = ReshardingOptions::default();
    let watch = Arc::new(|_: Progress| {});
    let begun = Resharding::open(&addresses, opener, options, watch, runtime.clone());
    let mut work = begun.await.unwrap();
    let failed = work.begin(&Change::Add("3".into())).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Unavailable);
    assert_eq!(work.plan(), None, "nobody is told to resume");
    drop(work);
    shards.shard(0).set_down(false);
    let mut work = self::opened(&shards, &runtime, Broken::default()).await;
    assert_eq!(work.resume().await.unwrap_err().kind(), ErrorKind::InvalidInput);
    work.begin(&Change::Add("3".into())).await.unwrap();
}

/// A key that was used for a request is known on every shard, also after its slot has moved.
#[tokio::test(start_paused = true)]
async fn a_reused_idempotency_key_is_refused_after_a_move() {
    let runtime = Runtime::seeded(3);
    let shards = Shards::of(4, &runtime);
    let router = shards.router(3, &runtime).await;
    let named = |number: u32, print: u8| WriteOptions {
        idempotency: Some(Arc::new(
            Idempotency::new(&format!("once-{number}"), [print; 32]).unwrap(),
        )),
        ..Default::default()
    };
    let put = |number: u32| {
        vec![terrace_core::Write::put(key(format!("key-{number}")), value(number.to_string()))]
    };
    for number in 0..40 {
        terrace_core::Store::write(&router, put(number), &named(number, 1)).await.unwrap();
    }
    let mut work = opened(&shards, &runtime, Broken::default()).await;
    work.begin(&Change::Add("3".into())).await.unwrap();
    for number in 0..40 {
        let how = named(number, 2);
        let other = terrace_core::Store::write(&router, put(100 + number), &how).await;
        assert_eq!(other.unwrap_err().kind(), ErrorKind::InvalidInput, "{number}");
    }
}

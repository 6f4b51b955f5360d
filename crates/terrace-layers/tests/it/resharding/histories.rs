//! What databases and other processes have been through before: removed shards, stalled commands,
//! leftovers, two sets.

use std::sync::Mutex;

use futures_util::FutureExt as _;
use terrace_core::{Batch, Logged, Member, Store, Version};
use terrace_layers::{HashPartitioner, Partitioner as _, ShardRouter};

use super::*;

const KEYS: usize = 200;

async fn filled(shards: &Arc<Shards>, runtime: &Runtime) -> ShardRouter {
    let router = shards.router(3, runtime).await;
    for number in 0..KEYS {
        router.put(key(format!("key-{number}")), value("first")).await.unwrap();
    }
    router
}

async fn all_say(router: &ShardRouter, text: &str) {
    for number in 0..KEYS {
        let found = router.get(&key(format!("key-{number}"))).await.unwrap();
        assert_eq!(found.unwrap().value.as_str(), text, "key-{number}");
    }
}

async fn states(shards: &Shards, count: usize) -> Vec<ShardState> {
    let mut states = Vec::new();
    for number in 0..count {
        states.extend(shards.shard(number).state().await.unwrap());
    }
    states
}

/// Every slot has an owner and no two.
async fn owned_once(shards: &Shards, count: usize) {
    let states = states(shards, count).await;
    let sum = states.iter().map(|state| state.owned.len()).sum::<usize>();
    let all = states.iter().fold(SlotSet::default(), |all, state| all.with(&state.owned));
    assert_eq!((sum, all.len()), (16384, 16384));
}

/// Settings go on to name a database that was removed; its number must not stand for another.
#[tokio::test]
async fn a_removed_shard_is_not_taken_for_the_next_one() {
    let runtime = Runtime::system();
    let shards = Shards::of(4, &runtime);
    let router = filled(&shards, &runtime).await;
    let mut work = opened(&shards, &runtime, Broken::default()).await;
    work.begin(&Change::Remove(2)).await.unwrap();
    work.finish().await.unwrap();
    let mut work = opened(&shards, &runtime, Broken::default()).await;
    work.begin(&Change::Add("3".into())).await.unwrap();
    drop(work);
    for number in 0..KEYS {
        router.put(key(format!("key-{number}")), value("second")).await.unwrap();
    }
    // As after a restart with the old settings: the first three databases.
    all_say(&shards.router(3, &runtime).await, "second").await;
    let mut work = opened(&shards, &runtime, Broken::default()).await;
    work.finish().await.unwrap();
    owned_once(&shards, 4).await;
    let numbers = states(&shards, 4).await.iter().map(|state| state.number).collect::<Vec<_>>();
    assert_eq!(numbers, [0, 1, 2, 3], "no number is given out twice");
    all_say(&shards.router(3, &runtime).await, "second").await;
}

/// A command that looked, and stalled while another did its work, looks again.
#[tokio::test]
async fn a_stalled_command_does_not_act_on_what_it_saw() {
    let runtime = Runtime::system();
    let shards = Shards::of(5, &runtime);
    let router = filled(&shards, &runtime).await;
    let mut stalled = opened(&shards, &runtime, Broken::default()).await;
    let mut other = opened(&shards, &runtime, Broken::default()).await;
    other.begin(&Change::Add("3".into())).await.unwrap();
    drop(other);
    let refused = stalled.begin(&Change::Add("4".into())).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
    drop(stalled);
    owned_once(&shards, 4).await;
    // The same for the end, and for the way back.
    let (mut back, mut next) = (
        opened(&shards, &runtime, Broken::default()).await,
        opened(&shards, &runtime, Broken::default()).await,
    );
    let mut other = opened(&shards, &runtime, Broken::default()).await;
    other.finish().await.unwrap();
    drop(other);
    assert_eq!(back.back().await.unwrap_err().kind(), ErrorKind::InvalidInput);
    drop(back);
    next.begin(&Change::Add("4".into())).await.unwrap();
    next.finish().await.unwrap();
    owned_once(&shards, 5).await;
    all_say(&router, "first").await;
}

/// Shards whose move was killed between a fence and the take, and a router over them.
async fn killed_on_the_way(runtime: &Runtime) -> (Arc<Shards>, ShardRouter) {
    for life in (1..).map(|millis| Duration::from_millis(3 * millis)) {
        let shards = Arc::new(Shards::default());
        (0..4).for_each(|number| shards.add(number, shard(runtime, Broken::default())));
        let router = filled(&shards, runtime).await;
        let mut work = opened(&shards, runtime, Broken::default()).await;
        let end = terrace_core::Deadline::at(runtime.now() + life);
        let add = Change::Add("3".into());
        let ended = runtime.within(end, work.begin(&add)).await;
        drop(work);
        let states = states(&shards, 4).await;
        if states.iter().map(|state| state.owned.len()).sum::<usize>() < 16384 {
            (0..4).for_each(|number| shards.shard(number).set_delay(Duration::ZERO));
            return (shards, router);
        }
        assert!(ended.is_none(), "it ended and no moment was between");
    }
    unreachable!("it ends")
}

/// After such a kill the giver has its slots back before anything that takes long.
#[tokio::test(start_paused = true)]
async fn slots_on_their_way_can_be_used_while_a_resumed_plan_copies() {
    let runtime = Runtime::system();
    let (shards, router) = killed_on_the_way(&runtime).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (note, all) = (Arc::clone(&seen), Arc::clone(&shards));
    let watch = Arc::new(move |progress: Progress| {
        if matches!(progress, Progress::Comparing { .. } | Progress::Copying { .. }) {
            let states = states(&all, 4).now_or_never().unwrap();
            let owned = states.iter().map(|state| state.owned.len()).sum::<usize>();
            note.lock().unwrap().push(owned);
        }
    });
    let addresses = ["0", "1", "2"].map(str::to_owned);
    let opener = Arc::clone(&shards) as _;
    let options = ReshardingOptions::default();
    let work = Resharding::open(&addresses, opener, options, watch, runtime.clone()).await;
    work.unwrap().resume().await.unwrap();
    let seen = seen.lock().unwrap().clone();
    assert!(!seen.is_empty() && seen.iter().all(|owned| *owned == 16384), "{seen:?}");
    owned_once(&shards, 4).await;
    all_say(&router, "first").await;
}

/// Rows that somebody changed where they no longer live stand in the way of the way back, once.
#[tokio::test]
async fn a_copy_that_differs_is_made_anew() {
    let runtime = Runtime::system();
    let shards = Shards::of(4, &runtime);
    let router = filled(&shards, &runtime).await;
    opened(&shards, &runtime, Broken::default())
        .await
        .begin(&Change::Add("3".into()))
        .await
        .unwrap();
    let giver = shards.shard(0);
    let state = giver.state().await.unwrap().unwrap();
    let mut old = giver.rows_now().into_iter();
    let old = old.find(|row| !state.owned.contains(HashPartitioner.slot(&row.key))).unwrap();
    let mut record = old.record.clone().unwrap();
    let version = Version::new(record.version.get() + 1_000_000);
    (record.version, record.value) = (version, value("by hand"));
    let row = Logged { version, record: Some(record), ..old };
    let batch = Batch { changes: vec![row], ..Batch::default() };
    assert!(giver.follower(state.epoch, "by hand").apply(&batch).await.unwrap());
    let mut work = opened(&shards, &runtime, Broken::default()).await;
    assert_eq!(work.back().await.unwrap_err().kind(), ErrorKind::Corrupt);
    work.resume().await.unwrap();
    work.finish().await.unwrap();
    owned_once(&shards, 3).await;
    all_say(&router, "first").await;
}

#[tokio::test]
async fn databases_of_two_sets_are_not_mixed() {
    let runtime = Runtime::system();
    let shards = Shards::of(4, &runtime);
    let open = async |addresses: [&str; 2]| {
        let addresses = addresses.map(str::to_owned);
        let opener = Arc::clone(&shards) as _;
        let around = Arc::new(|store: Arc<dyn Store>| store);
        let partitioner = Arc::new(HashPartitioner);
        let options = terrace_layers::ShardRouterOptions::default();
        ShardRouter::open(&addresses, partitioner, opener, around, options, runtime.clone()).await
    };
    let (_one, _other) = (open(["0", "1"]).await.unwrap(), open(["2", "3"]).await.unwrap());
    for mixed in [["0", "3"], ["2", "1"]] {
        assert_eq!(open(mixed).await.unwrap_err().kind(), ErrorKind::InvalidInput);
        let addresses = mixed.map(str::to_owned);
        let options = ReshardingOptions::default();
        let watch = Arc::new(|_: Progress| {});
        let opener = Arc::clone(&shards) as _;
        let work = Resharding::open(&addresses, opener, options, watch, runtime.clone()).await;
        assert_eq!(work.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    let members = states(&shards, 4).await.into_iter().flat_map(|state| state.members);
    assert!(members.map(|Member { number, .. }| number).all(|number| number < 2));
}

/// A removed shard that missed its last word, because the command was killed just then, believes in its
/// old plan for ever; it has no say in the next one.
#[tokio::test]
async fn a_removed_shard_that_missed_the_end_does_not_stop_the_next_plan() {
    let runtime = Runtime::system();
    let shards = Shards::of(4, &runtime);
    let router = filled(&shards, &runtime).await;
    let mut work = opened(&shards, &runtime, Broken::default()).await;
    work.begin(&Change::Remove(2)).await.unwrap();
    let last = shards.shard(2);
    let missed = last.state().await.unwrap().unwrap();
    work.finish().await.unwrap();
    drop(work);
    let plan = missed.plan.clone().map(|plan| terrace_core::Plan { finishing: true, ..plan });
    let missed = ShardState { plan, ..missed };
    let now = last.state().await.unwrap().unwrap();
    last.change(now.epoch, missed, Version::NONE).await.unwrap();
    let mut work = opened(&shards, &runtime, Broken::default()).await;
    work.begin(&Change::Add("3".into())).await.unwrap();
    drop(work);
    let mut work = opened(&shards, &runtime, Broken::default()).await;
    work.finish().await.unwrap();
    all_say(&router, "first").await;
    all_say(&shards.router(3, &runtime).await, "first").await;
}

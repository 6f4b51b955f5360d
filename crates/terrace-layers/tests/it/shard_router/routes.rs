//! Where keys go.

use std::collections::HashSet;
use std::sync::Arc;

use proptest::prelude::*;
use terrace_core::testkit::{key, value};
use terrace_core::{
    ErrorKind, Idempotency, MemoryStore, Origin, Outcome, Precondition, ReadOptions, Runtime, Scan,
    Shard as _, Store as _, StoreExt as _, Write, WriteOptions,
};

use super::Shards;

#[tokio::test]
async fn every_key_lives_on_the_shard_that_answers_for_it_and_on_no_other() {
    let runtime = Runtime::system();
    let shards = Shards::of(3, &runtime);
    let router = shards.router(3, &runtime).await;
    let other = shards.router(3, &runtime).await;
    let keys = (0..300).map(|number| key(format!("key-{number}"))).collect::<Vec<_>>();
    let batch = keys.iter().map(|it| Write::put(it.clone(), value(it))).collect();
    let receipts = router.write(batch, &WriteOptions::default()).await.unwrap();
    let reads = other.read(&keys, &ReadOptions::default()).await.unwrap();
    for ((it, receipt), read) in keys.iter().zip(receipts).zip(reads) {
        let owner = router.shard_of(it).unwrap();
        assert_eq!(receipt.origin, Origin::PRIMARY.on_shard(owner));
        assert_eq!(read.origin, Origin::PRIMARY.on_shard(owner));
        assert_eq!(read.record.unwrap().value.as_str(), it.as_str());
        for number in 0..3 {
            let there = shards.shard(number.into()).rows_now().iter().any(|row| row.key == *it);
            assert_eq!(there, number == owner, "{it} on {number}");
        }
    }
    let used = keys.iter().map(|it| router.shard_of(it)).collect::<HashSet<_>>();
    assert_eq!(used.len(), 3);
}

#[tokio::test]
async fn a_list_is_merged_in_order_and_leaves_out_what_a_shard_does_not_own() {
    let runtime = Runtime::system();
    let shards = Shards::of(3, &runtime);
    let router = shards.router(3, &runtime).await;
    let mut all = (0..100).map(|number| format!("k{number:03}")).collect::<Vec<_>>();
    for it in &all {
        router.put(key(it), value(it)).await.unwrap();
    }
    // A copy on its way in.
    let copies = shards.shard(0).rows_now();
    let epoch = shards.shard(1).state().await.unwrap().unwrap().epoch;
    let copies = terrace_core::Batch { changes: copies, ..Default::default() };
    assert!(shards.shard(1).follower(epoch, "0").apply(&copies).await.unwrap());
    let mut scan = Scan { limit: 7, ..Scan::prefix("k") };
    let mut listed = Vec::new();
    loop {
        let page = router.scan(&scan, &ReadOptions::default()).await.unwrap();
        assert!(page.records.len() <= 7);
        listed.extend(page.records.into_iter().map(|it| it.key.as_str().to_owned()));
        match page.next {
            Some(next) => scan.after = Some(next),
            None => break,
        }
    }
    all.sort();
    assert_eq!(listed, all);
}

#[tokio::test]
async fn a_repeated_request_over_several_shards_answers_its_first_results() {
    let runtime = Runtime::system();
    let router = Shards::of(3, &runtime).router(3, &runtime).await;
    let batch =
        || (0..20).map(|number| Write::put(key(format!("k{number}")), value("v"))).collect();
    let idempotency = Some(Arc::new(Idempotency::new("once", [7; 32]).unwrap()));
    let how = WriteOptions { idempotency, ..WriteOptions::default() };
    let first = router.write(batch(), &how).await.unwrap();
    let again = router.write(batch(), &how).await.unwrap();
    assert!(first.iter().all(|receipt| receipt.outcome == Outcome::Created));
    let versions = |receipts: Vec<terrace_core::Receipt>| {
        receipts.into_iter().map(|receipt| receipt.version).collect::<Vec<_>>()
    };
    assert_eq!(versions(first), versions(again));
}

fn named(print: u8) -> WriteOptions {
    let idempotency = Some(Arc::new(Idempotency::new("once", [print; 32]).unwrap()));
    WriteOptions { idempotency, ..WriteOptions::default() }
}

/// Another request under a key that was used is refused, wherever its records live.
#[tokio::test]
async fn a_reused_idempotency_key_is_refused_on_every_shard() {
    let runtime = Runtime::system();
    let shards = Shards::of(3, &runtime);
    let router = shards.router(3, &runtime).await;
    let put = |number: u32| vec![Write::put(key(format!("k{number}")), value("v"))];
    router.write(put(0), &named(1)).await.unwrap();
    for number in 1..20 {
        let reused = router.write(put(number), &named(2)).await.unwrap_err();
        assert_eq!(reused.kind(), ErrorKind::InvalidInput, "k{number}");
    }
    let rows = (0..3).map(|number| shards.shard(number).rows_now().len()).sum::<usize>();
    assert_eq!(rows, 1, "nothing else was written");
}

/// The key is taken and the write is not done, as after a crash between the two: the same request
/// does it, and no other can.
#[tokio::test]
async fn a_request_that_only_took_its_key_is_done_by_its_repeat() {
    let runtime = Runtime::system();
    let shards = Shards::of(3, &runtime);
    let router = shards.router(3, &runtime).await;
    // A record that does not live where the key of its request does.
    let request_home = router.shard_of(&key("once")).unwrap();
    let keys = || (0..).map(|number| key(format!("k{number}")));
    let it = keys().find(|it| router.shard_of(it) != Some(request_home)).unwrap();
    let home = usize::from(router.shard_of(&it).unwrap());
    let put = || vec![Write::put(it.clone(), value("v"))];
    shards.shard(home).set_down(true);
    let failed = router.write(put(), &named(1)).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Unavailable);
    shards.shard(home).set_down(false);
    let reused = router.write(put(), &named(2)).await.unwrap_err();
    assert_eq!(reused.kind(), ErrorKind::InvalidInput);
    let done = router.write(put(), &named(1)).await.unwrap();
    assert_eq!(done[0].outcome, Outcome::Created);
    assert_eq!(router.write(put(), &named(1)).await.unwrap()[0].version, done[0].version);
}

#[tokio::test]
async fn routing_a_key_allocates_nothing() {
    let runtime = Runtime::system();
    let router = Shards::of(3, &runtime).router(3, &runtime).await;
    let keys = (0..1000).map(|number| key(format!("{{tag}}key-{number}"))).collect::<Vec<_>>();
    // The first look of a thread may set something up.
    let mut found = keys.iter().filter_map(|it| router.shard_of(it)).count();
    let counted = allocation_counter::measure(|| {
        found += keys.iter().filter_map(|it| router.shard_of(it)).count();
    });
    assert_eq!((found, counted.count_total), (2000, 0));
}

/// One step of a client.
#[derive(Clone, Debug)]
enum Step {
    Write(Vec<(u8, bool, bool)>),
    Read(Vec<u8>),
    List(u8, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let writes = proptest::collection::vec((0..40u8, any::<bool>(), any::<bool>()), 1..12);
    let keys = proptest::collection::vec(0..40u8, 1..12);
    let step = prop_oneof![
        writes.prop_map(Step::Write),
        keys.prop_map(Step::Read),
        (0..40u8, 1..9usize).prop_map(|(after, limit)| Step::List(after, limit)),
    ];
    proptest::collection::vec(step, 1..25)
}

async fn same_as_one(steps: Vec<Step>, count: usize) {
    let runtime = Runtime::system();
    let router = Shards::of(count, &runtime).router(count, &runtime).await;
    let model = MemoryStore::default();
    let name = |number: u8| key(format!("k{number:02}"));
    for (round, step) in steps.into_iter().enumerate() {
        match step {
            Step::Write(writes) => {
                let write = |(number, put, absent): (u8, bool, bool)| {
                    let write = match put {
                        true => Write::put(name(number), value(format!("{round}"))),
                        false => Write::delete(name(number)),
                    };
                    if absent { write.when(Precondition::Absent) } else { write }
                };
                let batch = writes.into_iter().map(write).collect::<Vec<_>>();
                let how = WriteOptions::default();
                let expected = model.write(batch.clone(), &how).await.unwrap();
                let answered = router.write(batch, &how).await.unwrap();
                for (expected, answered) in expected.iter().zip(&answered) {
                    assert_eq!(expected.outcome, answered.outcome);
                }
            }
            Step::Read(numbers) => {
                let keys = numbers.into_iter().map(name).collect::<Vec<_>>();
                let expected = model.read(&keys, &ReadOptions::default()).await.unwrap();
                let answered = router.read(&keys, &ReadOptions::default()).await.unwrap();
                let text = |read: &terrace_core::Read| {
                    read.record.as_ref().map(|it| it.value.as_str().to_owned())
                };
                assert!(expected.iter().map(text).eq(answered.iter().map(text)));
            }
            Step::List(after, limit) => {
                let mut scan = Scan { after: Some(name(after)), limit, ..Scan::prefix("k") };
                let mut wanted = scan.clone();
                wanted.limit = Scan::MAX_LIMIT;
                let expected = model.scan(&wanted, &ReadOptions::default()).await.unwrap().records;
                let mut listed = Vec::new();
                loop {
                    let page = router.scan(&scan, &ReadOptions::default()).await.unwrap();
                    listed.extend(page.records);
                    match page.next {
                        Some(next) => scan.after = Some(next),
                        None => break,
                    }
                }
                let keys = |records: &[terrace_core::Record]| {
                    records.iter().map(|it| it.key.clone()).collect::<Vec<_>>()
                };
                assert_eq!(keys(&listed), keys(&expected));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn several_shards_answer_as_one_store_does(steps in steps(), count in 1..5usize) {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio.block_on(same_as_one(steps, count));
    }
}

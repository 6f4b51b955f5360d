//! Many at once, and some who go away.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::task::Poll;

use futures_util::future::join_all;

use crate::testkit::{key, value};
use crate::{Key, ReadOptions, Runtime, Store, StoreExt, Version, Write, WriteOptions};

/// Concurrent writes of one key have distinct versions, and what is there in the end is the newest.
pub async fn concurrent_writers_are_ordered_by_version(store: Arc<dyn Store>) {
    let keys: Vec<_> = (0..4).map(|number| key(format!("hot{number}"))).collect();
    let writers = (0..16).map(|writer| {
        let (store, keys) = (Arc::clone(&store), keys.clone());
        async move {
            let mut written = Vec::new();
            for round in 0..8 {
                let text = format!("{writer}-{round}");
                // Two keys a batch, in an order that differs between writers.
                let pair = [(writer + round) % 4, (writer * 3 + 1) % 4];
                let batch =
                    pair.map(|index| Write::put(keys[index].clone(), value(&text))).to_vec();
                let receipts = store.write(batch, &WriteOptions::default()).await.expect("a write");
                for (index, receipt) in pair.iter().zip(receipts) {
                    written.push((*index, receipt.version, text.clone()));
                }
            }
            written
        }
    });
    let mut newest: HashMap<usize, HashMap<Version, String>> = HashMap::new();
    for (index, version, text) in join_all(writers).await.into_iter().flatten() {
        let twin = newest.entry(index).or_default().insert(version, text);
        assert_eq!(twin, None, "version {version} was given twice");
    }
    for (index, versions) in newest {
        let (version, text) = versions.iter().max_by_key(|(version, _)| **version).expect("one");
        let record = store.get(&keys[index]).await.expect("a read").expect("a record");
        assert_eq!((&record.version, record.value.as_str()), (version, text.as_str()));
    }
}

/// Counters kept by read and conditional write lose nothing.
pub async fn concurrent_increments_are_not_lost(store: Arc<dyn Store>) {
    let counter = key("counter");
    store.put(counter.clone(), value("0")).await.expect("a put");
    let workers = (0..8).map(|_| {
        let (store, counter) = (Arc::clone(&store), counter.clone());
        async move {
            let mut done = 0;
            while done < 5 {
                let record = store.get(&counter).await.expect("a read").expect("a record");
                let next: u64 = record.value.as_str().parse::<u64>().expect("a number") + 1;
                let write = store.put_if(counter.clone(), value(next.to_string()), record.version);
                done += u32::from(write.await.expect("a write"));
            }
        }
    });
    join_all(workers).await;
    let record = store.get(&counter).await.expect("a read").expect("a record");
    assert_eq!(record.value.as_str(), "40");
}

/// Callers that go away in the middle leave each key with the old value or the new, whole batches,
/// and a store that works.
pub async fn a_dropped_future_leaves_all_or_nothing(store: Arc<dyn Store>) {
    let runtime = Runtime::seeded(42);
    // The tag in braces keeps a pair on one shard, where there are several: batches are whole there.
    let pair = |round: u64| [key(format!("{{{round}}}left")), key(format!("{{{round}}}right"))];
    for round in 0..60 {
        let keys = pair(round);
        let batch = keys.iter().map(|key| Write::put(key.clone(), value("new"))).collect();
        let polls = runtime.random() % 4;
        let options = WriteOptions::default();
        if round % 2 == 0 {
            poll_and_drop(store.write(batch, &options), polls).await;
        } else {
            poll_and_drop(store.read(&keys, &ReadOptions::default()), polls).await;
        }
    }
    // A write after them is answered; by then nothing of the dropped ones is half done.
    for round in 0..60 {
        let keys = pair(round);
        let reads = store.read(&keys, &ReadOptions::strong(Default::default())).await;
        let there: Vec<_> =
            reads.expect("a read").iter().map(|read| read.record.is_some()).collect();
        assert_eq!(there[0], there[1], "round {round} was applied whole or not at all");
        let receipt = store.put(keys[0].clone(), value("after")).await.expect("a put");
        let record = newest(&*store, &keys[0]).await;
        assert_eq!(record, (receipt.version, "after".to_owned()));
    }
}

async fn newest(store: &dyn Store, key: &Key) -> (Version, String) {
    let record = store.get(key).await.expect("a read").expect("a record");
    (record.version, record.value.as_str().to_owned())
}

async fn poll_and_drop<T>(future: impl Future<Output = T>, polls: u64) {
    let mut future = std::pin::pin!(future);
    for _ in 0..polls {
        let once = std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context)));
        if once.await.is_ready() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

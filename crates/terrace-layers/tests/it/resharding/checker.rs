//! Clients that know what they have written, and what they may read.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use terrace_core::testkit::{key, value};
use terrace_core::{
    ReadOptions, Receipt, Runtime, Scan, Store, StoreExt as _, Task, Version, Write, WriteOptions,
};
use terrace_layers::ShardRouter;

/// How many seeds: a tenth, unless all are asked for.
pub(crate) fn seeds(tenth: u64) -> u64 {
    if std::env::var_os("TERRACE_FULL_COUNTS").is_some() { tenth * 10 } else { tenth }
}

/// What the clients saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) errors: u64,
    /// What must not be, in words.
    pub(crate) wrong: Vec<String>,
}

impl Verdict {
    pub(crate) fn is_good(&self) -> bool {
        self.wrong.is_empty()
    }
}

const WRITERS: usize = 6;
const KEYS: usize = 20;

/// Clients at work. Each key has one writer; its values are the numbers of its writes.
pub(crate) struct Clients {
    shared: Arc<Shared>,
    tasks: Vec<Task>,
}

struct Shared {
    routers: [Arc<ShardRouter>; 2],
    runtime: Runtime,
    /// For each key the latest number that was acknowledged, and the latest that was sent.
    acknowledged: Vec<AtomicU64>,
    sent: Vec<AtomicU64>,
    versions: Mutex<HashMap<usize, Version>>,
    verdict: Mutex<Verdict>,
    over: AtomicBool,
}

fn name(index: usize) -> terrace_core::Key {
    key(format!("key-{index:03}"))
}

impl Clients {
    pub(crate) fn start(routers: [Arc<ShardRouter>; 2], _crashes: bool, runtime: &Runtime) -> Self {
        let numbers = || (0..WRITERS * KEYS).map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared {
            routers,
            runtime: runtime.clone(),
            acknowledged: numbers(),
            sent: numbers(),
            versions: Mutex::default(),
            verdict: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let mut tasks = Vec::new();
        for writer in 0..WRITERS {
            let (writing, reading) = (Arc::clone(&shared), Arc::clone(&shared));
            tasks.push(runtime.spawn("writer", async move { writing.write(writer).await }));
            tasks.push(runtime.spawn("reader", async move { reading.read().await }));
        }
        let listing = Arc::clone(&shared);
        tasks.push(runtime.spawn("lister", async move { listing.list().await }));
        Self { shared, tasks }
    }

    pub(crate) async fn stop(self) -> Verdict {
        self.shared.over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await;
        }
        // In the end every acknowledged write is there, through both instances.
        for index in 0..WRITERS * KEYS {
            for router in &self.shared.routers {
                self.shared.read_one(router, index).await;
            }
        }
        self.shared.verdict.lock().unwrap().clone()
    }
}

impl Shared {
    fn router(&self) -> &ShardRouter {
        &self.routers[usize::from(self.runtime.random().is_multiple_of(2))]
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    fn wrong(&self, what: String) {
        self.verdict.lock().unwrap().wrong.push(what);
    }

    async fn pause(&self) {
        self.runtime.sleep(Duration::from_micros(self.runtime.random() % 4000)).await;
    }

    /// One write after the other; now and then two keys at once, or a delete and a put.
    async fn write(&self, writer: usize) {
        while self.goes_on() {
            let index =
                writer * KEYS + usize::try_from(self.runtime.random() % KEYS as u64).unwrap();
            let number = self.sent[index].load(Ordering::Acquire) + 1;
            self.sent[index].store(number, Ordering::Release);
            let batch = vec![Write::put(name(index), value(number.to_string()))];
            let written = self.router().write(batch, &WriteOptions::default()).await;
            self.note(index, number, written);
            self.pause().await;
        }
    }

    fn note(&self, index: usize, number: u64, written: terrace_core::Result<Vec<Receipt>>) {
        match written {
            Ok(receipts) if receipts[0].outcome.is_applied() => {
                let version = receipts[0].version;
                let before = self.versions.lock().unwrap().insert(index, version);
                if before.is_some_and(|before| version <= before) {
                    self.wrong(format!("{index}: version {version} after {before:?}"));
                }
                self.acknowledged[index].store(number, Ordering::Release);
                self.verdict.lock().unwrap().writes += 1;
            }
            _ => self.verdict.lock().unwrap().errors += 1,
        }
    }

    async fn read(&self) {
        while self.goes_on() {
            let all = (WRITERS * KEYS) as u64;
            let index = usize::try_from(self.runtime.random() % all).unwrap();
            self.read_one(self.router(), index).await;
            self.pause().await;
        }
    }

    async fn read_one(&self, router: &ShardRouter, index: usize) {
        let floor = self.acknowledged[index].load(Ordering::Acquire);
        let found = router.get(&name(index)).await;
        let newest = self.sent[index].load(Ordering::Acquire);
        let Ok(found) = found else {
            self.verdict.lock().unwrap().errors += 1;
            return;
        };
        self.verdict.lock().unwrap().reads += 1;
        let number = found.map_or(0, |record| record.value.as_str().parse().unwrap());
        if number < floor || number > newest {
            self.wrong(format!("{index}: read {number}, not {floor} to {newest}"));
        }
    }

    /// Lists have every key that was there before, once, in order.
    async fn list(&self) {
        while self.goes_on() {
            let acknowledged = |it: &AtomicU64| it.load(Ordering::Acquire) > 0;
            let there = self.acknowledged.iter().map(acknowledged).collect::<Vec<_>>();
            let mut scan = Scan { limit: 17, ..Scan::prefix("key-") };
            let mut listed = Vec::new();
            let complete = loop {
                match self.router().scan(&scan, &ReadOptions::default()).await {
                    Err(_) => break false,
                    Ok(page) => {
                        listed.extend(page.records.into_iter().map(|it| it.key));
                        match page.next {
                            Some(next) => scan.after = Some(next),
                            None => break true,
                        }
                    }
                }
            };
            if complete {
                if !listed.is_sorted_by(|a, b| a < b) {
                    self.wrong("a list has a key twice, or out of order".to_owned());
                }
                let missing =
                    (0..there.len()).filter(|it| there[*it] && !listed.contains(&name(*it)));
                if let Some(missing) = missing.into_iter().next() {
                    self.wrong(format!("a list lacks {missing}"));
                }
            }
            self.pause().await;
        }
    }
}

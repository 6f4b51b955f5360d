//! Background work that panics: every kind of it goes on, and the level says so.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use terrace_core::{BoxFuture, Clock, Rng, Spawn, Task, Timestamp};

use super::*;

tokio::task_local! {
    static NAME: &'static str;
}

/// A runtime in which work of these names panics the first time that it wants to wait.
#[derive(Debug)]
struct Sabotage {
    real: Runtime,
    left: Mutex<BTreeSet<&'static str>>,
}

impl Sabotage {
    fn runtime(names: &[&'static str]) -> (Arc<Self>, Runtime) {
        let left = Mutex::new(names.iter().copied().collect());
        let all = Arc::new(Self { real: Runtime::system(), left });
        let runtime = Runtime::new(all.clone(), all.clone(), all.clone());
        (all, runtime)
    }

    fn left(&self) -> BTreeSet<&'static str> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Clock for Sabotage {
    fn now(&self) -> Instant {
        self.real.now()
    }

    fn wall(&self) -> Timestamp {
        self.real.wall()
    }

    fn sleep_until(&self, when: Instant) -> BoxFuture<'static, ()> {
        let _ = NAME.try_with(|name| {
            let chosen = self.left.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
            assert!(!chosen, "a defect in {name}");
        });
        self.real.sleep_until(when)
    }
}

impl Rng for Sabotage {
    fn next_u64(&self) -> u64 {
        self.real.random()
    }
}

impl Spawn for Sabotage {
    fn spawn(&self, name: &'static str, work: BoxFuture<'static, ()>) -> Task {
        self.real.spawn(name, NAME.scope(name, work))
    }
}

/// Each level works on, and is degraded by all that has panicked.
async fn check(mode: Mode, config: Config, levels: &[(u8, &[&'static str])]) {
    for (number, names) in levels {
        let level = crate::levels::level(*number).expect("a level");
        let servers = Servers::start(&config, mode, level.uses_cache(&config)).await;
        let servers = servers.expect("the engines");
        let (sabotage, runtime) = Sabotage::runtime(names);
        let engines = Engines::new(*number, true, Arc::new(config.clone()), &servers, runtime);
        let stack = (level.build)(&engines).await.expect("a stack");
        let store = store(&stack);
        let until = engines.runtime().now() + std::time::Duration::from_secs(60);
        let mut writes = 0;
        let told = loop {
            // Some work has something to do only after a write.
            writes += 1;
            let value = testkit::value(format!("{writes}"));
            store.put(testkit::key("a"), value).await.expect("a write");
            let tree = stack.whole.inspect().await;
            let reason = tree.reason();
            let named = |name: &&str| reason.contains(&format!("\"{name}\""));
            if sabotage.left().is_empty() && names.iter().all(named) {
                break tree;
            }
            let left = sabotage.left();
            assert!(engines.runtime().now() < until, "level {number}: {left:?}: {reason}");
            tokio::task::yield_now().await;
        };
        assert_eq!(told.status, Status::Degraded, "level {number}");
        // A journal's entries that were in hand are handed out again once they were not settled in time.
        let how = ReadOptions::strong(terrace_core::Deadline::NEVER);
        let read = loop {
            match store.get_read(&testkit::key("a"), &how).await {
                Ok(read) => break read,
                Err(error) => assert!(engines.runtime().now() < until, "level {number}: {error}"),
            }
        };
        let found = read.record.expect("a record").value.as_str().to_owned();
        assert_eq!(found, writes.to_string(), "level {number}");
        stack.whole.close().await.expect("an end");
        servers.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_over_files_goes_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = Config::default();
    config.stores.data_dir = directory.path().to_owned();
    let levels: [(u8, &[_]); 5] = [
        (3, &["replica watch", "replicator"]),
        (4, &["shard map", "shard generations"]),
        (6, &["flusher", "write-buffer poll", "write-buffer forget"]),
        (7, &["projector", "read counts", "sqlite log trim"]),
        (9, &["region watch", "replication"]),
    ];
    check(Mode::Embedded, config, &levels).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_over_servers_goes_on() {
    let mut config = Config::default();
    config.database.url = terrace_lab::testing::fresh_database();
    config.cache.url = terrace_lab::testing::redis().url();
    let levels: [(u8, &[_]); 5] = [
        (9, &["region watch", "replication"]),
        (1, &["postgres upkeep", "postgres history", "postgres tombstones"]),
        (5, &["redis-connection", "redis-heartbeat", "redis-subscription"]),
        // Its next run has another subscription.
        (5, &["near-cache feed"]),
        (7, &["relay", "projector", "search index", "read counts", "postgres log trim"]),
    ];
    check(Mode::Servers, config, &levels).await;
}

//! `Observe`: what is counted, what is timed, and how seldom it speaks.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use terrace_core::testkit::{Hand, Scripted, StoreFixture, key, value};
use terrace_core::{ErrorKind, MemoryStore, ReadOptions, Runtime, Scan, Store, StoreExt as _};
use terrace_layers::Observe;
use tracing::{Event, Level, Metadata, Subscriber, span};

async fn over_memory() -> StoreFixture {
    let runtime = Runtime::system();
    let inner = Arc::new(MemoryStore::new(runtime.clone()));
    StoreFixture::new(Arc::new(Observe::new(inner, runtime)))
}

terrace_core::store_contract!(over_memory);

fn observe() -> (Observe, Hand) {
    let (inner, hand) = Scripted::new();
    (Observe::new(inner, Runtime::system()), hand)
}

#[tokio::test(start_paused = true)]
async fn calls_keys_errors_and_origins_are_counted() {
    let (store, mut hand) = observe();
    let (keys, how) = (["a", "b"].map(key), ReadOptions::default());
    let answers = async {
        hand.read().await.found(&[("a", "1", 1)]);
        hand.read().await.fail(ErrorKind::Overloaded);
        hand.write().await.fail(ErrorKind::InvalidInput);
    };
    let calls = async {
        store.read(&keys, &how).await.unwrap();
        store.get(&keys[0]).await.unwrap_err();
        store.put(keys[0].clone(), value("1")).await.unwrap_err();
    };
    tokio::join!(calls, answers);
    let tree = store.inspect().await;
    for (name, count) in [
        ("reads", 2),
        ("writes", 1),
        ("scans", 0),
        ("read_keys", 3),
        ("written_keys", 1),
        ("errors", 2),
        ("errors_overloaded", 1),
        ("errors_invalid_input", 1),
        ("errors_internal", 0),
        ("from_primary", 2),
        ("from_near", 0),
    ] {
        assert_eq!(tree.number(name), Some(count), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn times_are_percentiles_of_each_operation() {
    let runtime = Runtime::system();
    let (store, mut hand) = observe();
    let answers = async {
        for micros in [1000, 1000, 80_000] {
            let call = hand.read().await;
            runtime.sleep(Duration::from_micros(micros)).await;
            call.found(&[]);
        }
    };
    let calls = async {
        for _ in 0..3 {
            store.get(&key("a")).await.unwrap();
        }
    };
    tokio::join!(calls, answers);
    let tree = store.inspect().await;
    // Timers of the runtime count whole milliseconds, and a bucket is an eighth wide.
    let reads = tree.spread("read_time").unwrap();
    assert!((1000..=2400).contains(&reads.p50), "{reads:?}");
    assert!((80_000..=92_000).contains(&reads.p99), "{reads:?}");
    assert_eq!(tree.spread("write_time").unwrap().count, 0);
}

#[tokio::test(start_paused = true)]
async fn one_line_when_it_begins_to_fail_and_one_when_it_works_again() {
    let lines = Lines::default();
    let _listening = tracing::subscriber::set_default(lines.clone());
    let (store, mut hand) = observe();
    let runtime = Runtime::system();
    let answers = async {
        hand.read().await.found(&[]);
        // Neither is the store's failure.
        hand.read().await.fail(ErrorKind::InvalidInput);
        hand.read().await.fail(ErrorKind::DeadlineExceeded);
        for _ in 0..5 {
            hand.read().await.fail(ErrorKind::Unavailable);
        }
        // It serves some keys and fails others: that is one state, not a line a request.
        for _ in 0..5 {
            hand.read().await.found(&[]);
            hand.read().await.fail(ErrorKind::Unavailable);
        }
        for _ in 0..5 {
            hand.read().await.found(&[]);
        }
    };
    let calls = async {
        for _ in 0..18 {
            let _ = store.get(&key("a")).await;
        }
        runtime.sleep(Duration::from_secs(6)).await;
        for _ in 0..5 {
            let _ = store.get(&key("a")).await;
        }
    };
    tokio::join!(calls, answers);
    assert_eq!(*lines.levels.lock().unwrap(), [Level::WARN, Level::INFO]);
}

#[tokio::test(start_paused = true)]
async fn answers_go_through_unchanged() {
    let runtime = Runtime::system();
    let inner = Arc::new(MemoryStore::new(runtime.clone()));
    let store = Observe::new(Arc::clone(&inner) as Arc<dyn Store>, runtime);
    store.put(key("a"), value("1")).await.unwrap();
    let (scan, how) = (Scan::prefix(""), ReadOptions::default());
    assert_eq!(store.scan(&scan, &how).await, inner.scan(&scan, &how).await);
    assert_eq!(store.to_string(), "Observe(memory)");
}

/// Remembers the levels of what is logged above debug.
#[derive(Clone, Default)]
struct Lines {
    levels: Arc<Mutex<Vec<Level>>>,
    spans: Arc<AtomicUsize>,
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed) as u64 + 1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        self.levels.lock().expect("no test panics inside").push(*event.metadata().level());
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

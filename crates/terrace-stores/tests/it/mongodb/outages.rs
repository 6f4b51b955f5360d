//! A server that is away, silent or killed, and callers that go away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join_all;
use terrace_core::testkit::{key, value};
use terrace_core::{
    Deadline, ErrorKind, ReadOptions, Runtime, Status, Store, StoreExt, Write, WriteOptions,
};
use terrace_lab::{Direction, FaultProxy, testing};
use terrace_stores::{MongoDocuments, MongoOptions};

use super::connect;

/// Selects quickly, so that an outage is found out at once.
async fn impatient(url: &str) -> Arc<MongoDocuments> {
    let selection_timeout = Duration::from_millis(300);
    let options = MongoOptions { selection_timeout, ..MongoOptions::new(url) };
    Arc::new(MongoDocuments::connect(options, Runtime::system()).await.unwrap())
}

/// Tries until it succeeds, a minute at most.
async fn eventually<T>(call: impl AsyncFn() -> terrace_core::Result<T>) -> T {
    let runtime = Runtime::system();
    let began = runtime.now();
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                assert!(runtime.now() - began < Duration::from_secs(60), "never came: {error}");
                runtime.sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_dropped_requests_leave_the_connections_whole() {
    let store = connect(&testing::fresh_documents()).await;
    let keys = (0..10).map(|number| key(format!("k{number}"))).collect::<Vec<_>>();
    let runtime = Runtime::seeded(7);
    for round in 0..1000 {
        let key = &keys[round % keys.len()];
        let (read, write) = (ReadOptions::default(), WriteOptions::default());
        let mut call: futures_util::future::BoxFuture<'_, ()> = match round % 2 {
            0 => Box::pin(async { drop(store.get_read(key, &read).await) }),
            _ => {
                let batch = vec![Write::put(key.clone(), value(format!(r#"{{"r":{round}}}"#)))];
                let write = &write;
                let store = &store;
                Box::pin(async move { drop(store.write(batch, write).await) })
            }
        };
        for _ in 0..=runtime.random() % 6 {
            let once = std::future::poll_fn(|context| Poll::Ready(call.as_mut().poll(context)));
            if once.await.is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let puts = keys.iter().map(|key| store.put(key.clone(), value(r#"{"r":"last"}"#)));
    for receipt in join_all(puts).await {
        receipt.unwrap();
    }
    let reads = join_all((0..100).map(|round| store.get(&keys[round % keys.len()]))).await;
    for record in reads {
        assert_eq!(record.unwrap().unwrap().value.as_str(), r#"{"r":"last"}"#);
    }
    let tree = eventually(async || {
        let tree = store.inspect().await;
        let running = tree.number("calls_running");
        // The inspection itself, and the look at the generation, are calls, too.
        match running <= Some(1) && tree.status == Status::Healthy {
            true => Ok(tree),
            false => Err(terrace_core::Error::new(ErrorKind::Unavailable, format!("{running:?}"))),
        }
    });
    let tree = tree.await;
    assert!(tree.number("connections") <= Some(40), "{tree:#?}");
    assert_eq!(tree.number("breaker_opened"), Some(0));
}

/// How long after its deadline an answer came, over what the clock itself was late.
async fn lateness<T>(
    within: Duration,
    call: impl AsyncFnOnce(Deadline) -> terrace_core::Result<T>,
) -> (terrace_core::Error, Duration) {
    let runtime = Runtime::system();
    let until = runtime.now() + within;
    let clock = async {
        runtime.sleep_until(until).await;
        runtime.now()
    };
    let asked = async {
        let answer = call(Deadline::at(until)).await;
        (answer.map(drop).unwrap_err(), runtime.now())
    };
    let (woken, (error, answered)) = tokio::join!(clock, asked);
    (error, answered.saturating_duration_since(woken))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_costs_nobody_more_than_the_deadline() {
    let url = testing::fresh_documents();
    let proxy = FaultProxy::to_port(testing::mongo().port()).await.unwrap();
    let store = connect(&proxy.url(&url)).await;
    store.put(key("a"), value(r#"{"v":0}"#)).await.unwrap();
    proxy.blackhole(Direction::Both);
    let within = Duration::from_millis(300);
    let calls = (0..48).map(|number| {
        let store = Arc::clone(&store);
        async move {
            let late = lateness(within, async |deadline| {
                if number % 2 == 0 {
                    let how = ReadOptions { deadline, ..ReadOptions::default() };
                    return store.get_read(&key("a"), &how).await.map(drop);
                }
                let how = WriteOptions { deadline, ..WriteOptions::default() };
                let write = Write::put(key(format!("w{number}")), value(r#"{"v":1}"#));
                store.write(vec![write], &how).await.map(drop)
            });
            late.await
        }
    });
    for (error, late) in join_all(calls).await {
        // None of the writes came as far as being sent: the row could not be read.
        let kinds = [ErrorKind::DeadlineExceeded, ErrorKind::Unavailable];
        assert!(kinds.contains(&error.kind()), "{error}");
        assert!(late < Duration::from_millis(50), "{late:?} after the deadline");
    }
    let (tree, late) = {
        let runtime = Runtime::system();
        let began = runtime.now();
        (store.inspect().await, runtime.now() - began)
    };
    assert_eq!(tree.status, Status::Down);
    assert!(late < Duration::from_secs(2), "{late:?}");
    proxy.pass();
    eventually(async || store.put(key("a"), value(r#"{"v":2}"#)).await).await;
    assert_eq!(store.get(&key("w1")).await.unwrap(), None, "what was given up is never applied");
}

/// What the server is asked before a write arrives late, and is answered when nobody waits any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_was_given_up_is_not_applied_later() {
    let url = testing::fresh_documents();
    let proxy = FaultProxy::to_port(testing::mongo().port()).await.unwrap();
    let store = connect(&proxy.url(&url)).await;
    store.put(key("a"), value(r#"{"v":0}"#)).await.unwrap();
    proxy.hold(Direction::Requests);
    let soon = Deadline::at(Runtime::system().now() + Duration::from_millis(200));
    let how = WriteOptions { deadline: soon, ..WriteOptions::default() };
    let write = Write::put(key("a"), value(r#"{"v":"late"}"#));
    let error = store.write(vec![write], &how).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    proxy.pass();
    let tree = eventually(async || {
        let tree = store.inspect().await;
        match tree.number("calls_running") <= Some(1) && tree.status == Status::Healthy {
            true => Ok(tree),
            false => Err(terrace_core::Error::new(ErrorKind::Unavailable, "calls run")),
        }
    });
    tree.await;
    let record = connect(&url).await.get(&key("a")).await.unwrap().unwrap();
    assert_eq!(record.value.as_str(), r#"{"v":0}"#);
}

/// Kills the server under writers; whatever it acknowledged is there afterwards, and nothing is older.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_under_load_loses_no_acknowledged_write() {
    let server = testing::own_mongo();
    let store = impatient(&server.database_url("crash")).await;
    let acknowledged = AtomicU64::new(0);
    let writer = async |name: &'static str| {
        let mut last = 0;
        for number in 1..100_000_u64 {
            match store.put(key(name), value(format!(r#"{{"n":{number}}}"#))).await {
                Ok(_) => {
                    last = number;
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    assert!(error.is_retryable(), "{error}");
                    return (name, last, number);
                }
            }
        }
        panic!("it was never killed");
    };
    let killer = async {
        while acknowledged.load(Ordering::Relaxed) < 60 {
            tokio::task::yield_now().await;
        }
        server.kill();
    };
    let (a, b, c, ()) = tokio::join!(writer("a"), writer("b"), writer("c"), killer);
    server.restart().await.unwrap();
    for (name, last, tried) in [a, b, c] {
        let record = eventually(async || store.get(&key(name)).await).await.unwrap();
        let kept = record.value.as_str().trim_matches(|it: char| !it.is_ascii_digit());
        let kept = kept.parse::<u64>().unwrap();
        assert!(last <= kept && kept <= tried, "{name}: {last} was acknowledged, {kept} is there");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_is_found_again_with_all_it_acknowledged() {
    let server = testing::own_mongo();
    let store = impatient(&server.database_url("killed")).await;
    store.put(key("a"), value(r#"{"v":1}"#)).await.unwrap();
    server.kill();
    for _ in 0..5 {
        assert_eq!(store.get(&key("a")).await.unwrap_err().kind(), ErrorKind::Unavailable);
        let error = store.put(key("a"), value(r#"{"v":2}"#)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "nothing was sent");
    }
    assert_eq!(store.inspect().await.status, Status::Down);
    server.restart().await.unwrap();
    let record = eventually(async || store.get(&key("a")).await).await.unwrap();
    assert_eq!(record.value.as_str(), r#"{"v":1}"#);
    store.put(key("a"), value(r#"{"v":3}"#)).await.unwrap();
    assert_eq!(store.inspect().await.status, Status::Healthy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_down_at_the_start_comes_later() {
    let server = testing::own_mongo();
    server.kill();
    let store = impatient(&server.database_url("later")).await;
    assert_eq!(store.get(&key("a")).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(store.generations().history(), None);
    server.restart().await.unwrap();
    let receipt = eventually(async || store.put(key("a"), value("{}")).await).await;
    assert!(receipt.outcome.is_applied() && store.generations().history().is_some());
    let tree = store.inspect().await;
    let told = tree.known("server").map(|fact| format!("{fact:?}")).unwrap_or_default();
    assert!(told.contains("standalone"), "{told}");
    assert_eq!(told.contains("\"MongoDB"), server.program() == "MongoDB", "{told}");
}

#[tokio::test]
async fn a_url_that_cannot_be_used_is_refused_without_its_password() {
    for url in ["mongodb+srv://u:hush@nowhere.invalid/", "mongodb://u:hu@sh@h/", "http://u:hush@h"]
    {
        let refused = MongoDocuments::connect(MongoOptions::new(url), Runtime::system()).await;
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(!error.to_string().contains("hush"), "{error}");
    }
}

//! The stacks, pinned.

mod defects;

use std::sync::Arc;
use std::time::Duration;

use terrace_core::{ReadOptions, Runtime, Status, Store, StoreExt, testkit};

use super::{Engines, LEVELS, Level, Servers, Stack};
use crate::config::{Config, Mode};
use crate::http::{Face, unexplained};

async fn built(level: &Level, mode: Mode, config: Config) -> (Stack, Servers) {
    let servers =
        Servers::start(&config, mode, level.uses_cache(&config)).await.expect("the engines");
    let runtime = Runtime::system();
    let engines = Engines::new(level.number, true, Arc::new(config), &servers, runtime);
    ((level.build)(&engines).await.expect("a stack"), servers)
}

/// What is read and written by key: records, or documents.
fn store(stack: &Stack) -> Arc<dyn Store> {
    let records = stack.faces.iter().find_map(|face| match face {
        Face::Records(records) => Some(Arc::clone(&records.store)),
        Face::Polyglot(all) => Some(Arc::clone(&all.by_key.store)),
        _ => None,
    });
    records.expect("records")
}

/// The stack as text.
fn text(stack: &Stack) -> String {
    let ledger = stack.faces.iter().find_map(|face| match face {
        Face::Polyglot(all) => Some(format!("{}, ", all.ledger.get().expect("it is open"))),
        _ => None,
    });
    format!("{}{}", ledger.unwrap_or_default(), store(stack))
}

async fn check(mode: Mode, config: Config, place: usize) {
    for level in LEVELS {
        let (stack, servers) = built(level, mode, config.clone()).await;
        assert_eq!(text(&stack), level.stacks[place].1, "level {}", level.number);
        let (store, key, value) = (store(&stack), testkit::key("a"), testkit::value(r#"{"a":1}"#));
        let receipt = store.put(key.clone(), value.clone()).await.expect("a write");
        let how = ReadOptions { token: Some(receipt.token), ..ReadOptions::default() };
        let read = store.get_read(&key, &how).await.expect("a read");
        assert_eq!(read.record.expect("a record").value, value, "level {}", level.number);
        let tree = stack.whole.inspect().await;
        assert_ne!(tree.status, Status::Down);
        assert_eq!(unexplained(&tree), [""; 0], "level {}", level.number);
        // The bound is the one that the stack itself names.
        let seconds = match level.number {
            3 => Some(5),
            7 | 9 => None,
            _ => Some(0),
        };
        let bound = level.staleness.bound(&tree);
        assert_eq!(bound, seconds.map(Duration::from_secs), "level {}", level.number);
        stack.whole.close().await.expect("an end");
        servers.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_stacks_are_what_explain_says() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = Config::default();
    config.stores.data_dir = directory.path().to_owned();
    check(Mode::Embedded, config, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stacks_over_servers_are_what_explain_says() {
    let mut config = Config::default();
    config.database.url = terrace_lab::testing::fresh_database();
    config.cache.url = terrace_lab::testing::redis().url();
    config.polyglot.mongodb_url = terrace_lab::testing::fresh_documents();
    let replicated = terrace_lab::testing::replicated(2, &[]).await;
    config.replicas.primary_url = replicated.primary.url();
    config.replicas.urls = replicated.standby_urls();
    check(Mode::Servers, config, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_servers_are_started_and_end() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = Config::default();
    config.stores.data_dir = directory.path().to_owned();
    check(Mode::Local, config, 1).await;
}

#[test]
fn numbers_names_and_order_fit_together() {
    for level in LEVELS {
        assert!(level.name.starts_with(&format!("{}-", level.number)));
    }
    assert!(LEVELS.is_sorted_by_key(|level| level.number));
}

#[cfg(feature = "nats")]
mod nats {
    use terrace_core::{Deadline, Durability, Outcome, Version};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn level_6_takes_a_journal_in_nats() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut config = Config::default();
        config.stores.data_dir = directory.path().to_owned();
        config.journal.engine = "nats".into();
        let level = crate::levels::level(6).expect("level 6");
        let (stack, servers) = built(level, Mode::Local, config).await;
        let store = store(&stack);
        assert!(store.to_string().contains("WriteBuffer(nats, "), "{}", store);
        let key = testkit::key("a");
        let receipt = store.put(key.clone(), testkit::value("1")).await.expect("a write");
        assert_eq!((receipt.outcome, receipt.durability), (Outcome::Queued, Durability::Accepted));
        let strong = ReadOptions::strong(Deadline::NEVER);
        let read = store.get_read(&key, &strong).await.expect("a read once it is applied");
        let record = read.record.expect("a record");
        assert!(record.value.as_str() == "1" && record.version > Version::NONE);
        stack.whole.close().await.expect("an end");
        servers.stop().await;
    }
}

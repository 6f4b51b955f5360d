//! SQLite: the contract over both connection modes, and what the file promises beyond it.

#![allow(clippy::unwrap_used, reason = "what a test needs is there, or the test fails")]

mod backup;
mod by_hand;
mod change_log;
mod documents;
mod groups;
mod ledger;
mod limits;
mod opening;
mod region;
mod shard;

use std::future::Future;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use terrace_core::testkit::{StoreFixture, key, value};
use terrace_core::{
    BoxFuture, Clock, Inspection, Receipt, Result, Rng, Runtime, Spawn, Store, StoreExt, Task,
    Timestamp,
};
use terrace_stores::sqlite::{Connections, SqliteOptions, SqliteStore};

/// A directory with one database file in it.
struct Database {
    directory: tempfile::TempDir,
}

impl Database {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("records.sqlite")
    }

    fn options(&self) -> SqliteOptions {
        // Tests hold the file's lock for as long as they need.
        let busy_timeout = Duration::from_secs(60);
        SqliteOptions { busy_timeout, ..SqliteOptions::new(self.path()) }
    }

    fn open(&self) -> Arc<SqliteStore> {
        self.open_with(self.options())
    }

    fn open_with(&self, options: SqliteOptions) -> Arc<SqliteStore> {
        Arc::new(SqliteStore::open(options, Runtime::system()).unwrap())
    }

    /// A second program on the same file.
    fn by_hand(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.path()).unwrap()
    }
}

async fn shared() -> StoreFixture {
    let database = Database::new();
    StoreFixture::guarded(database.open(), database)
}

async fn logged() -> StoreFixture {
    let database = Database::new();
    let options = SqliteOptions { change_log: true, ..database.options() };
    StoreFixture::guarded(database.open_with(options), database)
}

mod with_a_log {
    use super::*;
    terrace_core::store_contract!(logged);
}

async fn per_request() -> StoreFixture {
    let database = Database::new();
    let options = SqliteOptions { connections: Connections::PerRequest, ..database.options() };
    StoreFixture::guarded(database.open_with(options), database)
}

mod kept_connections {
    use super::*;
    terrace_core::store_contract!(shared);
}

mod connection_per_request {
    use super::*;
    terrace_core::store_contract!(per_request);
}

/// The inspection, once it is as awaited.
async fn inspected(store: &SqliteStore, awaited: impl Fn(&Inspection) -> bool) -> Inspection {
    let runtime = Runtime::system();
    let began = runtime.now();
    loop {
        let tree = store.inspect().await;
        if awaited(&tree) {
            return tree;
        }
        assert!(runtime.now() - began < Duration::from_secs(60), "never came: {tree:#?}");
        tokio::task::yield_now().await;
    }
}

/// Keeps the writer busy with one write while somebody else holds the file's lock, so that what
/// comes next queues up and becomes one group.
async fn occupied(store: &Arc<SqliteStore>) -> tokio::task::JoinHandle<Result<Receipt>> {
    let idle = available(&store.inspect().await);
    let first = {
        let store = Arc::clone(store);
        background(async move { store.put(key("first"), value("x")).await })
    };
    inspected(store, |tree| available(tree) < idle && waiting(tree) == 1).await;
    first
}

fn waiting(tree: &Inspection) -> u64 {
    tree.find("pool").unwrap().number("requests_waiting").unwrap()
}

fn available(tree: &Inspection) -> u64 {
    tree.find("pool").unwrap().number("pool_available").unwrap()
}

/// Runs in the background, so that callers are really concurrent.
fn background<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    #[expect(clippy::disallowed_methods, reason = "a test owns its tasks by their handles")]
    tokio::spawn(work)
}

/// A time of day that a test sets, and that can hold or kill the thread that asks for it: the
/// writer asks after it has taken its jobs and before it applies them.
#[derive(Debug)]
struct Hands {
    real: Runtime,
    state: Mutex<HandsState>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct HandsState {
    ahead: Duration,
    held: bool,
    asked: u64,
    deadly: bool,
}

impl Hands {
    fn new() -> Arc<Self> {
        let real = Runtime::system();
        Arc::new(Self { real, state: Mutex::default(), moved: Condvar::new() })
    }

    fn runtime(self: &Arc<Self>) -> Runtime {
        Runtime::new(Arc::clone(self) as _, Arc::clone(self) as _, Arc::clone(self) as _)
    }

    fn set(&self, change: impl FnOnce(&mut HandsState)) {
        change(&mut self.state.lock().unwrap());
        self.moved.notify_all();
    }

    fn asked(&self) -> u64 {
        self.state.lock().unwrap().asked
    }
}

impl Clock for Hands {
    fn now(&self) -> Instant {
        self.real.now()
    }

    fn wall(&self) -> Timestamp {
        let mut state = self.state.lock().unwrap();
        state.asked += 1;
        while state.held {
            state = self.moved.wait(state).unwrap();
        }
        let (deadly, ahead) = (state.deadly, state.ahead);
        drop(state);
        assert!(!deadly, "the test stops this thread");
        self.real.wall() + ahead
    }

    fn sleep_until(&self, when: Instant) -> BoxFuture<'static, ()> {
        self.real.sleep_until(when)
    }
}

impl Rng for Hands {
    fn next_u64(&self) -> u64 {
        self.real.random()
    }
}

impl Spawn for Hands {
    fn spawn(&self, name: &'static str, work: BoxFuture<'static, ()>) -> Task {
        self.real.spawn(name, work)
    }
}

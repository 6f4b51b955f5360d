//! What an instance makes of the journal's news, and of its silence.

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use terrace_core::testkit::key;
use terrace_core::{
    BoxFuture, Clock, ErrorKind, Generations, Inspection, Key, Page, Proof, Read, Rng, Scan, Spawn,
    Task, Timestamp, Token,
};
use terrace_layers::Flusher;
use tokio::sync::{Semaphore, watch};

use super::faults::FaultyJournal;
use super::*;

/// A cache of one instance over a database that others write, too: what it has read once it answers
/// again, until it looks at the database's cache generation.
#[derive(Debug)]
struct Cached {
    database: Arc<MemoryStore>,
    entries: Mutex<HashMap<Key, Read>>,
    /// Looks that may pass.
    gate: Semaphore,
    looks: AtomicU64,
}

impl Cached {
    fn over(database: &Arc<MemoryStore>) -> Arc<Self> {
        let (entries, gate, looks) = (Mutex::default(), Semaphore::new(0), AtomicU64::new(0));
        Arc::new(Self { database: Arc::clone(database), entries, gate, looks })
    }
}

impl Generations for Cached {
    fn admits(&self, proof: &Proof, asked: Option<&Token>) -> bool {
        self.database.admits(proof, asked)
    }

    fn looked_at(&self) -> Option<Instant> {
        self.database.looked_at()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.database.changes()
    }

    fn raise<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<()>> {
        Generations::raise(&*self.database, keys)
    }

    fn look(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.looks.fetch_add(1, Ordering::Relaxed);
            self.gate.acquire().await.unwrap().forget();
            self.entries.lock().unwrap().clear();
            Ok(())
        })
    }
}

impl fmt::Display for Cached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cached")
    }
}

impl Store for Cached {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(async move {
            let known: Option<Vec<_>> = {
                let entries = self.entries.lock().unwrap();
                keys.iter().map(|key| entries.get(key).cloned()).collect()
            };
            if let Some(known) = known {
                return Ok(known);
            }
            let reads = self.database.read(keys, how).await?;
            self.entries.lock().unwrap().extend(keys.iter().cloned().zip(reads.iter().cloned()));
            Ok(reads)
        })
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        self.database.write(batch, how)
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        self.database.scan(scan, how)
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        self.database.inspect()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.database.close()
    }
}

/// Another instance's flusher applies a write, and its invalidation reaches nobody; it has raised the
/// cache generation before it settles. Here the write is shown until the caches have looked at that.
#[tokio::test(start_paused = true)]
async fn a_write_applied_elsewhere_is_shown_until_the_caches_below_have_looked() {
    let runtime = Runtime::system();
    let (database, journal) = (Arc::new(MemoryStore::new(runtime.clone())), journal(&runtime));
    database.put(key("a"), value("old")).await.unwrap();
    let cached = Cached::over(&database);
    let through = Arc::clone(&journal) as Arc<dyn Journal>;
    let caches = Arc::clone(&cached) as Arc<dyn Generations>;
    let one =
        WriteBuffer::open(cached.clone(), caches, through, HISTORY, idle(), runtime.clone()).await;
    assert_eq!(plain(&one, "a").await, is("old"));
    let receipt = one.put(key("a"), value("new")).await.unwrap();
    assert_eq!(plain(&one, "a").await, is("new"));

    let elsewhere = Arc::clone(&journal) as Arc<dyn Journal>;
    let options = FlusherOptions::default();
    let flusher =
        Flusher::start(elsewhere, database.clone(), options, runtime.clone(), Arc::new(()));
    while cached.looks.load(Ordering::Relaxed) == 0 {
        runtime.sleep(Duration::from_millis(10)).await;
        assert_eq!(plain(&one, "a").await, is("new"));
    }
    assert_eq!(journal.progress().await.unwrap().writes, 0, "settled");
    // It looks, and has no answer yet.
    runtime.sleep(Duration::from_secs(1)).await;
    assert_eq!(plain(&one, "a").await, is("new"));
    let how = with_token(&receipt);
    let error = text(&one, "a", &how).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "nobody knows what is later: {error}");
    cached.gate.add_permits(1);
    runtime.sleep(Duration::from_secs(1)).await;
    assert_eq!(plain(&one, "a").await, is("new"));
    assert_eq!(text(&one, "a", &how).await.unwrap(), is("new"));
    assert!(plain_read(&one, "a").await.version > Version::NONE, "read below, and new");
    flusher.stop().await;
}

async fn plain_read(store: &dyn Store, name: &str) -> Read {
    store.get_read(&key(name), &ReadOptions::default()).await.unwrap()
}

/// A token of a write that another instance took and applied: what the caches here have from before
/// is not believed.
#[tokio::test(start_paused = true)]
async fn a_token_of_another_instance_waits_for_a_look() {
    let runtime = Runtime::system();
    let (database, journal) = (Arc::new(MemoryStore::new(runtime.clone())), journal(&runtime));
    database.put(key("a"), value("old")).await.unwrap();
    let cached = Cached::over(&database);
    let through = Arc::clone(&journal) as Arc<dyn Journal>;
    let caches = Arc::clone(&cached) as Arc<dyn Generations>;
    let one =
        WriteBuffer::open(cached.clone(), caches, through, HISTORY, idle(), runtime.clone()).await;
    assert_eq!(plain(&one, "a").await, is("old"));
    let two = open(database.clone(), &journal, WriteBufferOptions::default()).await;
    let receipt = two.put(key("a"), value("new")).await.unwrap();
    while journal.progress().await.unwrap().writes > 0 {
        runtime.sleep(Duration::from_millis(10)).await;
    }
    let how = with_token(&receipt);
    let (found, ()) = tokio::join!(text(&one, "a", &how), async {
        runtime.sleep(Duration::from_millis(100)).await;
        cached.gate.add_permits(1);
    });
    assert_eq!(found.unwrap(), is("new"));
}

/// What waits here was replaced by another instance, and both are applied: a `strong` list, as a `strong`
/// read, does not show it.
#[tokio::test(start_paused = true)]
async fn a_strong_list_does_not_show_what_an_applied_write_has_replaced() {
    let runtime = Runtime::system();
    let (database, journal) = (Arc::new(MemoryStore::new(runtime.clone())), journal(&runtime));
    let cached = Cached::over(&database);
    let through = Arc::clone(&journal) as Arc<dyn Journal>;
    let caches = Arc::clone(&cached) as Arc<dyn Generations>;
    let one =
        WriteBuffer::open(cached.clone(), caches, through, HISTORY, idle(), runtime.clone()).await;
    one.put(key("a"), value("old")).await.unwrap();
    let two = open(database.clone(), &journal, WriteBufferOptions::default()).await;
    two.put(key("a"), value("new")).await.unwrap();
    while journal.progress().await.unwrap().writes > 0 {
        runtime.sleep(Duration::from_millis(10)).await;
    }
    let strong = ReadOptions::strong(Deadline::NEVER);
    assert_eq!(text(&two, "a", &strong).await.unwrap(), is("new"), "applied, and read");
    let scan = Scan::prefix("");
    let (page, found, ()) =
        tokio::join!(one.scan(&scan, &strong), text(&one, "a", &strong), async {
            runtime.sleep(Duration::from_millis(100)).await;
            cached.gate.add_permits(10);
        });
    assert_eq!(found.unwrap(), is("new"));
    let page = page.unwrap();
    let shown: Vec<_> = page.records.iter().map(|record| record.value.as_str()).collect();
    assert_eq!(shown, ["new"]);
}

/// A journal that fails from now on, when told so.
async fn behind_a_switch(
    database: &Arc<MemoryStore>,
    journal: &Arc<MemoryJournal>,
) -> (WriteBuffer, Arc<FaultyJournal>) {
    let runtime = Runtime::system();
    let switch = Arc::new(FaultyJournal {
        inner: Arc::clone(journal),
        runtime: runtime.clone(),
        rate: AtomicU64::new(0),
        broken: None,
    });
    let through = Arc::clone(&switch) as Arc<dyn Journal>;
    let buffer = WriteBuffer::open(
        database.clone(),
        Arc::new(ScriptedGenerations::default()),
        through,
        HISTORY,
        idle(),
        runtime,
    )
    .await;
    (buffer, switch)
}

/// Nothing waits, so the journal has nothing to say about what the database shows.
#[tokio::test(start_paused = true)]
async fn with_the_journal_down_tokens_of_what_is_applied_are_answered() {
    let runtime = Runtime::system();
    let (database, journal) = (Arc::new(MemoryStore::new(runtime.clone())), journal(&runtime));
    let (one, switch) = behind_a_switch(&database, &journal).await;
    let two = open(database.clone(), &journal, WriteBufferOptions::default()).await;
    // Not in a row: neither instance follows right on what it knew.
    let mut token = Token::default();
    for (store, name) in [(&one, "a"), (&two, "b"), (&one, "c")] {
        token.merge(&store.put(key(name), value("1")).await.unwrap().token);
    }
    while plain_read(&one, "c").await.version == Version::NONE {
        runtime.sleep(Duration::from_millis(10)).await;
    }
    token.merge(&plain_read(&one, "c").await.token);
    switch.rate.store(1000, Ordering::Relaxed);
    let how = ReadOptions { token: Some(token.clone()), ..ReadOptions::default() };
    for name in ["a", "b", "c"] {
        assert_eq!(text(&one, name, &how).await.unwrap(), is("1"), "{name}");
    }
    assert_eq!(one.scan(&Scan::prefix(""), &how).await.unwrap().records.len(), 3);
}

/// What waits may hide something later of another instance: that only the journal knows.
#[tokio::test(start_paused = true)]
async fn with_the_journal_down_what_waits_is_not_shown_for_a_token_of_the_database() {
    let runtime = Runtime::system();
    let (database, journal) = (Arc::new(MemoryStore::new(runtime.clone())), journal(&runtime));
    let (one, switch) = behind_a_switch(&database, &journal).await;
    one.put(key("a"), value("1")).await.unwrap();
    let other = database.put(key("b"), value("1")).await.unwrap();
    switch.rate.store(1000, Ordering::Relaxed);
    let how = with_token(&other);
    assert!(text(&one, "a", &how).await.is_err());
    assert_eq!(text(&one, "b", &how).await.unwrap(), is("1"));
}

/// A machine whose clock of the day is an hour ahead.
#[derive(Debug)]
struct Ahead(Runtime, AtomicBool);

impl Clock for Ahead {
    fn now(&self) -> std::time::Instant {
        self.0.now()
    }

    fn wall(&self) -> Timestamp {
        let ahead = self.1.load(Ordering::Relaxed);
        self.0.wall() + Duration::from_secs(if ahead { 3600 } else { 0 })
    }

    fn sleep_until(&self, when: std::time::Instant) -> BoxFuture<'static, ()> {
        self.0.sleep_until(when)
    }
}

impl Rng for Ahead {
    fn next_u64(&self) -> u64 {
        self.0.random()
    }
}

impl Spawn for Ahead {
    fn spawn(&self, name: &'static str, work: BoxFuture<'static, ()>) -> Task {
        self.0.spawn(name, work)
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_whose_clock_is_ahead_finds_no_write_too_old() {
    let system = Runtime::system();
    let (database, journal) = (Arc::new(MemoryStore::new(system.clone())), journal(&system));
    let ahead = Arc::new(Ahead(system.clone(), AtomicBool::new(true)));
    let runtime = Runtime::new(ahead.clone(), ahead.clone(), ahead);
    let through = Arc::clone(&journal) as Arc<dyn Journal>;
    let options = idle();
    let max_age = options.max_age;
    let one = WriteBuffer::open(
        database,
        Arc::new(ScriptedGenerations::default()),
        through,
        HISTORY,
        options,
        runtime.clone(),
    )
    .await;
    for _ in 0..3 {
        one.put(key("a"), value("1")).await.expect("nothing has waited for long");
        system.sleep(Duration::from_secs(2)).await;
    }
    system.sleep(max_age).await;
    let refused = one.put(key("a"), value("1")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Overloaded, "now it has");
}

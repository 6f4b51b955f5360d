//! The journal in Redis: the contract, what it says of durability, and what a lost server costs.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests are tests")]

mod refusals;

use std::sync::Arc;
use std::time::Duration;

use terrace_core::testkit::journal_contract::{LIMITS, TAKEOVER, claim_all, request};
use terrace_core::testkit::{JournalFixture, key, value};
use terrace_core::{
    Append, Durability, ErrorKind, Journal, JournalEntry, Runtime, Sequence, Settled, Status, Write,
};
use terrace_lab::{Persistence, RedisOptions, RedisServer, testing};
use terrace_stores::{RedisJournal, RedisJournalOptions};

async fn fresh() -> JournalFixture {
    let fresh = testing::fresh_prefix();
    let options = RedisJournalOptions {
        namespace: fresh.prefix.trim_end_matches(':').into(),
        ..options(fresh.url)
    };
    JournalFixture::new(Arc::new(connect(options).await))
}

terrace_core::journal_contract!(fresh);

fn options(url: impl Into<String>) -> RedisJournalOptions {
    // A busy machine must not make a test of answers one of timeouts.
    let command_timeout = Duration::from_secs(20);
    RedisJournalOptions {
        limits: LIMITS,
        takeover: TAKEOVER,
        command_timeout,
        connect_timeout: command_timeout,
        ..RedisJournalOptions::new(url)
    }
}

async fn connect(options: RedisJournalOptions) -> RedisJournal {
    RedisJournal::connect(options, Runtime::system()).await.expect("options in order")
}

async fn server(persistence: Persistence) -> (RedisServer, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let options = RedisOptions {
        temporary: true,
        persistence,
        ..RedisOptions::new(directory.path().join("redis"))
    };
    (RedisServer::start(options).await.expect("a Redis server"), directory)
}

fn put(name: &str) -> Append {
    request(vec![Write::put(key(name), value("1"))])
}

fn names(entries: &[JournalEntry]) -> Vec<String> {
    let writes = entries.iter().flat_map(|entry| &entry.writes);
    writes.map(|write| write.key.as_str().to_owned()).collect()
}

/// Journaled only where each append is flushed, and within a second no more when somebody changes
/// that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn durability_is_what_redis_is_set_to() {
    for (persistence, expected) in [
        (Persistence::None, Durability::Accepted),
        (Persistence::AofEverySecond, Durability::Accepted),
        (Persistence::AofAlways, Durability::Journaled),
    ] {
        let (server, _directory) = server(persistence).await;
        let limits = terrace_core::JournalLimits::default();
        let journal = connect(RedisJournalOptions { limits, ..options(server.url()) }).await;
        let appended = journal.append(vec![put("a")]).await.expect("an append");
        assert_eq!(appended.durability, expected, "{persistence:?}");
        if expected == Durability::Journaled {
            let client = ::redis::Client::open(server.url()).unwrap();
            let mut by_hand = client.get_multiplexed_async_connection().await.unwrap();
            let mut set = ::redis::cmd("CONFIG");
            set.arg("SET").arg("appendfsync").arg("everysec");
            let _: () = set.query_async(&mut by_hand).await.unwrap();
            // An append that begins a second later says so; no inspection tells the journal before.
            let changed = Runtime::system().now();
            loop {
                let begun = Runtime::system().now();
                let appended = journal.append(vec![put("a")]).await.expect("an append");
                if appended.durability == Durability::Accepted {
                    break;
                }
                let known_for = begun.saturating_duration_since(changed);
                assert!(known_for < Duration::from_secs(1), "still says journaled");
            }
        }
    }
}

/// `kill -9` of the server: what was acknowledged as journaled is there, with its sequences.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_keeps_what_it_acknowledged() {
    let (server, _directory) = server(Persistence::AofAlways).await;
    let journal = connect(options(server.url())).await;
    let before = journal.append(vec![put("a"), put("b")]).await.expect("an append");
    let claimed = claim_all(&journal).await;
    server.kill();
    let refused = journal.append(vec![put("lost")]).await.expect_err("nobody is there");
    assert!(matches!(refused.kind(), ErrorKind::Unavailable | ErrorKind::OutcomeUnknown));
    journal.inspect().await;
    let tree = journal.inspect().await;
    assert_eq!((tree.status, tree.number("breaker_opened")), (Status::Down, Some(1)));
    assert!(tree.number("breaker_refused") >= Some(1), "it is left alone for a moment");
    server.restart().await.expect("Redis starts again");
    let after = loop {
        if let Ok(after) = journal.append(vec![put("c")]).await {
            break after;
        }
        tokio::task::yield_now().await;
    };
    assert!(after.epoch > before.epoch, "another process may have lost its end");
    let end = journal.end_of(before.epoch).await.expect("an answer").expect("this one has not");
    assert!(before.last <= end && end <= after.previous);
    assert_eq!(journal.end_of(after.epoch).await.expect("an answer"), None);
    let peeked = journal.peek(Sequence::NONE, 100).await.expect("a peek");
    assert_eq!(names(&peeked), ["a", "b", "c"]);
    let done = claimed.iter().map(Settled::of).collect();
    assert_eq!(journal.settle(done).await.expect("a settlement").writes, 1);
}

/// Everything lost, as by `FLUSHALL`: another journal, whose sequences go on above.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_journal_is_another_and_goes_on_above() {
    let (server, _directory) = server(Persistence::None).await;
    let journal = connect(options(server.url())).await;
    let before = journal.append(vec![put("a")]).await.expect("an append");
    let client = ::redis::Client::open(server.url()).unwrap();
    let mut by_hand = client.get_multiplexed_async_connection().await.unwrap();
    let _: () = ::redis::cmd("FLUSHALL").query_async(&mut by_hand).await.unwrap();
    let after = journal.append(vec![put("b")]).await.expect("an append");
    assert!(after.epoch > before.epoch);
    assert_eq!(after.previous, Sequence::NONE);
    assert!(after.last > before.last);
    assert_eq!(names(&claim_all(&journal).await), ["b"]);
}

/// The stream alone is removed, as a memory that is full evicts it: what waited is told as lost, and what
/// is accepted next is applied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_stream_begins_a_life_and_is_made_again() {
    let (server, _directory) = server(Persistence::None).await;
    let (journal, flusher) =
        (connect(options(server.url())).await, connect(options(server.url())).await);
    let before = journal.append(vec![put("a"), put("b")]).await.expect("an append");
    let client = ::redis::Client::open(server.url()).unwrap();
    let mut by_hand = client.get_multiplexed_async_connection().await.unwrap();
    let mut remove = async |key: &str| {
        let _: () = ::redis::cmd("DEL").arg(key).query_async(&mut by_hand).await.unwrap();
    };
    remove("{terrace-journal}:stream").await;
    let lost = flusher.progress().await.expect("progress");
    assert!(lost.epoch > before.epoch && lost.writes == 0, "{lost:?}");
    assert_eq!(journal.end_of(before.epoch).await.expect("an answer"), None, "nobody knows");
    // The other way round: what waits is there, and not counted any more.
    journal.append(vec![put("c"), put("d")]).await.expect("an append");
    remove("{terrace-journal}:meta").await;
    let claimed = claim_all(&flusher).await;
    assert_eq!(names(&claimed), ["c", "d"]);
    let done = claimed.iter().map(Settled::of).collect();
    assert_eq!(flusher.settle(done).await.expect("a settlement").writes, 0);
    let last = journal.append(vec![put("e")]).await.expect("an append");
    assert!(last.last > before.last);
    assert_eq!(names(&claim_all(&flusher).await), ["e"]);
}

/// A memory that makes room of what was accepted is no place for a journal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_may_evict_is_told() {
    let (server, _directory) = server(Persistence::None).await;
    let journal = connect(options(server.url())).await;
    assert_eq!(journal.inspect().await.status, Status::Healthy);
    let client = ::redis::Client::open(server.url()).unwrap();
    let mut by_hand = client.get_multiplexed_async_connection().await.unwrap();
    let set = ["SET", "maxmemory", "100mb", "maxmemory-policy", "allkeys-lru"];
    let _: () = ::redis::cmd("CONFIG").arg(&set).query_async(&mut by_hand).await.unwrap();
    let tree = journal.inspect().await;
    assert_eq!(tree.status, Status::Degraded);
    assert!(tree.note.contains("noeviction"), "{}", tree.note);
}

/// Who asks how far a lost journal has come hears of a new life, also when nobody writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_journal_is_noticed_without_a_write() {
    let (server, _directory) = server(Persistence::None).await;
    let (one, two) = (connect(options(server.url())).await, connect(options(server.url())).await);
    let before = one.append(vec![put("a")]).await.expect("an append");
    assert_eq!(two.progress().await.expect("progress").epoch, before.epoch);
    let client = ::redis::Client::open(server.url()).unwrap();
    let mut by_hand = client.get_multiplexed_async_connection().await.unwrap();
    let _: () = ::redis::cmd("FLUSHALL").query_async(&mut by_hand).await.unwrap();
    let after = two.progress().await.expect("progress");
    assert!(after.epoch > before.epoch && after.writes == 0, "{after:?}");
    assert_eq!(one.progress().await.expect("progress").epoch, after.epoch, "the same for all");
    assert_eq!(one.append(vec![put("b")]).await.expect("an append").epoch, after.epoch);
}

/// The memory of a server is replaced while it runs: a life begins, also when nobody appends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_memory_is_noticed_without_a_write() {
    let ((server, _one), (copy, _two)) =
        (server(Persistence::None).await, server(Persistence::None).await);
    let journal = connect(options(server.url())).await;
    let before = journal.append(vec![put("a")]).await.expect("an append");
    let password = |url: &str| url["redis://:".len()..].split('@').next().unwrap().to_owned();
    let (from, to) = (copy.url(), server.url());
    let hand = async |url: &str| {
        let client = ::redis::Client::open(url).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    };
    let (mut copy_hand, mut hand_of) = (hand(&from).await, hand(&to).await);
    // The copy has all of it, so that nothing but the memory is another.
    for (at, of, url, port) in
        [(&mut copy_hand, "slave", &to, server.port()), (&mut hand_of, "slave", &from, copy.port())]
    {
        let set = ["SET", "masterauth", &password(url)];
        let _: () = ::redis::cmd("CONFIG").arg(&set).query_async(at).await.unwrap();
        let follow = ["127.0.0.1".to_owned(), port.to_string()];
        let _: () = ::redis::cmd("REPLICAOF").arg(&follow).query_async(at).await.unwrap();
        loop {
            let state: ::redis::Value = ::redis::cmd("ROLE").query_async(at).await.unwrap();
            let state = format!("{state:?}");
            if state.contains(of) && state.contains("\"connected\"") {
                break;
            }
            Runtime::system().sleep(Duration::from_millis(5)).await;
        }
        let _: () = ::redis::cmd("REPLICAOF").arg(&["NO", "ONE"]).query_async(at).await.unwrap();
    }
    for _ in 0..400 {
        if journal.progress().await.is_ok_and(|progress| progress.epoch > before.epoch) {
            return;
        }
        Runtime::system().sleep(Duration::from_millis(10)).await;
    }
    panic!("nobody notices");
}

/// A server takes over that is behind in all: in what it has, and in its clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_behind_goes_on_above_what_callers_know() {
    let (server, _directory) = server(Persistence::None).await;
    let journal = connect(options(server.url())).await;
    // As if the first server's clock had been an hour ahead.
    let ahead = Sequence::at(Runtime::system().wall()).plus(3_600_000 << Sequence::COUNT_BITS);
    journal.raise(ahead).await.expect("a floor");
    let before = journal.append(vec![put("a")]).await.expect("an append");
    assert!(before.last > ahead);
    let client = ::redis::Client::open(server.url()).unwrap();
    let mut by_hand = client.get_multiplexed_async_connection().await.unwrap();
    let _: () = ::redis::cmd("FLUSHALL").query_async(&mut by_hand).await.unwrap();
    let after = journal.append(vec![put("a")]).await.expect("an append");
    assert!(after.last > before.last, "else the rows' guard would drop it");
}

/// Two claimers on one journal: each entry goes to one, and a dead one's to the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_claimers_share_the_work() {
    let fresh = testing::fresh_prefix();
    let options = RedisJournalOptions {
        namespace: fresh.prefix.trim_end_matches(':').into(),
        ..options(fresh.url)
    };
    let (one, two) = (connect(options.clone()).await, connect(options).await);
    for number in 0..20 {
        one.append(vec![put(&format!("k{number:02}"))]).await.expect("an append");
    }
    let soon = || terrace_core::Deadline::at(Runtime::system().now());
    let first = one.claim(5, soon()).await.expect("a claim");
    let rest = claim_all(&two).await;
    assert!(!first.is_empty() && !rest.is_empty());
    assert_eq!(first.len() + rest.len(), 20);
    drop(one);
    let patience = terrace_core::Deadline::at(Runtime::system().now() + TAKEOVER * 20);
    let again = two.claim(100, patience).await.expect("a claim");
    assert_eq!(names(&again), names(&first));
    let done = rest.iter().chain(&again).map(Settled::of).collect();
    let progress = two.settle(done).await.expect("a settlement");
    assert_eq!((progress.writes, progress.applied), (0, progress.last));
}

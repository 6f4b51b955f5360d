//! A token protects over caches, too.
//!
//! The write of K1 has its version and is slow to commit; K2 is written after it and acknowledged
//! before it. A read of K1 with K2's token rightly loads the old K1. When K1 is acknowledged, what
//! that read left in a cache must not satisfy K1's own token.

use terrace_lab::Direction;
use terrace_prove::checkers::sessions;

use super::engines::{Gate, sql};
use super::field::{Field, Instance};
use super::rounds;

/// On one shard at level 4.
const SLOW: &str = "{t}1";
const FAST: &str = "{t}2";

#[derive(Clone, Copy)]
enum Fault {
    None,
    /// The writer cannot reach Redis.
    WriterCutOff,
    /// The reader's subscription is silent, its commands are answered.
    ReaderDeaf,
}

async fn a_slow_commit(level: u8, fault: Fault) {
    for _ in 0..rounds() {
        let field = Field::new(level).await;
        let (a, b) = (field.instance("a").await, field.instance("b").await);
        a.writes(SLOW, "old").await;
        b.writes(FAST, "old").await;
        let gate = Gate::close(&field.database, SLOW).await;
        match fault {
            Fault::None => {}
            Fault::WriterCutOff => a.redis.cut(),
            Fault::ReaderDeaf => {
                b.redis.only(b"SUBSCRIBE");
                b.redis.hold(Direction::Responses);
            }
        }
        let slow = async { a.writes(SLOW, "new").await };
        let fast = async {
            gate.is_reached().await;
            let fast = b.writes(FAST, "new").await;
            let seen = b.client.read(SLOW).after(&fast).send().await;
            assert_eq!(seen.found.as_deref(), Some("old"), "it is not committed: {seen}");
            // Whoever can be cached is cached now, with whatever it is said to prove.
            for _ in 0..3 {
                b.client.read(SLOW).after(&fast).send().await;
            }
            gate.open().await;
        };
        let (slow, ()) = tokio::join!(slow, fast);
        for _ in 0..3 {
            let own = b.client.read(SLOW).after(&slow).send().await;
            assert!(own.has_read(), "the database can be reached: {own}");
        }
        assert_committed_later(&field, level).await;
        match fault {
            Fault::None => {}
            Fault::WriterCutOff => assert!(a.redis.evidence().reset > 0, "it was cut off"),
            Fault::ReaderDeaf => assert!(b.redis.evidence().held_bytes > 0, "it missed something"),
        }
        sessions(&field.history.operations()).assert_holds();
        drop((a, b) as (Instance, Instance));
    }
}

/// The slow write has the lower version: it drew it first.
async fn assert_committed_later(field: &Field, level: u8) {
    if level == 4 {
        return; // the keys are in the schema of a shard
    }
    let order = "SELECT key FROM records ORDER BY version";
    assert_eq!(sql(&field.database, order).await, format!("{SLOW}\n{FAST}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_2() {
    a_slow_commit(2, Fault::WriterCutOff).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_4() {
    a_slow_commit(4, Fault::WriterCutOff).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_5() {
    a_slow_commit(5, Fault::WriterCutOff).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_5_while_all_is_well() {
    a_slow_commit(5, Fault::None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_5_while_the_reader_is_deaf() {
    a_slow_commit(5, Fault::ReaderDeaf).await;
}

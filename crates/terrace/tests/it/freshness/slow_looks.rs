//! The database answers one instance late, so what that hears of the generation was true a while ago. The
//! bound is a second and what two looks take; readers that lose patience meanwhile do not make it longer.

use std::time::Duration;

use terrace_lab::Direction;
use terrace_prove::checkers::{Freshness, freshness};

use super::field::Field;
use super::readers::Readers;
use super::{SLACK, WATCH, pause};

const DELAY: Duration = Duration::from_millis(1500);

async fn looks_are_late(level: u8, origin: &str) {
    let field = Field::new(level).await;
    let (a, b) = (field.instance("a").await, field.instance("b").await);
    let keys: Vec<_> = (0..4).map(|number| format!("k{number}")).collect();
    for key in &keys {
        a.writes(key, "old").await;
        b.caches(key, "old", origin).await;
    }
    // A session for looks is opened with the first one; new ones are too slow from now on.
    pause(WATCH).await;
    b.postgres.delay(Direction::Responses, DELAY);
    let readers = Readers::start(&[&b.client], &keys);
    pause(DELAY * 3).await;
    a.redis.cut();
    for key in &keys {
        a.writes(key, "new").await;
    }
    let allowed = WATCH + DELAY * 2 + SLACK;
    pause(allowed + WATCH).await;
    readers.end().await;
    let promise = Freshness { allowed, ..Freshness::default() };
    freshness(&field.history.operations(), &promise).assert_holds();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_2() {
    looks_are_late(2, "far").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_5() {
    looks_are_late(5, "near").await;
}

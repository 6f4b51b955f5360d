//! Redis serves reads and refuses writes: no invalidation can be carried.

use std::time::Duration;

use terrace_prove::checkers::{Freshness, freshness};

use super::engines::redis;
use super::field::Field;
use super::readers::Readers;
use super::{SLACK, WATCH, pause, rounds};

const KEYS: usize = 2;
/// From then on no near hit is believed.
const NEAR_ENDS: Duration = Duration::from_millis(2500);
/// How long Redis refuses writes.
const REFUSES: Duration = Duration::from_secs(6);

async fn redis_refuses_writes(level: u8) {
    for _ in 0..rounds() {
        let field = Field::new(level).await;
        let (a, b) = (field.instance("a").await, field.instance("b").await);
        let keys: Vec<_> = (0..KEYS).map(|number| format!("k{number}")).collect();
        for key in &keys {
            a.writes(key, "before").await;
            b.caches(key, "before", if level == 5 { "near" } else { "far" }).await;
        }
        let readers = Readers::start(&[&b.client], &keys);
        redis(&field.redis, "CONFIG SET min-replicas-to-write 1").await;
        let refused = redis(&field.redis, "SET probe 1").await;
        assert!(refused.contains("-NOREPLICAS"), "Redis refuses writes: {refused}");
        let began = field.history.now();
        let mut number = 0;
        while field.history.now() < began + REFUSES {
            for key in &keys {
                a.writes(key, &number.to_string()).await;
            }
            number += 1;
            pause(Duration::from_millis(400)).await;
        }
        let ended = field.history.now();
        redis(&field.redis, "CONFIG SET min-replicas-to-write 0").await;
        pause(WATCH).await;
        readers.end().await;
        let operations = field.history.operations();
        let near = operations.iter().filter(|it| {
            it.origin.as_deref() == Some("near")
                && it.invoked > began + NEAR_ENDS + SLACK
                && it.ended < ended
        });
        let near = near.count();
        let promise = Freshness { allowed: WATCH + SLACK, ..Freshness::default() };
        let fresh = freshness(&operations, &promise);
        assert!(near == 0, "{near} near hits while invalidations cannot be carried\n{fresh}");
        fresh.assert_holds();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_2() {
    redis_refuses_writes(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_5() {
    redis_refuses_writes(5).await;
}

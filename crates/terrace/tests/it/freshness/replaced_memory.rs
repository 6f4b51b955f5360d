//! The cache's Redis gets an older memory while it runs, under the same run id.

use std::path::Path;
use std::time::Duration;

use terrace_lab::{RedisOptions, RedisServer};
use terrace_prove::checkers::{Freshness, freshness, sessions};

use super::engines::redis;
use super::field::Field;
use super::{SLACK, WATCH, pause, until};

pub(super) fn password(server: &RedisServer) -> String {
    let url = server.url();
    let (_, rest) = url.split_once("://:").expect("a password");
    rest.split_once('@').expect("a password").0.to_owned()
}

/// Another server, for a copy.
pub(super) async fn spare(directory: &Path) -> RedisServer {
    let options = RedisOptions::new(directory.join("spare"));
    RedisServer::start(options).await.expect("Redis starts")
}

/// `to` becomes a replica of `of`, and a primary again when it has all.
pub(super) async fn takes_over(to: &RedisServer, of: &RedisServer) {
    let secret = password(of);
    redis(of, "CONFIG SET repl-diskless-sync-delay 0").await;
    let follow = format!("CONFIG SET masterauth {secret}\r\nREPLICAOF 127.0.0.1 {}", of.port());
    redis(to, &follow).await;
    let has_all = async || redis(to, "INFO replication").await.contains("master_link_status:up");
    until("it follows", has_all).await;
    redis(to, "REPLICAOF NO ONE").await;
}

/// `swaps`: the databases of the server are swapped; else it fails back to a copy.
async fn older_memory(level: u8, swaps: bool) {
    const COPY: &str = "EVAL \"for _, k in ipairs(redis.call('KEYS', '*')) do \
        redis.call('COPY', k, k, 'DB', 1) end return 0\" 0";
    let field = Field::new(level).await;
    let directory = tempfile::tempdir().expect("a directory");
    let copy = spare(directory.path()).await;
    let (a, b) = (field.instance("a").await, field.instance("b").await);
    let keys: Vec<_> = (0..6).map(|number| format!("k{number}")).collect();
    for key in &keys {
        a.writes(key, "old").await;
        b.caches(key, "old", if level == 5 { "near" } else { "far" }).await;
    }
    match swaps {
        true => drop(redis(&field.redis, COPY).await),
        false => takes_over(&copy, &field.redis).await,
    }
    for key in &keys {
        a.writes(key, "new").await;
    }
    match swaps {
        true => drop(redis(&field.redis, "SWAPDB 0 1").await),
        false => takes_over(&field.redis, &copy).await,
    }
    for _ in 0..20 {
        for key in &keys {
            b.client.read(key).send().await;
            a.client.read(key).send().await;
        }
        pause(Duration::from_millis(100)).await;
    }
    let operations = field.history.operations();
    sessions(&operations).assert_not_violated();
    let promise = Freshness { allowed: WATCH + SLACK, ..Freshness::default() };
    freshness(&operations, &promise).assert_holds();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failback_is_noticed_at_level_2() {
    older_memory(2, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failback_is_noticed_at_level_5() {
    older_memory(5, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swapped_databases_are_noticed_at_level_2() {
    older_memory(2, true).await;
}

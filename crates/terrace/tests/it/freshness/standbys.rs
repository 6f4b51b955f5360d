//! Level 3: a writer cut from Redis, lists while replay is paused, two primaries.

use std::time::Duration;

use terrace_lab::testing::{Replicated, replicated};
use terrace_prove::checkers::{Freshness, freshness, sessions};

use super::engines::sql;
use super::field::{Field, Instance};
use super::readers::Readers;
use super::{SLACK, WATCH, pause, rounds, until};

struct Servers {
    all: Replicated,
    field: Field,
    replicas: String,
}

impl Servers {
    async fn new(standbys: usize) -> Self {
        let all = replicated(standbys, &[]).await;
        let field = Field::on(3, all.primary.url()).await;
        let replicas = all.standby_urls();
        Self { all, field, replicas }
    }

    async fn instance(&self, name: &str, more: &[(&str, &str)]) -> Instance {
        let replicas = [("REPLICA_DATABASE_URL", self.replicas.as_str())];
        let environment = [&replicas[..], more].concat();
        self.field.instance_with(name, &self.field.database, &environment).await
    }
}

/// The writer cannot reach Redis. Others read what it wrote after a second, and after less where
/// they ask for less.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_is_cut_from_redis_costs_a_second() {
    for _ in 0..rounds() {
        let servers = Servers::new(1).await;
        let (a, b) = (servers.instance("a", &[]).await, servers.instance("b", &[]).await);
        let keys = ["k0".to_owned(), "k1".to_owned()];
        for key in &keys {
            a.writes(key, "old").await;
            b.caches(key, "old", "far").await;
        }
        let readers = Readers::start(&[&b.client], &keys);
        a.redis.cut();
        for key in &keys {
            a.writes(key, "new").await;
        }
        for _ in 0..60 {
            b.client.read("k0").max_stale(Duration::from_millis(1000)).send().await;
            pause(Duration::from_millis(100)).await;
        }
        readers.end().await;
        assert!(a.redis.evidence().refused > 0, "the writer tried to reach Redis");
        let promise = Freshness::default().except(Duration::ZERO, Duration::MAX, WATCH + SLACK);
        freshness(&servers.field.history.operations(), &promise).assert_holds();
    }
}

/// A list promises what a read of one key promises, with a token and without.
async fn lists_are_fresh(with_token: bool) {
    for _ in 0..rounds() {
        let servers = Servers::new(2).await;
        let (a, b) = (servers.instance("a", &[]).await, servers.instance("b", &[]).await);
        let keys = ["l0", "l1", "l2"];
        for key in keys {
            a.writes(key, "old").await;
        }
        for standby in &servers.all.standbys {
            sql(&standby.url(), "SELECT pg_wal_replay_pause()").await;
            let paused = "SELECT pg_get_wal_replay_pause_state()";
            until("replay is paused", async || sql(&standby.url(), paused).await == "paused").await;
        }
        let mut tokens = Vec::new();
        for key in keys {
            let write = a.writes(key, "new").await;
            tokens.extend(write.token_received.filter(|_| with_token));
        }
        for _ in 0..20 {
            for instance in [&a, &b] {
                instance.client.list("l", &keys, &tokens).await;
                instance.client.read("l0").send().await;
            }
            pause(Duration::from_millis(100)).await;
        }
        let operations = servers.field.history.operations();
        for standby in &servers.all.standbys {
            let behind = sql(&standby.url(), "SELECT value FROM records WHERE key = 'l0'").await;
            assert_eq!(behind, "old", "the standby is behind");
        }
        if with_token {
            sessions(&operations).assert_holds();
        }
        freshness(&operations, &Freshness::default()).assert_holds();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_fresh_while_replay_is_paused() {
    lists_are_fresh(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_with_tokens_are_fresh_while_replay_is_paused() {
    lists_are_fresh(true).await;
}

/// Whoever starts while there is no primary reads from replicas, and writes when one is back, whether it is
/// the same or a replica that was promoted.
async fn an_instance_starts_without_a_primary(promotes: bool, cache: &str) {
    let servers = Servers::new(2).await;
    let a = servers.instance("a", &[]).await;
    a.writes("k", "before").await;
    for standby in &servers.all.standbys {
        let read = "SELECT value FROM records WHERE key = 'k'";
        until("it is replayed", async || sql(&standby.url(), read).await == "before").await;
    }
    servers.all.primary.kill();
    let replicas = ("REPLICA_DATABASE_URL", servers.replicas.as_str());
    let environment = [replicas, ("TERRACE_CACHE_ENABLED", cache)];
    let b = servers.field.instance_unwell("b", &servers.field.database, &environment).await;
    let read = b.client.read("k").send().await;
    assert_eq!((read.status, read.found.as_deref()), (200, Some("before")), "{read}");
    match promotes {
        true => servers.all.standbys[1].promote().await.expect("a promotion"),
        false => servers.all.primary.restart().await.expect("PostgreSQL starts again"),
    }
    until("it writes", async || {
        pause(Duration::from_millis(100)).await;
        b.client.write("k", "after").send().await.is_acknowledged()
    })
    .await;
    let read = b.client.read("k").strong().send().await;
    assert_eq!((read.status, read.found.as_deref()), (200, Some("after")), "{read}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_starts_while_the_primary_is_down() {
    an_instance_starts_without_a_primary(false, "true").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_starts_before_a_promotion() {
    an_instance_starts_without_a_primary(true, "false").await;
}

/// After a promotion the settings still name the old primary, which is a standby now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_primary_is_found_whatever_it_is_named() {
    let servers = Servers::new(1).await;
    let a = servers.instance("a", &[]).await;
    a.writes("k", "old").await;
    let primary = servers.field.database.clone();
    let replicas = [("REPLICA_DATABASE_URL", primary.as_str())];
    let b = servers.field.instance_with("b", &servers.replicas, &replicas).await;
    b.writes("k", "new").await;
    let read = a.client.read("k").strong().send().await;
    assert_eq!(read.found.as_deref(), Some("new"), "{read}");
}

/// Two standbys are promoted to one timeline; one of them ends, and the other takes the writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_when_the_rival_is_gone() {
    for _ in 0..rounds() {
        let servers = Servers::new(2).await;
        let a = servers.instance("a", &[]).await;
        a.writes("k", "before").await;
        servers.all.primary.kill();
        for standby in &servers.all.standbys {
            standby.promote().await.expect("a promotion");
        }
        until("the rivals stop the writes", async || {
            a.client.write("k", "while there are two").send().await.status == 503
        })
        .await;
        pause(WATCH).await;
        let refused = a.client.write("k", "while there are two").send().await;
        assert_eq!(refused.status, 503, "two claim to be primary: {refused}");
        servers.all.standbys[1].kill();
        until("writes go on", async || {
            pause(Duration::from_millis(100)).await;
            a.client.write("k", "after").send().await.is_acknowledged()
        })
        .await;
    }
}

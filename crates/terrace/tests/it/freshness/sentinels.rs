//! A Redis that sentinels watch fails over while instances serve, to a replica that lacks invalidations.

use std::time::Duration;

use terrace_lab::testing::watched_redis;
use terrace_lab::{Persistence, RedisServer};
use terrace_prove::checkers::{Freshness, freshness};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::engines::redis;
use super::field::Field;
use super::readers::Readers;
use super::replaced_memory::password;
use super::{SLACK, WATCH, pause, until};

/// How long readers go on after the failover.
const AFTERWARDS: Duration = Duration::from_millis(2500);

async fn offset(server: &RedisServer) -> Option<String> {
    let info = redis(server, "INFO replication").await;
    info.lines().find_map(|line| line.strip_prefix("master_repl_offset:")).map(str::to_owned)
}

/// Also while sentinels promote it, which ends connections.
async fn is_primary(server: &RedisServer) -> bool {
    let Ok(mut socket) = TcpStream::connect(("127.0.0.1", server.port())).await else {
        return false;
    };
    let ask = format!("AUTH {}\r\nROLE\r\nQUIT\r\n", password(server));
    let mut answer = Vec::new();
    let asked = socket.write_all(ask.as_bytes()).await.is_ok();
    let answered = socket.read_to_end(&mut answer).await.is_ok();
    asked && answered && String::from_utf8_lossy(&answer).contains("\r\nmaster\r\n")
}

async fn a_failover_loses_invalidations(level: u8) {
    let (field, watched) = (Field::new(level).await, watched_redis(Persistence::None).await);
    let url = watched.url();
    let environment = [("REDIS_URL", url.as_str())];
    let a = field.instance_with("a", &field.database, &environment).await;
    let b = field.instance_with("b", &field.database, &environment).await;
    let named = |name| (0..4).map(|number| format!("{name}{number}")).collect();
    let (keys, quiet): (Vec<_>, Vec<_>) = (named("k"), named("quiet"));
    for key in keys.iter().chain(&quiet) {
        a.writes(key, "old").await;
        b.caches(key, "old", if level == 5 { "near" } else { "far" }).await;
    }
    until("the replica has all", async || {
        offset(&watched.primary).await == offset(&watched.replica).await
    })
    .await;
    // One that is only paused would find the invalidations in its socket.
    redis(&watched.replica, "CONFIG SET masterauth wrong\r\nCLIENT KILL TYPE master").await;
    let readers = Readers::start(&[&a.client, &b.client], &keys);
    for key in keys.iter().chain(&quiet) {
        a.writes(key, "new").await;
    }
    watched.primary.kill();
    // They go on without a cache, and are believed.
    for key in &keys {
        b.writes(key, "newer").await;
    }
    until("the replica is promoted", async || is_primary(&watched.replica).await).await;
    a.becomes_healthy().await;
    b.becomes_healthy().await;
    let late = Readers::start(&[&a.client, &b.client], &quiet);
    pause(AFTERWARDS).await;
    for readers in [readers, late] {
        readers.end().await;
    }
    let mut operations = field.history.operations();
    let promise = |allowed| Freshness { allowed, ..Freshness::default() };
    let near = if level == 5 { WATCH + SLACK } else { Duration::ZERO };
    freshness(&operations, &promise(near)).assert_holds();
    operations.retain(|it| it.origin.as_deref() != Some("near"));
    freshness(&operations, &promise(Duration::ZERO)).assert_not_violated();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalidations_lost_in_a_failover_show_nothing_old_at_level_2() {
    a_failover_loses_invalidations(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalidations_lost_in_a_failover_show_nothing_old_at_level_5() {
    a_failover_loses_invalidations(5).await;
}

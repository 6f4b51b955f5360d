//! Redis stopped, killed, restarted and flushed under load: no wrong answer and no failed read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::future::join_all;
use terrace_lab::RedisServer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Program, Stores, own_redis};

const KEYS: usize = 8;

/// What one key must be at least, and whether to go on.
struct Load {
    program: Program,
    acknowledged: [AtomicU64; KEYS],
    reads: AtomicU64,
    stop: AtomicBool,
}

impl Load {
    /// The only writer of its key: numbers that grow.
    async fn write(self: Arc<Self>, index: usize) {
        let mut number = 0;
        while !self.stop.load(Ordering::Relaxed) {
            number += 1;
            assert!(self.program.write(&format!("k{index}"), &number.to_string()).await);
            self.acknowledged[index].store(number, Ordering::SeqCst);
        }
    }

    /// A read that begins after an acknowledgement must not be older than it.
    async fn read(self: Arc<Self>, index: usize) {
        while !self.stop.load(Ordering::Relaxed) {
            let floor = self.acknowledged[index].load(Ordering::SeqCst);
            let value = self.program.read(&format!("k{index}")).await.expect("no read fails");
            let found: u64 = value.unwrap_or_default().parse().unwrap_or_default();
            assert!(found >= floor, "k{index}: {floor} was acknowledged, {found} was read");
            self.reads.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lets some hundred reads pass.
    async fn go_on(&self) {
        let until = self.reads.load(Ordering::Relaxed) + 300;
        while self.reads.load(Ordering::Relaxed) < until {
            tokio::task::yield_now().await;
        }
    }
}

async fn flush(redis: &RedisServer) {
    let url = redis.url();
    let password = url.split_once("://:").and_then(|(_, rest)| rest.split_once('@'));
    let (password, _) = password.expect("a URL with a password");
    let address = ("127.0.0.1", redis.port());
    let mut socket = tokio::net::TcpStream::connect(address).await.expect("a connection");
    let commands = format!("AUTH {password}\r\nFLUSHALL\r\nQUIT\r\n");
    socket.write_all(commands.as_bytes()).await.expect("a write");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("an answer");
    assert_eq!(answer.matches("+OK").count(), 3, "{answer}");
}

async fn trouble(level: u8) {
    let directory = tempfile::tempdir().expect("a directory");
    let redis = own_redis(directory.path()).await;
    let database = terrace_lab::testing::fresh_database();
    let cache = redis.url();
    let program =
        Program::serve(level, &Stores::Servers { database: &database, cache: &cache }).await;
    program.becomes("healthy").await;
    let load = Arc::new(Load {
        program,
        acknowledged: Default::default(),
        reads: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let mut work = Vec::new();
    for index in 0..KEYS {
        work.push(tokio::spawn(Arc::clone(&load).write(index)));
        work.push(tokio::spawn(Arc::clone(&load).read(index)));
        work.push(tokio::spawn(Arc::clone(&load).read(index)));
    }
    let nemesis = async {
        load.go_on().await;
        for _ in 0..3 {
            flush(&redis).await;
            load.go_on().await;
        }
        redis.kill();
        load.program.becomes("degraded").await;
        load.go_on().await;
        redis.restart().await.expect("Redis starts again");
        load.program.becomes("healthy").await;
        load.go_on().await;
        redis.pause();
        load.program.becomes("degraded").await;
        load.go_on().await;
        redis.resume();
        load.program.becomes("healthy").await;
        load.go_on().await;
        redis.stop().await.expect("Redis stops");
        load.program.becomes("degraded").await;
        load.go_on().await;
        redis.restart().await.expect("Redis starts again");
        load.program.becomes("healthy").await;
        load.go_on().await;
    };
    nemesis.await;
    load.stop.store(true, Ordering::Relaxed);
    for outcome in join_all(work).await {
        outcome.expect("no check failed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn level_2_stays_right() {
    trouble(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn level_5_stays_right() {
    trouble(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_is_down_at_the_start_is_no_reason_to_stop() {
    let directory = tempfile::tempdir().expect("a directory");
    let redis = own_redis(directory.path()).await;
    let database = terrace_lab::testing::fresh_database();
    let cache = redis.url();
    redis.stop().await.expect("Redis stops");
    let program = Program::serve(5, &Stores::Servers { database: &database, cache: &cache }).await;
    assert!(program.write("a", "1").await);
    assert_eq!(program.read("a").await, Ok(Some("1".into())));
    program.becomes("degraded").await;
    redis.restart().await.expect("Redis starts");
    program.becomes("healthy").await;
}

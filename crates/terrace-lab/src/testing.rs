//! One PostgreSQL, Redis, NATS and document server for all tests of a binary, started by the first test that
//! asks.
//!
//! They live in temporary directories that are removed when the test binary ends, however it ends.
//! They belong to no runtime: tests with a runtime each share them. A test whose engine is missing
//! fails, and says what to install.

use std::env;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{LabError, Result};
use crate::home::random_name;
use crate::{
    MongoOptions, MongoServer, NatsOptions, NatsServer, Persistence, PgBouncer, PostgresOptions,
    PostgresServer, RedisOptions, RedisServer,
};

/// The shared PostgreSQL, with durable settings and room for 300 connections.
///
/// Do not stop, pause or restart it: other tests use it at the same time. It blocks for about two
/// seconds at the first call.
///
/// # Panics
/// When PostgreSQL cannot be started; the message says what to do.
pub fn postgres() -> &'static PostgresServer {
    static SERVER: OnceLock<PostgresServer> = OnceLock::new();
    SERVER.get_or_init(|| {
        or_fail(temporary_directory("postgres").and_then(|directory| {
            PostgresServer::start_blocking(&PostgresOptions {
                settings: vec![("max_connections".into(), "300".into())],
                temporary: true,
                ..PostgresOptions::new(directory)
            })
        }))
    })
}

/// A primary and its streaming standbys, of one test's own; it may stop, pause and promote them.
///
/// Their directory goes with the value, which blocks for about a second.
#[derive(Debug)]
pub struct Replicated {
    /// What takes the writes.
    pub primary: PostgresServer,
    /// What follows it; their slots are `replica_1`, `replica_2`, ...
    pub standbys: Vec<PostgresServer>,
}

/// A new primary with this many standbys, with settings such as [`PostgresOptions::settings`].
///
/// # Panics
/// When PostgreSQL cannot be started; the message says what to do.
pub async fn replicated(standbys: usize, settings: &[(&str, &str)]) -> Replicated {
    let directory = or_fail(temporary_directory("replicated"));
    let settings: Vec<_> =
        settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let options = |name: &str| PostgresOptions {
        temporary: true,
        settings: settings.clone(),
        ..PostgresOptions::new(directory.join(name))
    };
    let primary = or_fail(PostgresServer::start(options("primary")).await);
    let mut all = Vec::new();
    for number in 1..=standbys {
        let name = format!("replica_{number}");
        all.push(or_fail(primary.start_standby(&name, options(&name)).await));
    }
    Replicated { primary, standbys: all }
}

impl Replicated {
    /// The URLs of the standbys' database `postgres`, separated by commas.
    #[must_use]
    pub fn standby_urls(&self) -> String {
        self.standbys.iter().map(PostgresServer::url).collect::<Vec<_>>().join(",")
    }
}

/// The URL of a new, empty database on [`postgres`].
///
/// # Panics
/// When PostgreSQL cannot be started or refuses; the message says what to do.
#[must_use]
pub fn fresh_database() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    or_fail(postgres().create_database_blocking(&name))
}

/// A PgBouncer of one test's own before [`postgres`], with settings such as `pool_mode`.
///
/// # Panics
/// When PgBouncer cannot be started; the message says what to do.
#[must_use]
pub fn pgbouncer(settings: &[(&str, &str)]) -> PgBouncer {
    let directory = or_fail(temporary_directory("pgbouncer"));
    or_fail(PgBouncer::start_blocking(directory, postgres(), settings))
}

/// The shared Redis, without persistence.
///
/// Do not stop, pause, restart or flush it: other tests use it at the same time.
///
/// # Panics
/// When Redis cannot be started; the message says what to do.
pub fn redis() -> &'static RedisServer {
    static SERVER: OnceLock<RedisServer> = OnceLock::new();
    SERVER.get_or_init(|| {
        or_fail(temporary_directory("redis").and_then(|directory| {
            RedisServer::start_blocking(&RedisOptions {
                temporary: true,
                ..RedisOptions::new(directory)
            })
        }))
    })
}

/// A Redis with a replica, and the sentinels that watch them, of one test's own.
#[derive(Debug)]
pub struct WatchedRedis {
    /// What takes the writes at first.
    pub primary: RedisServer,
    /// What follows it.
    pub replica: RedisServer,
    /// Three, which count a server as down that does not answer for 0.4 s.
    pub sentinels: Vec<RedisServer>,
}

/// A new primary with its replica and three sentinels, all with the persistence that servers have. Sentinels
/// take a moment to find each other.
///
/// # Panics
/// When Redis cannot be started; the message says what to do.
pub async fn watched_redis(persistence: Persistence) -> WatchedRedis {
    let directory = or_fail(temporary_directory("watched"));
    let options = |name: &str, settings: &[(&str, String)]| RedisOptions {
        persistence,
        settings: settings.iter().map(|(name, it)| ((*name).to_owned(), it.clone())).collect(),
        temporary: true,
        ..RedisOptions::new(directory.join(name))
    };
    // One login for all, whoever is the primary.
    let peer = [
        ("user", "peer on >shared allkeys allchannels allcommands".to_owned()),
        ("masteruser", "peer".to_owned()),
        ("masterauth", "shared".to_owned()),
        ("repl-diskless-sync-delay", "0".to_owned()),
    ];
    let primary = or_fail(RedisServer::start(options("primary", &peer)).await);
    let follow = [("replicaof", format!("127.0.0.1 {}", primary.port()))];
    let replica = options("replica", &[&peer[..], &follow].concat());
    let replica = or_fail(RedisServer::start(replica).await);
    let watch = [
        format!("monitor main 127.0.0.1 {} 2", primary.port()),
        "auth-user main peer".to_owned(),
        "auth-pass main shared".to_owned(),
        "down-after-milliseconds main 400".to_owned(),
        "failover-timeout main 2000".to_owned(),
        "sentinel-user peer".to_owned(),
        "sentinel-pass shared".to_owned(),
    ];
    let mut settings = vec![peer[0].clone()];
    settings.extend(watch.map(|setting| ("sentinel", setting)));
    let mut sentinels = Vec::new();
    for name in ["sentinel_1", "sentinel_2", "sentinel_3"] {
        let options = RedisOptions { sentinel: true, ..options(name, &settings) };
        sentinels.push(or_fail(RedisServer::start(options).await));
    }
    WatchedRedis { primary, replica, sentinels }
}

impl WatchedRedis {
    /// The URL of whoever the sentinels name.
    #[must_use]
    pub fn url(&self) -> String {
        let hosts: Vec<_> =
            self.sentinels.iter().map(|it| format!("127.0.0.1:{}", it.port())).collect();
        let login = "sentinel_user=peer&sentinel_password=shared";
        format!("redis+sentinel://peer:shared@{}/main?{login}", hosts.join(","))
    }
}

/// The shared NATS.
///
/// Do not stop or restart it: other tests use it at the same time.
///
/// # Panics
/// When NATS cannot be started; the message says what to do.
pub fn nats() -> &'static NatsServer {
    static SERVER: OnceLock<NatsServer> = OnceLock::new();
    SERVER.get_or_init(|| {
        or_fail(temporary_directory("nats").and_then(|directory| {
            NatsServer::start_blocking(&NatsOptions {
                temporary: true,
                ..NatsOptions::new(directory)
            })
        }))
    })
}

/// The shared document server.
///
/// Do not stop, pause or restart it: other tests use it at the same time.
///
/// # Panics
/// When it cannot be started; the message says what to do.
pub fn mongo() -> &'static MongoServer {
    static SERVER: OnceLock<MongoServer> = OnceLock::new();
    SERVER.get_or_init(own_mongo)
}

/// A document server of one test's own, which it may stop, kill and pause.
///
/// # Panics
/// When it cannot be started; the message says what to do.
#[must_use]
pub fn own_mongo() -> MongoServer {
    or_fail(temporary_directory("mongo").and_then(|directory| {
        MongoServer::start_blocking(&MongoOptions {
            temporary: true,
            ..MongoOptions::new(directory)
        })
    }))
}

/// The URL of an empty database on [`mongo`], which no other test of this binary gets.
///
/// # Panics
/// When the server cannot be started; the message says what to do.
#[must_use]
pub fn fresh_documents() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    mongo().database_url(&format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// A part of the shared Redis that no other test uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreshPrefix {
    /// The URL of [`redis`].
    pub url: String,
    /// What all keys of the test begin with, such as `test_7:`.
    pub prefix: String,
}

/// The URL of [`redis`] and a prefix for keys that no other test of this binary gets.
///
/// # Panics
/// When Redis cannot be started; the message says what to do.
#[must_use]
pub fn fresh_prefix() -> FreshPrefix {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let prefix = format!("test_{}:", NEXT.fetch_add(1, Ordering::Relaxed));
    FreshPrefix { url: redis().url(), prefix }
}

fn temporary_directory(engine: &str) -> Result<PathBuf> {
    Ok(env::temp_dir().join(format!("terrace-lab-{engine}-{}", random_name()?)))
}

fn or_fail<T>(outcome: Result<T, LabError>) -> T {
    outcome.unwrap_or_else(|error| panic!("{error}"))
}

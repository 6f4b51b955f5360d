//! Leaf stores: every engine that Terrace keeps records in, and every driver, live in this crate.
//!
//! Each engine is a cargo feature, so a program that uses one compiles one.

#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod contents;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod held;
#[cfg(any(feature = "nats", feature = "redis", feature = "sqlite"))]
mod journal;
#[cfg(feature = "mongodb")]
pub mod mongodb;
#[cfg(feature = "nats")]
pub mod nats_journal;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod parameters;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "redis")]
pub mod redis_journal;
#[cfg(any(feature = "mongodb", feature = "postgres", feature = "sqlite"))]
mod row;
#[cfg(feature = "sqlite")]
pub mod sqlite;
#[cfg(feature = "sqlite")]
pub mod sqlite_journal;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod tls;
#[cfg(any(feature = "mongodb", feature = "postgres", feature = "sqlite"))]
mod walks;

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use contents::Contents;
#[cfg(feature = "mongodb")]
pub use mongodb::{MongoDocuments, MongoOptions};
#[cfg(feature = "nats")]
pub use nats_journal::{NatsJournal, NatsJournalOptions};
#[cfg(feature = "postgres")]
pub use postgres::{
    BackupServer, PostgresBackup, PostgresLedger, PostgresLog, PostgresOptions, PostgresReadModel,
    PostgresShard, PostgresStore, ServerReport,
};
#[cfg(feature = "redis")]
pub use redis::{
    RedisCache, RedisCacheOptions, RedisPermits, RedisPermitsOptions, RedisStream,
    RedisStreamOptions,
};
#[cfg(feature = "redis")]
pub use redis_journal::{RedisJournal, RedisJournalOptions};
#[cfg(feature = "sqlite")]
pub use sqlite::{
    SqliteBackup, SqliteDocuments, SqliteLedger, SqliteLog, SqliteOptions, SqliteReadModel,
    SqliteShard, SqliteStore,
};
#[cfg(feature = "sqlite")]
pub use sqlite_journal::{SqliteJournal, SqliteJournalOptions};

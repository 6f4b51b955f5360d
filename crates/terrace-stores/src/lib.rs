//! Leaf stores: every engine that Terrace keeps records in, and every driver, live in this crate.
//!
//! Each engine is a cargo feature, so a program that uses one compiles one.

#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "sqlite")]
pub mod sqlite;

#[cfg(feature = "postgres")]
pub use postgres::{PostgresLog, PostgresOptions, PostgresReadModel, PostgresShard, PostgresStore};
#[cfg(feature = "redis")]
pub use redis::{RedisCache, RedisCacheOptions, RedisStream, RedisStreamOptions};
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteLog, SqliteOptions, SqliteReadModel, SqliteShard, SqliteStore};

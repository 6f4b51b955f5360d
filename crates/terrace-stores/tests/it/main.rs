//! The contract on the real engines, and what each engine promises beyond it.

#[cfg(feature = "mongodb")]
mod mongodb;
#[cfg(feature = "nats")]
mod nats_journal;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(all(feature = "postgres", feature = "sqlite"))]
mod read_model;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "redis")]
mod redis_journal;
#[cfg(all(feature = "postgres", feature = "sqlite"))]
mod rollup;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "sqlite")]
mod sqlite_journal;

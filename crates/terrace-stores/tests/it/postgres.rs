//! PostgreSQL: the contract, and what it promises beyond it.

#![allow(clippy::expect_used, clippy::disallowed_methods, reason = "everything here is a test")]

mod backup;
mod by_hand;
mod cancellation;
mod circles;
mod dropped;
mod durability;
mod faults;
mod foreign;
mod histories;
mod ledger;
mod log;
mod members;
mod migrations;
mod pool;
mod poolers;
mod promotions;
mod reads;
mod refusals;
mod region;
mod rights;
mod shard;
mod upgrade;
mod writes;

use std::sync::Arc;
use std::time::Duration;

use terrace_core::testkit::StoreFixture;
use terrace_core::{Deadline, Key, Runtime, Value};
use terrace_lab::testing;
use terrace_stores::postgres::ConnectionSource;
use terrace_stores::{PostgresOptions, PostgresStore};

mod pooled {
    use super::*;

    async fn store() -> StoreFixture {
        StoreFixture::new(Arc::new(super::store(ConnectionSource::pooled(1, 8)).await))
    }

    terrace_core::store_contract!(store);
}

/// One server of several keeps the contract as well.
mod member {
    use super::*;

    async fn store() -> StoreFixture {
        let options = PostgresOptions {
            source: ConnectionSource::pooled(1, 8),
            connect_timeout: Duration::from_secs(30),
            member: true,
            ..PostgresOptions::new(testing::fresh_database())
        };
        let store = PostgresStore::connect(options, Runtime::system()).await.expect("a store");
        StoreFixture::new(Arc::new(store))
    }

    terrace_core::store_contract!(store);
}

mod per_request {
    use super::*;

    /// A hundred connections at once take seconds where nothing is optimised.
    async fn store() -> StoreFixture {
        let options = PostgresOptions {
            source: ConnectionSource::PerRequest { limit: 16 },
            connect_timeout: Duration::from_secs(30),
            ..PostgresOptions::new(testing::fresh_database())
        };
        let store = PostgresStore::connect(options, Runtime::system()).await.expect("a store");
        StoreFixture::new(Arc::new(store))
    }

    terrace_core::store_contract!(store);
}

mod logged {
    use super::*;

    async fn store() -> StoreFixture {
        let options = PostgresOptions {
            source: ConnectionSource::pooled(1, 8),
            connect_timeout: Duration::from_secs(30),
            change_log: true,
            ..PostgresOptions::new(testing::fresh_database())
        };
        let store = PostgresStore::connect(options, Runtime::system()).await.expect("a store");
        StoreFixture::new(Arc::new(store))
    }

    terrace_core::store_contract!(store);
}

/// A store on a database of its own.
async fn store(source: ConnectionSource) -> PostgresStore {
    connect(&testing::fresh_database(), source).await
}

async fn connect(url: &str, source: ConnectionSource) -> PostgresStore {
    // Many tests connect at once, where nothing is optimised.
    let connect_timeout = Duration::from_secs(30);
    let options = PostgresOptions { source, connect_timeout, ..PostgresOptions::new(url) };
    PostgresStore::connect(options, Runtime::system()).await.expect("a store")
}

/// A session beside the store, for what a person would do.
pub(crate) async fn session(url: &str) -> tokio_postgres::Client {
    let (client, connection) =
        tokio_postgres::connect(url, tokio_postgres::NoTls).await.expect("a session");
    Runtime::system().spawn("session", async { drop(connection.await) }).detach();
    client
}

fn key(text: &str) -> Key {
    Key::new(text).expect("a key")
}

fn value(text: &str) -> Value {
    Value::new(text).expect("a value")
}

fn within(time: Duration) -> Deadline {
    Deadline::at(Runtime::system().now() + time)
}

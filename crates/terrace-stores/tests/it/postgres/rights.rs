//! Roles that may read and write, and nothing else.

use std::sync::Arc;

use terrace_core::{ReadModel as _, Runtime, Shard as _, ShardState, StoreExt as _};
use terrace_lab::testing;
use terrace_stores::postgres::ConnectionSource;
use terrace_stores::{PostgresOptions, PostgresReadModel, PostgresShard, PostgresStore};

use super::{key, session, value};

/// A role of one test, and the URL of its database as this role.
pub(super) struct DatabaseRole {
    pub(super) name: String,
    pub(super) url: String,
}

pub(super) async fn role(hand: &tokio_postgres::Client, url: &str, what: &str) -> DatabaseRole {
    let (server, database) = url.rsplit_once('/').expect("a path");
    let (_, host) = server.rsplit_once('@').expect("a user");
    let name = format!("{what}_{database}");
    let create = format!("CREATE ROLE {name} LOGIN PASSWORD 'secret'");
    hand.batch_execute(&create).await.expect("a role");
    let url = format!("postgres://{name}:secret@{host}/{database}");
    DatabaseRole { name, url }
}

/// What is granted for a schema whose tables exist.
async fn grant_data(hand: &tokio_postgres::Client, schema: &str, role: &DatabaseRole) {
    let name = &role.name;
    let grants = format!(
        "GRANT USAGE ON SCHEMA {schema} TO {name}; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {name}; \
         GRANT SELECT, USAGE, UPDATE ON ALL SEQUENCES IN SCHEMA {schema} TO {name}"
    );
    hand.batch_execute(&grants).await.expect("grants");
}

#[tokio::test]
async fn a_role_with_rights_on_data_alone_can_start_everything_that_exists() {
    let url = testing::fresh_database();
    let hand = session(&url).await;
    let options = |url: &str, schema: &str| PostgresOptions {
        schema: schema.to_owned(),
        source: ConnectionSource::pooled(1, 2),
        change_log: schema == "commands_side",
        ..PostgresOptions::new(url)
    };
    let runtime = Runtime::system;
    // Everything is made once.
    PostgresStore::connect(options(&url, "commands_side"), runtime()).await.expect("a store");
    let shard = PostgresShard::connect(options(&url, "one_shard"), runtime()).await;
    let state = ShardState { epoch: 1, ..ShardState::default() };
    shard.expect("a shard").found(state).await.expect("founded");
    PostgresReadModel::connect(options(&url, "read_side"), runtime()).await.expect("a model");
    let limited = role(&hand, &url, "data").await;
    for schema in ["commands_side", "one_shard", "read_side"] {
        grant_data(&hand, schema, &limited).await;
    }
    let url = &limited.url;
    let store = PostgresStore::connect(options(url, "commands_side"), runtime()).await;
    let store = store.expect("commands");
    store.put(key("a"), value("1")).await.expect("a put");
    let log = store.log().await.expect("an answer").expect("a log");
    assert!(terrace_core::ChangeLog::head(&log).await.expect("a head").epoch > 0);
    let shard = PostgresShard::connect(options(url, "one_shard"), runtime()).await;
    shard.expect("a shard").at(1).put(key("a"), value("1")).await.expect("a put");
    let model = PostgresReadModel::connect(options(url, "read_side"), runtime()).await;
    let model = Arc::new(model.expect("a read model"));
    assert!(
        model.read(&[key("a")], terrace_core::Budget::default()).await.expect("rows").rows[0]
            .record
            .is_none()
    );
}

/// A policy would hide rows, and Terrace would take them for missing.
#[tokio::test]
async fn row_level_security_is_noticed() {
    let url = testing::fresh_database();
    let hand = session(&url).await;
    let own = role(&hand, &url, "owner").await;
    hand.batch_execute(&format!("CREATE SCHEMA held AUTHORIZATION {}", own.name))
        .await
        .expect("it");
    let options = || PostgresOptions {
        schema: "held".into(),
        source: ConnectionSource::pooled(1, 1),
        ..PostgresOptions::new(&own.url)
    };
    let store = PostgresStore::connect(options(), Runtime::system()).await.expect("a store");
    store.put(key("a"), value("1")).await.expect("a put");
    for table in ["records", "terrace_idempotency", "terrace_history"] {
        let force =
            format!("ALTER TABLE held.{table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY");
        hand.batch_execute(&force).await.expect(table);
        let error = PostgresStore::connect(options(), Runtime::system()).await.expect_err(table);
        let message = error.message();
        assert!(message.contains("row-level security") && message.contains(table), "{error}");
        if table == "records" {
            let error = store.get(&key("a")).await.expect_err("nothing is hidden in silence");
            assert!(error.message().contains("row-level security"), "{error}");
        }
        // The advice.
        let lift = format!("ALTER TABLE held.{table} DISABLE ROW LEVEL SECURITY");
        hand.batch_execute(&lift).await.expect(table);
        PostgresStore::connect(options(), Runtime::system()).await.expect(table);
    }
    assert!(store.get(&key("a")).await.expect("a read").is_some());
}

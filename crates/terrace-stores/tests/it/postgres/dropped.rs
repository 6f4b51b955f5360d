//! Tables that are dropped, or brought back alone: what each message advises works.

use terrace_core::read_model::Projection;
use terrace_core::{
    ErrorKind, ReadModel as _, Runtime, Shard as _, ShardState, Store as _, StoreExt as _,
};
use terrace_lab::testing;
use terrace_stores::postgres::ConnectionSource;
use terrace_stores::{PostgresOptions, PostgresReadModel, PostgresShard, PostgresStore};

use super::{key, session, value};

fn options(url: &str) -> PostgresOptions {
    PostgresOptions {
        source: ConnectionSource::pooled(1, 2),
        change_log: true,
        ..PostgresOptions::new(url)
    }
}

async fn open(url: &str) -> PostgresStore {
    PostgresStore::connect(options(url), Runtime::system()).await.expect("it starts again")
}

/// "Restart Terrace, which creates them."
#[tokio::test]
async fn each_table_that_is_dropped_is_made_by_a_restart() {
    for dropped in [
        "TABLE records",
        "TABLE terrace_meta",
        "TABLE terrace_idempotency",
        "TABLE terrace_history",
        "TABLE commands",
        "SEQUENCE records_version CASCADE",
        "TABLE records, terrace_meta, terrace_idempotency, terrace_history, commands",
    ] {
        let url = testing::fresh_database();
        let hand = session(&url).await;
        let store = open(&url).await;
        let before = store.put(key("a"), value("1")).await.expect("a put");
        hand.batch_execute(&format!("DROP {dropped}")).await.expect(dropped);
        let request = terrace_core::Idempotency::new("once", [1; 32]).expect("a key");
        let how = terrace_core::WriteOptions {
            idempotency: Some(std::sync::Arc::new(request)),
            ..terrace_core::WriteOptions::default()
        };
        let put = vec![terrace_core::Write::put(key("b"), value("1"))];
        // Sessions that are open, and new ones, say the same, or make it.
        let written = terrace_core::Store::write(&store, put.clone(), &how).await;
        if let Err(error) = written {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{dropped}: {error}");
            assert!(error.message().contains("restart Terrace"), "{dropped}: {error}");
        }
        store.close().await.expect("closed");
        let store = open(&url).await;
        terrace_core::Store::write(&store, put, &how).await.expect(dropped);
        let after = store.put(key("a"), value("2")).await.expect(dropped);
        assert!(after.version > before.version, "{dropped}");
        let read = store.get(&key("a")).await.expect(dropped).expect("a record");
        assert_eq!(read.value.as_str(), "2", "{dropped}");
        let logged = "SELECT 1 FROM commands WHERE key = 'a' AND version = $1";
        let version = after.version.get().cast_signed();
        assert_eq!(hand.query(logged, &[&version]).await.expect(dropped).len(), 1, "{dropped}");
        assert!(store.log().await.expect(dropped).is_some(), "{dropped}");
    }
}

/// `pg_dump -t records -t records_version`, into an empty database.
#[tokio::test]
async fn records_that_are_restored_alone_are_taken_over() {
    let url = testing::fresh_database();
    let hand = session(&url).await;
    let options = || PostgresOptions { change_log: false, ..options(&url) };
    let store = PostgresStore::connect(options(), Runtime::system()).await.expect("a store");
    let before = store.put(key("a"), value("1")).await.expect("a put");
    store.delete(key("b")).await.expect("a delete");
    store.close().await.expect("closed");
    let alone = "SELECT string_agg(format('DROP TABLE %I', relname), ';') FROM pg_class \
                 WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' \
                   AND relname <> 'records'";
    let alone = hand.query_one(alone, &[]).await.expect("names").get::<_, String>(0);
    hand.batch_execute(&alone).await.expect("what a dump of the records lacks");
    let store = PostgresStore::connect(options(), Runtime::system()).await.expect("taken over");
    let read = store.get(&key("a")).await.expect("a read").expect("a record");
    assert_eq!((read.value.as_str(), read.version), ("1", before.version));
    assert!(store.put(key("a"), value("2")).await.expect("a put").version > before.version);
}

#[tokio::test]
async fn a_shard_that_has_lost_what_it_owns_says_so() {
    let url = testing::fresh_database();
    let hand = session(&url).await;
    let open = async || {
        let options = PostgresOptions { change_log: false, ..options(&url) };
        PostgresShard::connect(options, Runtime::system()).await.expect("a shard")
    };
    let shard = open().await;
    shard.found(ShardState { epoch: 1, ..ShardState::default() }).await.expect("founded");
    let lose = "CREATE TABLE backup AS SELECT * FROM terrace_shard; \
                DROP TABLE terrace_shard, terrace_shard_followed";
    hand.batch_execute(lose).await.expect("gone");
    let options = PostgresOptions { change_log: false, ..options(&url) };
    let restarted = PostgresShard::connect(options, Runtime::system()).await;
    for error in [
        shard.state().await.map(drop).expect_err("no table"),
        shard.at(1).get(&key("a")).await.map(drop).expect_err("no table"),
        shard.at(1).put(key("a"), value("1")).await.map(drop).expect_err("no table"),
        restarted.map(drop).expect_err("it would own nothing"),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.message().contains("restore that table"), "{error}");
    }
    // The advice.
    let restore = "CREATE TABLE terrace_shard (LIKE backup, PRIMARY KEY (one)); \
                   INSERT INTO terrace_shard SELECT * FROM backup";
    hand.batch_execute(restore).await.expect("restored");
    let shard = open().await;
    assert_eq!(shard.state().await.expect("an answer").expect("it is one").epoch, 1);
    shard.at(1).put(key("a"), value("1")).await.expect("a put");
}

/// What a projection has lost it makes again from the beginning of its log.
#[tokio::test]
async fn each_table_of_a_read_model_is_made_again() {
    let url = testing::fresh_database();
    let hand = session(&url).await;
    let options = || PostgresOptions { change_log: false, ..options(&url) };
    for (table, begun_anew) in [
        ("records", (true, false)),
        ("terrace_projection", (true, true)),
        ("terrace_parked", (true, false)),
        ("terrace_activity", (true, false)),
        ("terrace_words", (false, true)),
    ] {
        let model = PostgresReadModel::connect(options(), Runtime::system()).await.expect(table);
        let follow = "UPDATE terrace_projection SET source = 'a-log', epoch = 7";
        hand.batch_execute(follow).await.expect("checkpoints");
        hand.batch_execute(&format!("DROP TABLE {table}")).await.expect(table);
        drop(model);
        let model = PostgresReadModel::connect(options(), Runtime::system()).await.expect(table);
        model.read(&[key("a")], terrace_core::Budget::default()).await.expect(table);
        model.search("a", 1).await.expect(table);
        model.activity(std::time::Duration::from_secs(60), 1).await.expect(table);
        assert!(model.parked(1).await.expect(table).is_empty());
        let live = model.follower(Projection::Live).checkpoint().await.expect("a checkpoint");
        let index = model.search_index().expect("an index").checkpoint().await.expect("one");
        assert_eq!((!live.is_in("a-log"), !index.is_in("a-log")), begun_anew, "{table}");
        model.close().await.expect("closed");
    }
}

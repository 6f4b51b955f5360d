//! Tables that an earlier Terrace made: the first start gives them their names of today, and all that is in
//! them stays in force.

use std::sync::Arc;
use std::time::Duration;

use terrace_core::read_model::{Counted, Projection};
use terrace_core::{
    ChangeLog as _, Idempotency, LogPosition, Outcome, Place, Position, Precondition,
    ReadModel as _, ReadOptions, Runtime, Sequence, Shard as _, Store as _, StoreExt as _, Token,
    Write, WriteOptions,
};
use terrace_lab::testing;
use terrace_stores::postgres::ConnectionSource;
use terrace_stores::{PostgresOptions, PostgresReadModel, PostgresShard, PostgresStore};

use super::{key, session, value};

const HISTORY: &str = "pg-c3dca0525fd1.1";

/// A database with the tables as they were, on the server on which they are now.
async fn earlier() -> String {
    const HERE: &str = "UPDATE terrace_history SET \
           identity = concat_ws('/', (SELECT system_identifier FROM pg_control_system()), \
             (SELECT oid FROM pg_database WHERE datname = current_database()), \
             pg_relation_filenode('records'), left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)), \
           records = pg_relation_filenode('records'), \
           started = concat_ws('/', extract(epoch FROM pg_postmaster_start_time()), \
             (SELECT extract(epoch FROM stats_reset) FROM pg_stat_bgwriter)); \
         UPDATE idempotency SET created_at = now()";
    let url = testing::fresh_database();
    session(&url).await.batch_execute(include_str!("release_4.sql")).await.expect("a dump");
    let hand = session(&url).await;
    for schema in ["terrace_l4_shard_0", "public"] {
        let here = format!("SET search_path = {schema}; {HERE}");
        hand.batch_execute(&here).await.expect("this server");
    }
    url
}

fn options(url: &str, schema: &str) -> PostgresOptions {
    PostgresOptions {
        schema: schema.to_owned(),
        source: ConnectionSource::pooled(1, 2),
        change_log: schema == "public",
        ..PostgresOptions::new(url)
    }
}

async fn counted(hand: &tokio_postgres::Client, query: &str) -> i64 {
    hand.query_one(query, &[]).await.expect(query).get(0)
}

#[tokio::test]
async fn records_tokens_requests_and_guards_of_earlier_tables_stay_in_force() {
    let url = earlier().await;
    let store = PostgresStore::connect(options(&url, "public"), Runtime::system()).await;
    let store = store.expect("an upgrade");
    assert_eq!(&*store.history(), HISTORY);
    assert_eq!(store.standing().generation.get(), 1, "nothing that was cached is in doubt");
    let asks = ReadOptions {
        token: Some(Token::of(HISTORY, Position::new(449))),
        ..ReadOptions::default()
    };
    let read = store.get_read(&key("a"), &asks).await.expect("a token of before");
    let record = read.record.expect("a record");
    assert_eq!((record.value.as_str(), record.version.get()), ("2", 3));

    let request = Idempotency::new("once", [1; 32]).expect("a key");
    let how = WriteOptions { idempotency: Some(Arc::new(request)), ..WriteOptions::default() };
    let again = store.write(vec![Write::put(key("b"), value("1"))], &how).await.expect("receipts");
    let event = LogPosition { epoch: 449, offset: 6 };
    assert_eq!((again[0].version.get(), again[0].event), (6, Some(event)), "the first result");

    let late = Place { sequence: Sequence::new(440), settled: Sequence::new(430) };
    let late = Write::put(key("other"), value("late")).when(Precondition::After(late));
    let late = store.write(vec![late], &WriteOptions::default()).await.expect("receipts");
    assert_eq!(late[0].outcome, Outcome::PreconditionFailed, "what is settled comes too late");
    assert_eq!(store.furthest().await.expect("an answer"), Sequence::new(500));

    let log = store.log().await.expect("an answer").expect("a log");
    assert!(log.name().contains("log-03c63a824e2a"), "{}", log.name());
    let end = LogPosition { epoch: 450, offset: 1 << 62 };
    log.keep_for("somebody", end).await.expect("a follower of before");
    let first = log.after(LogPosition::default(), 2).await.expect("a page");
    assert_eq!(first.changes[1].version.get(), 3);
    let put = store.put(key("a"), value("3")).await.expect("a put");
    assert!(put.version.get() > 7 && put.event.is_some());
    let hand = session(&url).await;
    assert_eq!(counted(&hand, "SELECT count(*) FROM commands").await, 7, "it is logged");
    let earlier = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace \
         AND relname IN ('meta', 'idempotency', 'idempotency_age')";
    assert_eq!(counted(&hand, earlier).await, 0);
}

#[tokio::test]
async fn what_a_shard_owns_and_follows_stays() {
    let url = earlier().await;
    let options = options(&url, "terrace_l4_shard_0");
    let shard = PostgresShard::connect(options, Runtime::system()).await.expect("an upgrade");
    let state = shard.state().await.expect("an answer").expect("it has one");
    assert_eq!(state.epoch, 4);
    let read = shard.at(4).get(&key("s")).await.expect("a read").expect("a record");
    assert_eq!(read.value.as_str(), "1");
    shard.at(4).put(key("s"), value("2")).await.expect("a put");
    assert!(shard.at(3).get(&key("s")).await.is_err(), "under another epoch");
    let hand = session(&url).await;
    let followed = "SELECT count(*) FROM terrace_l4_shard_0.terrace_shard_followed";
    assert_eq!(counted(&hand, followed).await, 1);
    let functions = "SELECT count(*) FROM pg_proc WHERE proname IN ('shard_look', 'shard_enter')";
    assert_eq!(counted(&hand, functions).await, 0);
}

#[tokio::test]
async fn a_read_model_goes_on_where_it_was() {
    let url = earlier().await;
    let options = options(&url, "terrace_read");
    let model = PostgresReadModel::connect(options, Runtime::system()).await.expect("an upgrade");
    let live = model.follower(Projection::Live);
    let checkpoint = live.checkpoint().await.expect("a checkpoint");
    assert!(checkpoint.is_in("a-log"));
    assert_eq!(checkpoint.position, LogPosition { epoch: 7, offset: 8 });
    let index = model.search_index().expect("an index").checkpoint().await.expect("a checkpoint");
    assert_eq!(index.position, LogPosition { epoch: 5, offset: 6 });
    assert_eq!(model.search("hello", 9).await.expect("rows").len(), 1);
    let top = model.top(Counted::Reads, 9).await.expect("rows");
    assert_eq!((top[0].reads, top[0].writes), (3, 4));
    assert_eq!(model.parked(9).await.expect("keys")[0].key, key("p"));
    let activity = model.activity(Duration::from_secs(60), 9).await.expect("minutes");
    assert_eq!(activity[0].writes, 12);
    assert!(model.retry(&key("p")).await.expect("an answer"), "it is applied now");
}

/// A role with rights on data alone cannot rename a table; it is told who can.
#[tokio::test]
async fn who_must_start_it_once_is_named() {
    let url = earlier().await;
    let hand = session(&url).await;
    let limited = super::rights::role(&hand, &url, "late").await;
    let grant = format!(
        "GRANT USAGE ON SCHEMA public TO {0}; GRANT SELECT, INSERT, UPDATE, DELETE \
         ON ALL TABLES IN SCHEMA public TO {0}",
        limited.name
    );
    hand.batch_execute(&grant).await.expect("grants");
    let refused = PostgresStore::connect(options(&limited.url, "public"), Runtime::system()).await;
    let error = refused.expect_err("a table must be renamed");
    for name in ["`meta`", "belongs to terrace", &limited.name] {
        assert!(error.message().contains(name), "{error} should name {name}");
    }
    PostgresStore::connect(options(&url, "public"), Runtime::system()).await.expect("its owner");
}

//! PostgreSQL's search index follows the log behind the projection: what that must not change.

use std::time::Duration;

use terrace_core::Budget;
use terrace_core::read_model::{Projection, Row};
use terrace_core::testkit::{key, value};
use terrace_core::{LogPosition, ReadModel, Runtime, StoreExt};
use terrace_lab::testing;
use terrace_stores::{PostgresOptions, PostgresReadModel};

use super::Sides;
use super::suite::batch;

const LONG: Duration = Duration::from_secs(60);

/// Another instance over the same read database.
async fn another(url: &str) -> PostgresReadModel {
    let options = PostgresOptions {
        schema: "side".to_owned(),
        connect_timeout: Duration::from_secs(30),
        ..PostgresOptions::new(url)
    };
    PostgresReadModel::connect(options, Runtime::system()).await.expect("it")
}

async fn found(model: &dyn ReadModel, words: &str) -> Vec<String> {
    let rows = model.search(words, 10).await.expect("rows");
    let records = rows.into_iter().filter_map(|Row { record, .. }| record);
    records.map(|record| record.key.as_str().to_owned()).collect()
}

async fn written(sides: &Sides, text: &str) {
    sides.store.put(key("user:1"), value(text)).await.expect("a put");
    sides.projector().await;
}

/// The index is where it was, the projection is further.
async fn projected(sides: &Sides, text: &str) {
    let from = sides.begun(Projection::Live).await;
    sides.store.put(key("user:1"), value(text)).await.expect("a put");
    let page = sides.changes(from.position, 1).await;
    let batch = batch(&from, page.position, &page.changes);
    assert!(sides.live().apply(&batch).await.expect("applied"));
}

#[tokio::test]
async fn a_search_may_miss_what_is_new_and_finds_nothing_that_is_gone() {
    let sides = super::postgres().await;
    written(&sides, "Ada Lovelace").await;
    assert_eq!(found(&*sides.model, "lovelace").await, ["user:1"]);
    projected(&sides, "Ada Hopper").await;
    assert!(found(&*sides.model, "lovelace").await.is_empty(), "it is gone, whatever is indexed");
    assert_eq!(found(&*sides.model, "ada").await, ["user:1"], "it still has this one");
    assert!(found(&*sides.model, "hopper").await.is_empty(), "not indexed yet");
    sides.projector().await;
    assert_eq!(found(&*sides.model, "hopper").await, ["user:1"]);
}

/// Of overlapping transactions the older change may come last, and after a deletion.
#[tokio::test]
async fn the_highest_version_is_indexed_wherever_it_stands() {
    let sides = super::postgres().await;
    written(&sides, "older").await;
    sides.store.delete(key("user:1")).await.expect("a delete");
    let changes = sides.changes(LogPosition::default(), 2).await.changes;
    let index = sides.model.search_index().expect("an index");
    index.begin_anew(&sides.log.name()).await.expect("begun");
    for (offset, change) in [(1, &changes[1]), (2, &changes[0])] {
        let from = index.checkpoint().await.expect("a checkpoint");
        let to = LogPosition { epoch: 0, offset };
        let batch = batch(&from, to, std::slice::from_ref(change));
        assert!(index.apply(&batch).await.expect("applied"));
        assert!(!index.apply(&batch).await.expect("an answer"), "once");
    }
    assert!(found(&*sides.model, "older").await.is_empty());
}

/// A rebuild makes the index anew, too, for whoever has changed it by hand.
#[tokio::test]
async fn a_rebuild_repairs_the_index() {
    let url = testing::fresh_database();
    let sides = super::postgres_at(url.clone()).await;
    written(&sides, "Ada Lovelace").await;
    let hand = crate::postgres::session(&url).await;
    hand.batch_execute("UPDATE side.terrace_words SET words = ''").await.expect("it");
    assert!(found(&*sides.model, "lovelace").await.is_empty());
    super::suite::rebuild(&sides, true).await;
    sides.projector().await;
    assert_eq!(found(&*sides.model, "lovelace").await, ["user:1"]);
}

/// Tables of earlier versions, which kept the words beside the rows.
#[tokio::test]
async fn earlier_tables_are_taken_over() {
    let url = testing::fresh_database();
    let hand = crate::postgres::session(&url).await;
    hand.batch_execute(
        "CREATE SCHEMA side;
         CREATE TABLE side.projection (name text PRIMARY KEY, source text NOT NULL DEFAULT '',
             epoch bigint NOT NULL DEFAULT 0, place bigint NOT NULL DEFAULT 0, owner text,
             leased_until timestamptz, paused_until timestamptz,
             words_behind boolean NOT NULL DEFAULT false);
         INSERT INTO side.projection (name, source, place) VALUES ('live', 'log', 7), ('next', '', 0);
         CREATE TABLE side.records (key text COLLATE \"C\" PRIMARY KEY, value text NOT NULL,
             created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
             read_count bigint NOT NULL DEFAULT 0, write_count bigint NOT NULL DEFAULT 0,
             version bigint NOT NULL, deleted boolean NOT NULL DEFAULT false,
             words tsvector, worded bigint);
         CREATE INDEX records_words ON side.records USING gin (words);
         INSERT INTO side.records (key, value, created_at, updated_at, version)
         VALUES ('user:1', 'Ada Lovelace', now(), now(), 7)",
    )
    .await
    .expect("tables");
    let model = another(&url).await;
    let row = model.read(&[key("user:1")], Budget::default()).await.expect("rows").rows.remove(0);
    assert!(row.record.is_some());
    let index = model.search_index().expect("an index");
    let checkpoint = index.checkpoint().await.expect("a checkpoint");
    assert!(!checkpoint.is_in("log"), "it is made anew");
}

#[tokio::test]
async fn one_instance_has_the_lease_until_its_session_ends() {
    let url = testing::fresh_database();
    let (one, other) = (another(&url).await, another(&url).await);
    let (first, second) = (one.lease().expect("a lease"), other.lease().expect("a lease"));
    assert!(first.hold(LONG).await.expect("an answer"));
    assert!(!second.hold(LONG).await.expect("an answer"));
    assert!(first.hold(LONG).await.expect("kept"));
    let hand = crate::postgres::session(&url).await;
    let kill = "SELECT pg_terminate_backend(pid) FROM side.terrace_projection WHERE name = 'live'";
    hand.execute(kill, &[]).await.expect("killed");
    // It is gone a moment after it was told to.
    while !second.hold(LONG).await.expect("an answer") {}
    assert!(!first.hold(LONG).await.expect("an answer"));
    assert!(second.hold(Duration::ZERO).await.expect("given back"));
    while !first.hold(LONG).await.expect("an answer") {}
}

//! Words are indexed behind the projection: what that must not change.

use std::sync::Arc;
use std::time::Duration;

use terrace_core::read_model::{Batch, Projection, Row, begun, fold};
use terrace_core::testkit::{key, value};
use terrace_core::{LogPosition, ReadModel, Runtime, StoreExt};
use terrace_lab::testing;
use terrace_stores::{PostgresOptions, PostgresReadModel};

use super::Sides;

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

/// Until it is found, for as long as a look through a small table may take.
async fn until_found(model: &dyn ReadModel, words: &str) {
    let all = async {
        while found(model, words).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("found in time");
}

async fn written(sides: &Sides, text: &str) {
    sides.store.put(key("user:1"), value(text)).await.expect("a put");
    sides.projector().await;
}

async fn words_are_behind(url: &str) -> bool {
    let hand = crate::postgres::session(url).await;
    let text = "SELECT words_behind FROM side.projection WHERE name = 'live'";
    hand.query_one(text, &[]).await.expect("a row").get(0)
}

#[tokio::test]
async fn a_search_elsewhere_may_miss_what_is_new_and_finds_nothing_that_is_gone() {
    let url = testing::fresh_database();
    let sides = super::postgres_at(url.clone()).await;
    let elsewhere = another(&url).await;
    written(&sides, "Ada Lovelace").await;
    assert_eq!(found(&*sides.model, "lovelace").await, ["user:1"]);
    assert_eq!(found(&elsewhere, "lovelace").await, ["user:1"]);
    written(&sides, "Grace Hopper").await;
    assert!(found(&elsewhere, "lovelace").await.is_empty(), "it is gone, whatever is indexed");
    assert_eq!(found(&*sides.model, "hopper").await, ["user:1"], "the projection is here");
    assert!(found(&*sides.model, "lovelace").await.is_empty());
}

/// As after a kill: rows are behind, and the one who knew which is gone.
#[tokio::test]
async fn who_takes_the_projection_over_looks_for_words_that_are_behind() {
    let url = testing::fresh_database();
    let sides = super::postgres_at(url.clone()).await;
    written(&sides, "Ada Lovelace").await;
    sides.model.close().await.expect("closed");
    assert!(!words_are_behind(&url).await, "a clean end leaves nothing behind");
    let hand = crate::postgres::session(&url).await;
    let kill = "UPDATE side.records SET words = NULL, worded = NULL; \
                UPDATE side.projection SET words_behind = true";
    hand.batch_execute(kill).await.expect("a kill");
    let next = another(&url).await;
    assert!(next.lease("next", LONG).await.expect("an answer"));
    assert!(found(&next, "lovelace").await.is_empty(), "nobody has looked yet");
    let position = next.checkpoint(Projection::Live, &sides.source).await.expect("it");
    assert!(position.is_some());
    until_found(&next, "lovelace").await;
}

/// A row that cannot be changed any more keeps no other from being indexed.
#[tokio::test]
async fn a_refused_row_is_left_and_the_others_are_indexed() {
    let url = testing::fresh_database();
    let sides = super::postgres_at(url.clone()).await;
    let hand = crate::postgres::session(&url).await;
    for (name, text) in [("a", "ada"), ("bad", "poison"), ("c", "grace")] {
        sides.store.put(key(name), value(text)).await.expect("a put");
    }
    sides.projector().await;
    // Whatever was indexed meanwhile is behind again.
    let refuse = "UPDATE side.records SET words = NULL, worded = NULL; \
                  ALTER TABLE side.records ADD CHECK (value <> 'poison') NOT VALID";
    hand.batch_execute(refuse).await.expect("refused");
    let owner = "this";
    assert!(sides.model.lease(owner, LONG).await.expect("an answer"));
    hand.batch_execute("UPDATE side.projection SET place = place + 1").await.expect("another");
    sides.model.checkpoint(Projection::Live, &sides.source).await.expect("it");
    until_found(&*sides.model, "grace").await;
    assert_eq!(found(&*sides.model, "ada").await, ["a"]);
    assert!(found(&*sides.model, "poison").await.is_empty());
}

/// A parked change that is older than its row, let go before the row's words are indexed.
#[tokio::test]
async fn a_retried_change_that_is_older_leaves_the_words_to_be_indexed() {
    let url = testing::fresh_database();
    let sides = super::postgres_at(url.clone()).await;
    sides.store.put(key("k"), value("older")).await.expect("a put");
    sides.store.put(key("k"), value("newer")).await.expect("a put");
    let head = sides.log.head().await.expect("a head");
    let mut changes = Vec::new();
    while changes.len() < 2 {
        changes = sides.log.after(LogPosition::default(), 10).await.expect("a page").changes;
    }
    let mut folded = changes.iter().map(|change| fold(std::slice::from_ref(change)).remove(0));
    let (older, newer) = (folded.next().expect("one"), folded.next().expect("two"));
    let from = begun(&*sides.model, Projection::Live, &sides.source).await.expect("it");
    let batch = |from, to| Batch { source: sides.source.to_string(), from, to, ..Batch::default() };
    let first = Batch { folded: vec![newer], ..batch(from, head) };
    assert!(sides.model.apply(Projection::Live, &first).await.expect("applied"));
    let to = LogPosition { offset: head.offset + 1, ..head };
    let second = Batch { poison: vec![(older, "no".to_owned())], ..batch(head, to) };
    assert!(sides.model.apply(Projection::Live, &second).await.expect("applied"));
    let hand = crate::postgres::session(&url).await;
    hand.batch_execute("UPDATE side.records SET words = NULL, worded = NULL").await.expect("it");
    assert!(sides.model.retry(&key("k")).await.expect("an answer"));
    let true_to_it = "SELECT worded IS DISTINCT FROM version \
                      OR words IS NOT DISTINCT FROM to_tsvector('simple', key || ' ' || value) \
                      FROM side.records WHERE key = 'k'";
    let true_to_it = hand.query_one(true_to_it, &[]).await.expect("a row").get::<_, bool>(0);
    assert!(true_to_it, "words that are not those of its version are said to be");
}

/// Tables of an earlier version, which worked words out in each change.
#[tokio::test]
async fn earlier_tables_are_taken_over() {
    let url = testing::fresh_database();
    let hand = crate::postgres::session(&url).await;
    hand.batch_execute(
        "CREATE SCHEMA side;
         CREATE TABLE side.projection (name text PRIMARY KEY, source text NOT NULL DEFAULT '',
             epoch bigint NOT NULL DEFAULT 0, place bigint NOT NULL DEFAULT 0, owner text,
             leased_until timestamptz, paused_until timestamptz);
         INSERT INTO side.projection (name, source, place) VALUES ('live', 'log', 7), ('next', '', 0);
         CREATE TABLE side.records (key text COLLATE \"C\" PRIMARY KEY, value text NOT NULL,
             created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
             read_count bigint NOT NULL DEFAULT 0, write_count bigint NOT NULL DEFAULT 0,
             version bigint NOT NULL, deleted boolean NOT NULL DEFAULT false,
             words tsvector GENERATED ALWAYS AS
                 (to_tsvector('simple'::regconfig, key || ' ' || left(value, 100000))) STORED);
         CREATE INDEX records_words ON side.records USING gin (words);
         INSERT INTO side.records (key, value, created_at, updated_at, version)
         VALUES ('user:1', 'Ada Lovelace', now(), now(), 7)",
    )
    .await
    .expect("tables");
    let model = Arc::new(another(&url).await);
    assert_eq!(found(&*model, "lovelace").await, ["user:1"], "what was indexed is found at once");
    assert!(words_are_behind(&url).await);
    assert!(model.lease("one", LONG).await.expect("an answer"));
    model.checkpoint(Projection::Live, "log").await.expect("it");
    let behind = "SELECT 1 FROM side.records WHERE worded IS DISTINCT FROM version";
    let all = async {
        while !hand.query(behind, &[]).await.expect("rows").is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("indexed in time");
}

//! Versions are drawn by many sessions at once, while the sequence is raised.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use terrace_core::Runtime;
use terrace_core::testkit::{Fixture, Regions, region_contract};
use terrace_lab::testing;
use tokio_postgres::Client;

use super::{region, regions, session, set_clock};
use jiff::SignedDuration;

/// What a session draws in one statement, in its order.
async fn draw(session: &Client, count: i64) -> Vec<i64> {
    let text = "SELECT terrace_version() FROM generate_series(1, $1::bigint)";
    let rows = session.query(text, &[&count]).await.expect("versions");
    rows.iter().map(|row| row.get(0)).collect()
}

/// A clock that runs so fast that nearly every draw raises the sequence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_raise_all_the_time_draw_no_version_twice() {
    let url = testing::fresh_database();
    let _store = region(&url, 5).await;
    let hand = session(&url).await;
    hand.batch_execute(
        "CREATE OR REPLACE FUNCTION terrace_clock() RETURNS bigint LANGUAGE sql VOLATILE AS \
         $$ SELECT (date_part('epoch', clock_timestamp() - '2026-01-01Z') * 1000000)::bigint << 6 $$",
    )
    .await
    .expect("a clock");
    let sessions = join_all((0..6).map(|_| session(&url))).await;
    let drawn = join_all(sessions.iter().map(|session| draw(session, 2000))).await;
    let mut all = BTreeSet::new();
    for versions in drawn {
        assert!(versions.is_sorted_by(|a, b| a < b), "strictly growing");
        for version in versions {
            assert_eq!(version & 63, 5, "of the region");
            assert!(all.insert(version), "{version} was drawn twice");
        }
    }
    assert_eq!(all.len(), 12_000);
}

/// A session stands still between its look at the sequence and its raise, while others draw more than
/// it raises.
async fn drawn_past_a_raise(url: &str) -> Vec<i64> {
    let (hand, raiser, others) = (session(url).await, session(url).await, session(url).await);
    hand.batch_execute(
        "CREATE OR REPLACE FUNCTION terrace_clock() RETURNS bigint LANGUAGE plpgsql AS $$ \
         DECLARE above bigint := (SELECT last_value + 64 * 1000 FROM records_version); BEGIN \
           IF current_setting('test.raises', true) = 'yes' THEN \
             PERFORM pg_advisory_xact_lock_shared(4242); \
             RETURN above; \
           END IF; \
           RETURN 0; \
         END $$; \
         SELECT pg_advisory_lock(4242)",
    )
    .await
    .expect("a clock that waits");
    raiser.batch_execute("SET test.raises = 'yes'").await.expect("a setting");
    let waits = async |count: i64| {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
             AND wait_event = 'advisory'";
        hand.query_one(waiting, &[]).await.expect("an answer").get::<_, i64>(0) >= count
    };
    let raise = async {
        let row = raiser.query_one("SELECT terrace_version_above(0)", &[]).await;
        vec![row.expect("a version").get::<_, i64>(0)]
    };
    let draws = async {
        while !waits(1).await {
            tokio::task::yield_now().await;
        }
        let mut drawing = Box::pin(draw(&others, 3000));
        let done = loop {
            tokio::select! {
                drawn = &mut drawing => break Some(drawn),
                both = waits(2) => if both { break None },
            }
        };
        hand.batch_execute("SELECT pg_advisory_unlock(4242)").await.expect("an end");
        let mut drawn = match done {
            Some(drawn) => drawn,
            None => drawing.await,
        };
        drawn.extend(draw(&hand, 3000).await);
        drawn
    };
    let (raised, mut drawn) = tokio::join!(raise, draws);
    drawn.extend(raised);
    drawn
}

#[tokio::test]
async fn a_raise_that_stands_still_lets_no_version_be_drawn_twice() {
    let url = testing::fresh_database();
    let _store = region(&url, 1).await;
    let drawn = drawn_past_a_raise(&url).await;
    assert_eq!(drawn.iter().collect::<BTreeSet<_>>().len(), drawn.len());
}

/// The same without the gate.
#[tokio::test]
async fn a_sequence_that_is_raised_without_a_gate_is_caught() {
    let url = testing::fresh_database();
    let _store = region(&url, 1).await;
    let ungated = "CREATE OR REPLACE FUNCTION terrace_version() RETURNS bigint LANGUAGE plpgsql AS $$ \
         DECLARE drawn bigint := nextval('records_version'); BEGIN \
           IF drawn >= terrace_clock() - 81920 THEN RETURN drawn; END IF; \
           RETURN terrace_version_above(0); END $$";
    session(&url).await.batch_execute(ungated).await.expect("a broken function");
    let drawn = drawn_past_a_raise(&url).await;
    assert!(drawn.iter().collect::<BTreeSet<_>>().len() < drawn.len(), "a version was drawn twice");
}

/// Who waits to raise and is cancelled keeps no lock from the others.
#[tokio::test]
async fn a_draw_that_is_cancelled_keeps_no_lock() {
    let url = testing::fresh_database();
    let _store = region(&url, 1).await;
    let (hand, other) = (session(&url).await, session(&url).await);
    let lock = "SELECT pg_advisory_lock(1952805494, 'records_version'::regclass::oid::integer)";
    hand.batch_execute(lock).await.expect("the lock");
    set_clock(&url, SignedDuration::from_secs(1)).await;
    other.batch_execute("SET statement_timeout = '50ms'").await.expect("a setting");
    other.query("SELECT terrace_version()", &[]).await.expect_err("it waits too long");
    hand.batch_execute("SELECT pg_advisory_unlock_all()").await.expect("an end");
    assert_eq!(draw(&other, 3).await.len(), 3);
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 1952805494 \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(hand.query_one(held, &[]).await.expect("an answer").get::<_, i64>(0), 0);
}

/// Regions that a statement of the test has broken.
async fn broken(text: &str) -> Fixture<Regions> {
    let (fixture, urls) = super::regions_at().await;
    for url in &urls {
        session(url).await.batch_execute(text).await.expect("a broken database");
    }
    fixture
}

/// Whether a property fails. Its panic is the expected outcome.
async fn is_caught<F>(
    property: impl FnOnce(std::sync::Arc<Regions>) -> F,
    fixture: Fixture<Regions>,
) -> bool
where
    F: Future<Output = ()> + Send + 'static,
{
    let (caught, outcome) = tokio::sync::oneshot::channel();
    let property = property(std::sync::Arc::clone(&fixture.subject));
    let work = async move {
        property.await;
        let _heard = caught.send(());
    };
    Runtime::system().spawn("a property", work).await;
    outcome.await.is_err()
}

const WALL_CLOCK: &str = "CREATE OR REPLACE FUNCTION terrace_version() RETURNS bigint LANGUAGE sql AS \
     $$ SELECT terrace_after(terrace_clock()) $$; \
     CREATE OR REPLACE FUNCTION terrace_after(version bigint) RETURNS bigint LANGUAGE sql AS \
     $$ SELECT ((terrace_clock() >> 6) + 1 << 6) + (current_database() <> '')::int $$";

#[tokio::test]
async fn a_plain_wall_clock_is_caught() {
    let fixture = broken(WALL_CLOCK).await;
    assert!(is_caught(region_contract::a_clock_that_is_set_back_changes_no_order, fixture).await);
    let fixture = broken(WALL_CLOCK).await;
    assert!(is_caught(region_contract::a_version_is_above_everything_stored, fixture).await);
}

const NO_TOMBSTONES: &str = "CREATE FUNCTION bury() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
       DELETE FROM records WHERE key = NEW.key AND deleted; RETURN NULL; END $$; \
     CREATE TRIGGER z_bury AFTER INSERT OR UPDATE ON records FOR EACH ROW WHEN (NEW.deleted) \
     EXECUTE FUNCTION bury()";

#[tokio::test]
async fn deletions_that_leave_no_trace_are_caught() {
    let fixture = broken(NO_TOMBSTONES).await;
    assert!(is_caught(region_contract::a_deletion_is_compared_like_any_change, fixture).await);
    let fixture = broken(NO_TOMBSTONES).await;
    assert!(is_caught(region_contract::whatever_order_changes_take_regions_agree, fixture).await);
}

/// The same properties hold where nothing is broken.
#[tokio::test]
async fn what_catches_broken_regions_lets_sound_ones_be() {
    let property = region_contract::a_deletion_is_compared_like_any_change;
    assert!(!is_caught(property, regions().await).await);
}

//! Who waits for the log is woken.

use std::time::Duration;

use terrace_core::{ChangeLog, LogPosition, StoreExt};
use terrace_lab::testing;

use super::{follow, key, logged, session, value, within};

#[tokio::test]
async fn who_waits_is_woken_by_a_write_and_by_the_end_of_a_slow_transaction() {
    let url = testing::fresh_database();
    let (store, log) = logged(&url).await;
    let (_, mut position) = follow(&log, LogPosition::default(), 10).await;
    for round in 0..20 {
        let patience = within(Duration::from_secs(60));
        let (waited, written) = futures_util::future::join(
            log.wait(position, patience),
            store.put(key("a"), value(&round.to_string())),
        )
        .await;
        waited.expect("woken");
        written.expect("a put");
        let (found, end) = follow(&log, position, 10).await;
        assert_eq!(found.len(), 1);
        position = end;
    }
    // The slow one looked for who waits before anybody did, so it will not notify.
    let slow = session(&url).await;
    slow.batch_execute("BEGIN; INSERT INTO records (key, value) VALUES ('slow', '1')")
        .await
        .expect("a transaction");
    let waiting = async {
        loop {
            log.wait(position, within(Duration::from_secs(60))).await.expect("a wait");
            let page = log.after(position, 10).await.expect("a page");
            if !page.changes.is_empty() {
                break page.changes;
            }
        }
    };
    let (found, committed) =
        futures_util::future::join(waiting, slow.batch_execute("COMMIT")).await;
    committed.expect("a commit");
    assert_eq!(found[0].key.as_str(), "slow");
}

#[tokio::test]
async fn waiting_outlives_the_session_that_listens_and_ends_at_its_deadline() {
    let url = testing::fresh_database();
    let (store, log) = logged(&url).await;
    let hand = session(&url).await;
    let (_, position) = follow(&log, LogPosition::default(), 10).await;
    log.wait(position, within(Duration::from_millis(50))).await.expect("nothing came");
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                WHERE datname = current_database() AND (query LIKE 'SELECT EXISTS (SELECT 1 FROM commands%' OR query LIKE '%advisory%') \
                  AND pid <> pg_backend_pid()";
    for round in 0..5 {
        hand.batch_execute(kill).await.expect("a kill");
        let waiting = async {
            // A lost session may be an error once; the next wait has another.
            while log.wait(position, within(Duration::from_secs(60))).await.is_err() {}
        };
        let written = async { store.put(key("a"), value(&round.to_string())).await };
        futures_util::future::join(waiting, written).await.1.expect("a put");
    }
    let (found, _) = follow(&log, position, 10).await;
    assert_eq!(found.len(), 5);
}

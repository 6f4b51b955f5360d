//! Posts beside each other, and what stands in their way.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use terrace_core::testkit::ledger_contract::posting;
use terrace_core::{Deadline, ErrorKind, Ledger, LogPosition, Status, Version, WriteOptions};
use terrace_lab::testing;

use super::super::circles::broken_circles;
use super::{account, all, assert_sound, connect, key, open, options, post, session};

/// Two instances post for one user, and for others in the opposite order: sums are exact, nobody waits
/// in a circle, and each sees its versions grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_instances_post_for_one_user() {
    const ROUNDS: i64 = 25;
    let url = testing::fresh_database();
    let ledgers = [Arc::new(connect(&url).await), Arc::new(connect(&url).await)];
    let posters = (0..16).map(|poster| {
        let ledger = Arc::clone(&ledgers[poster % 2]);
        async move {
            let (mut last, mut versions) = (Version::NONE, Vec::new());
            for cents in 0..ROUNDS {
                let mut batch = vec![posting("one", cents), posting("other", -cents)];
                if poster % 3 == 0 {
                    batch.reverse();
                }
                // Some go alone, as those with a request do.
                let request = terrace_core::Idempotency::new(&format!("{poster} {cents}"), [1; 32]);
                let request = (poster % 4 == 0).then(|| Arc::new(request.expect("a key")));
                let how = WriteOptions { idempotency: request, ..WriteOptions::default() };
                let posted = ledger.post(batch, &how).await.expect("a post");
                let one = posted.iter().find(|it| it.transaction.posting.user.as_str() == "one");
                let version = one.expect("posted").version;
                assert!(version > last, "{version} after {last}");
                last = version;
                versions.push(version);
            }
            versions
        }
    });
    let versions = join_all(posters).await.into_iter().flatten().collect::<Vec<_>>();
    let (one, version) = account(&ledgers[0], "one").await.expect("an account");
    let sum = 16 * (0..ROUNDS).sum::<i64>();
    assert_eq!((one.transactions, one.balance.cents()), (16 * ROUNDS as u64, sum));
    assert_eq!(account(&ledgers[1], "other").await.expect("one").0.balance.cents(), -sum);
    assert_eq!(versions.iter().max(), Some(&version));
    // What was answered is in the log, which has each version once.
    let (log, mut logged, mut at) = (ledgers[0].log(), Vec::new(), LogPosition::default());
    let head = log.head().await.expect("a head");
    while at < head {
        let part = log.after(at, 1000).await.expect("a part");
        let of_one = part.changes.iter().filter(|change| change.key.as_str() == "one");
        logged.extend(of_one.map(|change| change.version));
        at = part.position;
    }
    logged.sort_unstable();
    assert!(logged.is_sorted_by(|a, b| a < b), "no version twice");
    assert!(versions.iter().all(|version| logged.contains(version)));
    assert_sound(&ledgers[0]).await;
    for ledger in &ledgers {
        ledger.close().await.expect("closed: its sessions have told what they met");
    }
    assert_eq!(broken_circles(&url).await, 0);
}

/// Posts that come together are one transaction; one that a person's constraint refuses fails alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_posting_that_the_table_refuses_fails_alone() {
    let url = testing::fresh_database();
    let (ledger, hand) = (Arc::new(connect(&url).await), session(&url).await);
    let constraint = "ALTER TABLE transactions ADD CHECK (user_id <> 'user13')";
    hand.batch_execute(constraint).await.expect("a constraint");
    let posts = (0..200).map(|number| {
        let ledger = Arc::clone(&ledger);
        async move {
            let batch = vec![posting(&format!("user{}", number % 40), 100)];
            ledger.post(batch, &WriteOptions::default()).await
        }
    });
    for (number, posted) in join_all(posts).await.into_iter().enumerate() {
        match posted {
            Ok(_) => assert_ne!(number % 40, 13),
            Err(error) => assert_eq!((number % 40, error.kind()), (13, ErrorKind::InvalidInput)),
        }
    }
    assert_eq!(ledger.count().await, Ok(195));
    let tree = ledger.inspect().await;
    let (posts, batches) = (tree.number("posts"), tree.number("post_batches"));
    assert!(posts >= Some(200) && batches < posts, "{posts:?} in {batches:?}");
    assert_sound(&ledger).await;
}

/// Another session holds one account: posts for it are refused, and hold up nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_is_locked_holds_up_nobody_else() {
    let url = testing::fresh_database();
    let (ledger, mut hand) = (Arc::new(connect(&url).await), session(&url).await);
    post(&*ledger, "held", 1).await;
    post(&*ledger, "free", 1).await;
    let lock = hand.transaction().await.expect("a transaction");
    lock.execute("SELECT 1 FROM records WHERE key = 'held' FOR UPDATE", &[]).await.expect("locked");
    let how = WriteOptions::default();
    let batches = [vec![posting("held", 1)], vec![posting("free", 1)]];
    let [held, free] = batches.map(|batch| ledger.post(batch, &how));
    let (held, free) = futures_util::future::join(held, free).await;
    let error = held.expect_err("locked");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(error.locked_keys(), Some(&[key("held")][..]), "{error}");
    free.expect("a post of somebody else");
    lock.rollback().await.expect("a rollback");
    post(&*ledger, "held", 1).await;
    assert_eq!(ledger.count().await, Ok(4));
    assert_sound(&ledger).await;
}

/// A database that is read-only by default is started with, read and never written to.
#[tokio::test]
async fn a_database_that_takes_no_writes_is_read() {
    let url = testing::fresh_database();
    let ledger = connect(&url).await;
    post(&ledger, "a", 100).await;
    ledger.close().await.expect("closed");
    let hand = session(&url).await;
    let read_only = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only \
         = on', current_database()); END $$";
    hand.batch_execute(read_only).await.expect("read-only");
    let ledger = connect(&url).await;
    assert_eq!(all(&ledger, "a").await.len(), 1);
    let request = terrace_core::Idempotency::new("once", [1; 32]).expect("a key");
    let requested =
        WriteOptions { idempotency: Some(Arc::new(request)), ..WriteOptions::default() };
    for how in [WriteOptions::default(), requested] {
        let error = ledger.post(vec![posting("a", 1)], &how).await.expect_err("no writes");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.message().contains("default_transaction_read_only"), "{error}");
    }
    assert_eq!(ledger.inspect().await.status, Status::Degraded);
    assert_eq!(ledger.count().await, Ok(1));
}

/// A table made again is another life of the database, which a session learns with its next post.
#[tokio::test]
async fn a_post_is_of_the_history_in_force() {
    let url = testing::fresh_database();
    let (ledger, hand) = (connect(&url).await, session(&url).await);
    let before = ledger.post(vec![posting("a", 1)], &Default::default()).await.expect("a post");
    hand.batch_execute("TRUNCATE records").await.expect("emptied");
    let after = ledger.post(vec![posting("a", 1)], &Default::default()).await.expect("a post");
    assert!(after[0].version > before[0].version);
    let old = before[0].token.marks().next().expect("a mark").0.clone();
    assert!(!ledger.histories().has(&old) && after[0].token.position(&old).is_none());
    let how = terrace_core::ReadOptions {
        token: Some(before[0].token.clone()),
        deadline: Deadline::NEVER,
        ..Default::default()
    };
    let error = ledger.page(&key("a"), None, 1, &how).await.expect_err("lost");
    assert_eq!(error, terrace_core::history::lost());
}

/// The ledger stands on the change log.
#[tokio::test]
async fn a_store_without_a_change_log_has_no_ledger() {
    let url = testing::fresh_database();
    let options = terrace_stores::PostgresOptions { change_log: false, ..options(&url) };
    let error = open(options).await.expect_err("no log");
    assert!(error.message().contains("change log"), "{error}");
}

/// One instance follows the accounts; another one does once that has given it back, or is gone.
#[tokio::test]
async fn one_instance_at_a_time_follows_the_accounts() {
    const MINUTE: Duration = Duration::from_secs(60);
    let url = testing::fresh_database();
    let (first, second) = (connect(&url).await, connect(&url).await);
    let leases = [&first, &second].map(|ledger| ledger.lease().expect("a lease"));
    let hold = async |number: usize, time| leases[number].hold(time).await.expect("an answer");
    while !hold(0, MINUTE).await {}
    assert!(!hold(1, MINUTE).await && hold(0, MINUTE).await);
    assert!(hold(0, Duration::ZERO).await && hold(1, MINUTE).await && !hold(0, MINUTE).await);
    second.close().await.expect("closed");
    while !hold(0, MINUTE).await {
        tokio::task::yield_now().await;
    }
}

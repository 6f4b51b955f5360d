//! What people do with the tables.

use std::collections::HashMap;

use terrace_core::ledger::Account;
use terrace_core::{ErrorKind, Ledger, LogPosition, Version};
use terrace_lab::testing;

use super::{account, all, assert_sound, connect, post, session};

/// What the log says last of each user: the balance, or that the account has ended.
async fn told(ledger: &dyn Ledger) -> HashMap<String, Option<i64>> {
    let (log, mut at, mut told) =
        (ledger.log(), LogPosition::default(), HashMap::<String, (Version, _)>::new());
    let head = log.head().await.expect("a head");
    // Transactions of other tests on this server hold it back for a moment.
    loop {
        let part = log.after(at, 100).await.expect("a part");
        at = part.position;
        for change in part.changes {
            let account = change.record.map(|it| Account::of(&it.value).expect("an account"));
            let balance = account.map(|account| account.balance.cents());
            // Of a key the higher version is the newer.
            let (known, last) = told.entry(change.key.as_str().to_owned()).or_default();
            if change.version > *known {
                (*known, *last) = (change.version, balance);
            }
        }
        if at >= head {
            return told.into_iter().map(|(user, (_, balance))| (user, balance)).collect();
        }
    }
}

#[tokio::test]
async fn the_accounts_and_the_log_follow_whatever_is_done_by_hand() {
    let url = testing::fresh_database();
    let (ledger, hand) = (connect(&url).await, session(&url).await);
    let mut last = [Version::NONE; 2];
    for statement in [
        "INSERT INTO transactions (user_id, amount, transaction_type) VALUES ('a', 1.50, 't')",
        "INSERT INTO transactions (user_id, amount, transaction_type) \
         SELECT (ARRAY['b', 'a'])[1 + i % 2], i, 't' FROM generate_series(1, 10) AS i",
        "UPDATE transactions SET amount = amount + 1 WHERE user_id = 'a'",
        "UPDATE transactions SET user_id = 'b' WHERE user_id = 'a' AND amount = 2.50",
        "INSERT INTO transactions (id, user_id, amount, transaction_type) VALUES (1, 'b', 0, 't') \
         ON CONFLICT (id) DO UPDATE SET user_id = 'a', amount = -0.01",
        "INSERT INTO transactions (id, user_id, amount, transaction_type) VALUES \
         (2, 'a', 7, 't'), (100, 'a', 7, 't') ON CONFLICT (id) DO UPDATE SET amount = 8",
        "DELETE FROM transactions WHERE amount > 6",
        "DELETE FROM transactions WHERE user_id = 'b'",
        "TRUNCATE transactions",
        "INSERT INTO transactions (user_id, amount, transaction_type) \
         VALUES ('b', -1, 't'), ('b', -1, 't')",
        "INSERT INTO transactions (user_id, amount, transaction_type) VALUES ('a', 5, 't')",
        "WITH gone AS (DELETE FROM transactions RETURNING *) \
         INSERT INTO transactions (user_id, amount, transaction_type) \
         SELECT 'a', amount, transaction_type FROM gone",
        "WITH more AS (INSERT INTO transactions (user_id, amount, transaction_type) \
           VALUES ('a', 3, 't')) \
         INSERT INTO transactions (user_id, amount, transaction_type) VALUES ('a', 4, 't')",
        "MERGE INTO transactions t USING (VALUES (5.00, 'a'), (77, 'a'), (4, 'b')) AS v (amount, who) \
         ON t.amount = v.amount WHEN MATCHED AND v.amount = 4 THEN DELETE \
         WHEN MATCHED THEN UPDATE SET amount = 6 \
         WHEN NOT MATCHED THEN INSERT (user_id, amount, transaction_type) VALUES (who, v.amount, 't')",
        "BEGIN; UPDATE transactions SET amount = 1 WHERE user_id = 'a'; \
         INSERT INTO transactions (user_id, amount, transaction_type) VALUES ('a', 1, 't'); \
         INSERT INTO transactions (user_id, amount, transaction_type) VALUES ('a', 1, 't'); \
         SAVEPOINT s; DELETE FROM transactions; ROLLBACK TO s; COMMIT",
        "TRUNCATE transactions RESTART IDENTITY",
    ] {
        hand.batch_execute(statement).await.expect(statement);
        for (user, last) in ["a", "b"].into_iter().zip(&mut last) {
            let sum = "SELECT (sum(amount) * 100)::bigint FROM transactions WHERE user_id = $1";
            let sum = hand.query_one(sum, &[&user]).await.expect("a sum").get::<_, Option<i64>>(0);
            let found = account(&ledger, user).await;
            let balance = found.map(|(account, _)| account.balance.cents());
            assert_eq!(balance, sum, "{user}: {statement}");
            assert_eq!(
                told(&ledger).await.get(user).copied().flatten(),
                sum,
                "{user}: {statement}"
            );
            let counted = Account::counted(&all(&ledger, user).await);
            assert_eq!(found.map(|(account, _)| account), counted, "{user}: {statement}");
            assert!(found.is_none_or(|(_, version)| version >= *last), "{user}: {statement}");
            *last = found.map_or(*last, |(_, version)| version);
        }
        assert_sound(&ledger).await;
    }
    assert_eq!(post(&ledger, "a", 5).await.id, 1, "the identity was restarted");
    assert_sound(&ledger).await;
}

/// Accounts that somebody has removed, or made unreadable, come back with the next transaction.
#[tokio::test]
async fn a_post_counts_anew_what_is_missing_or_cannot_be_read() {
    let url = testing::fresh_database();
    let (ledger, hand) = (connect(&url).await, session(&url).await);
    for (number, statement) in [
        "DELETE FROM records WHERE key = 'a'",
        "UPDATE records SET value = '', deleted = true WHERE key = 'a'",
        "UPDATE records SET value = 'no account' WHERE key = 'a'",
        "UPDATE records SET value = replace(value, '.', '-') WHERE key = 'a'",
        "UPDATE records SET value = replace(value, '\":\"', '\":\"1-') WHERE key = 'a'",
        "UPDATE records SET value = replace(value, 'transactions\":', 'transactions\":99999999999999999') \
         WHERE key = 'a'",
        "TRUNCATE records",
    ]
    .into_iter()
    .enumerate()
    {
        post(&ledger, "a", 100).await;
        hand.batch_execute(statement).await.expect(statement);
        post(&ledger, "a", 100).await;
        let (found, _) = account(&ledger, "a").await.expect("an account");
        assert_eq!(found.transactions, 2 * (number as u64 + 1), "{statement}");
        assert_sound(&ledger).await;
    }
}

/// Without the triggers an account says nothing of what is posted, and a post says so.
#[tokio::test]
async fn a_post_that_no_trigger_saw_is_noticed_and_a_restart_puts_it_right() {
    let url = testing::fresh_database();
    let (ledger, hand) = (connect(&url).await, session(&url).await);
    post(&ledger, "a", 100).await;
    let drop = "DROP TRIGGER terrace_ledger_1_added ON transactions";
    hand.batch_execute(drop).await.expect("dropped");
    let batch = vec![super::posting("a", 100)];
    let error = ledger.post(batch, &Default::default()).await.expect_err("no account");
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    assert!(error.message().contains("restart Terrace"), "{error}");
    ledger.close().await.expect("closed");
    let ledger = connect(&url).await;
    assert_eq!(account(&ledger, "a").await.expect("an account").0.transactions, 2);
    post(&ledger, "a", 100).await;
    assert_sound(&ledger).await;
}

/// Records that were emptied while nobody looked are counted at the start; so is a table that came back.
#[tokio::test]
async fn what_has_no_account_is_counted_at_the_start() {
    let url = testing::fresh_database();
    let hand = session(&url).await;
    let ledger = connect(&url).await;
    for user in ["a", "b"] {
        post(&ledger, user, 1250).await;
    }
    ledger.close().await.expect("closed");
    for statement in [
        "TRUNCATE records",
        "DELETE FROM records WHERE key = 'b'",
        "DROP TABLE records",
        "CREATE TABLE copy AS SELECT * FROM transactions; DROP TABLE transactions; \
         ALTER TABLE copy RENAME TO transactions; ALTER TABLE transactions ADD PRIMARY KEY (id)",
        "DELETE FROM terrace_meta WHERE name = 'ledger'",
    ] {
        hand.batch_execute(statement).await.expect(statement);
        let ledger = connect(&url).await;
        for user in ["a", "b"] {
            let (found, _) = account(&ledger, user).await.expect(statement);
            assert_eq!(found.balance.cents(), 1250, "{statement}");
        }
        assert_sound(&ledger).await;
        ledger.close().await.expect("closed");
    }
    let ledger = connect(&url).await;
    assert!(post(&ledger, "a", 1).await.id > 2, "ids go on");
}

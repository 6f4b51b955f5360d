//! Transactions in a SQLite file: the contract, and what the file promises beyond it.

use std::sync::Arc;

use terrace_core::ledger::Account;
use terrace_core::testkit::ledger_contract::posting;
use terrace_core::testkit::{Fixture, WithAccounts};
use terrace_core::{ErrorKind, Ledger, WriteOptions};
use terrace_stores::sqlite::{Connections, SqliteLedger, SqliteOptions};

use super::*;

async fn open(database: &Database, connections: Connections) -> SqliteLedger {
    let options = SqliteOptions { change_log: true, connections, ..database.options() };
    SqliteLedger::open(database.open_with(options)).await.unwrap()
}

async fn fixture(connections: Connections) -> Fixture<WithAccounts> {
    let database = Database::new();
    let ledger = Arc::new(open(&database, connections).await);
    let accounts = Arc::clone(ledger.accounts());
    Fixture::guarded(Arc::new(WithAccounts { ledger, accounts }), database)
}

mod kept {
    use super::*;

    async fn ledger() -> Fixture<WithAccounts> {
        fixture(SqliteOptions::new("unused").connections).await
    }

    terrace_core::ledger_contract!(ledger);
}

mod for_each_request {
    use super::*;

    async fn ledger() -> Fixture<WithAccounts> {
        fixture(Connections::PerRequest).await
    }

    terrace_core::ledger_contract!(ledger);
}

async fn account(ledger: &SqliteLedger, user: &str) -> Option<Account> {
    let record = ledger.accounts().get(&key(user)).await.unwrap()?;
    Some(Account::of(&record.value).unwrap())
}

/// What people change shows in an audit; who has no account is counted at the start, and ids go on.
#[tokio::test]
async fn what_is_done_by_hand_is_found_and_counted() {
    let database = Database::new();
    let ledger = open(&database, SqliteOptions::new("unused").connections).await;
    let how = WriteOptions::default();
    ledger.post(vec![posting("a", 1250), posting("b", 1)], &how).await.unwrap();
    let hand = database.by_hand();
    let insert =
        "INSERT INTO transactions (user_id, amount_cents, transaction_type) VALUES (?1, -1, 't')";
    for user in ["a", "c"] {
        hand.execute(insert, [user]).unwrap();
    }
    hand.execute_batch("DELETE FROM transactions WHERE user_id = 'b'").unwrap();
    let audit = ledger.audit(None, 10).await.unwrap();
    let differ = audit.iter().filter(|it| {
        let kept = it.kept.as_ref().map(|record| Account::of(&record.value).unwrap());
        kept != it.counted
    });
    let users = differ.map(|it| it.user.clone()).collect::<Vec<_>>();
    assert_eq!(users, ["a", "b", "c"].map(key));
    // Over an account that is missing the next transaction counts anew.
    hand.execute_batch("DELETE FROM records WHERE key = 'a'").unwrap();
    ledger.post(vec![posting("a", 1)], &how).await.unwrap();
    assert_eq!(account(&ledger, "a").await.unwrap().balance.cents(), 1250);
    ledger.close().await.unwrap();
    let ledger = open(&database, SqliteOptions::new("unused").connections).await;
    assert_eq!(account(&ledger, "c").await.unwrap().balance.cents(), -1);
    assert!(account(&ledger, "b").await.is_some(), "an audit finds it");
    ledger.recount(&[key("b")]).await.unwrap();
    assert!(account(&ledger, "b").await.is_none());
    let posted = ledger.post(vec![posting("b", 1)], &how).await.unwrap();
    assert_eq!(posted[0].transaction.id, 6, "no id is given twice");
    for wrong in ["''", "NULL", "x'61'", "'a' || char(0)"] {
        let insert = format!(
            "INSERT INTO transactions (user_id, amount_cents, transaction_type) \
             VALUES ('a', 1, {wrong}), ({wrong}, 1, 't')"
        );
        hand.execute_batch(&insert).unwrap_err();
    }
}

/// Posts that wait share a COMMIT; a posting that a person's trigger refuses fails alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_posting_that_the_file_refuses_fails_alone() {
    let database = Database::new();
    let ledger = Arc::new(open(&database, SqliteOptions::new("unused").connections).await);
    let trigger = "CREATE TRIGGER no BEFORE INSERT ON transactions WHEN NEW.user_id = 'user13' BEGIN \
         SELECT RAISE(ABORT, 'no'); END";
    database.by_hand().execute_batch(trigger).unwrap();
    let posts = (0..200).map(|number| {
        let ledger = Arc::clone(&ledger);
        async move {
            let batch = vec![posting("all", 1), posting(&format!("user{}", number % 40), 100)];
            ledger.post(batch, &WriteOptions::default()).await
        }
    });
    for (number, posted) in futures_util::future::join_all(posts).await.into_iter().enumerate() {
        match posted {
            Ok(_) => assert_ne!(number % 40, 13),
            Err(error) => assert_eq!((number % 40, error.kind()), (13, ErrorKind::InvalidInput)),
        }
    }
    assert_eq!(ledger.count().await, Ok(2 * 195));
    assert_eq!(account(&ledger, "all").await.unwrap().transactions, 195);
    let commits = ledger.inspect().await.number("commits").unwrap();
    assert!(commits < 195, "{commits}");
}

/// The ledger stands on the change log.
#[tokio::test]
async fn a_ledger_needs_a_change_log() {
    let database = Database::new();
    let error = SqliteLedger::open(database.open()).await.unwrap_err();
    assert!(error.message().contains("change log"), "{error}");
}

//! Transactions in PostgreSQL: the contract, and what the ledger promises beyond it.

mod by_hand;
mod kills;
mod posts;
mod taken_over;

use std::sync::Arc;
use std::time::Duration;

use terrace_core::ledger::{Account, Transaction};
use terrace_core::testkit::ledger_contract::posting;
use terrace_core::testkit::{Fixture, WithAccounts};
use terrace_core::{Ledger, Runtime, StoreExt, Version, WriteOptions};
use terrace_lab::testing;
use terrace_stores::postgres::ConnectionSource;
use terrace_stores::{PostgresLedger, PostgresOptions, PostgresStore};

use super::{key, session};

fn options(url: &str) -> PostgresOptions {
    PostgresOptions {
        source: ConnectionSource::pooled(1, 8),
        connect_timeout: Duration::from_secs(30),
        change_log: true,
        ..PostgresOptions::new(url)
    }
}

async fn open(options: PostgresOptions) -> terrace_core::Result<PostgresLedger> {
    let store = PostgresStore::connect(options, Runtime::system()).await?;
    PostgresLedger::open(Arc::new(store)).await
}

async fn connect(url: &str) -> PostgresLedger {
    open(options(url)).await.expect("a ledger")
}

async fn ledger() -> Fixture<WithAccounts> {
    let ledger = Arc::new(connect(&testing::fresh_database()).await);
    let accounts = Arc::clone(ledger.accounts());
    Fixture::new(Arc::new(WithAccounts { ledger, accounts }))
}

terrace_core::ledger_contract!(ledger);

async fn post(ledger: &dyn Ledger, user: &str, cents: i64) -> Transaction {
    let batch = vec![posting(user, cents)];
    let posted = ledger.post(batch, &WriteOptions::default()).await.expect("a post");
    posted[0].transaction.clone()
}

/// The account of a user, and the version of it.
async fn account(ledger: &PostgresLedger, user: &str) -> Option<(Account, Version)> {
    let record = ledger.accounts().get(&key(user)).await.expect("a read")?;
    Some((Account::of(&record.value).expect("an account"), record.version))
}

async fn all(ledger: &dyn Ledger, user: &str) -> Vec<Transaction> {
    let page = ledger.page(&key(user), None, 1000, &Default::default()).await;
    page.expect("a page").transactions
}

/// Every account says what its transactions add up to, and the log what the accounts are.
async fn assert_sound(ledger: &PostgresLedger) {
    for audited in ledger.audit(None, 10_000).await.expect("an audit") {
        let kept = audited.kept.map(|record| Account::of(&record.value).expect("an account"));
        assert_eq!(kept, audited.counted, "the account of {:?}", audited.user);
    }
    let compared = ledger.log().compare_with_records(false).await.expect("a comparison");
    assert_eq!(compared.differing, 0, "{compared:?}");
}

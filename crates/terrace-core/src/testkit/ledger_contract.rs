//! The properties that every [`Ledger`] keeps.
//!
//! Used like [`store_contract!`](crate::store_contract), with a factory of
//! [`Fixture`](crate::testkit::Fixture)s of [`WithAccounts`].

mod accounts;
mod pages;
mod posts;

use std::sync::Arc;

use crate::ledger::{Account, Amount, Kind, Posted, Posting};
use crate::testkit::key;
use crate::{Idempotency, Ledger, Record, Store, StoreExt, WriteOptions};

pub use accounts::*;
pub use pages::*;
pub use posts::*;

/// Makes one test of each property of the [`Ledger`] contract, in a module `ledger_contract`.
///
/// Takes the path of an async function without arguments that makes a fresh
/// [`Fixture`](crate::testkit::Fixture) of [`WithAccounts`].
#[macro_export]
macro_rules! ledger_contract {
    ($factory:path) => {
        mod ledger_contract {
            use super::*;
            $crate::each_property! { $factory, ledger_contract:
                an_empty_ledger_has_nothing,
                amounts_and_sums_are_exact,
                names_of_every_kind_are_kept,
                a_batch_may_post_for_a_user_many_times,
                a_posting_that_no_ledger_holds_posts_nothing,
                a_repeated_request_is_posted_once,
                concurrent_postings_are_all_counted,
                a_dropped_post_adds_all_or_nothing,
                a_passed_deadline_posts_nothing,
                a_closed_ledger_says_so,
                pages_are_in_order_and_go_on,
                a_page_proves_what_was_posted,
                a_token_of_what_never_was_is_refused,
                versions_of_an_account_grow,
                the_log_tells_of_every_account,
                an_audit_finds_and_a_recount_mends,
                an_audit_goes_on_after_a_user,
            }
        }
    };
}

/// A ledger, and the records of its accounts: who writes these changes them by hand.
#[derive(Debug)]
pub struct WithAccounts {
    /// The ledger.
    pub ledger: Arc<dyn Ledger>,
    /// The accounts.
    pub accounts: Arc<dyn Store>,
}

impl WithAccounts {
    async fn post(&self, batch: Vec<Posting>) -> Vec<Posted> {
        self.ledger.post(batch, &WriteOptions::default()).await.expect("a post")
    }

    async fn record(&self, user: &str) -> Option<Record> {
        self.accounts.get(&key(user)).await.expect("a read")
    }

    async fn account(&self, user: &str) -> Option<Account> {
        let record = self.record(user).await?;
        Some(Account::of(&record.value).expect("an account"))
    }

    /// All transactions of a user, the latest first, in pages of so many.
    async fn all(&self, user: &str, limit: usize) -> Vec<crate::ledger::Transaction> {
        let (user, how, mut before, mut all) = (key(user), Default::default(), None, Vec::new());
        loop {
            let page = self.ledger.page(&user, before, limit, &how).await.expect("a page");
            assert!(page.transactions.len() <= limit);
            assert!(page.next.is_none() || page.transactions.len() == limit);
            all.extend(page.transactions);
            before = page.next;
            if before.is_none() {
                return all;
            }
        }
    }

    /// Every account says what its transactions add up to.
    async fn assert_sound(&self) {
        for audited in self.ledger.audit(None, 10_000).await.expect("an audit") {
            let kept = audited.kept.map(|record| Account::of(&record.value).expect("an account"));
            assert_eq!(kept, audited.counted, "the account of {:?}", audited.user);
        }
    }
}

/// A posting of so many hundredths.
pub fn posting(user: &str, cents: i64) -> Posting {
    let kind = Kind::new("purchase").expect("a kind");
    Posting { user: key(user), amount: Amount::of_cents(cents), kind }
}

fn request(name: &str, fingerprint: u8) -> WriteOptions {
    let idempotency = Idempotency::new(name, [fingerprint; 32]).expect("a key");
    WriteOptions { idempotency: Some(Arc::new(idempotency)), ..WriteOptions::default() }
}

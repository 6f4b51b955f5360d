//! `Summaries` and `reconcile`: a copy of the accounts, how far it is, and what is wrong with it.

mod dual_write;
mod kept;

use std::sync::Arc;
use std::time::Duration;

use terrace_core::ledger::{Account, Amount};
use terrace_core::testkit::ledger_contract::posting;
use terrace_core::testkit::{MemoryLedger, key, value};
use terrace_core::{
    Consistency, ErrorKind, Ledger as _, ReadOptions, Runtime, StoreExt as _, Version, WriteOptions,
};
use terrace_layers::{Reconciled, Summaries, reconcile};

use kept::Kept;

struct Sides {
    ledger: Arc<MemoryLedger>,
    kept: Arc<Kept>,
}

impl Sides {
    fn new() -> Self {
        let ledger = Arc::new(MemoryLedger::new(Runtime::system()));
        Self { ledger, kept: Arc::default() }
    }

    fn start(&self) -> Summaries {
        Summaries::start(self.ledger.clone(), self.kept.as_summaries(), Runtime::system())
    }

    async fn post(&self, user: &str, cents: i64) -> ReadOptions {
        let how = WriteOptions::default();
        let posted = self.ledger.post(vec![posting(user, cents)], &how).await.unwrap();
        ReadOptions { token: Some(posted[0].token.clone()), ..ReadOptions::default() }
    }

    async fn reconcile(&self, mend: bool) -> terrace_core::Result<Reconciled> {
        reconcile(&*self.ledger, &self.kept.as_summaries(), mend, &Runtime::system()).await
    }

    /// Brings the copy to the end of the log.
    async fn settle(&self) {
        assert!(self.reconcile(true).await.unwrap().is_clean());
    }

    fn kept(&self, user: &str) -> Option<Account> {
        self.kept.record(user).map(|record| Account::of(&record.value).unwrap())
    }
}

fn cents(account: Option<Account>) -> Option<i64> {
    account.map(|account| account.balance.cents())
}

fn users(names: &[&str]) -> std::collections::BTreeSet<terrace_core::Key> {
    names.iter().copied().map(key).collect()
}

#[tokio::test(start_paused = true)]
async fn a_read_with_the_token_of_a_post_has_it() {
    let sides = Sides::new();
    let summaries = sides.start();
    for number in 1..=20 {
        let how = sides.post("a", 10).await;
        let summary = summaries.read(&key("a"), &how).await.unwrap();
        assert_eq!(cents(summary.account), Some(10 * number));
    }
    let none = summaries.read(&key("b"), &ReadOptions::default()).await.unwrap();
    assert_eq!((none.account, none.lag), (None, Some(Duration::ZERO)));
    summaries.stop().await;
}

/// Between the checkpoint, which has the token's transaction, and the row.
#[tokio::test(start_paused = true)]
async fn a_copy_that_begins_anew_during_a_read_does_not_answer_without_its_rows() {
    let sides = Sides::new();
    let summaries = sides.start();
    let how = sides.post("a", 5).await;
    summaries.read(&key("a"), &how).await.unwrap();
    sides.kept.begin_anew_at_the_next_read();
    // This instance does not know of it yet.
    let error = summaries.read(&key("a"), &how).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    sides.settle().await;
    let summary = summaries.read(&key("a"), &how).await.unwrap();
    assert_eq!(cents(summary.account), Some(5));
    summaries.stop().await;
}

/// A document server writes each change by itself, and its calls have a deadline.
#[tokio::test(start_paused = true)]
async fn a_batch_is_small() {
    let sides = Sides::new();
    for number in 0..500 {
        sides.post(&format!("user {number}"), 1).await;
    }
    sides.settle().await;
    assert_eq!(sides.kept.largest_batch(), 100);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_behind_says_so_and_does_not_answer_for_more() {
    let sides = Sides::new();
    let summaries = sides.start();
    let seen = sides.post("a", 1).await;
    summaries.read(&key("a"), &seen).await.unwrap();
    sides.kept.hold(true);
    let how = sides.post("a", 2).await;
    Runtime::system().sleep(Duration::from_secs(3)).await;
    let old = summaries.read(&key("a"), &ReadOptions::default()).await.unwrap();
    assert_eq!(cents(old.account), Some(1));
    assert!(old.lag.is_none_or(|lag| lag >= Duration::from_secs(3)), "{:?}", old.lag);
    assert_eq!(summaries.read(&key("a"), &seen).await.unwrap().account, old.account);
    let strong = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
    let young = Consistency::MaxStale(Duration::from_secs(2));
    let young = ReadOptions { consistency: young, ..ReadOptions::default() };
    for how in [&how, &strong, &young] {
        let begun = Runtime::system().now();
        let error = summaries.read(&key("a"), how).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{how:?}");
        assert!(Runtime::system().now() - begun <= Summaries::WAIT + Duration::from_millis(100));
    }
    sides.kept.hold(false);
    let summary = summaries.read(&key("a"), &strong).await;
    Runtime::system().sleep(Duration::from_secs(4)).await;
    drop(summary);
    let summary = summaries.read(&key("a"), &strong).await.unwrap();
    assert_eq!((cents(summary.account), summary.lag), (Some(3), Some(Duration::ZERO)));
    summaries.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_right_is_left_alone() {
    let sides = Sides::new();
    for number in 0..1200 {
        sides.post(&format!("user {number:04}"), number).await;
    }
    sides.settle().await;
    let found = sides.reconcile(false).await.unwrap();
    assert_eq!(found, Reconciled { accounts: 1200, ..Reconciled::default() });
    assert_eq!(cents(sides.kept("user 1199")), Some(1199));
}

/// Makes each kind of damage, and tells whose accounts and whose summaries are wrong.
async fn damage(sides: &Sides) -> (&'static [&'static str], &'static [&'static str]) {
    for user in ["account", "older", "newer", "other", "right", "missing"] {
        sides.post(user, 5).await;
    }
    sides.settle().await;
    let account = |cents| {
        let balance = Amount::of_cents(cents);
        Account { transactions: 9, balance, last_at: Runtime::system().wall() }.to_value().unwrap()
    };
    let version = |user: &str| sides.kept.record(user).unwrap().version.get();
    sides.kept.change("older", Version::new(version("older") - 1), Some(account(1)));
    sides.kept.change("newer", Version::new(version("newer") + 1000), Some(account(2)));
    sides.kept.change("other", Version::new(version("other")), Some(account(3)));
    sides.kept.change("stray", Version::new(3), Some(account(4)));
    sides.kept.change("missing", Version::NONE, None);
    sides.ledger.accounts().put(key("account"), value("not an account")).await.unwrap();
    (&["account"], &["missing", "newer", "older", "other", "stray"])
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_damage_is_found_and_a_dry_run_changes_nothing() {
    let sides = Sides::new();
    let (accounts, summaries) = damage(&sides).await;
    let following = sides.start();
    let strong = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
    let _applied = following.read(&key("right"), &strong).await;
    following.stop().await;
    let before = (sides.kept.rows(), sides.ledger.audit(None, 1000).await.unwrap());
    let found = sides.reconcile(false).await.unwrap();
    assert_eq!(found.wrong_accounts, users(accounts));
    assert_eq!(found.wrong_summaries, users(summaries));
    assert_eq!((sides.kept.rows(), sides.ledger.audit(None, 1000).await.unwrap()), before);
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_damage_is_mended() {
    let sides = Sides::new();
    let (accounts, summaries) = damage(&sides).await;
    let found = sides.reconcile(true).await.unwrap();
    assert_eq!((found.wrong_accounts, found.wrong_summaries), (users(accounts), users(summaries)));
    let again = sides.reconcile(true).await.unwrap();
    assert!(again.is_clean(), "{again:?}");
    for user in ["account", "older", "newer", "other", "right", "missing"] {
        assert_eq!(cents(sides.kept(user)), Some(5), "{user}");
    }
    assert_eq!(sides.kept("stray"), None);
}

#[tokio::test(start_paused = true)]
async fn lag_is_no_damage() {
    let sides = Sides::new();
    sides.post("a", 1).await;
    let error = sides.reconcile(false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "nobody follows");
    let summaries = sides.start();
    let posts = async {
        for number in 0..200 {
            sides.post(&format!("user {}", number % 7), 1).await;
            tokio::task::yield_now().await;
        }
    };
    let (found, ()) = tokio::join!(sides.reconcile(false), posts);
    assert!(found.unwrap().is_clean());
    summaries.stop().await;
}

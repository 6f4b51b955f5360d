//! Postings: what is added, once, whole or not at all.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join_all;

use super::{WithAccounts, posting, request};
use crate::ledger::{Account, Amount, Kind, Posting};
use crate::testkit::key;
use crate::{Deadline, ErrorKind, Idempotency, ReadOptions, Runtime, Version, WriteOptions};

/// Nothing was posted, and that is no error; a batch of nothing is no work.
pub async fn an_empty_ledger_has_nothing(it: Arc<WithAccounts>) {
    let page = it.ledger.page(&key("nobody"), None, 10, &Default::default()).await.expect("a page");
    assert_eq!((page.transactions, page.next), (Vec::new(), None));
    assert_eq!(page.version, Version::NONE);
    assert!(page.proof.is_some(), "that there is nothing can be cached, too");
    assert_eq!(it.post(Vec::new()).await, Vec::new());
    assert_eq!(it.ledger.count().await, Ok(0));
    assert_eq!(it.ledger.audit(None, 10).await, Ok(Vec::new()));
    it.ledger.recount(&[key("nobody")]).await.expect("a recount");
    assert_eq!(it.record("nobody").await, None);
}

/// Amounts come back as they were posted, and the account is their sum to the last hundredth.
pub async fn amounts_and_sums_are_exact(it: Arc<WithAccounts>) {
    let most = Amount::LIMIT.cents();
    let amounts = [most, most, -most, 1, -2, 0, 10, 30, -5, 999, most, -most, -most, -most];
    let mut expected = Vec::new();
    for cents in amounts {
        let posted = it.post(vec![posting("exact", cents)]).await;
        assert_eq!(posted[0].transaction.posting, posting("exact", cents));
        expected.push(posted[0].transaction.clone());
        let account = it.account("exact").await;
        assert_eq!(account, Account::counted(&expected));
        assert_eq!(account.expect("one").balance, sum(&expected));
    }
    expected.reverse();
    assert_eq!(it.all("exact", 100).await, expected);
    assert_eq!(it.ledger.count().await, Ok(amounts.len() as u64));
}

fn sum(transactions: &[crate::ledger::Transaction]) -> Amount {
    Amount::of_cents(transactions.iter().map(|it| it.posting.amount.cents()).sum())
}

/// Users and kinds of any script, up to their full length.
pub async fn names_of_every_kind_are_kept(it: Arc<WithAccounts>) {
    let users = ["a/b c", "é'\"\\%", "user:1", &"界".repeat(255), "-", "𝒳{}", "\n\t", " "];
    let kinds = ["purchase", &"é".repeat(50), "'; --", "\\", "a b"];
    for user in users {
        for kind in kinds {
            let kind = Kind::new(kind).expect("a kind");
            let wanted = Posting { user: key(user), amount: Amount::of_cents(-150), kind };
            let posted = it.post(vec![wanted.clone()]).await;
            assert_eq!(posted[0].transaction.posting, wanted);
        }
        let all = it.all(user, 2).await;
        assert_eq!(all.len(), kinds.len());
        let found = all.iter().rev().map(|it| it.posting.kind.as_str()).collect::<Vec<_>>();
        assert_eq!(found, kinds);
        assert_eq!(it.account(user).await, Account::counted(&all));
    }
}

/// Answers come in the order asked, whoever they are for; the account has all of the batch.
pub async fn a_batch_may_post_for_a_user_many_times(it: Arc<WithAccounts>) {
    for round in 0..3 {
        let users = ["b", "a", "b", "c", "b", "a"];
        let batch = users.iter().zip(1..).map(|(user, cents)| posting(user, cents));
        let batch = batch.collect::<Vec<_>>();
        let posted = it.post(batch.clone()).await;
        let answered = posted.iter().map(|it| it.transaction.posting.clone());
        assert_eq!(answered.collect::<Vec<_>>(), batch);
        let ids = posted.iter().map(|it| it.transaction.id).collect::<BTreeSet<_>>();
        assert_eq!(ids.len(), batch.len(), "each has an id of its own");
        let b = it.account("b").await.expect("an account");
        assert_eq!((b.transactions, b.balance.cents()), (3 * (round + 1), 9 * (round as i64 + 1)));
        for answer in &posted {
            let user = answer.transaction.posting.user.as_str();
            let record = it.record(user).await.expect("a record");
            assert_eq!(record.version, answer.version);
            assert_eq!(answer.token, posted[0].token, "one transaction");
        }
    }
    assert_eq!(it.ledger.count().await, Ok(18));
}

/// What one posting is wrong with leaves nothing of its batch.
pub async fn a_posting_that_no_ledger_holds_posts_nothing(it: Arc<WithAccounts>) {
    it.post(vec![posting("before", 1)]).await;
    let beyond = Amount::LIMIT.cents() + 1;
    for wrong in [beyond, -beyond, i64::MAX, i64::MIN] {
        let batch = vec![posting("before", 1), posting("wrong", wrong), posting("after", 1)];
        let error = it.ledger.post(batch, &WriteOptions::default()).await.expect_err("no amount");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    assert_eq!(it.ledger.count().await, Ok(1));
    assert_eq!((it.record("wrong").await, it.record("after").await), (None, None));
    assert_eq!(it.account("before").await.expect("an account").transactions, 1);
}

/// A repeated request answers the first result, with the id and the time; another request under its
/// key is refused.
pub async fn a_repeated_request_is_posted_once(it: Arc<WithAccounts>) {
    let order = || vec![posting("payer", -1250), posting("payee", 1250)];
    let how = request("order-1", 1);
    let all = join_all((0..8).map(|_| it.ledger.post(order(), &how))).await;
    let all = all.into_iter().collect::<Result<Vec<_>, _>>().expect("posts");
    // A repeat may prove more: it is answered later.
    for again in &all {
        for (again, first) in again.iter().zip(&all[0]) {
            assert_eq!(again.transaction, first.transaction);
            assert_eq!((again.version, again.durability), (first.version, first.durability));
        }
    }
    it.post(vec![posting("payer", 1)]).await;
    let again = it.ledger.post(order(), &how).await.expect("a post");
    assert_eq!(again[0].transaction, all[0][0].transaction);
    assert_eq!(it.all("payer", 1).await.last(), Some(&again[0].transaction));
    let reused = it.ledger.post(order(), &request("order-1", 2)).await.expect_err("another");
    assert_eq!(reused, Idempotency::reused());
    assert_eq!(it.ledger.count().await, Ok(3));
    it.assert_sound().await;
}

/// Many at once, each with users in another order.
pub async fn concurrent_postings_are_all_counted(it: Arc<WithAccounts>) {
    let users = ["hot0", "hot1", "hot2", "hot3"];
    let posters = (0..16).map(|poster| {
        let it = Arc::clone(&it);
        async move {
            let mut versions = BTreeSet::new();
            for round in 0..8 {
                let pair = [(poster + round) % 4, (poster * 3 + 1) % 4];
                let batch = pair.map(|user| posting(users[user], 100 + round as i64)).to_vec();
                let posted = it.post(batch).await;
                versions.extend(posted.iter().map(|it| it.version));
            }
            versions
        }
    });
    let versions = join_all(posters).await;
    assert_eq!(it.ledger.count().await, Ok(16 * 8 * 2));
    it.assert_sound().await;
    let mut total = 0;
    for user in users {
        let (account, record) = (it.account(user).await.expect("one"), it.record(user).await);
        total += account.balance.cents();
        let latest = record.expect("one").version;
        assert!(versions.iter().flatten().any(|version| *version == latest));
    }
    assert_eq!(total, 16 * 2 * (0..8).map(|round| 100 + round).sum::<i64>());
}

/// Callers that go away in the middle leave whole batches, sound accounts, and a ledger that works.
pub async fn a_dropped_post_adds_all_or_nothing(it: Arc<WithAccounts>) {
    let runtime = Runtime::seeded(42);
    for round in 0..60 {
        let batch = vec![posting(&format!("left{round}"), 1), posting(&format!("right{round}"), 1)];
        let (polls, options) = (runtime.random() % 4, WriteOptions::default());
        match round % 3 {
            0 => {
                let how = request(&format!("round {round}"), 1);
                poll_and_drop(it.ledger.post(batch, &how), polls).await;
            }
            1 => poll_and_drop(it.ledger.post(batch, &options), polls).await,
            _ => {
                let (user, how) = (key("left0"), ReadOptions::default());
                poll_and_drop(it.ledger.page(&user, None, 10, &how), polls).await;
            }
        }
    }
    // A post after them is answered; by then nothing of the dropped ones is half done.
    for round in 0..60 {
        let (left, right) = (format!("left{round}"), format!("right{round}"));
        it.post(vec![posting(&left, 5), posting(&right, 5)]).await;
        let (left, right) = (it.all(&left, 10).await, it.all(&right, 10).await);
        assert_eq!(left.len(), right.len(), "round {round} was posted whole or not at all");
        assert!(left.len() <= 2);
    }
    it.assert_sound().await;
}

async fn poll_and_drop<T>(future: impl Future<Output = T>, polls: u64) {
    let mut future = std::pin::pin!(future);
    for _ in 0..polls {
        let once = std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context)));
        if once.await.is_ready() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// A deadline that has passed is an error, and nothing was posted.
pub async fn a_passed_deadline_posts_nothing(it: Arc<WithAccounts>) {
    let deadline = Deadline::at(Runtime::system().now() - Duration::from_millis(1));
    for how in [WriteOptions::default(), request("late", 1)] {
        let how = WriteOptions { deadline, ..how };
        let error = it.ledger.post(vec![posting("late", 1)], &how).await.expect_err("too late");
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    }
    let how = ReadOptions { deadline, ..ReadOptions::default() };
    let error = it.ledger.page(&key("late"), None, 1, &how).await.expect_err("too late");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(it.ledger.count().await, Ok(0));
}

/// Closing twice is closing once; a ledger that works says so, and a closed one refuses every call.
pub async fn a_closed_ledger_says_so(it: Arc<WithAccounts>) {
    it.post(vec![posting("a", 1)]).await;
    let tree = it.ledger.inspect().await;
    assert_eq!(tree.status, crate::Status::Healthy, "{tree:#?}");
    assert!(!tree.name.is_empty() && !it.ledger.to_string().is_empty());
    it.ledger.close().await.expect("a close");
    it.ledger.close().await.expect("a second close");
    let user = key("a");
    let kinds = [
        it.ledger.post(vec![posting("a", 1)], &WriteOptions::default()).await.map(drop),
        it.ledger.post(vec![posting("a", 1)], &request("r", 1)).await.map(drop),
        it.ledger.page(&user, None, 1, &ReadOptions::default()).await.map(drop),
        it.ledger.count().await.map(drop),
        it.ledger.audit(None, 1).await.map(drop),
        it.ledger.recount(std::slice::from_ref(&user)).await,
    ]
    .map(|answer| answer.expect_err("closed").kind());
    assert_eq!(kinds, [ErrorKind::Unavailable; 6]);
}

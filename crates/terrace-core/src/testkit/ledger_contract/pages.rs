//! Pages of transactions, and what they prove.

use std::sync::Arc;

use super::{WithAccounts, posting};
use crate::testkit::key;
use crate::{Deadline, ErrorKind, Position, ReadOptions, Token, WriteOptions};

/// By time and number, the latest first; every limit comes to the same, and nobody else's are in it.
pub async fn pages_are_in_order_and_go_on(it: Arc<WithAccounts>) {
    let mut posted = Vec::new();
    for round in 0..9 {
        let batch = (0..5).map(|cents| posting(["mine", "other"][cents % 2], cents as i64));
        let answers = it.post(batch.collect()).await;
        let mine = answers.into_iter().map(|it| it.transaction);
        posted.extend(mine.filter(|it| it.posting.user.as_str() == "mine"));
        assert_eq!(posted.len(), 3 * (round + 1));
    }
    posted.sort_by_key(|it| std::cmp::Reverse((it.created_at, it.id)));
    for limit in [1, 2, 7, 26, 27, 28, 1000] {
        assert_eq!(it.all("mine", limit).await, posted, "in pages of {limit}");
    }
    let last = posted[0].created_at;
    assert_eq!(it.account("mine").await.expect("an account").last_at, last);
    // A cursor stays where it is when something is added.
    let (user, how) = (key("mine"), ReadOptions::default());
    let first = it.ledger.page(&user, None, 10, &how).await.expect("a page");
    it.post(vec![posting("mine", 1)]).await;
    let second = it.ledger.page(&user, first.next, 10, &how).await.expect("a page");
    assert_eq!(second.transactions, posted[10..20]);
}

/// What was acknowledged is on the next page, whose version, token and proof cover it.
pub async fn a_page_proves_what_was_posted(it: Arc<WithAccounts>) {
    let (user, generations) = (key("seen"), it.ledger.generations());
    for round in 0..20 {
        let posted = it.post(vec![posting("seen", round)]).await.remove(0);
        let ways = [
            ReadOptions::default(),
            ReadOptions::strong(Deadline::NEVER),
            ReadOptions { token: Some(posted.token.clone()), ..ReadOptions::default() },
        ];
        assert!(!posted.token.is_empty());
        for how in &ways {
            let page = it.ledger.page(&user, None, 1, how).await.expect("a page");
            assert_eq!(page.transactions, std::slice::from_ref(&posted.transaction));
            assert_eq!(page.version, posted.version);
            for (history, position) in posted.token.marks() {
                assert!(page.token.position(history) >= Some(position));
                assert!(it.ledger.histories().has(history));
            }
            let proof = page.proof.expect("a proof");
            assert_eq!(proof.token(), page.token);
            assert!(generations.admits(&proof, None), "{proof:?}");
        }
    }
    it.ledger.histories().check(&Token::default()).expect("nothing asked");
    generations.raise(std::slice::from_ref(&user)).await.expect("a raise");
    let page = it.ledger.page(&user, None, 1, &ReadOptions::default()).await.expect("a page");
    assert!(generations.admits(&page.proof.expect("a proof"), None), "of the raised generation");
}

/// Nobody has seen what the database has not done.
pub async fn a_token_of_what_never_was_is_refused(it: Arc<WithAccounts>) {
    let posted = it.ledger.post(vec![posting("a", 1)], &WriteOptions::default()).await;
    let posted = posted.expect("a post").remove(0);
    let (history, position) = posted.token.marks().next().expect("a mark");
    let ahead = Token::of(Arc::clone(history), Position::new(position.get() + 1_000_000));
    let how = ReadOptions { token: Some(ahead), ..ReadOptions::default() };
    let error = it.ledger.page(&key("a"), None, 1, &how).await.expect_err("ahead");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

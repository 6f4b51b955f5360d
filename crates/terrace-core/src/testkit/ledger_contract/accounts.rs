//! Accounts: records that the database makes of transactions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{WithAccounts, posting};
use crate::ledger::Account;
use crate::testkit::{key, value};
use crate::{Deadline, LogPosition, Runtime, StoreExt, Version};

/// Each posting of a user gives the account a later version.
pub async fn versions_of_an_account_grow(it: Arc<WithAccounts>) {
    let mut last = Version::NONE;
    for round in 0..20 {
        let posted = it.post(vec![posting("a", round), posting("a", round)]).await;
        assert!(posted.iter().all(|it| it.version == posted[0].version && it.version > last));
        last = posted[0].version;
        assert_eq!(it.record("a").await.expect("a record").version, last);
    }
    it.ledger.recount(&[key("a")]).await.expect("a recount");
    let again = it.record("a").await.expect("a record");
    assert!(again.version > last, "also when nothing was wrong");
    assert!(it.post(vec![posting("a", 1)]).await[0].version > again.version);
}

/// Whoever follows the log has every account in the end, and a wait ends with a post.
pub async fn the_log_tells_of_every_account(it: Arc<WithAccounts>) {
    let (log, mut copy, mut at) = (it.ledger.log(), BTreeMap::new(), LogPosition::default());
    for round in 0..10 {
        let batch = (0..4).map(|user| posting(&format!("u{}", user * round % 7), user * 10));
        let posted = it.post(batch.collect()).await;
        let (runtime, head) = (Runtime::system(), log.head().await.expect("a head"));
        while at < head {
            let part = log.after(at, 2).await.expect("a part");
            at = part.position;
            let changes = part.changes.into_iter().filter_map(|change| change.record);
            copy.extend(changes.map(|record| (record.key.clone(), record)));
        }
        for answer in posted {
            let told = &copy[&answer.transaction.posting.user];
            assert!(told.version >= answer.version);
        }
        let deadline = Deadline::at(runtime.now() + Duration::from_secs(60));
        let (post, wait) = (it.post(vec![posting("w", 1)]), log.wait(at, deadline));
        futures_util::future::join(post, wait).await.1.expect("a wait");
    }
    for (user, record) in &copy {
        if user.as_str() != "w" {
            assert_eq!(it.record(user.as_str()).await.as_ref(), Some(record));
            assert_eq!(
                Account::of(&record.value).ok(),
                Account::counted(&it.all(user.as_str(), 99).await)
            );
        }
    }
}

/// What somebody has done to the accounts shows, and a recount puts it right under new versions.
pub async fn an_audit_finds_and_a_recount_mends(it: Arc<WithAccounts>) {
    for user in ["changed", "gone", "unreadable", "whole"] {
        it.post(vec![posting(user, 1250), posting(user, -1)]).await;
    }
    let wrong = r#"{"transactions":3,"balance":"99.00","last_at":"2020-01-01T00:00:00Z"}"#;
    it.accounts.put(key("changed"), value(wrong)).await.expect("a put");
    it.accounts.put(key("invented"), value(wrong)).await.expect("a put");
    it.accounts.put(key("unreadable"), value("?")).await.expect("a put");
    let deleted = it.accounts.delete(key("gone")).await.expect("a delete").version;
    let audit = it.ledger.audit(None, 100).await.expect("an audit");
    let mut wrong = Vec::new();
    for audited in audit {
        let kept = audited.kept.as_ref();
        assert!(kept.is_none_or(|record| record.key == audited.user));
        let kept = kept.map(|record| Account::of(&record.value).ok());
        if kept != audited.counted.map(Some) {
            wrong.push(audited.user);
        }
    }
    let names = wrong.iter().map(|user| user.as_str()).collect::<Vec<_>>();
    assert_eq!(names, ["changed", "gone", "invented", "unreadable"]);
    let before = it.record("changed").await.expect("a record").version;
    it.ledger.recount(&wrong).await.expect("a recount");
    it.assert_sound().await;
    assert!(it.record("changed").await.expect("a record").version > before);
    assert!(it.record("gone").await.expect("a record").version > deleted);
    assert_eq!(it.record("invented").await, None);
    // Who followed the accounts past the log hears of an end that it missed.
    let mut last = Version::NONE;
    for _ in 0..2 {
        it.ledger.recount(&[key("nobody")]).await.expect("a recount");
        let read = it.accounts.get_read(&key("nobody"), &Default::default()).await.expect("a read");
        assert!(read.record.is_none() && read.version > last);
        last = read.version;
    }
    // Over what nobody can read a posting counts anew.
    it.accounts.put(key("unreadable"), value("{}")).await.expect("a put");
    it.post(vec![posting("unreadable", 1)]).await;
    it.assert_sound().await;
}

/// In byte order of the users, a part at a time.
pub async fn an_audit_goes_on_after_a_user(it: Arc<WithAccounts>) {
    let mut users = ["b", "a", "Z", "é", "a/b", "界", "~"].map(key);
    it.post(users.iter().map(|user| posting(user.as_str(), 1)).collect()).await;
    users.sort();
    for limit in [1, 3, 100] {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let part = it.ledger.audit(after.as_ref(), limit).await.expect("an audit");
            assert!(part.len() <= limit);
            let Some(last) = part.last() else { break };
            after = Some(last.user.clone());
            found.extend(part.into_iter().map(|audited| audited.user));
        }
        assert_eq!(found, users, "{limit} at a time");
    }
}

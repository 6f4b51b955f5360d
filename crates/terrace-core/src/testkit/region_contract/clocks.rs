//! Clocks that are wrong.

use std::sync::Arc;

use jiff::SignedDuration;

use super::Regions;
use crate::{ErrorKind, Version};

/// A server that comes back with an earlier clock draws no lower version, and none twice.
pub async fn a_clock_that_is_set_back_changes_no_order(it: Arc<Regions>) {
    let before = it.put(0, "k", "1").await;
    (it.set_clock)(0, SignedDuration::from_hours(-1)).await;
    let mut last = before;
    for round in 0..5 {
        for name in ["k", "another"] {
            let version = it.put(0, name, &round.to_string()).await;
            assert!(version > last, "{version} after {last}");
            last = version;
        }
    }
    let drift = last.time().duration_since(before.time());
    assert!(drift.as_secs() < 60, "it runs ahead of its clock no further than it was: {drift:?}");
    it.exchange().await;
    assert_eq!(it.assert_equal().await, []);
    assert_eq!(it.text(2, "k").await.as_deref(), Some("4"));
}

/// Also what another region has drawn by a clock that is ahead, of whatever key.
pub async fn a_version_is_above_everything_stored(it: Arc<Regions>) {
    (it.set_clock)(0, SignedDuration::from_secs(3)).await;
    (it.set_clock)(1, SignedDuration::from_hours(-1)).await;
    let theirs = it.put(0, "k", "theirs").await;
    let alone = it.put(1, "another", "1").await;
    assert!(alone < theirs, "by its clock");
    it.follow_all(2, 0).await;
    let deleted = it.delete(2, "k").await;
    (it.set_clock)(1, SignedDuration::ZERO).await;
    it.follow_all(1, 2).await;
    (it.set_clock)(1, SignedDuration::from_hours(-1)).await;
    assert!(deleted > theirs);
    assert!(it.put(1, "third", "1").await > deleted);
    (it.set_clock)(1, SignedDuration::ZERO).await;
    it.exchange().await;
    assert_eq!(it.assert_equal().await, []);
    assert_eq!(it.text(1, "k").await, None);
}

/// It is applied when this region's clock has come to it, and nothing of it before.
pub async fn a_change_of_a_clock_ahead_waits(it: Arc<Regions>) {
    it.put(0, "early", "1").await;
    it.follow_all(1, 0).await;
    (it.set_clock)(0, SignedDuration::from_mins(10)).await;
    let ahead = it.put(0, "k", "ahead").await;
    let mine = it.put(1, "k", "mine").await;
    let held = loop {
        match it.follow(1, 0, 10).await {
            Ok(applied) => assert_eq!(applied, 0),
            Err(held) => break held,
        }
        super::wait(&*it.stores[0].own_log(), it.place(1, 0).await).await;
    };
    assert_eq!(held.kind(), ErrorKind::Unavailable);
    assert!(held.is_retryable() && held.message().contains("clock"), "{held}");
    assert_eq!(it.text(1, "k").await.as_deref(), Some("mine"));
    assert!(it.place(1, 0).await < it.stores[0].own_log().head().await.expect("a head"));
    assert_eq!(it.stores[1].conflicts(None, 10).await.expect("conflicts"), []);
    (it.set_clock)(1, SignedDuration::from_mins(10)).await;
    (it.set_clock)(2, SignedDuration::from_mins(10)).await;
    it.exchange().await;
    assert_eq!(it.assert_equal().await, [("k".to_owned(), mine)]);
    assert_eq!(it.text(2, "k").await.as_deref(), Some("ahead"));
    assert_ne!(ahead, Version::NONE);
}

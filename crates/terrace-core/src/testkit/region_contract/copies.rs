//! Rows instead of changes: first copies, comparisons, repairs.

use std::sync::Arc;

use super::{Regions, after};
use crate::KeyRange;

/// A region that follows another one from now on has its own rows, and those of the other; nothing is
/// forgotten, and what the copy brought does no harm when the log brings it again.
pub async fn a_first_copy_merges_rows(it: Arc<Regions>) {
    it.put(0, "both", "1").await;
    it.put(1, "both", "2").await;
    it.put(2, "third", "1").await;
    it.put(0, "gone", "1").await;
    it.delete(0, "gone").await;
    it.put(0, "theirs", "1").await;
    it.put(1, "mine", "1").await;
    it.follow_all(0, 2).await;
    it.put(0, "third", "2").await;
    it.put(0, "theirs", "2").await;
    it.copy(1, 0).await;
    assert_eq!(it.text(1, "mine").await.as_deref(), Some("1"), "nothing is forgotten");
    assert_eq!(it.text(1, "theirs").await.as_deref(), Some("2"));
    assert_eq!(it.text(1, "third").await.as_deref(), Some("2"));
    assert_eq!(it.lost(1).await.len(), 1);
    it.exchange().await;
    assert_eq!(it.assert_equal().await.len(), 1);
}

/// Also of a put whose deletion was in the log of a region that is no more.
pub async fn a_first_copy_brings_the_horizon(it: Arc<Regions>) {
    it.put(0, "k", "1").await;
    it.put(0, "live", "1").await;
    it.follow_all(1, 0).await;
    let deletion = it.delete(1, "k").await;
    it.follow_all(0, 1).await;
    let horizon = after(deletion);
    for at in 0..2 {
        assert_eq!(it.stores[at].collect(horizon).await.expect("a trace"), 1);
    }
    it.copy(2, 0).await;
    it.follow_all(2, 0).await;
    assert_eq!(it.text(2, "k").await, None);
    assert_eq!(it.text(2, "live").await.as_deref(), Some("1"));
    let anew = it.put(2, "k", "2").await;
    assert!(anew > horizon, "above what was forgotten");
    it.exchange().await;
    assert_eq!(it.assert_equal().await, []);
    assert_eq!(it.text(0, "k").await.as_deref(), Some("2"));
}

/// Both ways, whatever each lacks.
pub async fn a_repair_makes_digests_equal(it: Arc<Regions>) {
    for number in 0..9 {
        it.put(number % 3, &format!("k{number}"), "1").await;
        it.put((number + 1) % 3, &format!("k{}", number / 2), "2").await;
    }
    for (from, to) in [(0, 1), (1, 2), (2, 0), (0, 1), (1, 2)] {
        let rows = it.stores[from].rows(&KeyRange::default(), 100).await.expect("rows");
        it.stores[to].merge_rows(rows).await.expect("a repair");
    }
    let repaired = it.assert_equal().await;
    it.exchange().await;
    assert_eq!(it.assert_equal().await, repaired, "the logs say nothing else");
}

/// A page is no larger than one answer may be, and the next one goes on after it.
pub async fn rows_end_where_their_values_are_many_bytes(it: Arc<Regions>) {
    let large = "x".repeat(1 << 20);
    for number in 0..20 {
        it.put(0, &format!("k{number:02}"), &large).await;
    }
    let (mut range, mut pages) = (KeyRange::default(), Vec::new());
    loop {
        let page = it.stores[0].rows(&range, 100).await.expect("rows");
        let Some(last) = page.last() else { break };
        range.after = Some(last.key.clone());
        pages.push(page.len());
    }
    assert_eq!(pages, [16, 4]);
}

/// Two regions that differ in one row are told apart in few steps.
pub async fn a_digest_is_halved_to_the_difference(it: Arc<Regions>) {
    for number in 0..20 {
        it.put(0, &format!("k{number:02}"), "1").await;
    }
    it.delete(0, "k03").await;
    it.exchange().await;
    it.assert_equal().await;
    it.put(0, "k13", "2").await;
    let (mut range, mut steps) = (KeyRange::default(), 0);
    loop {
        let here = it.stores[0].digest(&range).await.expect("a digest");
        let there = it.stores[1].digest(&range).await.expect("a digest");
        assert_eq!(here.rows, there.rows);
        assert_ne!(here.sum, there.sum);
        if here.rows == 1 {
            break;
        }
        let (lower, upper) = range.halves(&here.middle.expect("a key in the middle"));
        let same = it.stores[0].digest(&lower).await.expect("a digest").sum
            == it.stores[1].digest(&lower).await.expect("a digest").sum;
        range = if same { upper } else { lower };
        steps += 1;
    }
    let rows = it.stores[0].rows(&range, 10).await.expect("rows");
    assert_eq!(rows.iter().map(|row| row.key.as_str()).collect::<Vec<_>>(), ["k13"]);
    assert!(steps <= 5, "{steps} steps");
}

//! What is written in several regions at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Regions, after, digest_of};
use crate::testkit::{key, value};
use crate::{Ancestry, ErrorKind, Runtime, StoreExt as _, Timestamp, Version};

/// And every region lists the other one, with what it was.
pub async fn the_higher_version_wins_everywhere(it: Arc<Regions>) {
    let lower = it.put(0, "k", "first").await;
    let higher = it.put(1, "k", "second").await;
    let (loser, text, winner) = match lower < higher {
        true => (lower, "second", higher),
        false => (higher, "first", lower),
    };
    it.exchange().await;
    it.assert_equal().await;
    for at in 0..3 {
        assert_eq!(it.text(at, "k").await.as_deref(), Some(text));
        let lost = it.lost(at).await;
        let [conflict] = &lost[..] else { panic!("one loss: {lost:?}") };
        assert_eq!((conflict.winner, conflict.loser), (winner, loser));
        let other = if text == "first" { "second" } else { "first" };
        assert_eq!(conflict.digest, digest_of(other));
    }
}

/// Whoever overwrites what lost elsewhere, before hearing of it, has lost nothing.
pub async fn an_overwritten_loss_is_none(it: Arc<Regions>) {
    it.put(0, "k", "1").await;
    it.put(1, "k", "2").await;
    it.follow_all(1, 0).await;
    it.follow_all(2, 0).await;
    it.follow_all(2, 1).await;
    assert_eq!(it.lost(1).await.len(), 1);
    let second = it.put(0, "k", "3").await;
    it.exchange().await;
    let lost = it.assert_equal().await;
    assert_eq!(lost.len(), 1);
    assert!(lost[0].1 < second, "the update of the other region, not the first one");
    assert_eq!(lost[0].1.region(), Some(it.stores[1].region().id));
}

/// A deletion wins or loses by its version, and is listed without a digest.
pub async fn a_deletion_is_compared_like_any_change(it: Arc<Regions>) {
    it.put(0, "k", "1").await;
    it.exchange().await;
    let deletion = it.delete(0, "k").await;
    let write = it.put(1, "k", "2").await;
    it.exchange().await;
    assert_eq!(it.assert_equal().await, [("k".to_owned(), deletion.min(write))]);
    for at in 0..3 {
        assert_eq!(it.text(at, "k").await.is_none(), deletion > write);
        let digest = if deletion > write { digest_of("2") } else { None };
        assert_eq!(it.lost(at).await[0].digest, digest);
    }
}

/// A key that is made anew after that has no conflict with the deletion that another region still has.
pub async fn deletions_are_forgotten_up_to_a_horizon(it: Arc<Regions>) {
    it.put(0, "old", "1").await;
    it.put(0, "kept", "1").await;
    it.put(0, "k", "1").await;
    it.exchange().await;
    it.delete(1, "k").await;
    let last = it.delete(1, "old").await;
    it.exchange().await;
    let refused = it.stores[0].collect(last).await.expect_err("a version is no horizon");
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    assert_eq!(it.stores[0].collect(Version::at(Timestamp::UNIX_EPOCH)).await.expect("none"), 0);
    let after = after(last);
    assert_eq!(it.stores[0].collect(after).await.expect("two"), 2);
    let rows = it.stores[0].rows(&Default::default(), 10).await.expect("rows");
    assert_eq!(rows.iter().map(|row| row.key.as_str()).collect::<Vec<_>>(), ["kept"]);
    let anew = it.put(0, "k", "2").await;
    assert!(anew > after, "above what was forgotten");
    it.exchange().await;
    for at in 0..3 {
        assert_eq!(it.text(at, "k").await.as_deref(), Some("2"));
        assert_eq!(it.text(at, "old").await, None);
        assert_eq!(it.lost(at).await, Vec::new());
    }
    assert_eq!(it.stores[1].collect(after).await.expect("one"), 1);
    assert_eq!(it.stores[2].collect(after).await.expect("one"), 1);
    it.assert_equal().await;
}

/// A log that is followed again from its beginning brings back nothing; a row that is older than the horizon
/// stays, and what is written later arrives.
pub async fn a_collected_deletion_is_not_undone_by_a_log(it: Arc<Regions>) {
    for name in ["k", "anew", "live"] {
        it.put(0, name, "1").await;
    }
    it.exchange().await;
    it.delete(1, "k").await;
    let horizon = after(it.delete(1, "anew").await);
    it.exchange().await;
    for at in 0..3 {
        assert_eq!(it.stores[at].collect(horizon).await.expect("traces"), 2);
    }
    it.put(0, "later", "1").await;
    it.put(2, "anew", "2").await;
    for of in 0..2 {
        let origin = it.stores[of].region().id;
        it.stores[2].forget_origin(origin).await.expect("an end");
    }
    it.exchange().await;
    it.assert_equal().await;
    let texts = [it.text(2, "k").await, it.text(2, "live").await, it.text(2, "later").await];
    assert_eq!(texts.map(|text| text.is_some()), [false, true, true]);
    assert_eq!(it.lost(2).await, []);
}

/// Random writes, and parts of logs in random order: the end is what the sets of updates say.
pub async fn whatever_order_changes_take_regions_agree(it: Arc<Regions>) {
    for seed in 0..6 {
        let runtime = Runtime::seeded(seed);
        for _ in 0..60 {
            let random = runtime.random();
            let at = (random % 3) as usize;
            let of = (random >> 8) as usize % 3;
            let name = format!("k{seed}-{}", (random >> 16) % 3);
            match (random >> 32) % 8 {
                0..=2 => drop(it.put(at, &name, &random.to_string()).await),
                3 => drop(it.stores[at].delete(key(&name)).await.expect("a deletion")),
                _ if at != of => {
                    it.follow(at, of, 1 + (random >> 40) as usize % 3).await.expect("changes");
                }
                _ => {}
            }
        }
    }
    it.exchange().await;
    let lost = it.assert_equal().await;
    assert_eq!(lost.into_iter().collect::<BTreeSet<_>>(), model(&it).await);
}

/// Writers in all regions, and followers between all of them, at the same time.
pub async fn writers_beside_followers_lose_nothing_unlisted(it: Arc<Regions>) {
    let write = async |at: usize| {
        let mut last = Version::NONE;
        for round in 0..40 {
            let name = key(format!("k{}", round % 3));
            let receipt = match round % 7 {
                6 => it.stores[at].delete(name).await,
                _ => it.stores[at].put(name, value(format!("{at}.{round}"))).await,
            };
            let receipt = receipt.expect("a write");
            if receipt.outcome.is_applied() {
                assert!(receipt.version > last, "one writer's versions grow");
                last = receipt.version;
            }
            tokio::task::yield_now().await;
        }
    };
    let follow = async |at: usize, of: usize| {
        for _ in 0..60 {
            it.follow(at, of, 3).await.expect("changes");
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(
        write(0),
        write(1),
        write(2),
        follow(0, 1),
        follow(0, 2),
        follow(1, 0),
        follow(1, 2),
        follow(2, 0),
        follow(2, 1),
    );
    it.exchange().await;
    let lost = it.assert_equal().await;
    assert_eq!(lost.into_iter().collect::<BTreeSet<_>>(), model(&it).await);
}

/// What was lost, out of all logs: what is neither the newest of its key nor replaced by any.
async fn model(it: &Regions) -> BTreeSet<(String, Version)> {
    let (mut all, mut gone) = (BTreeSet::new(), BTreeSet::new());
    for at in 0..3 {
        for change in it.logged(at).await {
            let Some(Ancestry::Change { replaced, .. }) = change.ancestry.as_deref() else {
                panic!("a change of a region says what it replaced");
            };
            gone.insert((change.key.as_str().to_owned(), *replaced));
            all.insert((change.key.as_str().to_owned(), change.version));
        }
    }
    let newest = all.iter().filter(|(name, version)| {
        let later = (name.clone(), Version::new(version.get() + 1));
        all.range(later..=(name.clone(), Version::UNKNOWN)).next().is_none()
    });
    gone.extend(newest.cloned());
    &all - &gone
}

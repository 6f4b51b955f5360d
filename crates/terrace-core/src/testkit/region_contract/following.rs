//! One region follows another.

use std::sync::Arc;

use super::Regions;
use crate::testkit::{key, value};
use crate::{
    Ancestry, Batch, ErrorKind, Idempotency, LogPosition, ReadOptions, StoreExt as _, Version,
    Write, WriteOptions,
};

/// Versions say where they were drawn, and the log says what they replaced.
pub async fn a_version_is_of_its_region(it: Arc<Regions>) {
    for at in 0..3 {
        let first = it.put(at, "k", "1").await;
        let second = it.put(at, "k", "2").await;
        let third = it.delete(at, "k").await;
        assert!(first < second && second < third);
        let log = it.logged(at).await;
        let known = log.iter().map(|change| {
            assert_eq!(change.version.region(), Some(it.stores[at].region().id));
            let Some(Ancestry::Change { replaced, .. }) = change.ancestry.as_deref() else {
                panic!("a change of a region says what it replaced");
            };
            (change.version, *replaced)
        });
        let expected = [(first, Version::NONE), (second, first), (third, second)];
        assert_eq!(known.collect::<Vec<_>>(), expected);
    }
}

/// Value, version and times are those of the origin.
pub async fn a_change_arrives_as_it_was_written(it: Arc<Regions>) {
    it.put(0, "a", "1").await;
    it.put(0, "a", "2").await;
    it.put(0, "b", "1").await;
    it.delete(0, "b").await;
    it.follow_all(1, 0).await;
    assert_eq!(it.record(1, "a").await, it.record(0, "a").await);
    assert_eq!(it.text(1, "b").await, None);
    let how = ReadOptions::default();
    let [there, here] = [0, 1].map(|at| &it.stores[at]);
    let (there, here) = (there.read(&[key("b")], &how).await, here.read(&[key("b")], &how).await);
    assert_eq!(here.expect("a read")[0].version, there.expect("a read")[0].version);
    assert_eq!(it.lost(1).await, Vec::new());
}

/// Each region follows each other one, so nothing is handed on.
pub async fn a_change_goes_to_no_third_region(it: Arc<Regions>) {
    it.put(0, "a", "1").await;
    it.follow_all(1, 0).await;
    it.put(1, "b", "1").await;
    let log = it.logged(1).await;
    let keys = log.iter().map(|change| change.key.as_str()).collect::<Vec<_>>();
    assert_eq!(keys, ["b"]);
}

/// Also when the place in the log was lost.
pub async fn a_change_that_comes_again_changes_nothing(it: Arc<Regions>) {
    it.put(0, "a", "1").await;
    it.put(1, "a", "2").await;
    it.put(0, "b", "1").await;
    it.exchange().await;
    it.put(1, "b", "2").await;
    it.exchange().await;
    let (before, lost) = (it.record(1, "b").await, it.assert_equal().await);
    for of in [0, 2] {
        let origin = it.stores[of].region().id;
        it.stores[1].forget_origin(origin).await.expect("an end");
        assert_eq!(it.stores[1].checkpoints().await.expect("places").of(origin), None);
    }
    it.exchange().await;
    assert_eq!(it.record(1, "b").await, before);
    assert_eq!(it.assert_equal().await, lost);
}

/// The one that was slower changes nothing, and is told so.
pub async fn two_followers_of_one_origin_apply_a_batch_once(it: Arc<Regions>) {
    it.put(0, "a", "1").await;
    it.follow_all(1, 0).await;
    let follower = it.stores[1].follower_of(it.stores[0].region().id);
    let from = follower.checkpoint().await.expect("a place");
    it.put(0, "a", "2").await;
    let changes = it.logged(0).await.split_off(1);
    let to = from.at(changes[0].position);
    let batch = Batch { from, to, changes, ..Batch::default() };
    let (one, two) = tokio::join!(follower.apply(&batch), follower.apply(&batch));
    let once = usize::from(one.expect("an answer")) + usize::from(two.expect("an answer"));
    assert_eq!((once, it.text(1, "a").await.as_deref()), (1, Some("2")));
}

/// Who reads with the token sees what the checkpoints say.
pub async fn checkpoints_are_proved_by_their_token(it: Arc<Regions>) {
    let mut last = None;
    for round in 0..3 {
        it.put(0, "a", &round.to_string()).await;
        it.follow_all(1, 0).await;
        let known = it.stores[1].checkpoints().await.expect("places");
        let head = it.stores[0].own_log().head().await.expect("a head");
        let place = known.of(it.stores[0].region().id).expect("a place");
        assert!(place.position >= head);
        let how = ReadOptions { token: Some(known.token.clone()), ..ReadOptions::default() };
        let read = it.stores[1].get_read(&key("a"), &how).await.expect("a read");
        assert_eq!(read.record.expect("a record").value.as_str(), round.to_string());
        let marks = known.token.marks().map(|(_, position)| position).collect::<Vec<_>>();
        assert!(last.is_none_or(|last| last < marks), "what was applied moves the position");
        last = Some(marks);
    }
}

/// A position that other regions have moved is reached where the log has nothing more.
pub async fn news_is_told_from_none(it: Arc<Regions>) {
    it.put(0, "a", "1").await;
    it.follow_all(1, 0).await;
    it.follow_all(0, 1).await;
    let place = it.stores[0].own_log().head().await.expect("a head");
    let seen = async || {
        let read = it.stores[0].get_read(&key("a"), &ReadOptions::default()).await;
        let proof = read.expect("a read").proof.expect("a proof");
        proof.through.max(proof.shown)
    };
    assert!(!it.stores[0].has_news(place, seen().await).await.expect("an answer"));
    it.put(1, "b", "1").await;
    it.follow_all(0, 1).await;
    assert!(!it.stores[0].has_news(place, seen().await).await.expect("an answer"));
    it.put(0, "a", "2").await;
    assert!(it.stores[0].has_news(place, seen().await).await.expect("an answer"));
    let receipt = it.stores[0].put(key("a"), value("3")).await.expect("a write");
    let mark = receipt.token.marks().map(|(_, position)| position).next().expect("a mark");
    it.follow_all(1, 0).await;
    assert!(it.place(1, 0).await >= it.stores[0].own_log().place_of(mark));
}

/// A request that is repeated in another region is not done again.
pub async fn a_result_travels_with_its_change(it: Arc<Regions>) {
    let named = |name: &str, print| WriteOptions {
        idempotency: Some(Arc::new(Idempotency::new(name, [print; 32]).expect("a key"))),
        ..WriteOptions::default()
    };
    let batch = || vec![Write::put(key("a"), value("1")), Write::put(key("b"), value("1"))];
    let done = it.stores[0].write(batch(), &named("r1", 1)).await.expect("a write");
    let other = vec![Write::put(key("c"), value("1"))];
    it.stores[0].write(other, &named("r2", 2)).await.expect("a write");
    // Its first change alone.
    while it.follow(1, 0, 1).await.expect("a change") == 0 {
        super::wait(&*it.stores[0].own_log(), LogPosition::default()).await;
    }
    let again = it.stores[1].write(batch(), &named("r1", 1)).await.expect("the first result");
    let results = |receipts: &[crate::Receipt]| {
        receipts.iter().map(|it| (it.outcome, it.version)).collect::<Vec<_>>()
    };
    assert_eq!(results(&again), results(&done));
    let refused = it.stores[1].write(batch(), &named("r1", 3)).await;
    assert_eq!(refused.expect_err("another request").kind(), ErrorKind::InvalidInput);
    it.exchange().await;
    assert_eq!(it.assert_equal().await, []);
    assert_eq!(it.record(2, "b").await.expect("a record").version, done[1].version);
    let again = it.stores[2].write(batch(), &named("r1", 1)).await.expect("the first result");
    assert_eq!(results(&again), results(&done));
    assert_eq!(it.logged(2).await, [], "nothing was written anew");
}

/// Residency: the prefix leaves by no way.
pub async fn what_stays_in_a_region_is_in_no_log(it: Arc<Regions>) {
    it.put(0, "home:a", "1").await;
    it.put(0, "a", "1").await;
    it.put(0, "home:b", "1").await;
    it.delete(0, "home:b").await;
    it.exchange().await;
    assert_eq!(it.text(0, "home:a").await.as_deref(), Some("1"));
    assert_eq!(it.text(1, "home:a").await, None);
    let rows = it.stores[0].rows(&Default::default(), 10).await.expect("rows");
    assert_eq!(rows.iter().map(|row| row.key.as_str()).collect::<Vec<_>>(), ["a"]);
    it.assert_equal().await;
}

//! Generations and histories: what the memory forgets with a new one, and what it does not keep.

use terrace_core::testkit::proof_of;
use terrace_core::{Generation, Position, Proof, Read, Standing, Token};

use super::*;

async fn scripted() -> (NearCache, Hand, Arc<ScriptedGenerations>, Script) {
    let generations = Arc::<ScriptedGenerations>::default();
    let (store, hand, feed) = scripted_over(NearCache::new, generations.clone());
    feed.send(Notice::Connected);
    trusted(&store).await;
    (store, hand, generations, feed)
}

/// Loads; the database says that it has this standing.
async fn load_under(store: &NearCache, hand: &mut Hand, name: &str, standing: &Standing) {
    let key = key(name);
    let (read, ()) = tokio::join!(store.get(&key), async {
        hand.read().await.found_under(standing, &[(name, "x", 1)]);
    });
    assert!(read.unwrap().is_some());
}

/// Another instance raises, or the database begins another life; this instance hears of it.
async fn told(generations: &ScriptedGenerations, change: impl FnOnce(&mut Standing)) {
    generations.change(change);
    generations.look().await.unwrap();
    sleep(Duration::from_millis(1)).await;
}

fn raised(standing: &mut Standing) {
    standing.generation = Generation::new(standing.generation.get() + 1);
}

fn renamed(standing: &mut Standing) {
    let past = std::mem::replace(&mut standing.history, "another.1".into());
    standing.past.push(past);
}

#[tokio::test(start_paused = true)]
async fn a_new_generation_or_history_empties_the_memory() {
    for change in [raised, renamed] {
        let (store, mut hand, generations, _feed) = scripted().await;
        for name in ["a", "b"] {
            load(&store, &mut hand, &key(name), 1).await;
        }
        // Nothing new.
        told(&generations, |_| {}).await;
        assert_eq!((near(&store, &key("a")), near(&store, &key("b"))), (Some(1), Some(1)));
        told(&generations, change).await;
        assert_eq!((near(&store, &key("a")), near(&store, &key("b"))), (None, None));
        while hand.try_next().is_some() {}
        load_under(&store, &mut hand, "a", &generations.said()).await;
        assert_eq!(near(&store, &key("a")), Some(1));
    }
}

/// A reader is held between load and fill while the generation is raised.
async fn reader_held_during_a_raise(make: Make) -> Option<u64> {
    let generations = Arc::<ScriptedGenerations>::default();
    let (store, mut hand, feed) = scripted_over(make, generations.clone());
    feed.send(Notice::Connected);
    trusted(&store).await;
    let key = key("a");
    let (old, ()) = tokio::join!(store.get(&key), async {
        let held = hand.read().await;
        told(&generations, raised).await;
        // Whatever it proves.
        held.found_under(&generations.said(), &[("a", "x", 1)]);
    });
    old.unwrap();
    near(&store, &key)
}

#[tokio::test(start_paused = true)]
async fn a_load_whose_lease_is_from_before_fills_nothing() {
    assert_eq!(reader_held_during_a_raise(NearCache::new).await, None);
}

#[cfg(feature = "mutants")]
#[tokio::test(start_paused = true)]
async fn a_fill_without_a_lease_is_caught() {
    assert_eq!(reader_held_during_a_raise(NearCache::without_leases).await, Some(1));
}

/// As from a replica that has not come to the raise, while the far cache has no say.
#[tokio::test(start_paused = true)]
async fn what_is_of_an_older_generation_or_another_history_is_not_kept() {
    for change in [raised, renamed] {
        let (store, mut hand, generations, _feed) = scripted().await;
        let before = generations.said();
        told(&generations, change).await;
        load_under(&store, &mut hand, "a", &before).await;
        assert_eq!(near(&store, &key("a")), None);
        while hand.try_next().is_some() {}
    }
}

#[tokio::test(start_paused = true)]
async fn what_proves_nothing_is_not_kept() {
    let (store, mut hand, _generations, _feed) = scripted().await;
    let key = key("a");
    let (read, ()) = tokio::join!(store.get(&key), async {
        let call = hand.read().await;
        let read = Read {
            record: None,
            version: Version::new(1),
            origin: Origin::replica(1),
            age: Duration::ZERO,
            token: Token::default(),
            proof: None,
        };
        call.answer(Ok(vec![read]));
    });
    assert!(read.unwrap().is_none());
    assert_eq!(near(&store, &key), None);
}

#[tokio::test(start_paused = true)]
async fn a_hit_must_prove_what_the_token_asks_for() {
    let past = vec!["scripted.0".into()];
    let standing = Standing { past, ..Standing::of(Scripted::HISTORY) };
    let generations = Arc::new(ScriptedGenerations::of(standing));
    let (store, mut hand, feed) = scripted_over(NearCache::new, generations);
    feed.send(Notice::Connected);
    trusted(&store).await;
    let key = key("a");
    let proof = Proof { through: Position::new(5), ..proof_of(7) };
    let mut asked = Token::of("invented", Position::new(u64::MAX));
    asked.merge(&Token::of(Scripted::HISTORY, Position::new(5)));
    let with = |token: Token| ReadOptions { token: Some(token), ..ReadOptions::default() };
    let how = with(asked);
    let (read, ()) = tokio::join!(store.get_read(&key, &how), async {
        let call = hand.read().await;
        let read = Read {
            record: None,
            version: Version::new(7),
            origin: Origin::PRIMARY,
            age: Duration::ZERO,
            token: proof.token(),
            proof: Some(proof.clone()),
        };
        call.answer(Ok(vec![read]));
    });
    read.unwrap();
    let read = store.get_read(&key, &how).await.unwrap();
    assert_eq!(
        (read.origin, read.token),
        (Origin::NEAR, proof.token()),
        "nothing of what was asked"
    );
    // It shows 7, and slower writes than that it may miss; of an ended life nothing is proved.
    let mut lost = Token::of("scripted.0", Position::new(1));
    lost.merge(&Token::of(Scripted::HISTORY, Position::new(5)));
    for asked in [proof.token(), lost] {
        assert!(store.get_read(&key, &with(asked)).now_or_never().is_none());
    }
}

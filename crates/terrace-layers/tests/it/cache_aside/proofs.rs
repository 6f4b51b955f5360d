//! What an entry proves to a reader with a token, and what it keeps.

use std::time::Instant;

use terrace_core::testkit::proof_of;
use terrace_core::{BoxFuture, ErrorKind, Proof, Read, Standing};
use tokio::sync::watch;

use super::*;

/// A load of a write at version 7 while a slower transaction, that began at 6, is still under way.
fn shown_before_it_is_proved() -> Proof {
    Proof { through: Position::new(5), ..proof_of(7) }
}

async fn answered(store: &CacheAside, hand: &mut Hand, how: &ReadOptions, proof: Proof) -> Read {
    let key = key("a");
    let (read, ()) = tokio::join!(store.get_read(&key, how), async {
        let call = hand.read().await;
        assert_eq!(call.how.token, how.token);
        let read = Read {
            record: None,
            version: Version::new(7),
            origin: Origin::PRIMARY,
            age: Duration::ZERO,
            token: proof.token(),
            proof: Some(proof),
        };
        call.answer(Ok(vec![read]));
    });
    read.unwrap()
}

#[tokio::test]
async fn what_was_loaded_for_a_token_is_a_hit_for_it() {
    let (store, mut hand, _) = scripted();
    // The client has written another key at 9; this one has not changed since 7.
    let how = with(token(9));
    let proof = Proof { through: Position::new(9), ..proof_of(7) };
    assert_eq!(answered(&store, &mut hand, &how, proof).await.origin, Origin::PRIMARY);
    assert_eq!(store.get_read(&key("a"), &how).await.unwrap().origin, Origin::FAR);
}

/// The slower transaction may still write this key, and be what the token asks for.
#[tokio::test]
async fn an_entry_that_shows_a_write_does_not_prove_what_came_before_it() {
    let (store, mut hand, cache) = scripted();
    let read =
        answered(&store, &mut hand, &ReadOptions::default(), shown_before_it_is_proved()).await;
    assert_eq!(read.token, token(7), "the client has seen that write");
    for (asked, origin) in [(5, Origin::FAR), (0, Origin::FAR)] {
        let read = store.get_read(&key("a"), &with(token(asked))).await.unwrap();
        assert_eq!((read.origin, read.token), (origin, token(7)));
    }
    // Asked for again, and what proves more takes its place though it is no newer.
    let read = answered(&store, &mut hand, &with(token(7)), proof_of(7)).await;
    assert_eq!(read.origin, Origin::PRIMARY);
    let Lookup::Hit(entry) = cache.lookup(&key("a")) else { panic!("it was offered") };
    assert_eq!(entry.proof, proof_of(7));
    let read = store.get_read(&key("a"), &with(token(7))).await.unwrap();
    assert_eq!(read.origin, Origin::FAR);
}

/// Generations that take the version that is shown for how far all has become visible.
#[derive(Debug, Default)]
struct VersionsAsPositions(ScriptedGenerations);

impl Generations for VersionsAsPositions {
    fn admits(&self, proof: &Proof, asked: Option<&Token>) -> bool {
        self.0.admits(&Proof { through: proof.shown, ..proof.clone() }, asked)
    }

    fn looked_at(&self) -> Option<Instant> {
        self.0.looked_at()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes()
    }

    fn look(&self) -> BoxFuture<'_, terrace_core::Result<()>> {
        self.0.look()
    }

    fn raise<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, terrace_core::Result<()>> {
        self.0.raise(keys)
    }
}

/// The broken variant: the entry of before the slower transaction is a hit for a later token.
#[tokio::test]
async fn a_version_that_is_taken_for_a_position_is_caught() {
    let (inner, mut hand) = Scripted::new();
    let mutant = Arc::new(VersionsAsPositions::default());
    let store = aside(inner, memory_cache(), mutant, CacheAsideOptions::default());
    answered(&store, &mut hand, &ReadOptions::default(), shown_before_it_is_proved()).await;
    let read = store.get_read(&key("a"), &with(token(7))).await.unwrap();
    assert_eq!(read.origin, Origin::FAR, "the slower transaction's write is not in it");
}

/// One client's token must not reach another, nor grow what everybody is answered.
#[tokio::test]
async fn an_entry_keeps_nothing_of_what_was_asked() {
    let (store, mut hand, cache) = scripted();
    let mut asked = token(3);
    for number in 0..60 {
        asked.merge(&Token::of(format!("invented-{number}"), Position::new(u64::MAX)));
    }
    let first = answered(&store, &mut hand, &with(asked.clone()), proof_of(7)).await;
    assert_eq!(first.token, token(7));
    let Lookup::Hit(entry) = cache.lookup(&key("a")) else { panic!("it was offered") };
    assert_eq!(entry.proof, proof_of(7));
    for how in [ReadOptions::default(), with(asked)] {
        let read = store.get_read(&key("a"), &how).await.unwrap();
        assert_eq!((read.origin, read.token), (Origin::FAR, token(7)));
    }
}

#[tokio::test]
async fn two_tokens_of_which_one_is_lost_are_not_satisfied() {
    let (inner, mut hand) = Scripted::new();
    let past = vec!["scripted.0".into()];
    let standing = Standing { past, ..Standing::of(Scripted::HISTORY) };
    let generations = Arc::new(ScriptedGenerations::of(standing));
    let store = aside(inner, memory_cache(), generations, CacheAsideOptions::default());
    load(&store, &mut hand, &key("a"), 9).await;
    let good = token(9);
    let read = store.get_read(&key("a"), &with(good.clone())).await.unwrap();
    assert_eq!(read.origin, Origin::FAR);
    // Of a life that has ended, and of one that nobody here has heard of yet.
    for name in ["scripted.0", "scripted.7"] {
        let other = Token::of(name, Position::new(1));
        let mut both = good.clone();
        both.merge(&other);
        for asked in [other, both] {
            let how = with(asked.clone());
            let key = key("a");
            let (read, ()) = tokio::join!(store.get_read(&key, &how), async {
                let call = hand.read().await;
                assert_eq!(call.how.token, Some(asked), "the database decides");
                call.fail(ErrorKind::Unavailable);
            });
            assert!(read.is_err(), "{name}");
        }
    }
}

/// The same down to a database, which has been restored.
#[tokio::test(start_paused = true)]
async fn a_token_of_a_database_that_was_restored_is_refused() {
    let inner = Arc::<MemoryStore>::default();
    let store = over(inner.clone(), memory_cache(), CacheAsideOptions::default());
    let key = key("a");
    let before = store.put(key.clone(), value("1")).await.unwrap().token;
    inner.begin_history();
    sleep(Duration::from_secs(2)).await;
    let after = store.put(key.clone(), value("2")).await.unwrap().token;
    for how in [ReadOptions::default(), with(after.clone())] {
        store.get_read(&key, &how).await.unwrap();
        assert_eq!(store.get_read(&key, &how).await.unwrap().origin, Origin::FAR);
    }
    let mut both = after;
    both.merge(&before);
    for lost in [before, both] {
        let error = store.get_read(&key, &with(lost)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.message().contains("earlier life"), "{error}");
    }
}

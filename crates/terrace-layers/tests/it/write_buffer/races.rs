//! Forced orders of events between two flushers, a direct write and a database that answers late.

use std::sync::atomic::{AtomicU64, Ordering};

use terrace_core::{Change, Consistency, ErrorKind, Idempotency, Progress, Sequence};
use terrace_layers::Flusher;

use super::faults::FaultyJournal;
use super::*;

fn flusher(journal: &Arc<MemoryJournal>, store: Arc<dyn Store>) -> Flusher {
    let (journal, options) = (Arc::clone(journal), FlusherOptions::default());
    Flusher::start(journal, store, options, Runtime::system(), Arc::new(()))
}

async fn progress(journal: &MemoryJournal) -> Progress {
    journal.progress().await.unwrap()
}

/// Runs a while of the paused clock.
async fn a_while() {
    Runtime::system().sleep(Duration::from_millis(20)).await;
}

/// The late commit of a flusher that was taken for dead: a later write of the key, applied and
/// settled meanwhile, stays.
async fn a_late_commit(guarded: bool) -> Option<String> {
    let runtime = Runtime::system();
    let (inner, journal) = (Arc::new(MemoryStore::new(runtime.clone())), journal(&runtime));
    let buffer = open(inner.clone(), &journal, idle()).await;
    let (held, mut hand): (Arc<Scripted>, Hand) = Scripted::new();
    buffer.put(key("a"), value("1")).await.unwrap();
    let dead = flusher(&journal, held);
    let late = hand.write().await;
    // It dies, but its batch is on its way; another takes over, and applies what came later, too.
    dead.stop().await;
    journal.forget_claims();
    let alive = flusher(&journal, inner.clone());
    buffer.put(key("a"), value("2")).await.unwrap();
    while progress(&journal).await.writes > 0 {
        a_while().await;
    }
    assert_eq!(inner.get(&key("a")).await.unwrap().unwrap().value.as_str(), "2");
    let how = WriteOptions { deadline: Deadline::NEVER, ..late.how.clone() };
    let unguarded = |write: Write| write.when(Precondition::None);
    let batch = match guarded {
        true => late.batch.clone(),
        false => late.batch.clone().into_iter().map(unguarded).collect(),
    };
    inner.write(batch, &how).await.unwrap();
    let found = inner.get(&key("a")).await.unwrap().map(|it| it.value.as_str().to_owned());
    alive.stop().await;
    found
}

#[tokio::test(start_paused = true)]
async fn a_late_commit_of_a_dead_flusher_is_fenced() {
    assert_eq!(a_late_commit(true).await, is("2"));
}

#[tokio::test(start_paused = true)]
async fn without_the_guard_a_late_commit_is_noticed() {
    assert_eq!(a_late_commit(false).await, is("1"));
}

/// Settled only after the commit: a flusher that dies in between leaves the entry.
#[tokio::test(start_paused = true)]
async fn nothing_is_settled_before_it_is_applied() {
    let runtime = Runtime::system();
    let journal = journal(&runtime);
    let (held, mut hand) = Scripted::new();
    let buffer = open(Arc::new(MemoryStore::new(runtime.clone())), &journal, idle()).await;
    buffer.put(key("a"), value("1")).await.unwrap();
    let flusher = flusher(&journal, held);
    let call = hand.write().await;
    a_while().await;
    assert_eq!(progress(&journal).await.writes, 1);
    call.applied(1);
    a_while().await;
    assert_eq!(progress(&journal).await.writes, 0);
    flusher.stop().await;
}

/// A direct write comes after the writes that were acknowledged before it, and only after those of
/// its own key.
#[tokio::test(start_paused = true)]
async fn a_direct_write_waits_for_its_key_alone() {
    let runtime = Runtime::system();
    let (inner, journal) = (Arc::new(MemoryStore::new(runtime.clone())), journal(&runtime));
    let one = open(inner.clone(), &journal, idle()).await;
    let two = open(inner.clone(), &journal, idle()).await;
    one.put(key("a"), value("queued")).await.unwrap();
    let direct = |name: &str| vec![Write::put(key(name), value("direct"))];
    let other = one_of(one.write(direct("b"), &committed()).await);
    assert_eq!((other.outcome, other.durability), (Outcome::Created, Durability::Accepted));
    let absent = Write::put(key("a"), value("no")).when(Precondition::Absent);
    let (refused, ()) = tokio::join!(two.write_one(absent), async {
        a_while().await;
        let flusher = flusher(&journal, inner.clone());
        while progress(&journal).await.writes > 0 {
            a_while().await;
        }
        flusher.stop().await;
    });
    assert_eq!(refused.unwrap().outcome, Outcome::PreconditionFailed);
    one.put(key("a"), value("again")).await.unwrap();
    let error = two.write(direct("a"), &committed()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.wait().is_some());
    assert_eq!(plain(&*inner, "a").await, is("queued"), "nothing was changed");
}

fn one_of(receipts: Result<Vec<Receipt>>) -> Receipt {
    one(receipts.unwrap()).unwrap()
}

/// The write that the database refuses is set aside; an older write of its key is not lost with it.
#[tokio::test(start_paused = true)]
async fn a_poison_write_is_set_aside_and_nothing_else() {
    let runtime = Runtime::system();
    let (inner, journal) = (Arc::new(MemoryStore::new(runtime.clone())), journal(&runtime));
    let buffer = open(inner.clone(), &journal, idle()).await;
    let poison = |write: &Write| matches!(&write.change, Change::Put(v) if v.as_str() == "poison");
    let (held, mut hand) = Scripted::new();
    buffer.put(key("a"), value("good")).await.unwrap();
    buffer.put(key("a"), value("poison")).await.unwrap();
    for number in 0..20 {
        buffer.put(key(format!("k{number}")), value("1")).await.unwrap();
    }
    let flusher = flusher(&journal, held);
    let serve = async {
        loop {
            let call = hand.write().await;
            if call.batch.iter().any(poison) {
                call.fail(ErrorKind::InvalidInput);
            } else {
                let answer = inner.write(call.batch.clone(), &call.how).await;
                call.answer(answer);
            }
        }
    };
    let done = async {
        while progress(&journal).await.dead == 0 {
            a_while().await;
        }
        while progress(&journal).await.writes > 0 {
            a_while().await;
        }
    };
    tokio::select! { () = serve => {}, () = done => {} }
    assert_eq!(plain(&*inner, "a").await, is("good"), "what the poison superseded is applied");
    assert_eq!(plain(&*inner, "k19").await, is("1"));
    let letters = journal.dead(Sequence::NONE, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert!(poison(&letters[0].write));
    flusher.stop().await;

    // Tried again after a later write of its key: that one stays.
    buffer.put(key("a"), value("later")).await.unwrap();
    assert_eq!(journal.retry(vec![letters[0].sequence]).await.unwrap(), 1);
    let flusher = self::flusher(&journal, inner.clone());
    while progress(&journal).await.writes > 0 {
        a_while().await;
    }
    assert_eq!(plain(&*inner, "a").await, is("later"));
    flusher.stop().await;
}

/// A dead letter that is tried again after a direct write of its record, which has no sequence.
#[tokio::test(start_paused = true)]
async fn a_dead_letter_undoes_no_direct_write() {
    let runtime = Runtime::system();
    let (inner, journal) = (Arc::new(MemoryStore::new(runtime.clone())), journal(&runtime));
    let buffer = open(inner.clone(), &journal, idle()).await;
    for name in ["written", "deleted", "left"] {
        buffer.put(key(name), value("letter")).await.unwrap();
    }
    let (held, mut hand) = Scripted::new();
    let flusher = flusher(&journal, held);
    let refuses = async {
        loop {
            hand.write().await.fail(ErrorKind::InvalidInput);
        }
    };
    let dead = async {
        while progress(&journal).await.dead < 3 {
            a_while().await;
        }
    };
    tokio::select! { () = refuses => {}, () = dead => {} }
    flusher.stop().await;
    for name in ["written", "deleted"] {
        inner.put(key(name), value("direct")).await.unwrap();
    }
    inner.delete(key("deleted")).await.unwrap();
    let letters = journal.dead(Sequence::NONE, 10).await.unwrap();
    let all = letters.iter().map(|letter| letter.sequence).collect();
    assert_eq!(journal.retry(all).await.unwrap(), 3);
    let flusher = self::flusher(&journal, inner.clone());
    while progress(&journal).await.writes > 0 {
        a_while().await;
    }
    assert_eq!(plain(&*inner, "written").await, is("direct"));
    assert_eq!(plain(&*inner, "deleted").await, None);
    assert_eq!(plain(&*inner, "left").await, is("letter"), "nobody wrote it since");
    assert_eq!(progress(&journal).await.dead, 2, "they stay set aside");
    for letter in journal.dead(Sequence::NONE, 10).await.unwrap() {
        // When a record was deleted is not kept.
        let knows = letter.reason.starts_with("the record was written since");
        assert_eq!(knows, letter.write.key == key("written"), "{}", letter.reason);
    }
    flusher.stop().await;
}

/// A write that the database refuses for reasons of its own, with nothing beside it that gets through:
/// tried for longer, then set aside all the same, or the buffer would be closed by its age for good.
#[tokio::test(start_paused = true)]
async fn a_lone_write_that_is_always_refused_is_set_aside() {
    let runtime = Runtime::system();
    let (inner, journal) = (Arc::new(MemoryStore::new(runtime.clone())), journal(&runtime));
    let buffer = open(inner.clone(), &journal, idle()).await;
    buffer.put(key("a"), value("refused")).await.unwrap();
    let (held, mut hand) = Scripted::new();
    let flusher = flusher(&journal, held);
    let tries = Flusher::TRIES * 4;
    for number in 1..=tries {
        assert_eq!(progress(&journal).await.dead, 0, "before try {number}");
        hand.write().await.fail(ErrorKind::Internal);
    }
    // A store that cannot be read is in trouble itself: once more.
    hand.read().await.fail(ErrorKind::Unavailable);
    hand.write().await.fail(ErrorKind::Internal);
    let call = hand.read().await;
    assert_eq!(call.how.consistency, Consistency::Strong);
    call.found(&[]);
    while progress(&journal).await.dead == 0 {
        a_while().await;
    }
    flusher.stop().await;
}

/// A repeat is answered by an instance that did not append the first: it shows there what waits.
#[tokio::test(start_paused = true)]
async fn a_repeated_request_is_visible_where_it_was_answered() {
    let runtime = Runtime::system();
    let (inner, journal) = (Arc::new(MemoryStore::new(runtime.clone())), journal(&runtime));
    let one = open(inner.clone(), &journal, idle()).await;
    let two = open(inner.clone(), &journal, idle()).await;
    let named = WriteOptions {
        idempotency: Some(Arc::new(Idempotency::new("again", [1; 32]).unwrap())),
        ..WriteOptions::default()
    };
    let write = || vec![Write::put(key("a"), value("1"))];
    let first = one_of(one.write(write(), &named).await);
    let repeat = one_of(two.write(write(), &named).await);
    assert_eq!((repeat.outcome, &repeat.token), (Outcome::Queued, &first.token));
    assert_eq!(plain(&two, "a").await, is("1"));
}

/// An instance that starts before its journal answers learns later what waits in it.
#[tokio::test(start_paused = true)]
async fn what_waits_is_learnt_when_the_journal_comes_back() {
    let runtime = Runtime::system();
    let (inner, journal) = (Arc::new(MemoryStore::new(runtime.clone())), journal(&runtime));
    let one = open(inner.clone(), &journal, idle()).await;
    let waiting = one.put(key("a"), value("1")).await.unwrap();
    let down = Arc::new(FaultyJournal {
        inner: Arc::clone(&journal),
        runtime: runtime.clone(),
        rate: AtomicU64::new(1000),
        broken: None,
    });
    let through = Arc::clone(&down) as Arc<dyn Journal>;
    let two = WriteBuffer::open(
        inner.clone(),
        Arc::new(ScriptedGenerations::default()),
        through,
        HISTORY,
        idle(),
        runtime.clone(),
    )
    .await;
    assert_eq!(plain(&two, "a").await, None, "nobody can know");
    for asked in [with_token(&waiting), ReadOptions::strong(Deadline::NEVER)] {
        let refused = text(&two, "a", &asked).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable);
    }
    down.rate.store(0, Ordering::Relaxed);
    runtime.sleep(Duration::from_secs(3)).await;
    assert_eq!(plain(&two, "a").await, is("1"));
}

/// A database that is down for long, then back: everything is applied, in order, nothing is dead.
#[tokio::test(start_paused = true)]
async fn an_outage_is_waited_out() {
    let runtime = Runtime::system();
    let (inner, journal) = (Arc::new(MemoryStore::new(runtime.clone())), journal(&runtime));
    let (held, mut hand) = Scripted::new();
    let options = WriteBufferOptions {
        flusher: Some(FlusherOptions::default()),
        ..WriteBufferOptions::default()
    };
    let buffer = open(held, &journal, options).await;
    let end = runtime.now() + Duration::from_secs(60);
    let database = async {
        loop {
            match hand.next().await {
                terrace_core::testkit::Call::Write(call) if runtime.now() < end => {
                    call.fail(ErrorKind::Unavailable);
                }
                call => call.pass_on(&*inner).await,
            }
        }
    };
    let client = async {
        for number in 0..100 {
            let receipt = buffer.put(key("a"), value(number.to_string())).await.unwrap();
            assert_eq!(receipt.outcome, Outcome::Queued);
            runtime.sleep(Duration::from_millis(600)).await;
        }
        while progress(&journal).await.writes > 0 {
            a_while().await;
        }
        assert!(runtime.now() < end + Duration::from_secs(10), "drained soon after");
    };
    tokio::select! { () = database => {}, () = client => {} }
    assert_eq!(plain(&*inner, "a").await, is("99"));
    assert_eq!(progress(&journal).await.dead, 0);
}

/// Full by number and by age: refused with a wait, and nothing is dropped.
#[tokio::test(start_paused = true)]
async fn a_full_buffer_says_so() {
    let runtime = Runtime::system();
    let inner = Arc::new(MemoryStore::new(runtime.clone()));
    let limits = JournalLimits { writes: 3, ..JournalLimits::default() };
    let journal = Arc::new(MemoryJournal::new(limits, TAKEOVER, runtime.clone()));
    let buffer = open(inner.clone(), &journal, idle()).await;
    for number in 0..3 {
        buffer.put(key(format!("k{number}")), value("1")).await.unwrap();
    }
    let refused = buffer.put(key("k3"), value("1")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    assert!(refused.wait().is_some());
    let flusher = flusher(&journal, inner.clone());
    while progress(&journal).await.writes > 0 {
        a_while().await;
    }
    buffer.put(key("k3"), value("1")).await.unwrap();
    flusher.stop().await;
}

/// The same key and body: one write, one place. Another body, or another way to write: refused.
#[tokio::test(start_paused = true)]
async fn a_repeated_request_is_queued_once() {
    let runtime = Runtime::system();
    let (inner, journal) = (Arc::new(MemoryStore::new(runtime.clone())), journal(&runtime));
    let buffer = open(inner.clone(), &journal, idle()).await;
    let named = |print: u8, durability| WriteOptions {
        idempotency: Some(Arc::new(Idempotency::new("once", [print; 32]).unwrap())),
        durability,
        ..WriteOptions::default()
    };
    let batch = || vec![Write::put(key("a"), value("1"))];
    let first = one_of(buffer.write(batch(), &named(1, None)).await);
    let again = one_of(buffer.write(batch(), &named(1, None)).await);
    assert_eq!(first, again);
    assert_eq!(progress(&journal).await.writes, 1);
    for durability in [None, Some(Durability::Committed)] {
        let reused = buffer.write(batch(), &named(2, durability)).await.unwrap_err();
        assert_eq!(reused.kind(), ErrorKind::InvalidInput);
    }
}

/// A direct write that waits for an earlier one is refused by a stop: going ahead, it would be undone
/// by that one at the next start.
#[tokio::test(start_paused = true)]
async fn a_stop_lets_no_direct_write_go_ahead() {
    let runtime = Runtime::system();
    let (inner, journal) = (Arc::new(MemoryStore::new(runtime.clone())), journal(&runtime));
    let buffer = open(inner.clone(), &journal, idle()).await;
    buffer.put(key("a"), value("1")).await.unwrap();
    let direct = vec![Write::put(key("a"), value("2"))];
    let how = committed();
    let (written, closed) = tokio::join!(buffer.write(direct, &how), async {
        a_while().await;
        buffer.close().await
    });
    closed.unwrap();
    assert_eq!(written.unwrap_err().kind(), ErrorKind::Unavailable);
}

/// A stop drains within its bound; what is left stays in the journal.
#[tokio::test(start_paused = true)]
async fn a_stop_drains_what_it_can_and_leaves_the_rest() {
    let runtime = Runtime::system();
    let journal = journal(&runtime);
    let (held, mut hand) = Scripted::new();
    let buffer = open(held, &journal, WriteBufferOptions::default()).await;
    buffer.put(key("a"), value("1")).await.unwrap();
    let began = runtime.now();
    let (closed, _call) = tokio::join!(buffer.close(), hand.write());
    closed.unwrap();
    assert!(runtime.now() - began <= Duration::from_secs(6));
    // Closed with the buffer; what it held is still in it.
    assert!(journal.progress().await.is_err());
}

//! The properties that every [`Journal`] keeps.
//!
//! Used like [`store_contract!`](crate::store_contract), with a factory of
//! [`JournalFixture`](crate::testkit::JournalFixture)s: journals that hold 4000 writes and 4 MiB and
//! hand out again what was claimed a second before.

use std::sync::Arc;
use std::time::Duration;

use crate::testkit::{key, value};
use crate::{
    Append, Appended, DeadLetter, Deadline, ErrorKind, Idempotency, Journal, JournalEntry,
    JournalLimits, Key, Runtime, Sequence, Settled, Span, Write,
};

/// The limits of journals under test.
pub const LIMITS: JournalLimits = JournalLimits { writes: 4000, bytes: 4 * 1024 * 1024 };
/// When journals under test take claims over.
pub const TAKEOVER: Duration = Duration::from_secs(1);

/// Makes one test of each property of the [`Journal`] contract, in a module `journal_contract`.
///
/// Takes the path of an async function without arguments that makes a fresh
/// [`JournalFixture`](crate::testkit::JournalFixture).
#[macro_export]
macro_rules! journal_contract {
    ($factory:path) => {
        mod journal_contract {
            use super::*;
            $crate::each_property! { $factory, journal_contract:
                what_is_appended_is_claimed_in_order,
                sequences_grow_and_name_what_came_between,
                a_claim_is_handed_out_once_and_again_after_its_claimer_died,
                what_is_settled_is_gone_and_the_rest_is_counted,
                a_peek_claims_nothing_and_misses_nothing,
                every_kind_of_write_comes_back_whole,
                a_full_journal_takes_nothing_more,
                a_repeated_request_is_appended_once,
                a_request_repeated_within_an_append_is_appended_once,
                dead_letters_are_shown_tried_again_and_dropped,
                a_raised_floor_is_below_all_that_follows,
                a_waiting_claim_is_woken_by_an_append,
                a_closed_journal_says_so,
            }
        }
    };
}

fn put(name: &str, text: &str) -> Write {
    Write::put(key(name), value(text))
}

/// A request to append without an idempotency key.
pub fn request(writes: Vec<Write>) -> Append {
    Append { writes, idempotency: None }
}

async fn append(journal: &dyn Journal, writes: Vec<Write>) -> (Appended, Span) {
    let appended = journal.append(vec![request(writes)]).await.expect("an append");
    let span = appended.spans[0].clone().expect("a place");
    (appended, span)
}

fn soon() -> Deadline {
    Deadline::at(Runtime::system().now() + Duration::from_millis(50))
}

/// All that can be claimed now, write by write.
pub async fn claim_all(journal: &dyn Journal) -> Vec<JournalEntry> {
    let mut all = Vec::new();
    loop {
        let some = journal.claim(10_000, soon()).await.expect("a claim");
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

fn writes(entries: &[JournalEntry]) -> Vec<(Sequence, Key)> {
    let each = entries.iter().flat_map(|entry| {
        (0..).zip(&entry.writes).map(|(n, write)| (entry.first.plus(n), write.key.clone()))
    });
    each.collect()
}

async fn settle(journal: &dyn Journal, entries: &[JournalEntry]) -> crate::Progress {
    let done = entries.iter().map(Settled::of).collect();
    journal.settle(done).await.expect("a settlement")
}

/// Writes come out as they went in, each with the sequence that its append answered.
pub async fn what_is_appended_is_claimed_in_order(journal: Arc<dyn Journal>) {
    let mut wanted = Vec::new();
    for number in 0..30_u64 {
        let names: Vec<_> = (0..=number % 3).map(|part| format!("k{number}-{part}")).collect();
        let batch = names.iter().map(|name| put(name, "x")).collect();
        let (_, span) = append(&*journal, batch).await;
        wanted.extend((0..).zip(&names).map(|(part, name)| (span.first.plus(part), key(name))));
    }
    let requests = (0..50).map(|n| request(vec![put(&format!("m{n}"), "y")])).collect();
    let appended = journal.append(requests).await.expect("an append");
    for (number, span) in appended.spans.iter().enumerate() {
        let span = span.clone().expect("a place");
        wanted.push((span.first, key(format!("m{number}"))));
    }
    assert_eq!(writes(&claim_all(&*journal).await), wanted);
    assert!(wanted.is_sorted_by(|a, b| a.0 < b.0), "no sequence is given out twice");
}

/// `previous` and `last` make a chain: a break in it is somebody else's append.
pub async fn sequences_grow_and_name_what_came_between(journal: Arc<dyn Journal>) {
    let (one, first) = append(&*journal, vec![put("a", "1"), put("b", "1")]).await;
    assert!(one.previous < first.first);
    assert_eq!(one.last, first.first.plus(1));
    let (two, second) = append(&*journal, vec![put("a", "2")]).await;
    assert_eq!((two.previous, two.last), (one.last, second.first));
    assert_eq!(two.epoch, one.epoch);
    assert!(second.first > one.last);
    let now = Sequence::at(Runtime::system().wall());
    assert!(
        second.first.millis().abs_diff(now.millis()) < 600_000,
        "sequences begin with the time"
    );
    assert_eq!(journal.progress().await.expect("progress").last, two.last);
}

/// An entry has one claimer at a time, until that one has not settled it for long.
pub async fn a_claim_is_handed_out_once_and_again_after_its_claimer_died(
    journal: Arc<dyn Journal>,
) {
    let (_, span) = append(&*journal, vec![put("a", "1")]).await;
    let first = journal.claim(100, soon()).await.expect("a claim");
    assert_eq!(writes(&first), [(span.first, key("a"))]);
    assert!(journal.claim(100, soon()).await.expect("a claim").is_empty());
    let patience = Deadline::at(Runtime::system().now() + TAKEOVER * 20);
    let again = journal.claim(100, patience).await.expect("a claim");
    assert_eq!(writes(&again), writes(&first));
    let progress = settle(&*journal, &again).await;
    assert_eq!(progress.applied, span.first);
    // The one that was taken for dead settles late: nothing is left to settle.
    assert_eq!(settle(&*journal, &first).await, progress);
}

/// `applied` stops below the oldest entry that is not settled, whatever else is.
pub async fn what_is_settled_is_gone_and_the_rest_is_counted(journal: Arc<dyn Journal>) {
    let mut spans = Vec::new();
    for number in 0..6 {
        spans.push(append(&*journal, vec![put(&format!("k{number}"), "12345")]).await.1);
    }
    let before = journal.progress().await.expect("progress");
    assert_eq!((before.writes, before.dead), (6, 0));
    assert!(before.bytes >= 6 * 7 && before.applied < spans[0].first);
    let claimed = claim_all(&*journal).await;
    let last = claimed.last().expect("entries").first;
    let kept: Vec<_> = claimed.iter().filter(|entry| entry.first == last).cloned().collect();
    let rest: Vec<_> = claimed.iter().filter(|entry| entry.first != last).cloned().collect();
    let settled = settle(&*journal, &rest).await;
    assert!(settled.applied < last);
    assert_eq!(settled.writes, writes(&kept).len() as u64);
    let done = settle(&*journal, &kept).await;
    assert_eq!((done.applied, done.writes, done.bytes), (spans[5].first, 0, 0));
    assert_eq!(done.settled, done.applied);
    assert_eq!(journal.progress().await.expect("progress"), done);
    assert!(claim_all(&*journal).await.is_empty());
}

/// What is claimed is still seen, what is settled is not.
pub async fn a_peek_claims_nothing_and_misses_nothing(journal: Arc<dyn Journal>) {
    for number in 0..40 {
        append(&*journal, vec![put(&format!("k{number}"), "1")]).await;
    }
    let mut seen = Vec::new();
    let mut after = Sequence::NONE;
    loop {
        let some = journal.peek(after, 7).await.expect("a peek");
        let Some(last) = some.last() else { break };
        after = last.id.plus(last.writes.len() as u64).before();
        seen.extend(writes(&some));
    }
    assert_eq!(seen.len(), 40);
    let claimed = claim_all(&*journal).await;
    assert_eq!(writes(&claimed), seen);
    let peeked = journal.peek(Sequence::NONE, 1000).await.expect("a peek");
    assert_eq!(writes(&peeked), seen);
    settle(&*journal, &claimed).await;
    assert!(journal.peek(Sequence::NONE, 10).await.expect("a peek").is_empty());
}

/// Keys and values of every kind, deletes, and large batches.
pub async fn every_kind_of_write_comes_back_whole(journal: Arc<dyn Journal>) {
    let big = "ü".repeat(400_000);
    let mut batch = vec![put("鍵 %/\n", "\"\\\r\n"), Write::delete(key("gone")), put("e", "")];
    batch.push(put("big", &big));
    batch.extend((0..900).map(|number| put(&format!("n{number}"), &number.to_string())));
    let appended = journal.append(vec![request(batch.clone())]).await.expect("an append");
    let first = appended.spans[0].clone().expect("a place").first;
    let entries = claim_all(&*journal).await;
    let got: Vec<_> = entries.iter().flat_map(|entry| entry.writes.clone()).collect();
    assert_eq!(got, batch);
    let places: Vec<_> = writes(&entries).into_iter().map(|(sequence, _)| sequence).collect();
    assert_eq!(places, (0..904).map(|n| first.plus(n)).collect::<Vec<_>>());
}

/// The limit is by writes and by bytes, and what is settled makes room.
pub async fn a_full_journal_takes_nothing_more(journal: Arc<dyn Journal>) {
    for _ in 0..4 {
        let batch = (0..1000).map(|number| put(&format!("k{number}"), "1")).collect();
        append(&*journal, batch).await;
    }
    let before = journal.progress().await.expect("progress");
    let refused = journal.append(vec![request(vec![put("a", "1")])]).await.expect_err("full");
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    assert!(refused.wait().is_some(), "says when to come back");
    let after = journal.progress().await.expect("progress");
    assert_eq!(after, crate::Progress { age: after.age, ..before });
    settle(&*journal, &claim_all(&*journal).await).await;
    let big = "x".repeat(1000 * 1000);
    for _ in 0..4 {
        append(&*journal, vec![put("big", &big)]).await;
    }
    let refused = journal.append(vec![request(vec![put("big", &big)])]).await.expect_err("full");
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    append(&*journal, vec![put("small", "1")]).await;
}

/// The same key and body answer the first place; another body is refused, and only that request.
pub async fn a_repeated_request_is_appended_once(journal: Arc<dyn Journal>) {
    let named = |print: u8, text: &str| Append {
        writes: vec![put("a", text), put("b", text)],
        idempotency: Some(Arc::new(Idempotency::new("once", [print; 32]).expect("a key"))),
    };
    let first = journal.append(vec![named(1, "1")]).await.expect("an append");
    let first = first.spans[0].clone().expect("a place");
    assert!(!first.repeated);
    let batch = vec![named(1, "1"), named(2, "2"), request(vec![put("c", "1")])];
    let again = journal.append(batch).await.expect("an append");
    let repeat = again.spans[0].clone().expect("a place");
    assert_eq!(repeat, Span { first: first.first, repeated: true });
    assert_eq!(again.spans[1].as_ref().expect_err("reused").kind(), ErrorKind::InvalidInput);
    assert!(again.spans[2].as_ref().is_ok_and(|span| !span.repeated));
    let entries = claim_all(&*journal).await;
    let keys: Vec<_> = writes(&entries).into_iter().map(|(_, key)| key).collect();
    assert_eq!(keys, [key("a"), key("b"), key("c")]);
    settle(&*journal, &entries).await;
    let late = journal.append(vec![named(1, "1")]).await.expect("an append");
    assert_eq!(late.spans[0].clone().expect("a place").first, first.first, "applied or not");
    assert!(claim_all(&*journal).await.is_empty());
}

/// Repeats that come in one append with the first count as repeats.
pub async fn a_request_repeated_within_an_append_is_appended_once(journal: Arc<dyn Journal>) {
    let named = |print: u8, text: &str| Append {
        writes: vec![put("a", text)],
        idempotency: Some(Arc::new(Idempotency::new("hedged", [print; 32]).expect("a key"))),
    };
    let between = request(vec![put("a", "2")]);
    let batch = vec![named(1, "1"), between, named(1, "1"), named(2, "3")];
    let appended = journal.append(batch).await.expect("an append");
    let first = appended.spans[0].clone().expect("a place");
    assert!(!first.repeated);
    let repeat = appended.spans[2].clone().expect("a place");
    assert_eq!(repeat, Span { first: first.first, repeated: true });
    let reused = appended.spans[3].as_ref().expect_err("reused");
    assert_eq!(reused.kind(), ErrorKind::InvalidInput);
    let later = journal.append(vec![named(1, "1")]).await.expect("an append");
    assert_eq!(later.spans[0], Ok(repeat));
    assert_eq!(writes(&claim_all(&*journal).await).len(), 2);
}

/// A dead letter keeps its sequence, also when it is tried again.
pub async fn dead_letters_are_shown_tried_again_and_dropped(journal: Arc<dyn Journal>) {
    append(&*journal, vec![put("a", "1"), put("b", "2"), put("c", "3")]).await;
    let claimed = claim_all(&*journal).await;
    let all: Vec<_> = claimed
        .iter()
        .flat_map(|entry| (0..).zip(&entry.writes).map(|(n, write)| (entry.first.plus(n), write)))
        .collect();
    let letters: Vec<_> = all
        .iter()
        .take(2)
        .map(|(sequence, write)| {
            let reason = "refused".to_owned();
            DeadLetter { sequence: *sequence, write: (*write).clone(), reason }
        })
        .collect();
    let done = claimed.iter().map(|entry| {
        let span = entry.first..entry.first.plus(entry.writes.len() as u64);
        let dead = letters.iter().filter(|letter| span.contains(&letter.sequence)).cloned();
        Settled { dead: dead.collect(), ..Settled::of(entry) }
    });
    let progress = journal.settle(done.collect()).await.expect("a settlement");
    assert_eq!((progress.dead, progress.writes), (2, 0));
    assert!(progress.settled < letters[0].sequence && progress.applied > letters[1].sequence);
    assert_eq!(journal.dead(Sequence::NONE, 10).await.expect("a list"), letters);
    let rest = journal.dead(letters[0].sequence, 10).await.expect("a list");
    assert_eq!(rest, letters[1..]);

    let named = vec![letters[0].sequence, Sequence::new(7)];
    assert_eq!(journal.retry(named).await.expect("a retry"), 1);
    let again = claim_all(&*journal).await;
    assert_eq!(writes(&again), [(letters[0].sequence, key("a"))]);
    assert!(again[0].id > letters[1].sequence, "a new place in the queue");
    let between = journal.progress().await.expect("progress");
    assert_eq!((between.writes, between.dead), (1, 1));
    assert!(between.settled < letters[0].sequence, "an old sequence is under way");
    settle(&*journal, &again).await;
    assert_eq!(journal.bury(vec![letters[1].sequence]).await.expect("a burial"), 1);
    assert!(journal.dead(Sequence::NONE, 10).await.expect("a list").is_empty());
    let end = journal.progress().await.expect("progress");
    assert_eq!((end.dead, end.settled), (0, end.applied));
}

/// A journal made anew goes on above what rows carry, whatever its clock says.
pub async fn a_raised_floor_is_below_all_that_follows(journal: Arc<dyn Journal>) {
    let floor = Sequence::at(Runtime::system().wall()).plus(1 << 50);
    journal.raise(floor).await.expect("a floor");
    let (appended, span) = append(&*journal, vec![put("a", "1"), put("b", "1")]).await;
    assert!(span.first > floor && appended.last > span.first);
    journal.raise(Sequence::new(5)).await.expect("a floor");
    let (_, next) = append(&*journal, vec![put("a", "2")]).await;
    assert!(next.first > appended.last, "a floor is never lowered");
    let claimed = claim_all(&*journal).await;
    assert_eq!(writes(&claimed).len(), 3);
    assert_eq!(settle(&*journal, &claimed).await.applied, next.first);
}

/// A claim that waits comes back with what is appended meanwhile.
pub async fn a_waiting_claim_is_woken_by_an_append(journal: Arc<dyn Journal>) {
    let patience = Deadline::at(Runtime::system().now() + Duration::from_secs(30));
    let (claimed, _) = tokio::join!(journal.claim(10, patience), async {
        tokio::task::yield_now().await;
        append(&*journal, vec![put("late", "1")]).await
    });
    assert_eq!(claimed.expect("a claim").len(), 1);
}

/// Closed is closed, and closing twice is once.
pub async fn a_closed_journal_says_so(journal: Arc<dyn Journal>) {
    journal.close().await.expect("an end");
    let refused = journal.append(vec![request(vec![put("a", "1")])]).await.expect_err("closed");
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(journal.claim(1, soon()).await.is_err());
    journal.close().await.expect("an end");
}

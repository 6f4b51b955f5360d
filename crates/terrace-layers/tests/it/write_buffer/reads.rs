//! Reads see what waits: on every path, through every instance that was given the token.

use terrace_core::{Consistency, ErrorKind, Page, Place, Scan, Sequence, Timestamp};
use terrace_layers::Flusher;

use super::*;

async fn two() -> (Arc<MemoryStore>, Arc<MemoryJournal>, WriteBuffer, WriteBuffer) {
    let runtime = Runtime::system();
    let (inner, journal) = (Arc::new(MemoryStore::new(runtime.clone())), journal(&runtime));
    let one = open(inner.clone(), &journal, idle()).await;
    let two = open(inner.clone(), &journal, idle()).await;
    (inner, journal, one, two)
}

async fn names(store: &dyn Store, scan: &Scan) -> (Vec<String>, Option<String>) {
    let page = store.scan(scan, &ReadOptions::default()).await.unwrap();
    let names = page.records.iter().map(|it| format!("{}={}", it.key, it.value.as_str()));
    (names.collect(), page.next.map(|key| key.as_str().to_owned()))
}

#[tokio::test(start_paused = true)]
async fn a_write_is_seen_at_once_on_every_path() {
    let (inner, _journal, store, _other) = two().await;
    for name in ["a", "c", "e"] {
        inner.put(key(name), value("old")).await.unwrap();
    }
    let receipt = store.put(key("b"), value("new")).await.unwrap();
    assert_eq!((receipt.outcome, receipt.version), (Outcome::Queued, Version::NONE));
    assert_eq!((receipt.origin, receipt.durability), (Origin::JOURNAL, Durability::Accepted));
    store.put(key("c"), value("new")).await.unwrap();
    store.delete(key("e")).await.unwrap();
    assert_eq!(inner.get(&key("b")).await.unwrap(), None, "nothing is applied");

    assert_eq!(plain(&store, "b").await, is("new"));
    assert_eq!(plain(&store, "c").await, is("new"));
    assert_eq!(plain(&store, "e").await, None);
    let keys = ["a", "e", "b", "b", "zz"].map(key);
    let reads = store.read(&keys, &ReadOptions::default()).await.unwrap();
    let texts: Vec<_> =
        reads.iter().map(|it| it.record.as_ref().map(|it| it.value.as_str())).collect();
    assert_eq!(texts, [Some("old"), None, Some("new"), Some("new"), None]);
    let origins: Vec<_> = reads.iter().map(|read| read.origin).collect();
    assert_eq!(origins[..3], [Origin::PRIMARY, Origin::JOURNAL, Origin::JOURNAL]);
    let below = inner.get(&key("c")).await.unwrap().unwrap();
    let above = store.get(&key("c")).await.unwrap().unwrap();
    assert_eq!(above.created_at, below.created_at, "survives an update");
    assert_eq!(above.version, Version::NONE, "has none before it is applied");

    let all = Scan::prefix("");
    assert_eq!(names(&store, &all).await.0, ["a=old", "b=new", "c=new"]);
    let first = Scan { limit: 2, ..all.clone() };
    assert_eq!(names(&store, &first).await, (vec!["a=old".into(), "b=new".into()], is("b")));
    let second = Scan { after: Some(key("b")), limit: 2, prefix: String::new() };
    assert_eq!(names(&store, &second).await.0, ["c=new"]);
    let none = Scan::prefix("e");
    assert_eq!(names(&store, &none).await, (vec![], None));
}

/// Random pages over random pending writes: the same as over a store that has applied them.
#[tokio::test(start_paused = true)]
async fn scans_show_what_a_store_with_everything_applied_would() {
    let runtime = Runtime::seeded(5);
    let below = |end: u64| usize::try_from(runtime.random() % end).unwrap();
    for round in 0..200 {
        let (inner, _journal, store, _other) = two().await;
        let model = MemoryStore::new(runtime.clone());
        for step in 0..40 {
            let draw = runtime.random();
            let key = key(format!("{}{}", ["x", "y"][usize::from(draw & 1 == 1)], draw >> 8 & 15));
            let write = match draw >> 16 & 3 {
                0 => Write::delete(key),
                _ => Write::put(key, value(step.to_string())),
            };
            model.write_one(write.clone()).await.unwrap();
            if step < 20 {
                inner.write_one(write).await.unwrap();
            } else {
                store.write_one(write).await.unwrap();
            }
        }
        let prefix = ["", "x", "y", "x1"][below(4)];
        let mut scan = Scan { limit: 1 + below(6), ..Scan::prefix(prefix) };
        let mut found = Vec::new();
        loop {
            let (some, next) = names(&store, &scan).await;
            assert!(some.len() <= scan.limit);
            found.extend(some);
            let Some(next) = next else { break };
            scan.after = Some(key(next));
        }
        let wanted = names(&model, &Scan { limit: 1000, ..Scan::prefix(prefix) }).await.0;
        assert_eq!(found, wanted, "round {round}, prefix {prefix:?}, limit {}", scan.limit);
    }
}

#[tokio::test(start_paused = true)]
async fn another_instance_answers_for_the_token_what_waits_in_the_journal() {
    let (_inner, _journal, one, two) = two().await;
    let receipt = one.put(key("a"), value("1")).await.unwrap();
    assert_eq!(plain(&two, "a").await, None, "nobody has told it");
    assert_eq!(text(&two, "a", &with_token(&receipt)).await.unwrap(), is("1"));
    let later = one.put(key("a"), value("2")).await.unwrap();
    assert_eq!(text(&two, "a", &with_token(&later)).await.unwrap(), is("2"));
    let scan = Scan::prefix("a");
    let page = two.scan(&scan, &with_token(&later)).await.unwrap();
    assert_eq!(page.records[0].value.as_str(), "2");
    let gone = one.delete(key("a")).await.unwrap();
    assert_eq!(text(&two, "a", &with_token(&gone)).await.unwrap(), None);
}

/// A list that shows what waits, or that something waiting is gone, has a token that asks for it.
#[tokio::test(start_paused = true)]
async fn the_token_of_a_list_covers_what_the_list_has_shown() {
    let (_inner, _journal, one, two) = two().await;
    let scan = Scan::prefix("a");
    let page = async |how: &ReadOptions| one.scan(&scan, how).await.unwrap();
    let of = |page: &Page| ReadOptions { token: Some(page.token.clone()), ..Default::default() };
    one.put(key("a"), value("1")).await.unwrap();
    let shown = page(&ReadOptions::default()).await;
    assert_eq!(shown.records[0].value.as_str(), "1");
    assert_eq!(text(&two, "a", &of(&shown)).await.unwrap(), is("1"));
    one.put(key("a"), value("2")).await.unwrap();
    let shown = page(&of(&shown)).await;
    assert_eq!(text(&two, "a", &of(&shown)).await.unwrap(), is("2"));
    one.delete(key("a")).await.unwrap();
    let shown = page(&ReadOptions::default()).await;
    assert!(shown.records.is_empty());
    assert_eq!(text(&two, "a", &of(&shown)).await.unwrap(), None);
}

/// What this instance has waiting may be older than what another has applied already.
#[tokio::test(start_paused = true)]
async fn a_token_of_the_database_is_not_answered_with_an_older_write_that_waits() {
    let (inner, journal, one, two) = two().await;
    two.put(key("a"), value("older")).await.unwrap();
    one.put(key("a"), value("newer")).await.unwrap();
    // Somebody applies both, and has not settled them.
    for entry in journal.claim(10, Deadline::NEVER).await.unwrap() {
        for write in entry.writes {
            inner.write_one(write).await.unwrap();
        }
    }
    let seen = inner.get_read(&key("a"), &ReadOptions::default()).await.unwrap();
    let how = ReadOptions { token: Some(seen.token), ..ReadOptions::default() };
    assert_eq!(text(&two, "a", &how).await.unwrap(), is("newer"));
}

#[tokio::test(start_paused = true)]
async fn a_strong_read_waits_until_its_key_is_applied_or_says_so() {
    let (_inner, journal, one, two) = two().await;
    one.put(key("a"), value("1")).await.unwrap();
    let strong = ReadOptions::strong(Deadline::NEVER);
    let error = text(&two, "a", &strong).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "nobody flushes: {error}");
    assert_eq!(text(&one, "other", &strong).await.unwrap(), None, "other keys do not wait");
    assert!(text(&two, "other", &strong).await.is_err(), "except where others have written");
    let flushing = open(Arc::clone(&_inner) as _, &journal, WriteBufferOptions::default()).await;
    let read = two.get_read(&key("a"), &strong).await.unwrap();
    assert_eq!(read.record.unwrap().value.as_str(), "1");
    assert!(read.version > Version::NONE);
    flushing.close().await.unwrap();
}

/// A token whose write is gone with its journal is refused, and not answered with what is there.
#[tokio::test(start_paused = true)]
async fn a_token_of_a_lost_journal_is_refused() {
    let (_inner, journal, one, two) = two().await;
    let receipt = one.put(key("a"), value("1")).await.unwrap();
    journal.lose();
    let error = text(&two, "a", &with_token(&receipt)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let again = one.put(key("b"), value("2")).await.unwrap();
    assert_eq!(text(&two, "b", &with_token(&again)).await.unwrap(), is("2"));
    assert_eq!(plain(&one, "a").await, None, "what is lost is not shown any more");
}

/// A restarted instance shows what it had accepted before.
#[tokio::test(start_paused = true)]
async fn what_waited_before_a_restart_is_seen_after_it() {
    let (inner, journal, one, _two) = two().await;
    for number in 0..5000 {
        one.put(key(format!("k{number}")), value("1")).await.unwrap();
    }
    drop(one);
    let again = open(inner, &journal, idle()).await;
    for number in [0, 2500, 4999] {
        assert_eq!(plain(&again, &format!("k{number}")).await, is("1"));
    }
}

/// The database may be down: what waits is still read, the rest is not.
#[tokio::test(start_paused = true)]
async fn without_the_database_what_waits_is_still_read() {
    let runtime = Runtime::system();
    let inner = Arc::new(MemoryStore::new(runtime.clone()));
    let store = open(inner.clone(), &journal(&runtime), idle()).await;
    store.put(key("a"), value("1")).await.unwrap();
    inner.close().await.unwrap();
    assert_eq!(plain(&store, "a").await, is("1"));
    store.put(key("a"), value("2")).await.unwrap();
    assert_eq!(plain(&store, "a").await, is("2"));
    assert!(text(&store, "b", &ReadOptions::default()).await.is_err());
    assert!(
        text(&store, "a", &ReadOptions { consistency: Consistency::Strong, ..Default::default() })
            .await
            .is_err()
    );
}

/// All that was ever written is applied, and nobody has written since: nothing tells of news.
#[tokio::test(start_paused = true)]
async fn an_instance_that_begins_idle_reads_strongly_and_writes_through() {
    let runtime = Runtime::system();
    let (inner, journal) = (Arc::new(MemoryStore::default()), journal(&runtime));
    let first = open(inner.clone(), &journal, WriteBufferOptions::default()).await;
    first.put(key("a"), value("1")).await.unwrap();
    let strong = ReadOptions::strong(Deadline::NEVER);
    assert_eq!(text(&first, "a", &strong).await.unwrap(), is("1"), "it is applied");
    drop(first);
    let second = open(inner, &journal, WriteBufferOptions::default()).await;
    assert_eq!(text(&second, "a", &strong).await.unwrap(), is("1"));
    let write = Write::put(key("a"), value("2"));
    let receipts = second.write(vec![write], &committed()).await.unwrap();
    assert_eq!(one(receipts).unwrap().outcome, Outcome::Replaced);
}

/// What is deleted and put again while it waits is another record: it has the time that it was shown with,
/// and not that of the one before.
#[tokio::test(start_paused = true)]
async fn a_record_that_waits_after_a_delete_keeps_its_own_time() {
    let (inner, journal, store, _other) = two().await;
    let long_ago = Sequence::at(Timestamp::from_second(1_700_000_000).unwrap());
    let place = Place { sequence: long_ago, settled: Sequence::NONE };
    for name in ["a", "b"] {
        let old = Write::put(key(name), value("old")).when(Precondition::After(place));
        inner.write_one(old).await.unwrap();
    }
    store.delete(key("a")).await.unwrap();
    let batch = [
        Write::put(key("b"), value("between")),
        Write::delete(key("b")),
        Write::put(key("a"), value("new")),
        Write::put(key("b"), value("new")),
        Write::put(key("c"), value("gone")),
        Write::delete(key("c")),
    ];
    store.write(batch.into(), &WriteOptions::default()).await.unwrap();
    let mut waiting = Vec::new();
    for name in ["a", "b"] {
        waiting.push(store.get(&key(name)).await.unwrap().unwrap());
    }
    let runtime = Runtime::system();
    let through = Arc::clone(&journal) as Arc<dyn Journal>;
    let options = FlusherOptions::default();
    let flusher = Flusher::start(through, inner.clone(), options, runtime.clone(), Arc::new(()));
    while journal.progress().await.unwrap().writes > 0 {
        runtime.sleep(Duration::from_millis(10)).await;
    }
    flusher.stop().await;
    for shown in waiting {
        let applied = inner.get(&shown.key).await.unwrap().unwrap();
        assert_eq!((applied.value.as_str(), applied.created_at), ("new", shown.created_at));
    }
    assert_eq!(inner.get(&key("c")).await.unwrap(), None);
}

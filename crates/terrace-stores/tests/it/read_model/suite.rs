//! What every read model does.

use std::time::Duration;

use terrace_core::read_model::{Batch, Counted, Projection, Row, begun, fold};
use terrace_core::testkit::{key, value};
use terrace_core::{
    Deadline, Key, LogPosition, PositionLost, Runtime, Scan, StoreExt, Version, Write, WriteOptions,
};

use super::Sides;

impl Sides {
    async fn write(&self, name: &str, text: &str) {
        self.store.put(key(name), value(text)).await.expect("a put");
    }

    /// Applies what follows the checkpoint, in batches of this size. Other tests of the server have
    /// transactions, too, which hold the horizon back.
    async fn project(&self, limit: usize) {
        let head = self.log.head().await.expect("a head");
        loop {
            let from = begun(&*self.model, Projection::Live, &self.source).await.expect("it");
            if from >= head {
                return;
            }
            let page = self.log.after(from, limit).await.expect("a page");
            if page.position == from {
                let soon = Runtime::system().now() + Duration::from_millis(20);
                self.log.wait(from, Deadline::at(soon)).await.expect("a wait");
                continue;
            }
            let folded = fold(&page.changes);
            let source = self.source.to_string();
            let batch = Batch { source, from, to: page.position, folded, poison: vec![] };
            assert!(self.model.apply(Projection::Live, &batch).await.expect("applied"));
        }
    }

    async fn row(&self, name: &str) -> Row {
        self.model.read(&[key(name)]).await.expect("rows").rows.remove(0)
    }

    pub(super) fn projector(&self) -> terrace_core::BoxFuture<'_, ()> {
        Box::pin(self.project(1000))
    }
}

fn text(row: &Row) -> Option<&str> {
    row.record.as_ref().map(|record| record.value.as_str())
}

pub(super) async fn what_is_written_is_projected_with_its_counts(sides: Sides) {
    sides.write("a", "1").await;
    sides.write("a", "2").await;
    sides.write("b", "1").await;
    sides.store.delete(key("b")).await.expect("a delete");
    let same = ["3", "4", "5"].map(|text| Write::put(key("c"), value(text))).to_vec();
    sides.store.write(same, &WriteOptions::default()).await.expect("receipts");
    sides.project(2).await;
    let (a, b, c) = (sides.row("a").await, sides.row("b").await, sides.row("c").await);
    assert_eq!(a.record, sides.store.get(&key("a")).await.expect("a read"), "times and all");
    assert_eq!((text(&a), a.writes), (Some("2"), 2));
    assert_eq!((text(&b), b.writes), (None, 2));
    assert!(b.version > Version::NONE, "the deletion's");
    assert_eq!((text(&c), c.writes), (Some("5"), 3), "each command of a batch counts");
    assert_eq!(sides.row("nobody").await, Row::default());
    let keys = [key("a"), key("nobody"), key("a")];
    let rows = sides.model.read(&keys).await.expect("rows");
    assert_eq!(rows.rows, [a.clone(), Row::default(), a]);
    assert_eq!(*rows.source, *sides.source);
    let page = sides.model.scan(&Scan::prefix("")).await.expect("a page");
    assert_eq!(page.records.iter().map(|it| it.key.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    for (prefix, keys) in
        [("a", vec!["a"]), ("b", vec![]), ("c", vec!["c"]), ("\u{10ffff}", vec![])]
    {
        let page = sides.model.scan(&Scan::prefix(prefix)).await.expect("a page");
        assert_eq!(page.records.iter().map(|it| it.key.as_str()).collect::<Vec<_>>(), keys);
    }
    assert_eq!(sides.model.inspect().await.figure("records"), Some(2));
}

pub(super) async fn a_batch_is_applied_from_its_checkpoint_alone(sides: Sides) {
    sides.write("a", "1").await;
    sides.project(10).await;
    let here = begun(&*sides.model, Projection::Live, &sides.source).await.expect("it");
    sides.write("a", "2").await;
    let page = loop {
        let page = sides.log.after(here, 10).await.expect("a page");
        if !page.changes.is_empty() {
            break page;
        }
    };
    let folded = fold(&page.changes);
    let source = sides.source.to_string();
    let batch = Batch { source, from: here, to: page.position, folded, poison: vec![] };
    // Two projectors at once: one is first, the other changes nothing.
    let (one, two) = futures_util::future::join(
        sides.model.apply(Projection::Live, &batch),
        sides.model.apply(Projection::Live, &batch),
    )
    .await;
    let applied = [one.expect("an answer"), two.expect("an answer")];
    assert_eq!(applied.iter().filter(|applied| **applied).count(), 1);
    assert_eq!(sides.row("a").await.writes, 2);
    let foreign = Batch { source: "another".into(), from: batch.to, ..batch.clone() };
    assert!(!sides.model.apply(Projection::Live, &foreign).await.expect("an answer"));
    sides.model.pause(Duration::from_secs(60)).await.expect("paused");
    let next = Batch { from: batch.to, ..batch };
    assert!(!sides.model.apply(Projection::Live, &next).await.expect("an answer"));
}

pub(super) async fn the_highest_version_counts_wherever_it_stands(sides: Sides) {
    sides.write("a", "old").await;
    sides.write("a", "new").await;
    let mut position = LogPosition::default();
    let mut changes = Vec::new();
    while changes.len() < 2 {
        let page = sides.log.after(position, 10).await.expect("a page");
        position = page.position;
        changes.extend(page.changes);
    }
    let mut from = begun(&*sides.model, Projection::Live, &sides.source).await.expect("it");
    // As overlapping transactions may bring them: the newer one first.
    for (number, change) in changes.iter().rev().enumerate() {
        let to = LogPosition { epoch: from.epoch, offset: number as u64 + 1 };
        let folded = fold(std::slice::from_ref(change));
        let batch = Batch { source: sides.source.to_string(), from, to, folded, poison: vec![] };
        assert!(sides.model.apply(Projection::Live, &batch).await.expect("applied"));
        from = to;
    }
    let row = sides.row("a").await;
    assert_eq!((text(&row), row.writes), (Some("new"), 2));
}

pub(super) async fn a_refused_change_stops_its_key_until_it_is_retried(sides: Sides) {
    begun(&*sides.model, Projection::Live, &sides.source).await.expect("it");
    (sides.refuse)(true);
    sides.write("bad", "poison").await;
    let change = loop {
        let page = sides.log.after(LogPosition::default(), 10).await.expect("a page");
        if !page.changes.is_empty() {
            break page;
        }
    };
    let from = LogPosition::default();
    let folded = fold(&change.changes);
    let source = sides.source.to_string();
    let mut batch = Batch { source, from, to: change.position, folded, poison: vec![] };
    let refused = sides.model.apply(Projection::Live, &batch).await.expect_err("refused");
    assert!(!refused.is_retryable(), "{refused}");
    let here = begun(&*sides.model, Projection::Live, &sides.source).await.expect("it");
    assert_eq!(here, from, "nothing was changed");
    batch.poison = batch.folded.drain(..).map(|folded| (folded, "why".to_owned())).collect();
    assert!(sides.model.apply(Projection::Live, &batch).await.expect("parked"));
    sides.write("bad", "later").await;
    sides.write("good", "1").await;
    sides.projector().await;
    let row = sides.row("bad").await;
    assert_eq!((row.parked, text(&row)), (true, None));
    assert_eq!(text(&sides.row("good").await), Some("1"));
    let parked = sides.model.parked(10).await.expect("keys");
    assert_eq!((parked.len(), parked[0].commands, &*parked[0].reason), (1, 2, "why"));
    assert_eq!(sides.model.inspect().await.status, terrace_core::Status::Degraded);
    (sides.refuse)(false);
    assert!(sides.model.retry(&key("bad")).await.expect("an answer"));
    assert!(!sides.model.retry(&key("bad")).await.expect("an answer"), "once");
    let row = sides.row("bad").await;
    assert_eq!((row.parked, text(&row), row.writes), (false, Some("later"), 2));
    sides.write("bad", "last").await;
    sides.projector().await;
    assert_eq!(sides.row("bad").await.writes, 3);
}

async fn rebuild(sides: &Sides, swap: bool) -> terrace_core::read_model::Difference {
    sides.model.begin(Projection::Next, &sides.source).await.expect("begun");
    loop {
        let live = begun(&*sides.model, Projection::Live, &sides.source).await.expect("it");
        let next = begun(&*sides.model, Projection::Next, &sides.source).await.expect("it");
        if next >= live {
            break;
        }
        let mut page = sides.log.after(next, 3).await.expect("a page");
        if page.position > live {
            page.changes.retain(|change| change.position <= live);
            page.position = live;
        }
        let folded = fold(&page.changes);
        let source = sides.source.to_string();
        let batch = Batch { source, from: next, to: page.position, folded, poison: vec![] };
        assert!(sides.model.apply(Projection::Next, &batch).await.expect("applied"));
    }
    sides.model.finish_rebuild(swap).await.expect("finished").expect("both have come as far")
}

pub(super) async fn a_rebuild_finds_no_difference_and_keeps_reads(sides: Sides) {
    for number in 0..10 {
        sides.write(&format!("k{}", number % 4), &number.to_string()).await;
    }
    sides.store.delete(key("k1")).await.expect("a delete");
    sides.project(4).await;
    sides.model.add_reads(&[(key("k0"), 5), (key("k2"), 1)]).await.expect("counted");
    let before = sides.row("k0").await;
    assert_eq!(before.reads, 5);
    for swap in [false, true, true] {
        let found = rebuild(&sides, swap).await;
        assert_eq!((found.keys, found.differing), (4, 0), "{found:?}");
        assert_eq!(sides.row("k0").await, before);
    }
    // The new one goes on.
    sides.write("k0", "after").await;
    sides.projector().await;
    let row = sides.row("k0").await;
    assert_eq!((text(&row), row.reads, row.writes), (Some("after"), 5, before.writes + 1));
    let found = sides.model.search("after", 10).await.expect("rows");
    assert_eq!(found.len(), 1, "the words go on, too");
}

pub(super) async fn a_rebuild_finds_what_was_changed_by_hand(sides: Sides) {
    sides.write("a", "1").await;
    sides.write("b", "1").await;
    sides.project(10).await;
    // A batch that nobody committed at the command side stands for a hand in the read model.
    let from = begun(&*sides.model, Projection::Live, &sides.source).await.expect("it");
    let mut page = sides.log.after(LogPosition::default(), 10).await.expect("a page");
    page.changes.retain(|change| change.key == key("a"));
    let source = sides.source.to_string();
    let folded = fold(&page.changes);
    let batch = Batch { source, from, to: from, folded, poison: vec![] };
    assert!(sides.model.apply(Projection::Live, &batch).await.expect("applied"));
    assert_eq!(sides.row("a").await.writes, 2);
    let found = rebuild(&sides, true).await;
    assert_eq!((found.differing, found.examples), (1, vec!["a".to_owned()]));
    assert_eq!(sides.row("a").await.writes, 1, "repaired");
}

pub(super) async fn words_are_found_and_times_told(sides: Sides) {
    sides.write("user:1", "Ada Lovelace writes programs").await;
    sides.write("user:2", "Grace Hopper writes compilers").await;
    sides.write("ключ", "значение мира").await;
    sides.write("user:2", "Grace Hopper finds bugs").await;
    let long = (0..90_000).map(|number| format!("w{number} ")).collect::<String>();
    sides.write("long", &long).await;
    sides.projector().await;
    let keys = |rows: Vec<Row>| {
        let keys = rows.into_iter().filter_map(|row| row.record).map(|record| record.key);
        keys.collect::<Vec<Key>>()
    };
    let search = async |words: &str| keys(sides.model.search(words, 10).await.expect("rows"));
    assert_eq!(search("writes").await, [key("user:1")]);
    assert_eq!(search("GRACE bugs").await, [key("user:2")]);
    assert_eq!(search("мира").await, [key("ключ")]);
    assert_eq!(search("w5").await, [key("long")], "a value with many words is no poison");
    for nothing in ["", "compilers", "'", "\"", "a & | !", "* NEAR(", "ada:*"] {
        assert!(search(nothing).await.len() <= 1, "{nothing}");
    }
    let top = sides.model.top(Counted::Writes, 1).await.expect("rows");
    assert_eq!((top[0].writes, keys(top)), (2, vec![key("user:2")]));
    sides.model.add_reads(&[(key("user:1"), 7)]).await.expect("counted");
    let top = sides.model.top(Counted::Reads, 1).await.expect("rows");
    assert_eq!((top[0].reads, keys(top)), (7, vec![key("user:1")]));
    let told = sides.model.activity(Duration::from_secs(86_400), 5).await.expect("buckets");
    assert_eq!(told.iter().map(|bucket| bucket.writes).sum::<u64>(), 5);
    sides.store.delete(key("user:1")).await.expect("a delete");
    sides.projector().await;
    assert!(search("lovelace").await.is_empty(), "what is deleted is not found");
}

pub(super) async fn another_log_begins_anew(sides: Sides) {
    sides.write("a", "1").await;
    sides.project(10).await;
    let position = begun(&*sides.model, Projection::Live, "another").await.expect("it");
    assert_eq!(position, LogPosition::default());
    assert_eq!(sides.row("a").await, Row::default(), "what it has not is not there");
    sides.project(10).await;
    assert_eq!(sides.row("a").await.writes, 1);
}

/// As after a restore of the command side: the checkpoint is beyond all that the log can have given.
pub(super) async fn a_position_beyond_the_log_is_lost(sides: Sides) {
    sides.write("a", "1").await;
    sides.project(10).await;
    let from = begun(&*sides.model, Projection::Live, &sides.source).await.expect("it");
    let to = LogPosition { epoch: from.epoch + (1 << 40), offset: from.offset + (1 << 40) };
    let source = sides.source.to_string();
    let batch = Batch { source, from, to, ..Batch::default() };
    assert!(sides.model.apply(Projection::Live, &batch).await.expect("applied"));
    let error = sides.log.after(to, 10).await.expect_err("lost");
    assert!(PositionLost::caused(&error), "{error}");
    sides.model.begin(Projection::Live, &sides.source).await.expect("begun anew");
    assert_eq!(sides.row("a").await, Row::default());
    sides.write("b", "1").await;
    sides.projector().await;
    assert_eq!((sides.row("a").await.writes, sides.row("b").await.writes), (1, 1));
}

/// Who rebuilds while another rebuild ends must not swap in what that one has emptied.
pub(super) async fn a_finished_rebuild_leaves_nothing_to_swap(sides: Sides) {
    sides.write("a", "1").await;
    sides.project(10).await;
    for swap in [false, true] {
        rebuild(&sides, swap).await;
        let next = sides.model.checkpoint(Projection::Next, &sides.source).await.expect("it");
        assert_eq!(next, None);
        assert_eq!(sides.model.finish_rebuild(true).await.expect("nothing"), None);
        assert_eq!(text(&sides.row("a").await), Some("1"));
    }
}

pub(super) async fn one_owner_has_the_projection(sides: Sides) {
    let long = Duration::from_secs(60);
    assert!(sides.model.lease("one", long).await.expect("an answer"));
    assert!(!sides.model.lease("two", long).await.expect("an answer"));
    assert!(sides.model.lease("one", Duration::from_millis(1)).await.expect("kept"));
    let taken = async { while !sides.model.lease("two", long).await.expect("an answer") {} };
    taken.await;
    assert!(!sides.model.lease("one", long).await.expect("an answer"));
}

//! What every read model does.

use std::sync::Arc;
use std::time::Duration;

use terrace_core::Budget;
use terrace_core::read_model::{Counted, Projection, Row};
use terrace_core::testkit::{key, value};
use terrace_core::{
    Batch, Changes, Checkpoint, Deadline, Follower, Key, LogPosition, Logged, PositionLost,
    Runtime, Scan, StoreExt, Version, Write, WriteOptions,
};

use super::Sides;

impl Sides {
    pub(super) async fn write(&self, name: &str, text: &str) {
        self.store.put(key(name), value(text)).await.expect("a put");
    }

    pub(super) fn live(&self) -> Arc<dyn Follower> {
        self.model.follower(Projection::Live)
    }

    /// Where a projection stands; begun anew when it is of another log.
    pub(super) async fn begun(&self, of: Projection) -> Checkpoint {
        let follower = self.model.follower(of);
        let known = follower.checkpoint().await.expect("a checkpoint");
        if known.is_in(&self.log.name()) {
            return known;
        }
        follower.begin_anew(&self.log.name()).await.expect("begun");
        follower.checkpoint().await.expect("a checkpoint")
    }

    /// Brings a follower to this position of the log, in batches of this size. Other tests of the server
    /// have transactions, too, which hold the horizon back.
    async fn follow(&self, follower: &dyn Follower, end: LogPosition, limit: usize) {
        let mut from = follower.checkpoint().await.expect("a checkpoint");
        while from.position < end {
            let page = self.log.after(from.position, limit).await.expect("a page");
            if page.position == from.position {
                let soon = Runtime::system().now() + Duration::from_millis(20);
                self.log.wait(from.position, Deadline::at(soon)).await.expect("a wait");
                continue;
            }
            let batch = batch(&from, page.position, &page.changes);
            let batch = Batch { more: page.more, ..batch };
            assert!(follower.apply(&batch).await.expect("applied"));
            from = batch.to;
        }
    }

    pub(super) async fn project(&self, batch: usize) {
        let head = self.log.head().await.expect("a head");
        self.begun(Projection::Live).await;
        self.follow(&*self.live(), head, batch).await;
        if let Some(index) = self.model.search_index() {
            let known = index.checkpoint().await.expect("a checkpoint");
            if !known.is_in(&self.log.name()) {
                index.begin_anew(&self.log.name()).await.expect("begun");
            }
            self.follow(&*index, head, batch).await;
        }
    }

    /// The changes after a position, once there are so many.
    pub(super) async fn changes(&self, after: LogPosition, count: usize) -> Changes {
        loop {
            let page = self.log.after(after, 10).await.expect("a page");
            if page.changes.len() >= count {
                return page;
            }
            let soon = Runtime::system().now() + Duration::from_millis(20);
            self.log.wait(page.position, Deadline::at(soon)).await.expect("a wait");
        }
    }

    /// What every instance sees of how far it has come: alike, however it is asked.
    pub(super) async fn is_whole(&self) -> bool {
        let log = self.log.name();
        let rows = self.model.read(&[key("a")], Budget::default()).await.expect("rows");
        let (_, reached) = self.model.scan(&Scan::prefix("")).await.expect("a page");
        assert_eq!(rows.reached, reached);
        reached.place_in(&log).is_some()
    }

    async fn row(&self, name: &str) -> Row {
        self.model.read(&[key(name)], Budget::default()).await.expect("rows").rows.remove(0)
    }

    pub(super) fn projector(&self) -> terrace_core::BoxFuture<'_, ()> {
        Box::pin(self.project(1000))
    }
}

/// What is applied at this checkpoint.
pub(super) fn batch(from: &Checkpoint, to: LogPosition, changes: &[Logged]) -> Batch {
    let (from, to, changes) = (from.clone(), from.at(to), changes.to_vec());
    Batch { from, to, changes, ..Batch::default() }
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
    let rows = sides.model.read(&keys, Budget::default()).await.expect("rows");
    assert_eq!(rows.rows, [a.clone(), Row::default(), a]);
    assert!(sides.is_whole().await);
    let (page, _) = sides.model.scan(&Scan::prefix("")).await.expect("a page");
    assert_eq!(page.records.iter().map(|it| it.key.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    for (prefix, keys) in
        [("a", vec!["a"]), ("b", vec![]), ("c", vec!["c"]), ("\u{10ffff}", vec![])]
    {
        let (page, _) = sides.model.scan(&Scan::prefix(prefix)).await.expect("a page");
        assert_eq!(page.records.iter().map(|it| it.key.as_str()).collect::<Vec<_>>(), keys);
    }
    assert_eq!(sides.model.inspect().await.number("records"), Some(2));
}

/// It is right from its first change on, and lacks what it has yet to come to.
pub(super) async fn what_begins_anew_is_whole_at_the_end_of_its_log(sides: Sides) {
    for name in ["a", "b", "c"] {
        sides.write(name, "1").await;
    }
    let live = sides.live();
    for _ in 0..2 {
        live.begin_anew(&sides.log.name()).await.expect("begun");
        assert!(!sides.is_whole().await, "it is empty");
        let from = live.checkpoint().await.expect("a checkpoint");
        let page = sides.changes(from.position, 3).await;
        let first = batch(&from, page.changes[0].position, &page.changes[..1]);
        let first = Batch { more: true, ..first };
        assert!(live.apply(&first).await.expect("applied"));
        assert!(!sides.is_whole().await, "it lacks two");
        sides.project(10).await;
        assert!(sides.is_whole().await);
    }
}

pub(super) async fn a_batch_is_applied_from_its_checkpoint_alone(sides: Sides) {
    sides.write("a", "1").await;
    sides.project(10).await;
    let here = sides.begun(Projection::Live).await;
    sides.write("a", "2").await;
    let page = sides.changes(here.position, 1).await;
    let batch = batch(&here, page.position, &page.changes);
    // Two projectors at once: one is first, the other changes nothing.
    let (one, other) = (sides.live(), sides.live());
    let (one, two) = futures_util::future::join(one.apply(&batch), other.apply(&batch)).await;
    let applied = [one.expect("an answer"), two.expect("an answer")];
    assert_eq!(applied.iter().filter(|applied| **applied).count(), 1);
    assert_eq!(sides.row("a").await.writes, 2);
    let elsewhere = Checkpoint { log: "another".into(), ..batch.to.clone() };
    let foreign = Batch { from: elsewhere, ..batch.clone() };
    assert!(!sides.live().apply(&foreign).await.expect("an answer"));
    sides.model.pause(Duration::from_secs(60)).await.expect("paused");
    let next = Batch { from: batch.to.clone(), ..batch };
    assert!(!sides.live().apply(&next).await.expect("an answer"));
}

pub(super) async fn the_highest_version_counts_wherever_it_stands(sides: Sides) {
    sides.write("a", "old").await;
    sides.write("a", "new").await;
    let changes = sides.changes(LogPosition::default(), 2).await.changes;
    let mut from = sides.begun(Projection::Live).await;
    // As overlapping transactions may bring them: the newer one first.
    for (number, change) in changes.iter().rev().enumerate() {
        let to = LogPosition { offset: number as u64 + 1, ..from.position };
        let batch = batch(&from, to, std::slice::from_ref(change));
        assert!(sides.live().apply(&batch).await.expect("applied"));
        from = batch.to;
    }
    let row = sides.row("a").await;
    assert_eq!((text(&row), row.writes), (Some("new"), 2));
}

pub(super) async fn a_refused_change_stops_its_key_until_it_is_retried(sides: Sides) {
    let from = sides.begun(Projection::Live).await;
    (sides.refuse)(true);
    sides.write("bad", "poison").await;
    let page = sides.changes(LogPosition::default(), 1).await;
    let mut batch = batch(&from, page.position, &page.changes);
    let refused = sides.live().apply(&batch).await.expect_err("refused");
    assert!(!refused.is_retryable(), "{refused}");
    assert_eq!(sides.begun(Projection::Live).await, from, "nothing was changed");
    batch.refused = Some("why".to_owned());
    assert!(sides.live().apply(&batch).await.expect("parked"));
    sides.write("bad", "later").await;
    sides.write("good", "1").await;
    sides.projector().await;
    let row = sides.row("bad").await;
    assert_eq!((row.parked, text(&row)), (true, None));
    assert_eq!(text(&sides.row("good").await), Some("1"));
    let parked = sides.model.parked(10).await.expect("keys");
    assert_eq!((parked.len(), parked[0].commands, &*parked[0].reason), (1, 2, "why"));
    let (_, reached) = sides.model.scan(&Scan::prefix("")).await.expect("a page");
    assert!(!reached.whole, "a page lacks its record");
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

pub(super) async fn rebuild(sides: &Sides, swap: bool) -> terrace_core::read_model::Difference {
    let next = sides.model.follower(Projection::Next);
    next.begin_anew(&sides.log.name()).await.expect("begun");
    let live = sides.begun(Projection::Live).await;
    sides.follow(&*next, live.position, 3).await;
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
    let from = sides.begun(Projection::Live).await;
    let mut page = sides.changes(LogPosition::default(), 2).await;
    page.changes.retain(|change| change.key == key("a"));
    let batch = batch(&from, from.position, &page.changes);
    assert!(sides.live().apply(&batch).await.expect("applied"));
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
    sides.live().begin_anew("another").await.expect("begun");
    let there = sides.live().checkpoint().await.expect("a checkpoint");
    assert_eq!(there, Checkpoint::beginning("another"));
    assert_eq!(sides.row("a").await, Row::default(), "what it has not is not there");
    sides.project(10).await;
    assert_eq!(sides.row("a").await.writes, 1);
}

/// As after a restore of the command side: the checkpoint is beyond all that the log can have given.
pub(super) async fn a_position_beyond_the_log_is_lost(sides: Sides) {
    sides.write("a", "1").await;
    sides.project(10).await;
    let from = sides.begun(Projection::Live).await;
    let LogPosition { epoch, offset } = from.position;
    let to = LogPosition { epoch: epoch + (1 << 40), offset: offset + (1 << 40) };
    assert!(sides.live().apply(&batch(&from, to, &[])).await.expect("applied"));
    let error = sides.log.after(to, 10).await.expect_err("lost");
    assert!(PositionLost::caused(&error), "{error}");
    sides.live().begin_anew(&sides.log.name()).await.expect("begun anew");
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
        let next = sides.model.follower(Projection::Next).checkpoint().await.expect("it");
        assert_eq!(next, Checkpoint::beginning(""));
        assert_eq!(sides.model.finish_rebuild(true).await.expect("nothing"), None);
        assert_eq!(text(&sides.row("a").await), Some("1"));
    }
}

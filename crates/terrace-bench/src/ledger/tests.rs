use super::*;

const KEY: u32 = 7;

/// A ledger under test, with a clock that each step moves on by ten.
struct Book {
    ledger: Ledger,
    now: Moment,
    under_way: Vec<u64>,
    flaw: Option<Flaw>,
}

/// How a judge may be broken, to show that the tests would catch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// Takes any value of the key, however old.
    TakesOldValues,
    /// Lets keys be empty.
    ForgetsRecords,
    /// Does not look whose value it is.
    IgnoresTheKey,
    /// Believes any value that looks like one.
    BelievesEverything,
    /// Takes a write that overlapped another for one that was sent after it.
    OrdersOverlappingWrites,
    /// Lets a write in doubt supersede others.
    TrustsDoubt,
    /// Takes statements without a transaction that was acknowledged.
    ForgetsPosts,
    /// Takes statements with a transaction too many.
    CountsPostsTwice,
}

impl Book {
    fn new() -> Self {
        Self { ledger: Ledger::new(100, 1), now: 0, under_way: Vec::new(), flaw: None }
    }

    fn tick(&mut self) -> Moment {
        self.now += 10;
        self.now
    }

    fn named(sequence: u64) -> Named {
        Named { key: KEY, write: WriteId::new(1, sequence) }
    }

    fn send(&mut self, sequence: u64) {
        let now = self.tick();
        self.under_way.push(sequence);
        self.ledger.sent(Self::named(sequence), now);
    }

    fn acknowledge(&mut self, sequence: u64) {
        let now = self.tick();
        self.under_way.retain(|other| *other != sequence);
        if self.flaw == Some(Flaw::OrdersOverlappingWrites) {
            for other in &self.under_way {
                self.ledger.acknowledged(Self::named(*other), now - 2);
            }
            self.ledger.refused(Self::named(sequence));
            self.ledger.sent(Self::named(sequence), now - 1);
        }
        self.ledger.acknowledged(Self::named(sequence), now);
    }

    fn doubt(&mut self, sequence: u64) {
        match self.flaw {
            Some(Flaw::TrustsDoubt) => self.acknowledge(sequence),
            _ => self.ledger.in_doubt(Self::named(sequence)),
        }
    }

    fn write(&mut self, sequence: u64) {
        self.send(sequence);
        self.acknowledge(sequence);
    }

    fn value(&self, named: Named) -> String {
        let mut text = Vec::new();
        self.ledger.values().write(&mut text, named, 20);
        String::from_utf8(text).unwrap()
    }

    /// A post that is acknowledged.
    fn post(&self) {
        self.ledger.post_sent(KEY);
        self.ledger.post_acknowledged(KEY);
    }

    /// The judgement of a statement that is sent now and shows these posts.
    fn statement(&self, posts: impl IntoIterator<Item = u64>) -> Verdict {
        let kinds: Vec<_> = posts.into_iter().map(|post| self.value(Self::named(post))).collect();
        self.judge_statement(&kinds.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn judge_statement(&self, kinds: &[&str]) -> Verdict {
        let acknowledged = self.ledger.posts_acknowledged(KEY);
        let (verdict, _) = self.ledger.judge_statement(KEY, kinds.iter().copied(), acknowledged);
        match (self.flaw, &verdict) {
            (Some(Flaw::ForgetsPosts), Verdict::Lacking(_))
            | (Some(Flaw::CountsPostsTwice), Verdict::Surplus(_))
            | (Some(Flaw::IgnoresTheKey), Verdict::Swapped)
            | (Some(Flaw::BelievesEverything), Verdict::MadeUp) => Verdict::Right,
            _ => verdict,
        }
    }

    /// The judgement of a read that is sent now and shows this write.
    fn read(&mut self, sequence: u64) -> Verdict {
        let (now, value) = (self.tick(), self.value(Self::named(sequence)));
        self.judge(Some(&value), now)
    }

    fn judge(&self, value: Option<&str>, sent: Moment) -> Verdict {
        let verdict = self.ledger.judge(KEY, value, sent);
        match (self.flaw, &verdict) {
            (Some(Flaw::TakesOldValues), Verdict::Stale(_))
            | (Some(Flaw::ForgetsRecords), Verdict::Missing(_))
            | (Some(Flaw::IgnoresTheKey), Verdict::Swapped)
            | (Some(Flaw::BelievesEverything), Verdict::MadeUp) => Verdict::Right,
            _ => verdict,
        }
    }
}

/// The lies of a server and what each must be called; the first one that passes is named.
fn lies_pass(mut book: Book) -> Result<(), &'static str> {
    let expect = |what, verdict: bool| if verdict { Ok(()) } else { Err(what) };
    book.write(1);
    book.write(2);
    let newest = book.read(2);
    expect("the newest value is right", newest == Verdict::Right)?;
    let old = book.read(1);
    expect("a superseded value is stale", matches!(old, Verdict::Stale(20)))?;
    let now = book.tick();
    let missing = book.judge(None, now);
    expect("an acknowledged record is not gone", matches!(missing, Verdict::Missing(_)))?;
    let other = book.value(Named { key: KEY + 1, write: WriteId::new(1, 1) });
    let swapped = book.judge(Some(&other), now);
    expect("another key's value is swapped", swapped == Verdict::Swapped)?;
    let invented = book.judge(Some("7.1.2.123456789a"), now);
    expect("an invented value is made up", invented == Verdict::MadeUp)?;
    book.send(3);
    book.send(4);
    book.acknowledge(4);
    book.acknowledge(3);
    let overlapping = (book.read(3), book.read(4));
    expect("overlapping writes have no order", overlapping == (Verdict::Right, Verdict::Right))?;
    book.send(5);
    book.doubt(5);
    let doubt = (book.read(5), book.read(4));
    expect("a write in doubt settles nothing", doubt == (Verdict::Right, Verdict::Right))
}

/// The same for statements.
fn lies_in_statements_pass(book: &Book) -> Result<(), &'static str> {
    let expect = |what, verdict: bool| if verdict { Ok(()) } else { Err(what) };
    expect("a user without posts has none", book.statement([]) == Verdict::Right)?;
    book.post();
    book.post();
    expect("all posts are right", book.statement([1, 2]) == Verdict::Right)?;
    let lost = (book.statement([2]), book.statement([]));
    expect("a lost post is found", lost == (Verdict::Lacking(1), Verdict::Lacking(2)))?;
    let doubled = book.statement([1, 2, 1]);
    expect("a doubled post is found", doubled == Verdict::Surplus(1))?;
    let hidden = book.statement([2, 2]);
    expect("a doubled post hides no lost one", hidden == Verdict::Surplus(1))?;
    book.ledger.post_sent(KEY);
    book.ledger.post_refused(KEY);
    let refused = book.statement([1, 2, 3]);
    expect("a refused post does not show", refused == Verdict::Surplus(1))?;
    book.ledger.post_sent(KEY);
    let doubt = (book.statement([1, 2, 4]), book.statement([1, 2]));
    expect("a post in doubt may show or not", doubt == (Verdict::Right, Verdict::Right))?;
    let other = book.value(Named { key: KEY + 1, write: WriteId::new(1, 1) });
    let swapped = book.judge_statement(&[&other]);
    expect("another user's post is swapped", swapped == Verdict::Swapped)?;
    let invented = book.judge_statement(&["credit"]);
    expect("an invented post is made up", invented == Verdict::MadeUp)
}

#[test]
fn every_lie_is_called_what_it_is() {
    assert_eq!(lies_pass(Book::new()), Ok(()));
    assert_eq!(lies_in_statements_pass(&Book::new()), Ok(()));
}

#[test]
fn every_broken_judge_is_caught() {
    for (flaw, caught) in [
        (Flaw::TakesOldValues, "a superseded value is stale"),
        (Flaw::ForgetsRecords, "an acknowledged record is not gone"),
        (Flaw::IgnoresTheKey, "another key's value is swapped"),
        (Flaw::BelievesEverything, "an invented value is made up"),
        (Flaw::OrdersOverlappingWrites, "overlapping writes have no order"),
        (Flaw::TrustsDoubt, "a write in doubt settles nothing"),
    ] {
        let book = Book { flaw: Some(flaw), ..Book::new() };
        assert_eq!(lies_pass(book), Err(caught), "{flaw:?}");
    }
    for (flaw, caught) in [
        (Flaw::ForgetsPosts, "a lost post is found"),
        (Flaw::CountsPostsTwice, "a doubled post is found"),
        (Flaw::IgnoresTheKey, "another user's post is swapped"),
        (Flaw::BelievesEverything, "an invented post is made up"),
    ] {
        let book = Book { flaw: Some(flaw), ..Book::new() };
        assert_eq!(lies_in_statements_pass(&book), Err(caught), "{flaw:?}");
    }
}

#[test]
fn a_statement_needs_no_more_than_the_latest_and_none_acknowledged_after_it_was_sent() {
    let book = Book::new();
    for _ in 0..1_200 {
        book.post();
    }
    assert_eq!(book.statement(200..1_200), Verdict::Right);
    assert_eq!(book.statement(201..1_200), Verdict::Lacking(1));
    let values: Vec<_> = (0..3).map(|post| book.value(Book::named(post))).collect();
    let early = book.ledger.judge_statement(KEY, values.iter().map(String::as_str), 3);
    assert_eq!(early, (Verdict::Right, None));
    assert_eq!(book.ledger.posted(), [KEY]);
}

#[test]
fn a_read_on_its_way_may_show_what_was_there_when_it_left() {
    let mut book = Book::new();
    book.write(1);
    let sent = book.tick();
    book.write(2);
    let value = book.value(Book::named(1));
    assert_eq!(book.ledger.judge(KEY, Some(&value), sent), Verdict::Right);
    // A write that has left may show before it is acknowledged.
    book.send(3);
    assert_eq!(book.read(3), Verdict::Right);
    assert_eq!(book.read(2), Verdict::Right);
    // Nothing is missing that was not acknowledged.
    assert_eq!(book.ledger.judge(KEY + 64, None, sent), Verdict::Right);
}

#[test]
fn a_write_in_doubt_may_show_at_any_later_time() {
    let mut book = Book::new();
    book.write(1);
    book.send(2);
    book.doubt(2);
    book.write(3);
    assert_eq!(book.read(2), Verdict::Right);
    assert!(matches!(book.read(1), Verdict::Stale(_)));
}

#[test]
fn a_refused_write_must_not_show() {
    let mut book = Book::new();
    book.write(1);
    book.send(2);
    book.ledger.refused(Book::named(2));
    assert_eq!(book.read(2), Verdict::MadeUp);
    assert_eq!(book.read(1), Verdict::Right);
}

#[test]
fn what_was_forgotten_is_still_stale_and_memory_is_bounded() {
    let mut book = Book::new();
    for sequence in 0..10_000 {
        book.write(sequence);
    }
    assert!(matches!(book.read(3), Verdict::Stale(age) if age > 0));
    assert_eq!(book.read(9_999), Verdict::Right);
    let held = book.ledger.with_key(KEY, |key| key.writes.len());
    assert!(held <= book.ledger.remembered, "{held}");
}

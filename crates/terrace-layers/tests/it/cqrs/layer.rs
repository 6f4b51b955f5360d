//! What a client of the layer sees.

use std::sync::Arc;
use std::time::Duration;

use terrace_core::testkit::{key, value};
use terrace_core::{
    Consistency, Histories, Key, Logged, MemoryStore, Origin, Position, ReadModel, ReadOptions,
    Runtime, Scan, Standing, Store, StoreExt, Token, Value,
};
use terrace_layers::{CommandSide, Cqrs, CqrsOptions};

use super::memory::{Faults, MemoryLog, MemoryModel};

struct Field {
    cqrs: Cqrs,
    log: Arc<MemoryLog>,
    model: Arc<MemoryModel>,
    store: Arc<MemoryStore>,
    runtime: Runtime,
}

fn field() -> Field {
    field_of("db")
}

fn field_of(history: &str) -> Field {
    let runtime = Runtime::seeded(1);
    let faults = Faults::new(runtime.clone(), 0);
    let log = Arc::new(MemoryLog::new(Arc::clone(&faults), runtime.clone()));
    let model = Arc::new(MemoryModel::new(faults, runtime.clone()));
    let store = Arc::new(MemoryStore::new(runtime.clone()));
    let side = CommandSide {
        store: Arc::clone(&store) as _,
        histories: Arc::new(Histories::new(Standing::of(history))),
        log: Arc::clone(&log) as _,
    };
    let model_ = Arc::clone(&model);
    let cqrs = Cqrs::new(side, model_, None, CqrsOptions::default(), runtime.clone());
    Field { cqrs, log, model, store, runtime }
}

impl Field {
    /// A command that both the store and the log have, and its token.
    async fn command(&self, name: &Key, text: &str) -> (Vec<Logged>, Token) {
        self.store.put(name.clone(), value(text)).await.expect("a put");
        let changes = self.log.begin(&[(name.clone(), Some(Value::new(text).expect("a value")))]);
        let token = token(changes[0].position.epoch);
        (changes, token)
    }

    async fn read(&self, name: &Key, how: ReadOptions) -> terrace_core::Read {
        self.cqrs.get_read(name, &how).await.expect("a read")
    }
}

/// Of a transaction of the command side.
fn token(transaction: u64) -> Token {
    Token::of("db", Position::new(transaction))
}

fn at_most(age: Duration) -> ReadOptions {
    ReadOptions { consistency: Consistency::MaxStale(age), ..ReadOptions::default() }
}

fn with(token: &Token) -> ReadOptions {
    ReadOptions { token: Some(token.clone()), ..ReadOptions::default() }
}

#[tokio::test(start_paused = true)]
async fn a_token_waits_for_the_projection_and_then_goes_to_the_command_side() {
    let field = field();
    let (changes, token) = field.command(&key("before"), "1").await;
    field.log.commit(changes);
    field.read(&key("before"), with(&token)).await;
    let name = key("a");
    let (changes, token) = field.command(&name, "1").await;
    // Not committed in the log yet: the projection cannot come as far.
    let before = field.runtime.now();
    let read = field.read(&name, with(&token)).await;
    assert_eq!(read.origin, Origin::PRIMARY);
    let waited = field.runtime.now() - before;
    assert!(waited >= Duration::from_millis(500) && waited < Duration::from_millis(700));
    assert!(field.read(&name, ReadOptions::default()).await.record.is_none(), "may be behind");

    let (read, ()) = futures_util::future::join(field.read(&name, with(&token)), async {
        field.runtime.sleep(Duration::from_millis(50)).await;
        field.log.commit(changes);
    })
    .await;
    assert_eq!(read.origin, Origin::READ_MODEL);
    assert_eq!(read.record.expect("a record").value.as_str(), "1");
    assert!(read.token.position("db") >= token.position("db"), "proves what was asked");
    field.cqrs.close().await.expect("an end");
}

/// Nothing was ever written: the read model knows that as well.
#[tokio::test(start_paused = true)]
async fn an_empty_read_model_answers_that_there_is_nothing() {
    let field = field();
    field.runtime.sleep(Duration::from_secs(1)).await;
    let read = field.read(&key("a"), ReadOptions::default()).await;
    assert_eq!((read.origin, read.record), (Origin::READ_MODEL, None));
    field.cqrs.close().await.expect("an end");
}

/// A command side that was restored knows nothing of what was projected last: all begins anew.
#[tokio::test(start_paused = true)]
async fn a_log_that_lost_its_end_is_projected_anew() {
    let field = field();
    let (kept, undone) = (key("kept"), key("undone"));
    let mut last = None;
    for (name, text) in [(&kept, "1"), (&undone, "1"), (&kept, "2")] {
        let (changes, token) = field.command(name, text).await;
        field.log.commit(changes.clone());
        assert_eq!(field.read(name, with(&token)).await.origin, Origin::READ_MODEL);
        last = Some(changes);
    }
    let end = last.expect("three commands")[0].position.epoch;
    field.log.lose_from(end - 1);
    let (changes, _) = field.command(&key("new"), "3").await;
    let position = changes[0].position;
    assert!(position.epoch < end, "numbers are given out again");
    field.log.commit(changes);
    let until = field.runtime.now() + Duration::from_secs(10);
    loop {
        let live = field.model.live();
        let records = live.rows.values().filter_map(|row| row.record.as_ref());
        let texts = records.map(|it| (it.key.as_str(), it.value.as_str())).collect::<Vec<_>>();
        if texts == [("kept", "1"), ("new", "3")] {
            break;
        }
        assert!(field.runtime.now() < until, "{texts:?}");
        field.runtime.sleep(Duration::from_millis(50)).await;
    }
    field.cqrs.close().await.expect("an end");
}

/// What is filled again lacks records until it has come to the end: they are read and listed from the
/// command side.
#[tokio::test(start_paused = true)]
async fn what_a_model_that_begins_anew_lacks_is_asked_of_the_command_side() {
    let field = field();
    let names = (0..3000).map(|number| key(format!("k{number:04}"))).collect::<Vec<_>>();
    let mut last = 0;
    for name in &names {
        let (changes, _) = field.command(name, "1").await;
        last = changes[0].position.epoch;
        field.log.commit(changes);
    }
    let projected = |table: &super::memory::Table| table.rows.len() == names.len();
    let until = field.runtime.now() + Duration::from_secs(60);
    while !projected(&field.model.live()) {
        assert!(field.runtime.now() < until);
        field.runtime.sleep(Duration::from_millis(10)).await;
    }
    let newest = &names[names.len() - 1];
    assert_eq!(field.read(newest, ReadOptions::default()).await.origin, Origin::READ_MODEL);
    // Another life of the command side, which has lost something else.
    let (changes, _) = field.command(&key("lost"), "1").await;
    field.log.commit(changes);
    let seen = field.read(newest, with(&token(last + 1))).await;
    assert_eq!(seen.origin, Origin::READ_MODEL);
    field.log.lose_from(last + 1);
    let scan = Scan { prefix: "k2999".into(), after: None, limit: 1 };
    let (mut emptied, mut from_command_side) = (false, 0);
    let until = field.runtime.now() + Duration::from_secs(5);
    while field.runtime.now() < until {
        emptied |= !projected(&field.model.live());
        let read = field.read(newest, ReadOptions::default()).await;
        assert!(read.record.is_some(), "a record that is there is missing: {:?}", read.origin);
        from_command_side += usize::from(read.origin == Origin::PRIMARY);
        let page = field.cqrs.scan(&scan, &ReadOptions::default()).await.expect("a page");
        assert_eq!(page.records.len(), 1, "a page lacks a record");
        assert!(!page.token.is_empty(), "who goes on from a page does not go back");
        field.runtime.sleep(Duration::from_millis(1)).await;
    }
    assert!(emptied && from_command_side > 0, "it was filled again");
    assert_eq!(field.read(newest, ReadOptions::default()).await.origin, Origin::READ_MODEL);
    field.cqrs.close().await.expect("an end");
}

#[tokio::test(start_paused = true)]
async fn what_the_command_side_was_seen_to_have_is_asked_of_the_read_model() {
    let field = field();
    let name = key("a");
    let (changes, _) = field.command(&name, "1").await;
    field.log.commit(changes);
    let strong = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
    assert_eq!(field.read(&name, strong).await.origin, Origin::PRIMARY);
    let read = field.read(&name, with(&token(1))).await;
    assert_eq!((read.origin, read.record.is_some()), (Origin::READ_MODEL, true));
    assert!(field.read(&name, at_most(Duration::from_millis(1))).await.record.is_some());
}

/// The age of an answer is counted from the last end of the log that its projection has come to.
#[tokio::test(start_paused = true)]
async fn a_bound_on_age_is_kept_while_the_projection_stands_still() {
    let (field, name, second) = (field(), key("a"), Duration::from_secs(1));
    let (changes, token) = field.command(&name, "1").await;
    field.log.commit(changes);
    assert_eq!(field.read(&name, with(&token)).await.origin, Origin::READ_MODEL);
    // Nobody has looked where the log ended: this one does.
    let read = field.read(&name, at_most(5 * second)).await;
    assert_eq!(read.origin, Origin::READ_MODEL);

    field.model.pause(60 * second).await.expect("a pause");
    let (changes, _) = field.command(&name, "2").await;
    field.log.commit(changes);
    field.runtime.sleep(3 * second).await;
    let read = field.read(&name, at_most(5 * second)).await;
    assert_eq!((read.origin, text(&read)), (Origin::READ_MODEL, "1"), "young enough");
    assert!(read.age >= 3 * second && read.age < 4 * second, "{:?}", read.age);
    field.runtime.sleep(3 * second).await;
    let read = field.read(&name, at_most(5 * second)).await;
    assert_eq!((read.origin, text(&read)), (Origin::PRIMARY, "2"), "no older than asked");
    // Looking at the end of the log makes what was projected before no younger.
    let read = field.read(&name, at_most(5 * second)).await;
    assert_eq!((read.origin, text(&read)), (Origin::PRIMARY, "2"));
    field.runtime.sleep(60 * second).await;
    let read = field.read(&name, at_most(second)).await;
    assert_eq!((read.origin, text(&read)), (Origin::READ_MODEL, "2"));
}

/// Of another life of the command side's database nobody but that knows.
#[tokio::test(start_paused = true)]
async fn a_token_of_another_life_goes_to_the_command_side_at_once() {
    let field = field_of("db.2");
    let name = key("a");
    let (changes, _) = field.command(&name, "1").await;
    field.log.commit(changes);
    let lives = ["db.1", "db.3"].map(|life| Token::of(life, Position::new(1)));
    let mut both = Token::of("db.2", Position::new(1));
    both.merge(&lives[0]);
    let begun = field.runtime.now();
    for token in [&lives[0], &lives[1], &both] {
        assert_eq!(field.read(&name, with(token)).await.origin, Origin::PRIMARY);
    }
    assert_eq!(field.runtime.now(), begun, "nothing is waited for");
    field.runtime.sleep(Duration::from_secs(1)).await;
    let elsewhere = Token::of("another.1", Position::new(9));
    assert_eq!(field.read(&name, with(&elsewhere)).await.origin, Origin::READ_MODEL);
}

fn text(read: &terrace_core::Read) -> &str {
    read.record.as_ref().expect("a record").value.as_str()
}

#[tokio::test(start_paused = true)]
async fn a_parked_key_is_read_from_the_command_side_and_the_others_go_on() {
    let field = field();
    let (bad, good) = (key("bad"), key("good"));
    field.model.refuse("poison", true);
    for (name, text) in [(&bad, "1"), (&good, "1"), (&bad, "poison"), (&good, "2")] {
        let (changes, _) = field.command(name, text).await;
        field.log.commit(changes);
    }
    let (changes, token) = field.command(&good, "3").await;
    field.log.commit(changes);
    let read = field.read(&good, with(&token)).await;
    assert_eq!(read.origin, Origin::READ_MODEL);
    assert_eq!(read.record.expect("a record").value.as_str(), "3");
    let read = field.read(&bad, with(&token)).await;
    assert_eq!(read.origin, Origin::PRIMARY);
    assert_eq!(read.record.expect("a record").value.as_str(), "poison");
    let page = field.cqrs.scan(&Scan::prefix(""), &ReadOptions::default()).await.expect("a page");
    let values = page.records.iter().map(|it| it.value.as_str()).collect::<Vec<_>>();
    assert_eq!(values, ["poison", "3"], "a list is no older than a read");
    assert_eq!(field.model.live().parked.keys().collect::<Vec<_>>(), [&bad]);
    let row = field.model.live().rows[&good].clone();
    assert_eq!(row.writes, 3, "each command once");
}

#[tokio::test(start_paused = true)]
async fn reads_are_counted_in_memory_and_stored_in_batches() {
    let field = field();
    let name = key("a");
    let (changes, token) = field.command(&name, "1").await;
    field.log.commit(changes);
    field.read(&name, with(&token)).await;
    for count in 2..5 {
        field.read(&name, ReadOptions::default()).await;
        assert_eq!(field.cqrs.read_count(&name), count);
    }
    assert_eq!(field.model.live().rows[&name].reads, 0, "a read is not a write");
    field.runtime.sleep(Duration::from_millis(1500)).await;
    assert_eq!(field.model.live().rows[&name].reads, 4);
    assert_eq!(field.cqrs.read_count(&name), 4);
    field.read(&name, ReadOptions::default()).await;
    field.cqrs.close().await.expect("an end");
    assert_eq!(field.model.live().rows[&name].reads, 5, "what is pending is stored at the end");
}

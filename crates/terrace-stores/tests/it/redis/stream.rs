//! Events on a stream: all of a page or none, each position once, whoever else publishes.

use redis::aio::MultiplexedConnection;
use terrace_core::testkit::{key, value};
use terrace_core::{
    Batch, Checkpoint, Follower as _, LogPosition, Logged, Record, Result, Runtime, Timestamp,
    Version,
};
use terrace_lab::testing;
use terrace_stores::redis::{RedisStream, RedisStreamOptions};

struct Fresh {
    options: RedisStreamOptions,
    connection: MultiplexedConnection,
}

async fn fresh() -> Fresh {
    let fresh = testing::fresh_prefix();
    let client = redis::Client::open(fresh.url.as_str()).expect("a URL");
    let connection = client.get_multiplexed_async_connection().await.expect("a connection");
    let options = RedisStreamOptions::new(fresh.url, format!("{}events", fresh.prefix));
    Fresh { options, connection }
}

fn stream(options: &RedisStreamOptions) -> RedisStream {
    RedisStream::new(options.clone(), Runtime::system()).expect("a stream")
}

/// Where the stream stands.
async fn last(stream: &RedisStream) -> LogPosition {
    stream.checkpoint().await.expect("an answer").position
}

/// Publishes what follows this position.
async fn publish(stream: &RedisStream, last: LogPosition, events: &[Logged]) -> Result<bool> {
    let from = Checkpoint::beginning(Checkpoint::ANY_LOG).at(last);
    let to = from.at(events.last().expect("events").position);
    stream.apply(&Batch { from, to, changes: events.to_vec(), ..Batch::default() }).await
}

fn at(offset: u64) -> LogPosition {
    LogPosition { epoch: 7, offset }
}

fn event(offset: u64) -> Logged {
    let (key, version) = (key("a"), Version::new(offset));
    let time = |micros| Timestamp::from_microsecond(micros).expect("a time");
    let (created_at, updated_at) = (time(1), time(2));
    let record = Record { key: key.clone(), value: value("v"), version, created_at, updated_at };
    Logged { position: at(offset), key, version, record: Some(record), ancestry: None }
}

fn events(range: std::ops::RangeInclusive<u64>) -> Vec<Logged> {
    range.map(event).collect()
}

#[tokio::test]
async fn events_have_their_places_and_all_their_fields() {
    let mut fresh = fresh().await;
    let stream = stream(&fresh.options);
    assert_eq!(last(&stream).await, LogPosition::default());
    let gone = Logged { record: None, ..event(3) };
    let page = [event(1), event(2), gone];
    assert!(publish(&stream, LogPosition::default(), &page).await.expect("an answer"));
    assert_eq!(last(&stream).await, at(3));
    let entries: Vec<(String, Vec<String>)> = redis::cmd("XRANGE")
        .arg(&[fresh.options.key.as_str(), "-", "+"])
        .query_async(&mut fresh.connection)
        .await
        .expect("entries");
    assert_eq!(
        entries.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(),
        ["7-1", "7-2", "7-3"]
    );
    let told = |place: usize, name: &str| {
        let fields = entries[place].1.chunks_exact(2);
        fields.filter(|field| field[0] == name).map(|field| field[1].clone()).next()
    };
    let names = ["type", "key", "version", "value", "time"];
    assert_eq!(
        names.map(|name| told(1, name).unwrap_or_default()),
        ["RecordUpdated", "a", "2", "v", "2"]
    );
    assert_eq!(told(2, "type").as_deref(), Some("RecordDeleted"));
    assert_eq!((told(2, "value"), told(2, "time")), (None, None));
}

#[tokio::test]
async fn events_that_share_a_place_do_not_push_the_end_beyond_it() {
    let mut fresh = fresh().await;
    let stream = stream(&fresh.options);
    let same = vec![event(5); 4];
    assert!(publish(&stream, LogPosition::default(), &same).await.expect("an answer"));
    assert_eq!(last(&stream).await, at(5), "6 to 8 are still to come");
    assert!(publish(&stream, at(5), &events(6..=7)).await.expect("an answer"));
    assert_eq!(last(&stream).await, at(7));
    assert_eq!(length(&mut fresh).await, 6);
}

#[tokio::test]
async fn what_does_not_follow_the_last_is_not_published() {
    let mut fresh = fresh().await;
    let stream = stream(&fresh.options);
    assert!(publish(&stream, LogPosition::default(), &events(1..=2)).await.expect("an answer"));
    assert!(!publish(&stream, LogPosition::default(), &events(1..=3)).await.expect("an answer"));
    assert!(!publish(&stream, at(5), &events(6..=6)).await.expect("an answer"));
    // The end is known when the entries are gone.
    let trim = redis::cmd("XTRIM").arg(&[fresh.options.key.as_str(), "MAXLEN", "0"]).to_owned();
    trim.exec_async(&mut fresh.connection).await.expect("trimmed");
    assert_eq!(last(&stream).await, at(2));
    assert!(publish(&stream, at(2), &events(3..=4)).await.expect("an answer"));
}

#[tokio::test]
async fn of_two_that_publish_the_same_one_does() {
    const ROUNDS: u64 = 300;
    let mut fresh = fresh().await;
    let (one, other) = (stream(&fresh.options), stream(&fresh.options));
    let mut last = LogPosition::default();
    for round in 0..ROUNDS {
        let page = events(round * 3 + 1..=round * 3 + 3);
        let done = tokio::join!(publish(&one, last, &page), publish(&other, last, &page));
        let done = (done.0.expect("an answer"), done.1.expect("an answer"));
        assert!(done.0 ^ done.1, "both or neither: {done:?}");
        last = at(round * 3 + 3);
    }
    assert_eq!(length(&mut fresh).await, ROUNDS * 3);
}

async fn length(fresh: &mut Fresh) -> u64 {
    let length = redis::cmd("XLEN").arg(&fresh.options.key).to_owned();
    length.query_async(&mut fresh.connection).await.expect("a length")
}

#[tokio::test]
async fn a_broker_that_refuses_is_no_success() {
    let mut fresh = fresh().await;
    let stream = stream(&fresh.options);
    let set = redis::cmd("SET").arg(&[fresh.options.key.as_str(), "no stream"]).to_owned();
    set.exec_async(&mut fresh.connection).await.expect("set");
    publish(&stream, LogPosition::default(), &events(1..=2))
        .await
        .expect_err("the key is a string");
    let gone = redis::cmd("DEL").arg(&fresh.options.key).to_owned();
    gone.exec_async(&mut fresh.connection).await.expect("removed");
    assert!(publish(&stream, LogPosition::default(), &events(1..=2)).await.expect("an answer"));
}

#[tokio::test]
async fn a_stream_is_trimmed_to_about_its_bound() {
    let mut fresh = fresh().await;
    fresh.options.max_events = 500;
    let stream = stream(&fresh.options);
    for page in 0..10 {
        let last = if page == 0 { LogPosition::default() } else { at(page * 500) };
        let next = events(page * 500 + 1..=page * 500 + 500);
        assert!(publish(&stream, last, &next).await.expect("an answer"));
    }
    let length = length(&mut fresh).await;
    assert!((500..700).contains(&length), "{length}");
}

/// A log's position lies behind its last event; the stream tells only that one.
#[tokio::test]
async fn who_has_published_goes_on_from_where_the_log_was() {
    let fresh = fresh().await;
    let (this, other) = (stream(&fresh.options), stream(&fresh.options));
    let from = Checkpoint::beginning(Checkpoint::ANY_LOG);
    let to = from.at(at(1 << 62));
    let first = Batch { from, to: to.clone(), changes: events(1..=2), ..Batch::default() };
    assert!(this.apply(&first).await.expect("an answer"));
    assert_eq!((last(&this).await, last(&other).await), (at(2), at(2)));
    let next = |to: &Checkpoint| {
        let events = vec![Logged { position: LogPosition { epoch: 8, offset: 1 }, ..event(3) }];
        Batch {
            from: to.clone(),
            to: to.at(events[0].position),
            changes: events,
            ..Batch::default()
        }
    };
    let nothing = Batch { from: to.clone(), to: to.clone(), ..Batch::default() };
    assert!(this.apply(&nothing).await.expect("an answer"));
    assert!(!other.apply(&next(&to)).await.expect("an answer"), "it has published nothing");
    assert!(this.apply(&next(&to)).await.expect("an answer"));
    assert!(!this.apply(&next(&to)).await.expect("an answer"), "once");
}

#[tokio::test]
async fn a_broker_that_refuses_says_why() {
    let private = super::Private::start().await;
    let options = RedisStreamOptions::new(private.server.url(), "events");
    let full = stream(&options);
    private.by_hand::<()>("CONFIG SET maxmemory 1").await;
    let refused = publish(&full, LogPosition::default(), &events(1..=2)).await.unwrap_err();
    assert!(refused.message().contains("OOM"), "{refused}");
    private.by_hand::<()>("CONFIG SET maxmemory 0").await;
    assert!(publish(&full, LogPosition::default(), &events(1..=2)).await.expect("an answer"));
    private.by_hand::<()>("ACL SETUSER teller reset on >secret +@all ~other").await;
    let address = private.server.url().split_once('@').unwrap().1.to_owned();
    let options = RedisStreamOptions::new(format!("redis://teller:secret@{address}"), "events");
    let refused = stream(&options).checkpoint().await.unwrap_err();
    assert!(refused.message().contains("grant `~events`"), "{refused}");
}

//! The journal in NATS: the contract, what a killed server keeps, and two instances at once.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests are tests")]

mod lost_answers;
mod out_of_order;
mod removed;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{StreamExt as _, TryStreamExt as _};
use terrace_core::testkit::journal_contract::{LIMITS, TAKEOVER, claim_all, request};
use terrace_core::testkit::{JournalFixture, key, value};
use terrace_core::{
    Append, Deadline, Durability, Journal, Runtime, Sequence, Settled, Status, Write,
};
use terrace_lab::{NatsOptions, NatsServer, testing};
use terrace_stores::{NatsJournal, NatsJournalOptions};

async fn fresh() -> JournalFixture {
    JournalFixture::new(Arc::new(connect(options(testing::nats().url())).await))
}

terrace_core::journal_contract!(fresh);

/// A journal that no other test has.
fn options(url: String) -> NatsJournalOptions {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NatsJournalOptions {
        namespace: format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed)),
        limits: LIMITS,
        takeover: TAKEOVER,
        // A busy machine must not make a test of answers one of timeouts.
        command_timeout: Duration::from_secs(20),
        ..NatsJournalOptions::new(url)
    }
}

async fn connect(options: NatsJournalOptions) -> NatsJournal {
    NatsJournal::connect(options, Runtime::system()).await.expect("options in order")
}

fn put(name: &str) -> Append {
    request(vec![Write::put(key(name), value("1"))])
}

/// Everything settled, nothing left to learn the last sequence from but what is kept beside.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_instance_goes_on_above_what_was_settled() {
    let options = options(testing::nats().url());
    let (one, two) = (connect(options.clone()).await, connect(options).await);
    let first = one.append(vec![put("a")]).await.expect("an append");
    assert_eq!(first.durability, Durability::Accepted, "one server may lose it with its power");
    let done = claim_all(&one).await.iter().map(Settled::of).collect();
    assert_eq!(one.settle(done).await.expect("a settlement").writes, 0);
    let second = two.append(vec![put("a")]).await.expect("an append");
    assert_eq!((second.epoch, second.previous), (first.epoch, first.last));
    assert!(second.last > first.last);
}

/// Two instances append at once: each chain of `previous` and `last` tells of the other's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_of_two_instances_have_one_order() {
    let options = options(testing::nats().url());
    let (one, two) = (connect(options.clone()).await, connect(options).await);
    let appends = (0..20).map(|number| {
        let journal = if number % 2 == 0 { &one } else { &two };
        journal.append(vec![put(&format!("k{number}"))])
    });
    let mut appended: Vec<_> =
        join_all(appends).await.into_iter().map(|it| it.expect("an append")).collect();
    appended.sort_by_key(|it| it.last);
    let chain = appended.windows(2).all(|pair| pair[1].previous == pair[0].last);
    assert!(chain, "{appended:?}");
    assert_eq!(one.peek(Sequence::NONE, 100).await.expect("a peek").len(), 20);
}

async fn by_hand(url: &str) -> async_nats::jetstream::Context {
    let server: async_nats::ServerAddr = url.parse().expect("a URL");
    let named = async_nats::ConnectOptions::new().user_and_password(
        server.username().expect("a user").to_owned(),
        server.password().expect("a password").to_owned(),
    );
    async_nats::jetstream::new(named.connect(server).await.expect("a connection"))
}

/// A consumer that says that somebody has the entry, and delivers nothing, as was seen after a crash of
/// the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_delivered_for_long_is_delivered_anew() {
    use async_nats::jetstream::AckKind;
    use async_nats::jetstream::consumer::PullConsumer;

    let url = testing::nats().url();
    let options = options(url.clone());
    let journal = connect(options.clone()).await;
    journal.append(vec![put("a")]).await.expect("an append");
    let stream = by_hand(&url).await.get_stream(&options.namespace).await.expect("the stream");
    let names: Vec<_> = stream.consumer_names().try_collect().await.expect("its consumers");
    let consumer: PullConsumer = stream.get_consumer(&names[0]).await.expect("its consumer");
    let mut batch = consumer.fetch().max_messages(1).messages().await.expect("a batch");
    let taken = batch.next().await.expect("a message").expect("a message");
    let holds = async {
        loop {
            // It has it, and goes on to say so.
            let _gone = taken.ack_with(AckKind::Progress).await;
            Runtime::system().sleep(TAKEOVER / 4).await;
        }
    };
    // As a flusher asks.
    let claims = async {
        for _ in 0..40 {
            let soon = Deadline::at(Runtime::system().now() + TAKEOVER / 2);
            let claimed = journal.claim(100, soon).await.expect("a claim");
            if !claimed.is_empty() {
                return claimed;
            }
        }
        Vec::new()
    };
    let claimed = tokio::select! {
        claimed = claims => claimed,
        () = holds => unreachable!("it never lets go"),
    };
    assert_eq!(claimed.len(), 1);
    let done = claimed.iter().map(Settled::of).collect();
    assert_eq!(journal.settle(done).await.expect("a settlement").writes, 0);
}

/// A stream that is removed and made anew under the same name numbers its messages alike.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_of_a_lost_stream_settle_nothing_of_the_next() {
    let url = testing::nats().url();
    let options = options(url.clone());
    let one = connect(options.clone()).await;
    one.append(vec![put("lost")]).await.expect("an append");
    let claimed = claim_all(&one).await;
    assert_eq!(claimed.len(), 1);
    let context = by_hand(&url).await;
    context.delete_stream(&options.namespace).await.expect("the stream is there");
    let two = connect(options).await;
    let appended = two.append(vec![put("next")]).await.expect("an append");
    assert!(appended.spans[0].is_ok());
    let done = claimed.iter().map(Settled::of).collect();
    assert_eq!(one.settle(done).await.expect("nothing to settle").writes, 1);
    let kept: Vec<_> = claim_all(&one).await.into_iter().flat_map(|it| it.writes).collect();
    assert_eq!(kept[0].key, key("next"));
}

/// `kill -9` of the server: what was acknowledged is there, with its sequences.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_keeps_what_it_acknowledged() {
    let directory = tempfile::tempdir().expect("a directory");
    let options_of =
        NatsOptions { temporary: true, ..NatsOptions::new(directory.path().join("n")) };
    let server = NatsServer::start(options_of).await.expect("a NATS server");
    let journal = connect(options(server.url())).await;
    let before = journal.append(vec![put("a"), put("b")]).await.expect("an append");
    server.kill();
    while journal.append(vec![put("lost")]).await.is_ok() {}
    assert_eq!(journal.inspect().await.status, Status::Down);
    server.restart().await.expect("NATS starts again");
    let after = loop {
        if let Ok(after) = journal.append(vec![put("c")]).await {
            break after;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(after.epoch, before.epoch);
    assert!(after.previous >= before.last);
    let peeked = journal.peek(Sequence::NONE, 100).await.expect("a peek");
    let names: Vec<_> = peeked.iter().flat_map(|it| &it.writes).map(|it| it.key.as_str()).collect();
    assert!(names.starts_with(&["a", "b"]) && names.ends_with(&["c"]), "{names:?}");
}

//! What an administrator may do to the streams: limit them, remove them, lose the server's whole store.

use async_nats::jetstream::stream::{Config, DiscardPolicy};
use terrace_core::testkit::journal_contract::claim_all;
use terrace_core::{
    Appended, Deadline, Error, ErrorKind, Journal, JournalEntry, Runtime, Sequence, Settled, Status,
};
use terrace_lab::{NatsOptions, NatsServer, testing};
use terrace_stores::{NatsJournal, NatsJournalOptions};

use super::{by_hand, connect, options, put};

/// The first append that is answered so.
async fn append_until(
    journal: &NatsJournal,
    is: impl Fn(&Result<Appended, Error>) -> bool,
) -> Result<Appended, Error> {
    let end = Deadline::at(Runtime::system().now() + std::time::Duration::from_secs(20));
    loop {
        let answer = journal.append(vec![put("k")]).await;
        let answer = answer.and_then(|it| it.spans[0].clone().map(|_| it));
        if is(&answer) {
            return answer;
        }
        assert!(!end.passed(Runtime::system().now()), "{answer:?}");
    }
}

/// Changes the settings of a stream of the journal.
async fn set(options: &NatsJournalOptions, stream: &str, change: impl Fn(&mut Config)) {
    let context = by_hand(&options.url).await;
    let name = format!("{}{stream}", options.namespace);
    let found = context.get_stream(name).await.expect("the stream");
    let mut config = found.cached_info().config.clone();
    change(&mut config);
    context.update_stream(config).await.expect("settings");
}

fn refused_for(setting: &str) -> impl Fn(&Result<Appended, Error>) -> bool {
    move |answer| {
        let error = answer.as_ref().err();
        error
            .is_some_and(|it| it.kind() == ErrorKind::Unavailable && it.message().contains(setting))
    }
}

/// What would be lost is not accepted: at the start and later, and no longer than that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_set_to_lose_writes_take_none() {
    let options = options(testing::nats().url());
    drop(connect(options.clone()).await);
    let limit = |most: i64, discard| {
        move |config: &mut Config| {
            (config.max_messages, config.discard) = (most, discard);
        }
    };
    set(&options, "", limit(10, DiscardPolicy::Old)).await;
    let journal = connect(options.clone()).await;
    let first = journal.append(vec![put("a")]).await;
    assert!(refused_for("max_msgs (-1)")(&first), "{first:?}");
    let tree = journal.inspect().await;
    assert_eq!(tree.status, Status::Down);
    assert!(tree.note.contains("max_msgs (-1)"), "{}", tree.note);
    set(&options, "", limit(-1, DiscardPolicy::New)).await;
    append_until(&journal, Result::is_ok).await.expect("set back");
    assert_eq!(journal.inspect().await.status, Status::Healthy);
    // While it runs; beside the entries, too.
    let hour = std::time::Duration::from_secs(3600);
    set(&options, "_kept", |config| config.max_age = hour).await;
    append_until(&journal, refused_for("max_age (0s)")).await.expect_err("noticed");
}

async fn remove(options: &NatsJournalOptions) {
    let context = by_hand(&options.url).await;
    context.delete_stream(&options.namespace).await.expect("the stream is there");
}

/// What a flusher claims, in time: it asks again and again.
async fn claimed(journal: &NatsJournal) -> Vec<JournalEntry> {
    let end = Deadline::at(Runtime::system().now() + std::time::Duration::from_secs(20));
    loop {
        let soon = Deadline::at(Runtime::system().now() + std::time::Duration::from_secs(1));
        match journal.claim(100, soon).await {
            Ok(entries) if !entries.is_empty() => return entries,
            answer => assert!(!end.passed(Runtime::system().now()), "{answer:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_is_removed_is_made_again() {
    // As it is by default: a consumer that is gone says nothing.
    let command_timeout = std::time::Duration::from_secs(3);
    let options = NatsJournalOptions { command_timeout, ..options(testing::nats().url()) };
    let journal = connect(options.clone()).await;
    let context = by_hand(&options.url).await;
    let stream = context.get_stream(&options.namespace).await.expect("the stream");
    // While somebody waits for entries, and while nobody does.
    let removes = async {
        stream.delete_consumer("flushers").await.expect("the consumer");
        append_until(&journal, Result::is_ok).await.expect("an append");
    };
    let (entries, ()) = tokio::join!(claimed(&journal), removes);
    assert_eq!(entries.len(), 1);
    let done = entries.iter().map(Settled::of).collect();
    assert_eq!(journal.settle(done).await.expect("a settlement").writes, 0);
    stream.delete_consumer("flushers").await.expect("the consumer");
    journal.append(vec![put("b")]).await.expect("an append");
    assert_eq!(claimed(&journal).await.len(), 1);
}

/// Another life, whose sequences go on above; who only looks hears of it, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_removed_is_made_again() {
    let options = options(testing::nats().url());
    let (one, two) = (connect(options.clone()).await, connect(options.clone()).await);
    let before = one.append(vec![put("lost")]).await.expect("an append");
    remove(&options).await;
    let end = Deadline::at(Runtime::system().now() + std::time::Duration::from_secs(20));
    let progress = loop {
        match two.progress().await {
            Ok(progress) if progress.epoch > before.epoch => break progress,
            answer => assert!(!end.passed(Runtime::system().now()), "{answer:?}"),
        }
    };
    assert_eq!(progress.writes, 0);
    let after = append_until(&one, Result::is_ok).await.expect("an append");
    assert!(after.epoch == progress.epoch && after.last > before.last);
    assert_eq!(claim_all(&two).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_empty_has_a_new_journal() {
    let directory = tempfile::tempdir().expect("a directory");
    let home = directory.path().join("n");
    let server =
        NatsServer::start(NatsOptions { temporary: true, ..NatsOptions::new(&home) }).await;
    let server = server.expect("a NATS server");
    let journal = connect(options(server.url())).await;
    let before = journal.append(vec![put("lost")]).await.expect("an append");
    server.kill();
    std::fs::remove_dir_all(home.join("data")).expect("its store");
    server.restart().await.expect("NATS starts again");
    let after = append_until(&journal, Result::is_ok).await.expect("an append");
    assert!(after.epoch > before.epoch && after.last > before.last, "{after:?}");
    let peeked = journal.peek(Sequence::NONE, 100).await.expect("a peek");
    assert_eq!(peeked.len(), 1);
    let done = claimed(&journal).await.iter().map(Settled::of).collect();
    assert_eq!(journal.settle(done).await.expect("a settlement").writes, 0);
}

//! When the flusher rests, and when it does not.

use terrace_core::testkit::WriteCall;
use terrace_core::{Change, Consistency};

use super::*;

const ROWS: usize = 600;
const TOOK: Duration = Duration::from_millis(100);

/// One partition whose batch is all there is.
fn options(max_claimed: usize) -> WriteBufferOptions {
    let flusher = FlusherOptions {
        partitions: 1,
        linger: Duration::ZERO,
        min_batch: 10_000,
        max_claimed,
        ..FlusherOptions::default()
    };
    WriteBufferOptions { flusher: Some(flusher), ..WriteBufferOptions::default() }
}

fn many(text: &str) -> Vec<Write> {
    (0..ROWS).map(|number| Write::put(key(format!("k{number}")), value(text))).collect()
}

/// A buffer whose flusher has just applied a batch of [`ROWS`] that took [`TOOK`].
async fn rested(max_claimed: usize) -> (WriteBuffer, Hand, Runtime) {
    let runtime = Runtime::system();
    let (store, mut hand) = Scripted::new();
    let buffer = open(store, &journal(&runtime), options(max_claimed)).await;
    buffer.write(many("1"), &WriteOptions::default()).await.unwrap();
    let call = hand.write().await;
    assert_eq!(call.batch.len(), ROWS);
    runtime.sleep(TOOK).await;
    call.applied(1);
    runtime.sleep(Duration::from_millis(1)).await;
    (buffer, hand, runtime)
}

fn puts(call: &WriteCall) -> Vec<Change> {
    call.batch.iter().map(|write| write.change.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn in_calm_it_rests_and_later_writes_supersede_earlier_ones() {
    let (buffer, mut hand, runtime) = rested(120_000).await;
    let begun = runtime.now();
    for text in ["2", "3", "4"] {
        buffer.put(key("k1"), value(text)).await.unwrap();
        runtime.sleep(TOOK).await;
    }
    assert_eq!(plain_now(&buffer, &mut hand).await, is("4"), "what waits is read");
    let call = hand.write().await;
    let rest = runtime.now() - begun;
    assert!(rest > TOOK * 8 && rest <= TOOK * 10, "{rest:?}");
    assert_eq!(puts(&call), [Change::Put(value("4"))]);
    call.applied(ROWS as u64 + 1);
}

/// Reads a key that waits; the store below is asked, too, and has nothing to add.
async fn plain_now(buffer: &WriteBuffer, hand: &mut Hand) -> Option<String> {
    let below = async { hand.read().await.found(&[]) };
    tokio::join!(plain(buffer, "k1"), below).0
}

#[tokio::test(start_paused = true)]
async fn it_does_not_rest_while_somebody_waits() {
    let (buffer, mut hand, runtime) = rested(120_000).await;
    let begun = runtime.now();
    buffer.put(key("k1"), value("2")).await.unwrap();
    let strong = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
    let serve = async {
        hand.write().await.applied(ROWS as u64 + 1);
        hand.read().await.found(&[("k1", "2", ROWS as u64 + 1)]);
    };
    let (read, ()) = tokio::join!(text(&buffer, "k1", &strong), serve);
    assert_eq!(read.unwrap(), is("2"));
    assert!(runtime.now() - begun < TOOK, "{:?}", runtime.now() - begun);
}

#[tokio::test(start_paused = true)]
async fn it_does_not_rest_while_it_is_behind() {
    let (buffer, mut hand, runtime) = rested(ROWS).await;
    let begun = runtime.now();
    buffer.write(many("2"), &WriteOptions::default()).await.unwrap();
    let call = hand.write().await;
    assert_eq!(call.batch.len(), ROWS);
    assert!(runtime.now() - begun < TOOK, "{:?}", runtime.now() - begun);
    call.applied(ROWS as u64 + 1);
}

#[tokio::test(start_paused = true)]
async fn behind_a_large_backlog_it_claims_a_quarter() {
    const BACKLOG: usize = 1000;
    const MOST: usize = 400;
    let (store, mut hand) = Scripted::new();
    let buffer = open(store, &journal(&Runtime::system()), options(MOST)).await;
    let puts = (0..BACKLOG).map(|number| buffer.put(key(format!("k{number}")), value("1")));
    futures_util::future::try_join_all(puts).await.unwrap();
    let (mut applied, mut largest) = (0, 0);
    while applied < BACKLOG {
        let call = hand.write().await;
        // Once fewer wait than it may claim, it may claim them.
        if BACKLOG - applied > MOST {
            largest = largest.max(call.batch.len());
        }
        applied += call.batch.len();
        call.applied(applied as u64);
    }
    assert!((MOST / 8..=MOST / 4).contains(&largest), "{largest}");
}

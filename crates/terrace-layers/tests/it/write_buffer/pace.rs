//! When the flusher pauses, and when it does not.

use terrace_core::testkit::WriteCall;
use terrace_core::{Change, Consistency};

use super::*;

const PAUSE: Duration = Duration::from_millis(500);

/// A buffer whose flusher has just applied a write of `k1`.
async fn applied_once(claim: usize) -> (WriteBuffer, Hand, Runtime) {
    let runtime = Runtime::system();
    let (store, mut hand) = Scripted::new();
    let flusher = FlusherOptions { claim, pause: PAUSE, ..FlusherOptions::default() };
    let options = WriteBufferOptions { flusher: Some(flusher), ..WriteBufferOptions::default() };
    let buffer = open(store, &journal(&runtime), options).await;
    buffer.put(key("k1"), value("1")).await.unwrap();
    hand.write().await.applied(1);
    runtime.sleep(Duration::from_millis(1)).await;
    (buffer, hand, runtime)
}

fn puts(call: &WriteCall) -> Vec<Change> {
    call.batch.iter().map(|write| write.change.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn in_calm_it_pauses_and_later_writes_supersede_earlier_ones() {
    let (buffer, mut hand, runtime) = applied_once(100).await;
    let begun = runtime.now();
    for text in ["2", "3", "4"] {
        buffer.put(key("k1"), value(text)).await.unwrap();
        runtime.sleep(PAUSE / 5).await;
    }
    assert_eq!(plain_now(&buffer, &mut hand).await, is("4"), "what waits is read");
    let call = hand.write().await;
    let paused = runtime.now() - begun;
    assert!(paused > PAUSE * 9 / 10 && paused <= PAUSE, "{paused:?}");
    assert_eq!(puts(&call), [Change::Put(value("4"))]);
    call.applied(2);
}

/// Reads a key that waits; the store below is asked, too, and has nothing to add.
async fn plain_now(buffer: &WriteBuffer, hand: &mut Hand) -> Option<String> {
    let below = async { hand.read().await.found(&[]) };
    tokio::join!(plain(buffer, "k1"), below).0
}

#[tokio::test(start_paused = true)]
async fn it_does_not_pause_while_somebody_waits() {
    let (buffer, mut hand, runtime) = applied_once(100).await;
    let begun = runtime.now();
    buffer.put(key("k1"), value("2")).await.unwrap();
    let strong = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
    let serve = async {
        hand.write().await.applied(2);
        hand.read().await.found(&[("k1", "2", 2)]);
    };
    let (read, ()) = tokio::join!(text(&buffer, "k1", &strong), serve);
    assert_eq!(read.unwrap(), is("2"));
    assert!(runtime.now() - begun < PAUSE / 5, "{:?}", runtime.now() - begun);
}

#[tokio::test(start_paused = true)]
async fn it_does_not_pause_while_it_is_behind() {
    let (buffer, mut hand, runtime) = applied_once(3).await;
    let puts = (0..10).map(|number| buffer.put(key(format!("k{number}")), value("2")));
    futures_util::future::try_join_all(puts).await.unwrap();
    let first = hand.write().await;
    let begun = runtime.now();
    first.applied(2);
    for version in [10, 20] {
        hand.write().await.applied(version);
    }
    assert!(runtime.now() - begun < PAUSE / 5, "{:?}", runtime.now() - begun);
}

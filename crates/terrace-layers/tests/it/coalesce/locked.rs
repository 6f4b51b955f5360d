//! Rows that another session holds.

use terrace_core::Error;

use super::*;

fn locked(names: &[&str]) -> Result<Vec<Receipt>> {
    Err(Error::new(ErrorKind::Unavailable, "scripted").locked(keys(names)))
}

/// Calls that wait for one batch.
async fn merged<'a>(
    store: &'a Coalesce,
    hand: &mut Hand,
    how: &'a WriteOptions,
    all: &[&[&str]],
) -> Vec<BoxFuture<'a, Result<Vec<Receipt>>>> {
    let mut first = store.write(puts(&["first"]), how);
    begin(&mut first);
    let call = hand.write().await;
    let mut rest: Vec<_> = all.iter().map(|names| store.write(puts(names), how)).collect();
    rest.iter_mut().for_each(begin);
    call.applied(1);
    first.await.unwrap();
    rest
}

#[tokio::test(start_paused = true)]
async fn a_batch_goes_on_without_a_locked_row() {
    let (store, mut hand) = coalesce(one_lane());
    let how = WriteOptions::default();
    let calls = merged(&store, &mut hand, &how, &[&["b"], &["held"], &["c", "d"]]).await;
    hand.write().await.answer(locked(&["held"]));
    let call = hand.write().await;
    assert_eq!(names(&call.batch), ["b", "c", "d"]);
    call.applied(2);
    let done = join_all(calls).await;
    assert_eq!(done.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);

    // It waits beside the others from now on, until it can be written.
    let mut held = store.write(puts(&["held"]), &how);
    begin(&mut held);
    let waits = hand.write().await;
    let mut free = store.write(puts(&["e"]), &how);
    begin(&mut free);
    let call = hand.write().await;
    assert_eq!(names(&call.batch), ["e"]);
    call.applied(5);
    free.await.unwrap();
    waits.applied(6);
    held.await.unwrap();
    let calls = merged(&store, &mut hand, &how, &[&["f"], &["held"]]).await;
    let call = hand.write().await;
    assert_eq!(names(&call.batch), ["f", "held"]);
    call.applied(7);
    assert!(join_all(calls).await.iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn where_it_has_no_name_each_call_goes_alone() {
    let (store, mut hand) = coalesce(one_lane());
    let how = WriteOptions::default();
    let calls = merged(&store, &mut hand, &how, &[&["b"], &["held"], &["c", "d"]]).await;
    hand.write().await.answer(locked(&[]));
    hand.write().await.applied(2);
    let alone = hand.write().await;
    assert_eq!(names(&alone.batch), ["held"]);
    alone.answer(locked(&["held"]));
    hand.write().await.applied(3);
    let done = join_all(calls).await;
    assert_eq!(done.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_the_same_row_waits_once() {
    let (store, mut hand) = coalesce(one_lane());
    let how = WriteOptions::default();
    let all: [&[&str]; 4] = [&["held"], &["b"], &["held"], &["held"]];
    let calls = merged(&store, &mut hand, &how, &all).await;
    hand.write().await.answer(locked(&[]));
    hand.write().await.answer(locked(&["held"]));
    let call = hand.write().await;
    assert_eq!(names(&call.batch), ["b"]);
    call.applied(2);
    let done = join_all(calls).await;
    assert_eq!(done.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, false, false]);
}

/// Who was told that nobody knows may have written again since.
#[tokio::test(start_paused = true)]
async fn a_call_that_was_given_up_is_not_sent_again() {
    let (store, mut hand) = coalesce(one_lane());
    let how = WriteOptions::default();
    let mut calls = merged(&store, &mut hand, &how, &[&["a"], &["held"], &["c"]]).await;
    let call = hand.write().await;
    drop(calls.remove(0));
    call.answer(locked(&["held"]));
    let call = hand.write().await;
    assert_eq!(names(&call.batch), ["c"]);
    call.applied(2);
    let done = join_all(calls).await;
    assert_eq!(done.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true]);
}

//! Numbers, gaps, silence and broken connections.

use super::*;

/// Lets the feed's task hear what was sent.
async fn heard() {
    sleep(Duration::from_millis(1)).await;
}

fn written(number: u64, name: &str) -> Notice {
    Notice::Written { number, keys: vec![(key(name), Version::new(1000 + number))] }
}

/// A message is lost: which version is still answered when the next one comes?
async fn after_a_lost_message(make: Make, next: Notice) -> Option<u64> {
    let (store, mut hand, feed) = scripted_by(make);
    feed.send(Notice::Connected);
    feed.send(written(7, "other"));
    trusted(&store).await;
    load(&store, &mut hand, &key("a"), 1).await;
    // Number 8 said that "a" was written.
    feed.send(next);
    heard().await;
    near(&store, &key("a"))
}

#[tokio::test(start_paused = true)]
async fn a_gap_in_the_numbers_empties_the_memory() {
    let next = [
        written(9, "other"),
        Notice::Heartbeat { number: 8 },
        Notice::Cleared { number: 9 },
        // The sender began to count anew.
        written(1, "other"),
        Notice::Heartbeat { number: 0 },
    ];
    for notice in next {
        let answered = after_a_lost_message(NearCache::new, notice.clone()).await;
        assert_eq!(answered, None, "{notice:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_does_not_mind_gaps_is_caught() {
    let answered = after_a_lost_message(without_gaps, written(9, "other")).await;
    assert_eq!(answered, Some(1));
}

#[tokio::test(start_paused = true)]
async fn numbers_in_order_empty_only_what_they_name() {
    let (store, mut hand, feed) = scripted().await;
    for name in ["a", "b"] {
        load(&store, &mut hand, &key(name), 1).await;
    }
    for notice in [written(5, "c"), Notice::Heartbeat { number: 5 }, written(6, "b")] {
        feed.send(notice);
    }
    heard().await;
    assert_eq!((near(&store, &key("a")), near(&store, &key("b"))), (Some(1), None));
    assert_eq!((figure(&store, "gaps").await, figure(&store, "flushes").await), (0, 0));
    feed.send(Notice::Cleared { number: 7 });
    heard().await;
    assert_eq!(near(&store, &key("a")), None);
    assert_eq!((figure(&store, "gaps").await, figure(&store, "flushes").await), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_silent_feed_is_not_trusted_past_its_bound() {
    let (store, mut hand, feed) = scripted().await;
    let key = key("a");
    feed.send(Notice::Heartbeat { number: 1 });
    heard().await;
    load(&store, &mut hand, &key, 1).await;
    sleep(Duration::from_millis(1990)).await;
    assert_eq!(near(&store, &key), Some(1));
    sleep(Duration::from_millis(10)).await;
    assert_eq!(near(&store, &key), None);
    while hand.try_next().is_some() {}

    heard().await;
    let tree = store.inspect().await;
    assert_eq!((tree.status, tree.number("keys")), (Status::Degraded, Some(0)));
    assert!(tree.note.contains("silent"), "{}", tree.note);
    // Reads pass through and fill nothing.
    load(&store, &mut hand, &key, 2).await;
    load(&store, &mut hand, &key, 2).await;
    // The next message is believed again, whatever its number; the memory begins empty.
    feed.send(Notice::Heartbeat { number: 9 });
    heard().await;
    assert_eq!(store.inspect().await.status, Status::Healthy);
    load(&store, &mut hand, &key, 2).await;
    assert_eq!(near(&store, &key), Some(2));
    assert_eq!(figure(&store, "gaps").await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_got_no_time_does_not_answer_from_memory() {
    let (store, mut hand, feed) = scripted().await;
    let key = key("a");
    load(&store, &mut hand, &key, 1).await;
    // Time passes in which no task runs at all.
    tokio::time::advance(Duration::from_secs(3)).await;
    assert_eq!(near(&store, &key), None);
    while hand.try_next().is_some() {}
    feed.send(Notice::Heartbeat { number: 0 });
    heard().await;
    assert_eq!(near(&store, &key), None, "it began afresh");
}

#[tokio::test(start_paused = true)]
async fn a_broken_connection_is_not_trusted_until_it_stands_again() {
    let (store, mut hand, feed) = scripted().await;
    let key = key("a");
    load(&store, &mut hand, &key, 1).await;
    feed.send(Notice::Disconnected);
    // Not even by what still comes.
    feed.send(Notice::Heartbeat { number: 1 });
    heard().await;
    assert_eq!(store.inspect().await.status, Status::Degraded);
    load(&store, &mut hand, &key, 1).await;
    load(&store, &mut hand, &key, 2).await;
    feed.send(Notice::Connected);
    heard().await;
    assert_eq!(store.inspect().await.status, Status::Healthy);
    load(&store, &mut hand, &key, 2).await;
    assert_eq!(near(&store, &key), Some(2));
}

#[tokio::test]
async fn the_listener_ends_with_the_layer() {
    let (store, _hand, feed) = scripted().await;
    store.close().await.unwrap();
    feed.abandoned().await;
    let (store, _hand, feed) = scripted().await;
    drop(store);
    feed.abandoned().await;
}

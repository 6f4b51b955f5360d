//! A kill between the two stores: following the ledger leaves no difference, and a request that writes to
//! both itself is found out.

use futures_util::FutureExt as _;
use terrace_core::Checkpoint;
use tokio::sync::Semaphore;

use super::*;

/// Requests, each of a user of its own; every third one is killed between the stores.
const REQUESTS: usize = 60;

fn user(number: usize) -> String {
    format!("user {number:02}")
}

fn is_killed(number: &usize) -> bool {
    number.is_multiple_of(3)
}

impl Sides {
    /// The broken variant: a request that adds to the ledger and then writes the summary itself.
    async fn write_both(&self, name: &str, between: &Semaphore) {
        self.post(name, 5).await;
        let _goes_on = between.acquire().await.unwrap();
        let account = self.ledger.accounts().get(&key(name)).await.unwrap().unwrap();
        self.kept.change(name, account.version, Some(account.value));
    }
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_is_killed_between_the_stores_leaves_no_difference() {
    let sides = Sides::new();
    for number in 0..REQUESTS {
        let summaries = sides.start();
        sides.kept.hold(is_killed(&number));
        let how = sides.post(&user(number), 5).await;
        let seen = summaries.read(&key(user(number)), &how).await;
        assert_eq!(seen.is_err(), is_killed(&number), "the kill came between the stores");
        drop(summaries);
        sides.kept.hold(false);
    }
    let _again = sides.start();
    assert!(sides.reconcile(false).await.unwrap().is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_writes_to_both_stores_is_found_out() {
    let sides = Sides::new();
    for number in 0..REQUESTS {
        let between = Semaphore::new(usize::from(!is_killed(&number)));
        let done = sides.write_both(&user(number), &between).now_or_never();
        assert_eq!(done.is_none(), is_killed(&number), "the kill came between the stores");
    }
    // Nobody follows, so nothing is left to wait for.
    let log = sides.ledger.log();
    let end = Checkpoint::beginning(&*log.name()).at(log.head().await.unwrap());
    sides.kept.stand_at(end);
    let found = sides.reconcile(false).await.unwrap();
    let killed = (0..REQUESTS).filter(is_killed).map(|number| key(user(number))).collect();
    assert_eq!((found.wrong_summaries, found.wrong_accounts), (killed, users(&[])));
}

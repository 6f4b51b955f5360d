//! What one server of a primary and its replicas says, and what its answers prove.

use std::sync::Arc;

use terrace_core::{Deadline, Node as _, ReadOptions, Role, Runtime, Store as _, StoreExt as _};
use terrace_core::{NodeState, Token, one};
use terrace_lab::testing;
use terrace_stores::{PostgresOptions, PostgresStore};

use super::{key, value};

async fn state(store: &PostgresStore) -> NodeState {
    loop {
        // The tables come to a standby a moment after they were made.
        if let Ok(state) = store.state(Deadline::NEVER).await {
            store.admit(&state);
            assert_eq!(state.history, store.history());
            return state;
        }
    }
}

fn asks(token: &Token, state: &NodeState) -> u64 {
    let position = token.position(&state.log).expect("a place in the log");
    assert_eq!(position.epoch, state.position.epoch);
    position.offset
}

#[tokio::test]
async fn a_standby_shows_what_it_says_and_takes_no_writes() {
    let servers = testing::replicated(1, &[]).await;
    let options = |url: String| PostgresOptions { member: true, ..PostgresOptions::new(url) };
    let runtime = Runtime::system();
    let primary = PostgresStore::connect(options(servers.primary.url()), runtime.clone()).await;
    let primary = primary.expect("a primary");
    let url = servers.standbys[0].url();
    let history = primary.history();
    let standby = PostgresStore::member(options(url), Arc::clone(&history), runtime).expect("one");
    let (one_state, other) = (state(&primary).await, state(&standby).await);
    assert_eq!((one_state.role, other.role), (Role::Primary, Role::Replica));
    assert_eq!((&one_state.log, one_state.position.epoch), (&other.log, other.position.epoch));
    assert_ne!(one_state.life, other.life);

    let receipt = primary.put(key("a"), value("1")).await.expect("a write");
    let written = asks(&receipt.token, &one_state);
    assert!(state(&primary).await.position.offset >= written);
    while state(&standby).await.position.offset < written {}
    let how = ReadOptions::default();
    let read = one(standby.read(&[key("a")], &how).await.expect("a read")).expect("one");
    assert_eq!(read.version, receipt.version);
    assert!(asks(&read.token, &other) >= written, "the token holds what was shown");
    // Its sequence is ahead of its rows: a version proves nothing here.
    let how = ReadOptions { token: Some(receipt.token.clone()), ..ReadOptions::default() };
    assert!(standby.read(&[key("another")], &how).await.is_err());
    assert!(standby.put(key("a"), value("2")).await.is_err());

    // A server that was restarted answers nothing until it was looked at.
    servers.standbys[0].restart().await.expect("a restart");
    let how = ReadOptions::default();
    assert!(standby.read(&[key("a")], &how).await.is_err());
    let again = loop {
        // Its first session may still be of the life before.
        if let Ok(again) = standby.state(Deadline::NEVER).await {
            break again;
        }
    };
    assert_ne!(again.life, other.life);
    standby.admit(&again);
    let read = standby.read(&[key("a")], &how).await.expect("a read");
    assert_eq!(read[0].version, receipt.version);

    // A place comes with the first key, also where that has no record.
    let keys = [key("another"), key("a")];
    let read = standby.read(&keys, &how).await.expect("a read");
    assert_eq!((&read[0].record, read[1].version), (&None, receipt.version));
    assert!(read.iter().all(|read| asks(&read.token, &again) >= written));

    servers.standbys[0].promote().await.expect("a promotion");
    // Before anybody has looked at it: its own log's place, on its own timeline.
    let read = standby.read(&[key("a")], &how).await.expect("a read");
    let place = read[0].token.position(&again.log).expect("a place in the log");
    assert_eq!(place.epoch, 2);
    let promoted = state(&standby).await;
    assert_eq!((promoted.role, promoted.position.epoch), (Role::Primary, 2));
    assert_eq!(promoted.life, again.life, "it went on without a restart");
    let [fork] = &promoted.forks[..] else { panic!("{:?}", promoted.forks) };
    assert!(fork.epoch == 1 && fork.offset >= written);
    assert!(place.offset > fork.offset);
    let receipt = standby.put(key("a"), value("2")).await.expect("it takes writes");
    assert!(asks(&receipt.token, &promoted) > fork.offset);
}

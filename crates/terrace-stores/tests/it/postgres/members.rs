//! What one server of a primary and its replicas says, and what its answers prove.

use terrace_core::{Deadline, Node as _, ReadOptions, Role, Runtime, Store as _, StoreExt as _};
use terrace_core::{NodeState, Read};
use terrace_lab::testing;
use terrace_stores::{PostgresOptions, PostgresStore};

use super::{key, value};

async fn state(store: &PostgresStore) -> NodeState {
    loop {
        // The tables come to a standby a moment after they were made.
        if let Ok(state) = store.state(Deadline::NEVER).await {
            store.admit(&state);
            return state;
        }
    }
}

#[tokio::test]
async fn a_standby_shows_what_it_says_and_takes_no_writes() {
    let servers = testing::replicated(1, &[]).await;
    let options = |url: String| PostgresOptions { member: true, ..PostgresOptions::new(url) };
    let runtime = Runtime::system();
    let primary = PostgresStore::connect(options(servers.primary.url()), runtime.clone()).await;
    let primary = primary.expect("a primary");
    let standby = PostgresStore::member(options(servers.standbys[0].url()), runtime).expect("one");
    let (one_state, other) = (state(&primary).await, state(&standby).await);
    assert_eq!((one_state.role, other.role), (Role::Primary, Role::Replica));
    assert_eq!(one_state.standing, other.standing);
    assert_ne!(one_state.life, other.life);

    let receipt = primary.put(key("a"), value("1")).await.expect("a write");
    let written = receipt.token.position(&one_state.standing.history).expect("a position");
    assert!(state(&primary).await.position >= written);
    while state(&standby).await.position < written {}
    let plain = ReadOptions::default();
    let read = standby.get_read(&key("a"), &plain).await.expect("a read");
    assert_eq!(read.version, receipt.version);
    let through = |read: &Read| read.proof.as_ref().map(|proof| proof.through);
    assert!(through(&read) >= Some(written), "it proves what it shows");
    // A record that is not there proves as much.
    let asks = ReadOptions { token: Some(receipt.token.clone()), ..ReadOptions::default() };
    let keys = [key("another"), key("a")];
    let read = standby.read(&keys, &asks).await.expect("a read");
    assert_eq!((&read[0].record, read[1].version), (&None, receipt.version));
    assert!(read.iter().all(|read| through(read) >= Some(written)));
    assert!(standby.put(key("a"), value("2")).await.is_err());

    // A server that was restarted answers nothing until it was looked at.
    servers.standbys[0].restart().await.expect("a restart");
    assert!(standby.read(&[key("a")], &plain).await.is_err());
    let again = loop {
        // Its first session may still be of the life before.
        if let Ok(again) = standby.state(Deadline::NEVER).await {
            break again;
        }
    };
    assert_ne!(again.life, other.life);
    standby.admit(&again);
    let read = standby.read(&[key("a")], &plain).await.expect("a read");
    assert_eq!(read[0].version, receipt.version);

    servers.standbys[0].promote().await.expect("a promotion");
    // A session of the standby that it was answers nothing in a name that is past.
    if let Ok(read) = standby.get_read(&key("a"), &plain).await {
        let proof = read.proof.expect("a database proves something");
        assert_ne!(proof.history, again.standing.history);
    }
    let promoted = state(&standby).await;
    assert_eq!((promoted.role, promoted.timeline), (Role::Primary, 2));
    assert_eq!(promoted.life, again.life, "it went on without a restart");
    assert!(
        standby.put(key("a"), value("2")).await.expect("it takes writes").version > read[0].version
    );
}

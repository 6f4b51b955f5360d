//! What promotions, restarts and cut connections must not do to versions and tokens.

use std::sync::Arc;

use terrace_core::{Deadline, Node as _, LogPosition, ReadOptions, Role, Runtime, Store as _};
use terrace_core::{NodeState, StoreExt as _, Write};
use terrace_lab::testing::{self, Replicated};
use terrace_stores::{PostgresOptions, PostgresStore};

use super::{key, session, value};

struct Field {
    servers: Replicated,
    primary: PostgresStore,
    standbys: Vec<PostgresStore>,
}

/// A primary and its standbys, which have been looked at and have the tables.
async fn field(standbys: usize) -> Field {
    let servers = testing::replicated(standbys, &[]).await;
    let options = |url: String| PostgresOptions { member: true, ..PostgresOptions::new(url) };
    let runtime = Runtime::system();
    let primary = PostgresStore::connect(options(servers.primary.url()), runtime.clone()).await;
    let primary = primary.expect("a primary");
    look(&primary).await;
    let history = primary.history();
    let standby = |url| PostgresStore::member(options(url), Arc::clone(&history), runtime.clone());
    let urls = servers.standbys.iter().map(terrace_lab::PostgresServer::url);
    let standbys = urls.map(|url| standby(url).expect("a standby")).collect::<Vec<_>>();
    for standby in &standbys {
        look(standby).await;
    }
    Field { servers, primary, standbys }
}

/// Looks at a server as a router does.
async fn look(store: &PostgresStore) -> NodeState {
    loop {
        if let Ok(state) = store.state(Deadline::NEVER).await {
            store.admit(&state);
            return state;
        }
    }
}

/// The place that an answer names.
async fn place(store: &PostgresStore, log: &str) -> LogPosition {
    let read = store.read(&[key("a")], &ReadOptions::default()).await.expect("a read");
    read[0].token.position(log).expect("a place in the log")
}

async fn sql(url: &str, text: &str) -> String {
    let rows = session(url).await.simple_query(text).await.expect("SQL by hand");
    rows.iter()
        .find_map(|row| match row {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .unwrap_or_default()
}

async fn until(url: &str, condition: &str) {
    while sql(url, &format!("SELECT {condition}")).await != "t" {}
}

/// What was given out and lost must not be given out again: caches and clients may still have it.
#[tokio::test]
async fn versions_do_not_go_back_with_a_standby_that_was_behind() {
    let field = field(1).await;
    let (primary, standby) = (field.servers.primary.url(), field.servers.standbys[0].url());
    field.primary.put(key("a"), value("received")).await.expect("a write");
    sql(&standby, "ALTER SYSTEM SET primary_conninfo = ''").await;
    sql(&standby, "SELECT pg_reload_conf()").await;
    until(&primary, "NOT EXISTS (SELECT FROM pg_stat_replication)").await;
    let many = (0..200).map(|number| Write::put(key(&format!("k{number}")), value("lost")));
    let receipts = field.primary.write(many.collect(), &Default::default()).await.expect("writes");
    let latest = receipts.iter().map(|receipt| receipt.version).max().expect("receipts");
    field.servers.primary.kill();
    field.servers.standbys[0].promote().await.expect("a promotion");
    let state = look(&field.standbys[0]).await;
    assert_eq!((state.role, state.position.epoch), (Role::Primary, 2));
    let after = field.standbys[0].put(key("a"), value("kept")).await.expect("a write");
    assert!(after.version > latest, "{} after {latest}", after.version);
    // Once is enough, whoever looks.
    let raised = sql(&standby, "SELECT last_value FROM records_version").await;
    let options = PostgresOptions { member: true, ..PostgresOptions::new(standby.clone()) };
    let other = PostgresStore::connect(options, Runtime::system()).await.expect("a store");
    look(&other).await;
    assert_eq!(sql(&standby, "SELECT last_value FROM records_version").await, raised);
}

/// A standby of a standby follows a promotion at once, before anybody has looked at it again.
#[tokio::test]
async fn a_token_names_the_timeline_that_a_standby_follows_now() {
    let field = field(2).await;
    let [middle, last] = &field.servers.standbys[..] else { panic!("two standbys") };
    last.follow("cascade", middle).await.expect("it follows");
    let before = look(&field.standbys[1]).await;
    assert_eq!(before.position.epoch, 1);
    middle.promote().await.expect("a promotion");
    let promoted = look(&field.standbys[0]).await;
    let fork = promoted.forks.first().expect("a fork").offset;
    field.standbys[0].put(key("a"), value("2")).await.expect("a write");
    let passed = format!("pg_last_wal_replay_lsn() - '0/0'::pg_lsn > {fork}::numeric");
    until(&last.url(), &passed).await;
    let place = place(&field.standbys[1], &before.log).await;
    assert!(place.epoch == 2 && place.offset > fork, "{place:?} beyond the fork at {fork}");
}

/// Reads with tokens go on while the primary is down, also after a restart of a standby; and what
/// they prove is not lost by the promotion.
#[tokio::test]
async fn a_standby_without_a_primary_proves_what_it_can_come_to() {
    let field = field(1).await;
    field.primary.put(key("a"), value("1")).await.expect("a write");
    let written = look(&field.primary).await.position.offset;
    while look(&field.standbys[0]).await.position.offset < written {}
    field.servers.primary.kill();
    field.servers.standbys[0].restart().await.expect("a restart");
    until(
        &field.servers.standbys[0].url(),
        "wait_event IN ('RecoveryWalStream', 'RecoveryRetrieveRetryInterval') \
         FROM pg_stat_activity WHERE backend_type = 'startup'",
    )
    .await;
    let state = look(&field.standbys[0]).await;
    let place = place(&field.standbys[0], &state.log).await;
    assert!(place.offset <= look(&field.standbys[0]).await.position.offset, "{place:?}");
    field.servers.standbys[0].promote().await.expect("a promotion");
    let promoted = look(&field.standbys[0]).await;
    assert!(place.offset <= promoted.forks.first().expect("a fork").offset, "{place:?}");
}

/// The first page of a segment has a longer header: an idle primary must not seem to be ahead.
#[tokio::test]
async fn an_idle_primary_is_not_ahead_after_a_new_segment() {
    let field = field(1).await;
    field.primary.put(key("a"), value("1")).await.expect("a write");
    let url = field.servers.primary.url();
    sql(&url, "SELECT pg_switch_wal()").await;
    let end = sql(&url, "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").await;
    let state = look(&field.primary).await;
    let segment: u64 = 16 << 20;
    if end.parse::<u64>().expect("a number") % segment == 40 {
        assert_eq!(state.position.offset % segment, 0, "where the last record ended");
    }
    while look(&field.standbys[0]).await.position.offset < state.position.offset {}
}

//! What promotions, restarts and cut connections must not do to versions, tokens and caches.

use terrace_core::{Deadline, Generations as _, Node as _, ReadOptions, Role, Runtime};
use terrace_core::{NodeState, Position, Store as _, StoreExt as _, Write};
use terrace_lab::testing::{self, Replicated};
use terrace_stores::{PostgresOptions, PostgresStore};

use super::{key, session, value};

struct Field {
    servers: Replicated,
    primary: PostgresStore,
    standbys: Vec<PostgresStore>,
}

fn options(url: String) -> PostgresOptions {
    PostgresOptions { member: true, ..PostgresOptions::new(url) }
}

/// A primary and its standbys, which have been looked at and have the tables.
async fn field(standbys: usize) -> Field {
    let servers = testing::replicated(standbys, &[]).await;
    let runtime = Runtime::system();
    let primary = PostgresStore::connect(options(servers.primary.url()), runtime.clone()).await;
    let primary = primary.expect("a primary");
    look(&primary).await;
    let standby = |url| PostgresStore::member(options(url), runtime.clone());
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
    assert_eq!((state.role, state.timeline), (Role::Primary, 2));
    let after = field.standbys[0].put(key("a"), value("kept")).await.expect("a write");
    assert!(after.version > latest, "{} after {latest}", after.version);
    // Once is enough, whoever looks.
    let raised = sql(&standby, "SELECT last_value FROM records_version").await;
    let other = PostgresStore::connect(options(standby.clone()), Runtime::system()).await;
    let other = other.expect("a store");
    look(&other).await;
    assert_eq!(sql(&standby, "SELECT last_value FROM records_version").await, raised);
}

/// What was lost with a primary is never satisfied by the transactions that get its numbers, and what
/// was cached from it is not believed.
#[tokio::test]
async fn a_promotion_begins_a_history_of_its_own() {
    let field = field(2).await;
    let [middle, last] = &field.servers.standbys[..] else { panic!("two standbys") };
    last.follow("cascade", middle).await.expect("it follows");
    let before = look(&field.standbys[1]).await;
    let receipt = field.primary.put(key("a"), value("1")).await.expect("a write");
    let how = ReadOptions { token: Some(receipt.token.clone()), ..ReadOptions::default() };
    let read = loop {
        if let Ok(read) = field.standbys[0].get_read(&key("a"), &how).await {
            break read;
        }
    };
    let proof = read.proof.expect("a database proves something");
    assert!(field.primary.admits(&proof, None), "a replica's answer is of the same history");
    field.servers.primary.kill();
    middle.promote().await.expect("a promotion");
    let promoted = look(&field.standbys[0]).await;
    assert_eq!(promoted.role, Role::Primary);
    let (old, new) = (&before.standing.history, &promoted.standing.history);
    assert_ne!(old, new);
    assert_eq!(terrace_core::history::lineage(old), terrace_core::history::lineage(new));
    assert!(promoted.standing.past.contains(old));
    assert!(promoted.standing.generation > before.standing.generation);
    assert!(!field.standbys[0].admits(&proof, None), "what was cached before");
    let refused = field.standbys[0].get_read(&key("a"), &how).await.expect_err("lost");
    assert_eq!(refused, terrace_core::history::lost());
    // A standby of the promoted one shows the new history once it has come to it, and its sessions
    // of before answer nothing under the old name.
    loop {
        let state = look(&field.standbys[1]).await;
        let read = field.standbys[1].get_read(&key("a"), &ReadOptions::default()).await;
        let shown = read.ok().and_then(|read| read.proof).map(|proof| proof.history);
        if state.standing.history == *new {
            if shown.as_ref() == Some(new) {
                break;
            }
            assert_ne!(shown.as_ref(), Some(old), "a later snapshot under an earlier name");
        }
    }
}

/// Reads with tokens go on while the primary is down, also after a restart of a standby.
#[tokio::test]
async fn a_standby_without_a_primary_proves_what_it_shows() {
    let field = field(1).await;
    let receipt = field.primary.put(key("a"), value("1")).await.expect("a write");
    let written = receipt.token.marks().next().map(|(_, position)| position).expect("a position");
    while look(&field.standbys[0]).await.position < written {}
    field.servers.primary.kill();
    field.servers.standbys[0].restart().await.expect("a restart");
    while look(&field.standbys[0]).await.position < written {}
    let how = ReadOptions { token: Some(receipt.token), ..ReadOptions::default() };
    let read = field.standbys[0].get_read(&key("a"), &how).await.expect("a read");
    assert_eq!(read.version, receipt.version);
    let proof = read.proof.expect("a database proves something");
    assert!(proof.through >= written && proof.shown > Position::NONE);
}

/// The first page of a segment has a longer header: an idle primary must not seem to be ahead.
#[tokio::test]
async fn an_idle_primary_is_not_ahead_after_a_new_segment() {
    let field = field(1).await;
    field.primary.put(key("a"), value("1")).await.expect("a write");
    sql(&field.servers.primary.url(), "SELECT pg_switch_wal()").await;
    let state = look(&field.primary).await;
    while look(&field.standbys[0]).await.log_end < state.log_end {}
}

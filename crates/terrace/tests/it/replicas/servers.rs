//! Faults of the servers below a router.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use terrace_core::{Origin, ReadOptions, StoreExt as _, testkit};
use terrace_layers::ReplicaRouter;

use super::load::Load;
use super::{Field, in_service, sql, until};

fn reads_wanted() -> usize {
    let asked = std::env::var("TERRACE_READS").ok().and_then(|text| text.parse().ok());
    asked.unwrap_or(16_000)
}

const PAUSE: &str = "SELECT pg_wal_replay_pause()";
const RESUME: &str = "SELECT pg_wal_replay_resume()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_hop_replicas_while_replay_is_paused_and_servers_are_killed() {
    let field = Field::new().await;
    let router = field.router().await;
    let load = Load::over(Arc::clone(&router) as _);
    let sessions = load.start();
    let part = reads_wanted() / 8;
    for round in 0..2 {
        let (one, two) = (field.standby(1 + round), field.standby(2 - round));
        sql(one, PAUSE).await;
        load.go_on(part * 2).await;
        sql(one, RESUME).await;
        two.kill();
        load.go_on(part).await;
        until("the dead one is out", || async { in_service(&*router).await < 2 }).await;
        two.restart().await.expect("a restart");
        load.go_on(part).await;
        until("it is back", || async { in_service(&*router).await == 2 }).await;
    }
    load.end(sessions).await;
    let count = |count: &std::sync::atomic::AtomicUsize| count.load(Ordering::SeqCst);
    assert_eq!((count(&load.violations), count(&load.failed)), (0, 0));
    let (reads, by_replicas) = (count(&load.reads), count(&load.by_replicas));
    assert!(reads >= reads_wanted() && by_replicas * 4 > reads, "{by_replicas} of {reads}");
    assert_eq!(load.lost().await, 0);
    eprintln!("{reads} reads with tokens, {by_replicas} by replicas, 0 violations");
    a_router_that_ignores_tokens_is_caught(&field).await;
    a_replica_that_is_cut_off_is_not_up_to_date(&field, &router).await;
}

/// The same load over a router that ignores tokens.
async fn a_router_that_ignores_tokens_is_caught(field: &Field) {
    let (router, flaw) = (field.router().await, testkit::StoreFlaw::IgnoresTokens);
    let load = Load::over(Arc::new(testkit::BrokenStore::new(router, flaw)));
    let sessions = load.start();
    sql(field.standby(1), PAUSE).await;
    load.go_on(500).await;
    load.end(sessions).await;
    sql(field.standby(1), RESUME).await;
    assert!(load.violations.load(Ordering::SeqCst) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_under_load_loses_nothing_that_the_standby_had() {
    let field = Field::new().await;
    let router = field.router().await;
    let primary = &field.servers.primary;
    // A commit waits until a standby has it on disk: what is acknowledged survives on the one that is
    // ahead, and the other can follow that one.
    let any = "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (replica_1, replica_2)'";
    sql(primary, any).await;
    sql(primary, "SELECT pg_reload_conf()").await;
    let synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'";
    until("commits wait", || async { sql(primary, synchronous).await == "2" }).await;

    let load = Load::over(Arc::clone(&router) as _);
    let sessions = load.start();
    load.go_on(1500).await;
    primary.kill();
    load.go_on(100).await;
    let has = sql(field.standby(2), "SELECT pg_last_wal_receive_lsn()").await;
    let is_ahead = format!("SELECT pg_last_wal_receive_lsn() >= '{has}'::pg_lsn");
    let (ahead, other) = match sql(field.standby(1), &is_ahead).await.as_str() {
        "t" => (1, 2),
        _ => (2, 1),
    };
    let promoted = field.standby(ahead);
    promoted.promote().await.expect("a promotion");
    load.go_on(500).await;
    let name = format!("replica_{other}");
    field.standby(other).follow(&name, promoted).await.expect("it follows");
    until("it serves", || async { in_service(&*router).await == 1 }).await;
    load.go_on(1000).await;
    // The old one comes back, and is nobody's primary any more.
    primary.restart().await.expect("a restart");
    until("it is found out", || async {
        let tree = terrace_core::Store::inspect(&*router).await;
        tree.children[0].note.contains("promoted last")
    })
    .await;
    load.go_on(1000).await;
    load.end(sessions).await;

    assert_eq!(load.violations.load(Ordering::SeqCst), 0);
    assert_eq!(load.lost().await, 0);
    assert_eq!(sql(promoted, "SELECT pg_is_in_recovery()").await, "f");
    let after = sql(promoted, "SELECT max(version) FROM records").await;
    let before = sql(primary, "SELECT max(version) FROM records").await;
    assert!(after.parse::<u64>().expect("a version") > before.parse().expect("a version"));
}

/// A replica without a connection to its primary has replayed all that it received, and lags.
async fn a_replica_that_is_cut_off_is_not_up_to_date(field: &Field, router: &ReplicaRouter) {
    let key = testkit::key("a");
    let cut = field.standby(1);
    sql(cut, "ALTER SYSTEM SET primary_conninfo = ''").await;
    sql(cut, "SELECT pg_reload_conf()").await;
    let receivers = "SELECT count(*) FROM pg_stat_wal_receiver";
    until("it is cut off", || async { sql(cut, receivers).await == "0" }).await;
    router.put(key.clone(), testkit::value("1")).await.expect("a write");
    let same = "SELECT pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()";
    assert_eq!(sql(cut, same).await, "t", "it believes to be up to date");
    let lag = || async {
        let tree = terrace_core::Store::inspect(router).await;
        tree.children[1].number("lag").unwrap_or(0)
    };
    until("its lag is seen", || async { lag().await > 500_000 }).await;
    let limit = std::time::Duration::from_millis(400);
    let consistency = terrace_core::Consistency::MaxStale(limit);
    let how = ReadOptions { consistency, ..ReadOptions::default() };
    for _ in 0..32 {
        let read = router.get_read(&key, &how).await.expect("a read");
        assert_ne!(read.origin, Origin::replica(1));
        assert!(read.record.is_some());
    }
}

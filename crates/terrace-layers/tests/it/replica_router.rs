//! `ReplicaRouter` over servers that say and do what the test wants.

mod generations;
mod hedges;
mod promotions;
mod servers;

use std::sync::Arc;
use std::time::Duration;

use terrace_core::testkit::{BrokenStore, StoreFixture, StoreFlaw, key, value};
use terrace_core::{
    Consistency, Deadline, ErrorKind, MemoryCache, MemoryCacheOptions, NodeState, Origin, Outcome,
    Position, ReadOptions, Result, Role, Runtime, Scan, Standing, Status, Store, StoreExt, Token,
};
use terrace_layers::{
    CacheAside, CacheAsideOptions, ConcurrencyLimit, ConcurrencyLimitOptions, Member,
    ReplicaRouter, ReplicaRouterOptions,
};

use servers::{HISTORY, Servers};

async fn over_memory() -> StoreFixture {
    let servers = Servers::over_memory();
    let router = ReplicaRouter::start(
        servers.history().await,
        servers.members(),
        ReplicaRouterOptions::default(),
        Runtime::system(),
    );
    StoreFixture::new(Arc::new(router.await))
}

terrace_core::store_contract!(over_memory);

/// A second of the clock, and what the watches do in it.
async fn pass(time: Duration) {
    Runtime::system().sleep(time).await;
}

const SECOND: Duration = Duration::from_secs(1);

/// Of this life of the database.
fn token(life: u64, position: u64) -> Token {
    Token::of(servers::life(life).history, Position::new(position))
}

async fn origin(router: &ReplicaRouter, how: &ReadOptions) -> Result<Origin> {
    Ok(router.get_read(&key("a"), how).await?.origin)
}

fn with_token(token: Token) -> ReadOptions {
    ReadOptions { token: Some(token), ..ReadOptions::default() }
}

fn is_replica(origin: Origin) -> bool {
    origin.replica.is_some()
}

/// Of two replicas the one that is free takes the read, never by chance the one that is busy.
#[tokio::test(start_paused = true)]
async fn a_busy_replica_is_not_compared_with_itself() {
    let servers = Servers::new(3);
    let router = servers.router().await;
    let (a, how) = (key("a"), ReadOptions::default());
    for round in 1..=20 {
        servers.hold(1);
        servers.hold(2);
        let release = async {
            while servers.asked(1) + servers.asked(2) < 2 * round {
                tokio::task::yield_now().await;
            }
            servers.release(1);
            servers.release(2);
        };
        let (one, two, ()) =
            tokio::join!(router.get_read(&a, &how), router.get_read(&a, &how), release);
        assert!(one.is_ok() && two.is_ok());
        assert_eq!((servers.asked(1), servers.asked(2)), (round, round));
    }
}

#[tokio::test(start_paused = true)]
async fn reads_go_to_replicas_and_writes_to_the_primary() {
    let servers = Servers::new(3);
    let router = servers.router().await;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..64 {
        let read = router.get_read(&key("a"), &ReadOptions::default()).await.unwrap();
        let number = read.origin.replica.expect("a replica answers");
        seen.insert(number);
        assert!(read.age <= SECOND);
        assert!(read.token.position(HISTORY).is_some());
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [1, 2]);
    let strong = ReadOptions::strong(Deadline::NEVER);
    assert_eq!(origin(&router, &strong).await.unwrap(), Origin::PRIMARY);
    let receipt = router.put(key("a"), value("1")).await.unwrap();
    assert_eq!(receipt.origin, Origin::PRIMARY);
    let page = router.scan(&Scan::prefix(""), &ReadOptions::default()).await.unwrap();
    assert!(is_replica(page.origin));
}

#[tokio::test(start_paused = true)]
async fn a_token_is_answered_by_who_has_come_to_it() {
    let servers = Servers::new(3);
    servers.at(2, 1, 150);
    let router = servers.router().await;
    servers.at(0, 1, 200);
    for _ in 0..32 {
        let read = router.get_read(&key("a"), &with_token(token(1, 150))).await.unwrap();
        assert_eq!(read.origin, Origin::replica(2));
        assert_eq!(read.token, token(1, 150), "what was asked is proved");
    }
    // Nobody has it: the primary, after a bounded wait.
    assert_eq!(origin(&router, &with_token(token(1, 180))).await.unwrap(), Origin::PRIMARY);
    // A replica comes to it while the read waits.
    servers.at(1, 1, 180);
    assert_eq!(origin(&router, &with_token(token(1, 180))).await.unwrap(), Origin::replica(1));
    // Another database's token asks nothing.
    let other = Token::of("another.1", Position::new(999));
    assert!(is_replica(origin(&router, &with_token(other)).await.unwrap()));
}

#[tokio::test(start_paused = true)]
async fn lag_is_measured_by_where_the_primary_was() {
    let servers = Servers::new(2);
    let router = servers.router().await;
    // An idle primary makes no lag, however long.
    pass(60 * SECOND).await;
    assert!(is_replica(origin(&router, &ReadOptions::default()).await.unwrap()));
    // From now on the replica does not move, and the primary does.
    servers.at(0, 1, 200);
    pass(3 * SECOND).await;
    let read = router.get_read(&key("a"), &ReadOptions::default()).await.unwrap();
    assert!(is_replica(read.origin));
    assert!(read.age >= 2 * SECOND && read.age <= 4 * SECOND, "{:?}", read.age);
    let fresh = Consistency::MaxStale(SECOND);
    let fresh = ReadOptions { consistency: fresh, ..ReadOptions::default() };
    assert_eq!(origin(&router, &fresh).await.unwrap(), Origin::PRIMARY);
    pass(3 * SECOND).await;
    assert_eq!(origin(&router, &ReadOptions::default()).await.unwrap(), Origin::PRIMARY);
    servers.at(1, 1, 200);
    pass(SECOND).await;
    assert!(is_replica(origin(&router, &ReadOptions::default()).await.unwrap()));
}

/// Which believes what a replica says: that it is not behind.
#[tokio::test(start_paused = true)]
async fn a_router_that_trusts_lag_is_caught() {
    let servers = Servers::new(2);
    servers.lie(1, |state| state.log_end = u64::MAX);
    let router = servers.router().await;
    servers.at(0, 1, 200);
    pass(10 * SECOND).await;
    assert!(is_replica(origin(&router, &ReadOptions::default()).await.unwrap()), "beyond max_lag");
}

#[tokio::test(start_paused = true)]
async fn when_all_lag_the_primary_takes_some_and_the_rest_is_marked() {
    let servers = Servers::new(2);
    // The held read keeps its place at the primary for as long as the others are refused one.
    let (fallback_limit, patience) = (1, 10 * SECOND);
    let options = ReplicaRouterOptions { fallback_limit, patience, ..Default::default() };
    let router = servers.router_with(options.clone()).await;
    servers.at(0, 1, 200);
    pass(10 * SECOND).await;
    servers.hold(0);
    let how = ReadOptions::default();
    let a = key("a");
    let holds = router.get_read(&a, &how);
    let beyond = async {
        tokio::task::yield_now().await;
        let read = router.get_read(&key("a"), &how).await.unwrap();
        assert!(is_replica(read.origin) && read.age >= 5 * SECOND, "{read:?}");
        let token = with_token(token(1, 200));
        let refused = router.get_read(&key("a"), &token).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Overloaded, "never a lie");
        servers.release(0);
    };
    let (held, ()) = tokio::join!(holds, beyond);
    assert_eq!(held.unwrap().origin, Origin::PRIMARY);

    let strict = ReplicaRouterOptions { stale_if_all_lag: false, ..options };
    let router = servers.router_with(strict).await;
    pass(10 * SECOND).await;
    servers.fail(0, true);
    let refused = router.get_read(&key("a"), &how).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn reads_go_on_while_the_primary_hangs() {
    let servers = Servers::new(2);
    let router = servers.router().await;
    servers.silence(0, true);
    servers.hold(0);
    pass(60 * SECOND).await;
    let (begun, how) = (Runtime::system().now(), ReadOptions::default());
    let read = router.get_read(&key("a"), &how).await.unwrap();
    assert!(is_replica(read.origin) && read.age >= 50 * SECOND, "{read:?}");
    assert!(Runtime::system().now() - begun < SECOND / 10, "it waits for nothing");
    // Who says how stale an answer may be has one that is no staler, although it lags.
    let allows = |bound| ReadOptions { consistency: Consistency::MaxStale(bound), ..how.clone() };
    let read = router.get_read(&key("a"), &allows(100 * SECOND)).await.unwrap();
    assert!(is_replica(read.origin) && read.age <= 100 * SECOND, "{read:?}");
    // What must not be stale is not.
    let fresh = Consistency::MaxStale(SECOND);
    let deadline = Deadline::at(Runtime::system().now() + 3 * SECOND);
    let fresh = ReadOptions { consistency: fresh, deadline, ..ReadOptions::default() };
    let waits = Runtime::system().within(deadline, router.get_read(&key("a"), &fresh)).await;
    assert!(waits.is_none_or(|answer| answer.is_err()));
}

#[tokio::test(start_paused = true)]
async fn a_failing_replica_costs_no_read_and_rests() {
    let servers = Servers::new(3);
    let router = servers.router().await;
    servers.fail(1, true);
    for _ in 0..32 {
        let origin = origin(&router, &ReadOptions::default()).await.unwrap();
        assert_eq!(origin, Origin::replica(2));
    }
    let before = servers.asked(1);
    for _ in 0..32 {
        origin(&router, &ReadOptions::default()).await.unwrap();
    }
    assert_eq!(servers.asked(1), before, "it rests");
    let tree = router.inspect().await;
    assert_eq!(tree.status, Status::Degraded);
    assert_eq!(tree.children[1].number("breaker_opened"), Some(1));
    assert!(tree.children[1].note.contains("rests"), "{}", tree.children[1].note);
    // It comes back, with a part of its share first.
    servers.fail(1, false);
    pass(2 * SECOND).await;
    let before = (servers.asked(1), servers.asked(2));
    for _ in 0..200 {
        origin(&router, &ReadOptions::default()).await.unwrap();
    }
    let (one, two) = (servers.asked(1) - before.0, servers.asked(2) - before.1);
    assert!(one > 0 && one * 2 < two, "{one} and {two}");
    pass(20 * SECOND).await;
    let before = servers.asked(1);
    for _ in 0..200 {
        origin(&router, &ReadOptions::default()).await.unwrap();
    }
    assert!(servers.asked(1) - before > 60);
    // The last one is not sent to rest for its reads.
    servers.fail(1, true);
    servers.fail(2, true);
    for _ in 0..32 {
        assert_eq!(origin(&router, &ReadOptions::default()).await.unwrap(), Origin::PRIMARY);
    }
}

/// Also while the only other one comes back and hands on most of its reads.
#[tokio::test(start_paused = true)]
async fn after_a_rest_one_read_tries_whether_a_replica_works() {
    let servers = Servers::new(3);
    let router = servers.router().await;
    servers.fail(1, true);
    for _ in 0..64 {
        origin(&router, &ReadOptions::default()).await.unwrap();
    }
    assert_eq!(router.inspect().await.children[1].number("breaker_opened"), Some(1));
    servers.silence(2, true);
    pass(SECOND).await;
    servers.silence(2, false);
    servers.fail(1, false);
    servers.hold(1);
    pass(2 * SECOND).await;
    let before = servers.asked(1);
    let how = ReadOptions::default();
    let reads = (0..50).map(|_| origin(&router, &how)).collect::<Vec<_>>();
    let reads = futures_util::future::join_all(reads);
    let look = async {
        pass(SECOND / 10).await;
        assert_eq!(servers.asked(1) - before, 1);
        servers.release(1);
    };
    let (answers, ()) = tokio::join!(reads, look);
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(router.inspect().await.children[1].number("breaker_probes"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_silent_replica_is_out_within_a_second() {
    let servers = Servers::new(3);
    let router = servers.router().await;
    servers.silence(1, true);
    servers.hold(1);
    pass(SECOND).await;
    let before = servers.asked(1);
    for _ in 0..64 {
        assert_eq!(origin(&router, &ReadOptions::default()).await.unwrap(), Origin::replica(2));
    }
    assert_eq!(servers.asked(1), before);
    servers.silence(1, false);
    servers.release(1);
    pass(30 * SECOND).await;
    for _ in 0..64 {
        origin(&router, &ReadOptions::default()).await.unwrap();
    }
    assert!(servers.asked(1) > before);
}

/// Writes that wait for a dead primary must not take the places of reads that replicas can answer.
#[tokio::test(start_paused = true)]
async fn writes_to_a_dead_primary_do_not_keep_reads_out() {
    let servers = Servers::new(2);
    let limit = ConcurrencyLimitOptions { least: 1, most: 1, ..Default::default() };
    let members = servers.members().into_iter().map(|member| {
        let store = ConcurrencyLimit::new(Arc::clone(&member.store), &limit, Runtime::system());
        Member { store: Arc::new(store), ..member }
    });
    let options = ReplicaRouterOptions::default();
    let members = members.collect();
    let router = ReplicaRouter::start(HISTORY.into(), members, options, Runtime::system()).await;
    servers.silence(0, true);
    servers.hold(0);
    let writes = async {
        let _ = tokio::join!(router.put(key("a"), value("1")), router.put(key("b"), value("1")));
    };
    let read = async {
        servers.until_asked(0).await;
        let begun = Runtime::system().now();
        assert!(is_replica(origin(&router, &ReadOptions::default()).await.unwrap()));
        assert!(Runtime::system().now() - begun < SECOND / 10);
        servers.release(0);
    };
    tokio::join!(writes, read);
}

#[tokio::test(start_paused = true)]
async fn a_server_of_another_database_is_ignored() {
    let servers = Servers::new(3);
    servers.promote(2, 7, 900);
    servers.change(2, |state| state.standing = Standing::of("another.1"));
    let router = servers.router().await;
    assert_eq!(origin(&router, &ReadOptions::default()).await.unwrap(), Origin::replica(1));
    router.put(key("a"), value("1")).await.unwrap();
    assert_eq!(servers.written(0), 1);
    assert!(router.inspect().await.children[2].note.contains("another database"));
}

/// A replica that was restarted between the choice and the answer may have gone back.
#[tokio::test(start_paused = true)]
async fn an_answer_of_another_life_counts_for_nothing() {
    let servers = Servers::new(2);
    let router = servers.router().await;
    assert_eq!(restarted_under_way(&servers, &router).await, Origin::PRIMARY);
}

/// Which sees no restart, and no answer that is from before what was asked.
#[tokio::test(start_paused = true)]
async fn a_router_that_forgets_lives_is_caught() {
    let servers = Servers::new(2);
    servers.lie(1, |state| {
        (state.life, state.position, state.log_end) = (1, Position::new(100), 100);
    });
    let router = servers.router().await;
    assert_eq!(restarted_under_way(&servers, &router).await, Origin::replica(1));
}

/// What answers a read with a token that the replica had come to before it was restarted.
async fn restarted_under_way(servers: &Servers, router: &ReplicaRouter) -> Origin {
    changed_under_way(servers, router, |state| {
        state.life += 1;
        back_to_90(state);
    })
    .await
}

fn back_to_90(state: &mut NodeState) {
    (state.position, state.log_end) = (Position::new(90), 90);
}

async fn changed_under_way(
    servers: &Servers,
    router: &ReplicaRouter,
    change: impl FnOnce(&mut NodeState),
) -> Origin {
    servers.hold(1);
    let how = with_token(token(1, 100));
    let a = key("a");
    let read = router.get_read(&a, &how);
    let restart = async {
        servers.until_asked(1).await;
        servers.change(1, change);
        pass(SECOND / 2).await;
        servers.release(1);
    };
    let (read, ()) = tokio::join!(read, restart);
    read.unwrap().origin
}

/// A server may go back within a life, as when its processes are restarted after a crash of one. It
/// may have come further again since.
#[tokio::test(start_paused = true)]
async fn an_answer_of_a_server_that_went_back_counts_for_nothing() {
    let servers = Servers::new(2);
    let router = servers.router().await;
    assert_eq!(changed_under_way(&servers, &router, back_to_90).await, Origin::PRIMARY);
}

/// What an answer proves tells, too, before anybody has looked again: the server has gone back, to
/// before the token or to an earlier life.
#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_prove_what_was_asked_is_not_used() {
    for (asked, life, position) in [(Some(100), 2, 90), (None, 1, 100), (Some(1), 1, 100)] {
        let (servers, router) = showing(life, position).await;
        let how = ReadOptions { token: asked.map(|at| token(2, at)), ..ReadOptions::default() };
        assert_eq!(origin(&router, &how).await.unwrap(), Origin::PRIMARY);
        let page = router.scan(&Scan::prefix(""), &how).await.unwrap();
        assert_eq!(page.origin, Origin::PRIMARY);
        assert!(servers.asked(1) >= 2, "it was asked");
    }
}

/// In the second life; the answers of the replica show this.
async fn showing(life: u64, position: u64) -> (Servers, ReplicaRouter) {
    let servers = Servers::new(2);
    servers.at(0, 2, 100);
    servers.at(1, 2, 100);
    let router = servers.router().await;
    servers.show(1, life, position);
    (servers, router)
}

#[tokio::test(start_paused = true)]
async fn a_router_that_ignores_tokens_is_caught() {
    let servers = Servers::new(2);
    let router = Arc::new(servers.router().await);
    let router = BrokenStore::new(router, StoreFlaw::IgnoresTokens);
    servers.show(1, 1, 90);
    let read = router.get_read(&key("a"), &with_token(token(1, 100))).await.unwrap();
    assert_eq!((read.origin, read.token), (Origin::replica(1), token(1, 90)), "from before it");
}

#[tokio::test(start_paused = true)]
async fn a_restarted_server_is_admitted_after_it_was_heard() {
    let servers = Servers::new(2);
    let _router = servers.router().await;
    let before = servers.admitted(1);
    servers.change(1, |state| state.life += 1);
    pass(SECOND).await;
    assert_eq!(servers.admitted(1), before + 1);
}

#[tokio::test(start_paused = true)]
async fn without_replicas_the_primary_answers_all() {
    let servers = Servers::new(1);
    let router = servers.router().await;
    assert_eq!(origin(&router, &ReadOptions::default()).await.unwrap(), Origin::PRIMARY);
    assert_eq!(origin(&router, &with_token(token(1, 50))).await.unwrap(), Origin::PRIMARY);
}

#[tokio::test(start_paused = true)]
async fn a_primary_that_becomes_a_replica_is_written_to_no_more() {
    let servers = Servers::new(2);
    let router = servers.router().await;
    servers.change(0, |state| {
        state.role = Role::Replica;
        state.life += 1;
    });
    pass(SECOND).await;
    assert!(router.put(key("a"), value("1")).await.is_err());
    let strong = ReadOptions::strong(Deadline::NEVER);
    assert!(origin(&router, &strong).await.is_err());
    assert_eq!(router.inspect().await.status, Status::Degraded);
}

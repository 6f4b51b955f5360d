//! Promotions, rivals, and the lives of the database that they end.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_promotion_moves_the_writes_and_the_old_primary_is_ignored() {
    let servers = Servers::new(3);
    let router = servers.router().await;
    servers.silence(0, true);
    servers.fail(0, true);
    pass(SECOND).await;
    assert!(router.put(key("a"), value("1")).await.is_err());
    assert!(is_replica(origin(&router, &ReadOptions::default()).await.unwrap()));

    servers.promote(1, 2, 120);
    pass(SECOND).await;
    router.put(key("a"), value("1")).await.unwrap();
    assert_eq!(servers.written(1), 1);
    // The other shows the old life until it is told: it is out of service, the new primary answers.
    assert_eq!(origin(&router, &ReadOptions::default()).await.unwrap(), Origin::PRIMARY);
    let tree = router.inspect().await;
    assert!(tree.children[2].note.contains("promoted last"), "{}", tree.children[2].note);
    servers.at(2, 2, 120);
    pass(SECOND).await;
    assert_eq!(origin(&router, &ReadOptions::default()).await.unwrap(), Origin::replica(2));

    // The old one is back and believes to be the primary still.
    servers.silence(0, false);
    servers.fail(0, false);
    pass(SECOND).await;
    router.put(key("a"), value("2")).await.unwrap();
    assert_eq!((servers.written(0), servers.written(1)), (0, 2));
    let tree = router.inspect().await;
    assert!(tree.children[0].note.contains("promoted last"), "{}", tree.children[0].note);

    // What the life that has ended has shown may be lost, whatever else a client has seen.
    let mut both = token(1, 1);
    both.merge(&token(2, 120));
    for lost in [token(1, 1), both] {
        for consistency in [Consistency::Default, Consistency::Strong] {
            let how = ReadOptions { consistency, ..with_token(lost.clone()) };
            let refused = origin(&router, &how).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unavailable, "no lie");
            assert!(refused.message().contains("earlier life"), "{refused}");
            assert!(router.scan(&Scan::prefix(""), &how).await.is_err());
        }
    }
    assert_eq!(origin(&router, &with_token(token(2, 120))).await.unwrap(), Origin::replica(2));
    // A life that nobody here knows.
    assert!(origin(&router, &with_token(token(3, 1))).await.is_err());
}

/// A client that comes from an instance which has seen the promotion already.
#[tokio::test(start_paused = true)]
async fn a_token_of_a_later_life_is_waited_for() {
    let servers = Servers::new(2);
    let router = servers.router().await;
    let how = with_token(token(2, 120));
    let a = key("a");
    let promotion = async {
        pass(SECOND / 2).await;
        servers.promote(1, 2, 120);
    };
    let (read, ()) = tokio::join!(router.get_read(&a, &how), promotion);
    assert_eq!(read.unwrap().token, token(2, 120));
    // One that never comes is refused in time.
    let begun = Runtime::system().now();
    assert!(origin(&router, &with_token(token(3, 1))).await.is_err());
    assert!(Runtime::system().now() - begun <= 2 * SECOND);
}

/// What becomes of a write that waits at the primary while this happens.
async fn written_under_way(servers: &Servers, change: impl FnOnce()) -> Result<Outcome> {
    let router = servers.router().await;
    servers.hold(0);
    let write = router.put(key("a"), value("1"));
    let change = async {
        servers.until_asked(0).await;
        change();
        pass(SECOND).await;
        servers.release(0);
    };
    let (write, ()) = tokio::join!(write, change);
    Ok(write?.outcome)
}

/// A server that commits after another was promoted commits into a history that has ended.
#[tokio::test(start_paused = true)]
async fn a_write_that_waited_through_a_promotion_is_not_acknowledged() {
    let servers = Servers::new(3);
    let promoted = written_under_way(&servers, || servers.promote(1, 2, 120)).await;
    assert_eq!(promoted.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    let servers = Servers::new(3);
    let rivals = written_under_way(&servers, || servers.promote(1, 1, 120)).await;
    assert_eq!(rivals.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    let servers = Servers::new(3);
    let calm = written_under_way(&servers, || servers.at(1, 1, 120)).await;
    assert!(calm.unwrap().is_applied());
}

/// A branch that was given up is known by its absence among the past.
#[tokio::test(start_paused = true)]
async fn a_token_of_an_abandoned_branch_is_lost() {
    let servers = Servers::new(2);
    servers.at(1, 3, 200);
    servers.at(0, 3, 200);
    for number in [0, 1] {
        servers.change(number, |state| state.standing.past = vec![HISTORY.into()]);
    }
    let router = servers.router().await;
    assert!(is_replica(origin(&router, &with_token(token(3, 150))).await.unwrap()));
    assert!(origin(&router, &with_token(token(2, 150))).await.is_err());
}

/// Nor does a cache answer what only the database can tell.
#[tokio::test(start_paused = true)]
async fn a_cache_above_serves_nothing_of_an_ended_life() {
    let servers = Servers::new(2);
    let router = Arc::new(servers.router().await);
    let runtime = Runtime::system();
    let cache = Arc::new(MemoryCache::new(MemoryCacheOptions::default(), runtime.clone()));
    let options = CacheAsideOptions { over_replicas: true, ..CacheAsideOptions::default() };
    let store = CacheAside::new(router.clone(), cache, router, options, runtime);
    let read = async |how: &ReadOptions| store.get_read(&key("a"), how).await;
    for origin in [Origin::replica(1), Origin::FAR] {
        let read = read(&with_token(token(1, 100))).await.unwrap();
        assert_eq!((read.origin, read.token), (origin, token(1, 100)));
    }
    servers.promote(0, 2, 200);
    servers.at(1, 2, 200);
    pass(SECOND).await;
    assert_eq!(read(&ReadOptions::default()).await.unwrap().origin, Origin::replica(1));
    let hit = read(&with_token(token(2, 200))).await.unwrap();
    assert_eq!((hit.origin, hit.token), (Origin::FAR, token(2, 200)));
    let lost = read(&with_token(token(1, 1))).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn where_a_primary_was_on_another_timeline_measures_nothing() {
    let servers = Servers::new(3);
    let router = servers.router().await;
    servers.at(0, 1, 1000);
    pass(50 * SECOND).await;
    // It follows somebody whom this router does not know.
    servers.at(1, 2, 60);
    servers.silence(2, true);
    pass(SECOND).await;
    let fresh = Consistency::MaxStale(SECOND);
    let fresh = ReadOptions { consistency: fresh, ..ReadOptions::default() };
    assert!(!origin(&router, &fresh).await.is_ok_and(is_replica));
}

#[tokio::test(start_paused = true)]
async fn two_primaries_stop_the_writes_and_say_so() {
    let servers = Servers::new(3);
    let router = servers.router().await;
    servers.promote(1, 2, 120);
    servers.promote(2, 2, 130);
    pass(SECOND).await;
    let refused = router.put(key("a"), value("1")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.message().contains("two servers"), "{refused}");
    assert!(refused.wait().is_some());
    let tree = router.inspect().await;
    assert!(tree.note.contains("two servers"), "{}", tree.note);
    assert_eq!((servers.written(1), servers.written(2)), (0, 0));
    // One of them gives way.
    servers.at(2, 2, 130);
    pass(SECOND).await;
    router.put(key("a"), value("1")).await.unwrap();
}

/// A server that does not answer claims nothing, until it answers again.
#[tokio::test(start_paused = true)]
async fn a_rival_that_falls_silent_blocks_no_writes() {
    let servers = Servers::new(3);
    let router = servers.router().await;
    servers.promote(1, 2, 120);
    servers.promote(2, 2, 130);
    pass(SECOND).await;
    assert!(router.put(key("a"), value("1")).await.is_err());
    servers.silence(2, true);
    pass(2 * SECOND).await;
    router.put(key("a"), value("1")).await.unwrap();
    assert_eq!((servers.written(1), servers.written(2)), (1, 0));
    servers.silence(2, false);
    pass(SECOND).await;
    assert!(router.put(key("a"), value("2")).await.is_err());
    assert_eq!((servers.written(1), servers.written(2)), (1, 0));
}

/// Nor does one on an older timeline become the primary because the newest one is silent.
#[tokio::test(start_paused = true)]
async fn while_the_newest_primary_is_silent_no_older_one_takes_its_place() {
    let servers = Servers::new(2);
    servers.promote(1, 2, 120);
    let router = servers.router().await;
    servers.silence(1, true);
    servers.fail(1, true);
    pass(2 * SECOND).await;
    assert!(router.put(key("a"), value("1")).await.is_err());
    assert_eq!(servers.written(0), 0);
}

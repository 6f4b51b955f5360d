//! Promotions, rivals, timelines and forks.

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

    servers.promote(1, 2, 120, &[LogPosition { epoch: 1, offset: 100 }]);
    pass(SECOND).await;
    router.put(key("a"), value("1")).await.unwrap();
    assert_eq!(servers.written(1), 1);
    // The other follows the old timeline until it is told: the new primary answers.
    assert_eq!(origin(&router, &ReadOptions::default()).await.unwrap(), Origin::Primary);
    servers.at(2, 2, 120);
    pass(SECOND).await;
    assert_eq!(origin(&router, &ReadOptions::default()).await.unwrap(), Origin::Replica(2));

    // The old one is back and believes to be the primary still.
    servers.silence(0, false);
    servers.fail(0, false);
    pass(SECOND).await;
    router.put(key("a"), value("2")).await.unwrap();
    assert_eq!((servers.written(0), servers.written(1)), (0, 2));
    let tree = router.inspect().await;
    assert!(tree.children[0].note.contains("older timeline"), "{}", tree.children[0].note);

    // Tokens of the old timeline: reached up to the fork, lost beyond it.
    let seen = origin(&router, &with_token(token(1, 100))).await.unwrap();
    assert_eq!(seen, Origin::Replica(2));
    let lost = origin(&router, &with_token(token(1, 101))).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Unavailable, "no lie");
    let strong = ReadOptions { token: Some(token(1, 101)), ..ReadOptions::strong(Deadline::NEVER) };
    assert!(origin(&router, &strong).await.is_err());
    // A timeline that nobody here knows.
    assert!(origin(&router, &with_token(token(3, 1))).await.is_err());
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
    let fork = [LogPosition { epoch: 1, offset: 100 }];
    let servers = Servers::new(3);
    let promoted = written_under_way(&servers, || servers.promote(1, 2, 120, &fork)).await;
    assert_eq!(promoted.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    let servers = Servers::new(3);
    let rivals = written_under_way(&servers, || servers.promote(1, 1, 120, &[])).await;
    assert_eq!(rivals.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    let servers = Servers::new(3);
    let calm = written_under_way(&servers, || servers.at(1, 1, 120)).await;
    assert!(calm.unwrap().is_applied());
}

/// A branch that was given up is known by its absence among the forks.
#[tokio::test(start_paused = true)]
async fn a_token_of_an_abandoned_branch_is_lost() {
    let servers = Servers::new(2);
    servers.at(1, 3, 200);
    servers.promote(0, 3, 200, &[LogPosition { epoch: 1, offset: 100 }]);
    let router = servers.router().await;
    assert!(is_replica(origin(&router, &with_token(token(1, 100))).await.unwrap()));
    assert!(origin(&router, &with_token(token(2, 150))).await.is_err());
}

/// An entry of the new timeline proves nothing of what the fork may have lost.
#[tokio::test(start_paused = true)]
async fn a_cache_does_not_answer_what_only_forks_can_tell() {
    let servers = Servers::new(2);
    servers.at(1, 2, 200);
    servers.promote(0, 2, 200, &[LogPosition { epoch: 1, offset: 100 }]);
    let runtime = Runtime::system();
    let cache = Arc::new(MemoryCache::new(MemoryCacheOptions::default(), runtime.clone()));
    let options = CacheAsideOptions { over_replicas: true, ..CacheAsideOptions::default() };
    let store = CacheAside::new(Arc::new(servers.router().await), cache, options, runtime);
    let read = async |how: &ReadOptions| store.get_read(&key("a"), how).await;
    read(&ReadOptions::default()).await.unwrap();
    assert_eq!(read(&with_token(token(2, 1))).await.unwrap().origin, Origin::Far);
    assert!(is_replica(read(&with_token(token(1, 100))).await.unwrap().origin));
    let lost = read(&with_token(token(1, 101))).await.unwrap_err();
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
async fn an_unknown_fork_leads_to_the_primary() {
    let servers = Servers::new(2);
    servers.at(1, 2, 500);
    servers.promote(0, 2, 500, &[]);
    let router = servers.router().await;
    assert_eq!(origin(&router, &with_token(token(1, 50))).await.unwrap(), Origin::Primary);
    assert!(is_replica(origin(&router, &with_token(token(2, 500))).await.unwrap()));
}

#[tokio::test(start_paused = true)]
async fn two_primaries_stop_the_writes_and_say_so() {
    let servers = Servers::new(3);
    let router = servers.router().await;
    servers.promote(1, 2, 120, &[]);
    servers.promote(2, 2, 130, &[]);
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

//! Reads that are asked of a second replica because the first is slow.

use terrace_core::testkit::key;
use terrace_core::{Origin, ReadOptions, Runtime, Store as _, StoreExt as _};
use terrace_layers::ReplicaRouter;

use super::servers::Servers;
use super::{SECOND, origin, pass};

/// A router that knows what is usual: nothing takes any time.
async fn router(servers: &Servers) -> ReplicaRouter {
    let router = servers.router().await;
    for _ in 0..200 {
        origin(&router, &ReadOptions::default()).await.unwrap();
    }
    pass(SECOND / 5).await;
    router
}

async fn figures(router: &ReplicaRouter) -> [Option<u64>; 2] {
    let tree = router.inspect().await;
    ["hedges", "hedges_won"].map(|name| tree.number(name))
}

/// Without it the read would wait a second, the patience of the router. The read that lost is gone.
#[tokio::test(start_paused = true)]
async fn a_read_of_a_slow_replica_is_asked_of_another_and_the_loser_is_dropped() {
    let servers = Servers::new(3);
    let router = router(&servers).await;
    servers.hold(1);
    let (mut hedged, how) = (0, ReadOptions::default());
    while hedged < 3 {
        let (begun, before) = (Runtime::system().now(), servers.asked(1));
        assert_eq!(origin(&router, &how).await.unwrap(), Origin::replica(2));
        let took = Runtime::system().now() - begun;
        assert!(took < SECOND / 100, "{took:?}");
        hedged += servers.asked(1) - before;
        let tree = router.inspect().await;
        assert_eq!(tree.children[1].number("outstanding"), Some(0), "nobody waits for it any more");
    }
    assert_eq!(figures(&router).await, [Some(3), Some(3)]);
}

/// Where all are slow hedges would be nothing but load.
#[tokio::test(start_paused = true)]
async fn hedges_are_a_twentieth_of_the_reads() {
    let servers = Servers::new(3);
    let router = router(&servers).await;
    let (a, how) = (key("a"), ReadOptions::default());
    [1, 2].into_iter().for_each(|number| servers.hold(number));
    let before = servers.asked(1) + servers.asked(2);
    let reads = futures_util::future::join_all((0..100).map(|_| router.get_read(&a, &how)));
    let release = async {
        pass(SECOND / 2).await;
        [1, 2].into_iter().for_each(|number| servers.release(number));
    };
    let (answers, ()) = tokio::join!(reads, release);
    assert!(answers.iter().all(Result::is_ok));
    let [hedges, _] = figures(&router).await;
    assert!((10..=15).contains(&hedges.unwrap()), "{hedges:?}");
    let asked = servers.asked(1) + servers.asked(2) - before;
    assert_eq!(Some(asked as u64), hedges.map(|hedges| hedges + 100));
}

//! A server that is away, silent, or refuses: calls fail at once, and the cache comes back.

use std::time::Duration;

use futures_util::FutureExt as _;
use terrace_core::Budget;
use terrace_core::testkit::key;
use terrace_core::{Cache, ErrorKind, Runtime, Status, Version};
use terrace_stores::{RedisCache, RedisCacheOptions};

use super::{Private, cache, fill, hit, lease, live, offer, until};

async fn get_kind(cache: &RedisCache) -> ErrorKind {
    cache.get(&[key("a")], Budget::default()).await.expect_err("no connection").kind()
}

#[tokio::test]
async fn a_cache_that_is_down_at_the_start_comes_later() {
    let private = Private::start().await;
    private.server.kill();
    let cache = private.cache().await;
    assert_eq!(get_kind(&cache).await, ErrorKind::Unavailable);
    let inspection = cache.inspect().await;
    assert_eq!((inspection.name, inspection.status), ("redis", Status::Down));
    assert!(inspection.note.contains("cannot be reached; reconnecting"), "{}", inspection.note);
    private.server.restart().await.unwrap();
    live(&cache).await;
    let inspection = cache.inspect().await;
    assert_eq!((inspection.status, inspection.note.as_str()), (Status::Healthy, ""));
    assert_eq!(inspection.number("keys"), Some(0), "its own entries, of which there are none yet");
}

#[tokio::test]
async fn a_killed_server_is_found_again() {
    let private = Private::start().await;
    let cache = private.cache().await;
    let key = key("a");
    let before = lease(&cache, &key).await;
    private.server.kill();
    for _ in 0..3 {
        assert_eq!(get_kind(&cache).await, ErrorKind::Unavailable);
    }
    let written = [(key.clone(), Version::new(1))];
    assert_eq!(cache.invalidate(&written).await.unwrap_err().kind(), ErrorKind::Unavailable);
    private.server.restart().await.unwrap();
    live(&cache).await;
    // The lease is from before the server lost its memory.
    fill(&cache, &key, before, 1).await;
    assert_eq!(hit(&cache, &key).await, None);
    assert!(cache.inspect().await.number("reconnects") >= Some(1));
    assert!(cache.inspect().await.number("errors") >= Some(4));
}

#[tokio::test]
async fn a_silent_server_costs_one_timeout_and_not_one_a_call() {
    let private = Private::start().await;
    let options =
        RedisCacheOptions { command_timeout: Duration::from_millis(200), ..private.options() };
    let (cache, runtime) = (cache(options).await, Runtime::system());
    let reader = lease(&cache, &key("a")).await;
    fill(&cache, &key("a"), reader, 1).await;
    private.server.pause();
    assert_eq!(get_kind(&cache).await, ErrorKind::Unavailable);
    let start = runtime.now();
    for _ in 0..100 {
        assert_eq!(get_kind(&cache).await, ErrorKind::Unavailable);
    }
    assert!(runtime.now() - start < Duration::from_millis(200));
    let inspection = cache.inspect().await;
    assert_eq!(inspection.status, Status::Down);
    private.server.resume();
    live(&cache).await;
    // The same process with the same memory is believed.
    assert_eq!(hit(&cache, &key("a")).await, Some(1));
}

/// Not even in the line in which they wait while the server stands still.
#[tokio::test]
async fn fills_that_nobody_waits_for_are_not_kept() {
    let private = Private::start().await;
    let options =
        RedisCacheOptions { command_timeout: Duration::from_secs(30), ..private.options() };
    let cache = cache(options).await;
    let key = key("a");
    let lease = lease(&cache, &key).await;
    private.server.pause();
    // Both lanes are under way from now on.
    let mut sent = (0..2).map(|_| cache.fill(vec![offer(&key, lease, 1)]));
    let (mut one, mut two) = (sent.next().unwrap(), sent.next().unwrap());
    for sent in [&mut one, &mut two] {
        assert!(sent.now_or_never().is_none());
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }
    for _ in 0..100 {
        assert!(cache.fill(vec![offer(&key, lease, 1)]).now_or_never().is_none());
    }
    assert_eq!(cache.inspect().await.number("waiting_bytes"), Some(0));
    private.server.resume();
    one.await.unwrap();
    two.await.unwrap();
}

#[tokio::test]
async fn a_refused_password_is_said_and_tried_again() {
    let private = Private::start().await;
    let good = private.server.url();
    let url = good.replacen("redis://", "redis://late", 1);
    let (user, secret) = ("late", good.split([':', '@']).nth(2).unwrap());
    let options = RedisCacheOptions { url, ..private.options() };
    let cache = cache(options).await;
    let inspection = cache.inspect().await;
    assert_eq!(inspection.status, Status::Down);
    assert!(inspection.note.contains("refuses the user name or password"), "{}", inspection.note);
    let error = cache.get(&[key("a")], Budget::default()).await.unwrap_err();
    assert!(!format!("{error:?} {cache:?} {inspection:?}").contains(secret));
    private.by_hand::<()>(&format!("ACL SETUSER {user} on >{secret} ~* &* +@all")).await;
    live(&cache).await;
}

#[tokio::test]
async fn a_replica_is_not_used() {
    let private = Private::start().await;
    private.by_hand::<()>("REPLICAOF 127.0.0.1 1").await;
    let cache = private.cache().await;
    let note = cache.inspect().await.note;
    assert!(note.contains("replica"), "{note}");
    private.by_hand::<()>("REPLICAOF NO ONE").await;
    live(&cache).await;
    // A primary that becomes a replica is given up at the first write.
    private.by_hand::<()>("REPLICAOF 127.0.0.1 1").await;
    let written = [(key("a"), Version::new(1))];
    until("the end of the connection", || async {
        cache.invalidate(&written).await.is_err() && cache.inspect().await.note.contains("replica")
    })
    .await;
}

#[tokio::test]
async fn a_url_that_is_wrong_is_refused() {
    for url in ["nonsense", "http://localhost", "redis://host:99999", "rediss://localhost?ca="] {
        let options = RedisCacheOptions::new(url);
        let error = RedisCache::connect(options, Runtime::system()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{url}");
    }
    let options = RedisCacheOptions { namespace: "a{b".into(), ..RedisCacheOptions::default() };
    assert!(RedisCache::connect(options, Runtime::system()).await.is_err());
}

#[tokio::test]
async fn a_closed_cache_says_so() {
    let cache = cache(super::options()).await;
    assert_eq!(cache.to_string(), "redis");
    cache.close().await.unwrap();
    cache.close().await.unwrap();
    let error = cache.get(&[key("a")], Budget::default()).await.unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::Unavailable, "the cache is closed"));
    assert!(cache.clear().await.is_err());
    assert_eq!(cache.inspect().await.status, Status::Down);
}

/// Answers to a beat are known after those to later writes; that is no sign of another memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beats_among_many_writes_keep_the_connection() {
    let private = Private::start().await;
    let options = RedisCacheOptions { heartbeat: Duration::from_millis(1), ..private.options() };
    let cache = cache(options).await;
    let writes = async |writer: u64| {
        for number in 1..300 {
            let written = [(key(format!("k{writer}")), Version::new(number))];
            cache.invalidate(&written).await.expect("the connection stays");
        }
    };
    futures_util::future::join_all((0..16).map(writes)).await;
    assert_eq!(cache.inspect().await.number("reconnects"), Some(0));
}

#[tokio::test]
async fn a_server_that_refuses_writes_is_not_read() {
    let private = Private::start().await;
    let (one, other) = (private.cache().await, private.cache().await);
    let key = key("refused");
    let reader = lease(&other, &key).await;
    fill(&other, &key, reader, 1).await;
    // As after a snapshot that failed.
    private.by_hand::<()>("CONFIG SET min-replicas-to-write 1").await;
    assert!(one.invalidate(&[(key.clone(), Version::new(2))]).await.is_err());
    until("the end of reads", || async {
        other.get(std::slice::from_ref(&key), Budget::default()).await.is_err()
    })
    .await;
    let note = other.inspect().await.note;
    assert!(note.contains("refuses writes"), "{note}");
    private.by_hand::<()>("CONFIG SET min-replicas-to-write 0").await;
    live(&other).await;
    // Whoever could not say so may be gone by now.
    assert_eq!(hit(&other, &key).await, None);
}

/// The missing right, and the pattern that grants it.
#[tokio::test]
async fn a_user_without_rights_is_told_which() {
    let private = Private::start().await;
    for (rights, says) in [
        ("+@all ~other:* &*", "grant `~{terrace}:*`"),
        ("+@all ~{terrace}:* resetchannels", "grant `&{terrace}:invalidations`"),
        ("-@all ~{terrace}:* &*", "grant MGET, GET"),
    ] {
        let set = format!("ACL SETUSER teller reset on >secret {rights}");
        private.by_hand::<()>(&set).await;
        let address = private.server.url().split_once('@').unwrap().1.to_owned();
        let url = format!("redis://teller:secret@{address}");
        let cache = cache(RedisCacheOptions { url, announce: true, ..private.options() }).await;
        let tree = cache.inspect().await;
        assert_eq!(tree.status, Status::Down, "{rights}");
        assert!(tree.note.contains(says), "{rights}: {}", tree.note);
    }
}

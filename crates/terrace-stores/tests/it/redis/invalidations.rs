//! What instances tell each other.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use terrace_core::testkit::key;
use terrace_core::{Cache, Deadline, Invalidations as _, Notice, Runtime, Version};
use terrace_stores::{RedisCache, RedisCacheOptions};

use super::{Private, cache, invalidate, options};

struct Subscriber(BoxStream<'static, Notice>);

impl Subscriber {
    /// A subscription that stands and knows the number of the latest message.
    async fn to(cache: &RedisCache) -> (Self, u64) {
        let mut subscriber = Self(cache.subscribe());
        assert_eq!(subscriber.next().await, Notice::Connected);
        let Notice::Heartbeat { number } = subscriber.next().await else { panic!("no number") };
        (subscriber, number)
    }

    async fn next(&mut self) -> Notice {
        let runtime = Runtime::system();
        let deadline = Deadline::at(runtime.now() + Duration::from_secs(20));
        runtime.within(deadline, self.0.next()).await.expect("a notice in time").expect("no end")
    }

    /// The next notice that is no heartbeat.
    async fn news(&mut self) -> Notice {
        loop {
            let notice = self.next().await;
            if !matches!(notice, Notice::Heartbeat { .. }) {
                return notice;
            }
        }
    }

    /// Skips to the next notice of this kind.
    async fn skip_to(&mut self, wanted: &Notice) {
        while self.next().await != *wanted {}
    }
}

fn announced(options: RedisCacheOptions) -> RedisCacheOptions {
    RedisCacheOptions { announce: true, heartbeat: Duration::from_millis(100), ..options }
}

#[tokio::test]
async fn a_write_through_one_instance_is_seen_by_the_other() {
    let options = announced(options());
    let (one, other) = (cache(options.clone()).await, cache(options).await);
    let (mut subscriber, number) = Subscriber::to(&other).await;
    let keys = [(key("a"), Version::new(5)), (key("schlüssel /"), Version::UNKNOWN)];
    one.invalidate(&keys).await.unwrap();
    let written = Notice::Written { number: number + 1, keys: keys.to_vec() };
    assert_eq!(subscriber.news().await, written);
    other.clear().await.unwrap();
    assert_eq!(subscriber.news().await, Notice::Cleared { number: number + 2 });
    subscriber.skip_to(&Notice::Heartbeat { number: number + 2 }).await;
    let many: Vec<_> = (0..300).map(|at| (key(format!("k{at}")), Version::new(6))).collect();
    one.invalidate(&many).await.unwrap();
    let mut seen = Vec::new();
    for at in 3..=5 {
        let Notice::Written { number: found, keys } = subscriber.news().await else { panic!() };
        assert_eq!(found, number + at);
        seen.extend(keys);
    }
    assert_eq!(seen, many);
}

#[tokio::test]
async fn without_announcing_nothing_is_sent() {
    let options = RedisCacheOptions { heartbeat: Duration::from_millis(100), ..options() };
    let cache = cache(options).await;
    let (mut subscriber, number) = Subscriber::to(&cache).await;
    invalidate(&cache, &key("a"), 1).await;
    for _ in 0..3 {
        // The number says that something was not sent.
        let Notice::Heartbeat { number: later } = subscriber.next().await else { panic!("sent") };
        assert_eq!(later, number + 1);
    }
}

#[tokio::test]
async fn a_killed_subscription_says_so_and_comes_back() {
    let private = Private::start().await;
    let cache = cache(announced(private.options())).await;
    let (mut subscriber, _) = Subscriber::to(&cache).await;
    private.by_hand::<()>("CLIENT KILL TYPE pubsub").await;
    assert_eq!(subscriber.news().await, Notice::Disconnected);
    assert_eq!(subscriber.news().await, Notice::Connected);
    invalidate(&cache, &key("a"), 1).await;
    assert!(matches!(subscriber.news().await, Notice::Written { .. }));
}

#[tokio::test]
async fn a_flush_is_a_reconnect_to_subscribers() {
    let private = Private::start().await;
    let cache = cache(announced(private.options())).await;
    let (mut subscriber, _) = Subscriber::to(&cache).await;
    invalidate(&cache, &key("a"), 1).await;
    assert!(matches!(subscriber.news().await, Notice::Written { .. }));
    private.by_hand::<()>("FLUSHALL").await;
    assert_eq!(subscriber.news().await, Notice::Disconnected);
    assert_eq!(subscriber.news().await, Notice::Connected);
}

#[tokio::test]
async fn a_silent_server_is_noticed_without_an_end_of_the_connection() {
    let private = Private::start().await;
    let cache = cache(announced(private.options())).await;
    let (mut subscriber, _) = Subscriber::to(&cache).await;
    private.server.pause();
    assert_eq!(subscriber.news().await, Notice::Disconnected);
    private.server.resume();
    assert_eq!(subscriber.news().await, Notice::Connected);
}

#[tokio::test]
async fn a_restart_is_survived() {
    let private = Private::start().await;
    let cache = cache(announced(private.options())).await;
    let (mut subscriber, _) = Subscriber::to(&cache).await;
    private.server.kill();
    assert_eq!(subscriber.news().await, Notice::Disconnected);
    private.server.restart().await.unwrap();
    assert_eq!(subscriber.news().await, Notice::Connected);
    super::live(&cache).await;
    invalidate(&cache, &key("a"), 1).await;
    assert!(matches!(subscriber.news().await, Notice::Written { number: 1, .. }));
}

#[tokio::test]
async fn a_closed_cache_ends_its_connections_and_no_stream() {
    let private = Private::start().await;
    let cache = cache(announced(private.options())).await;
    let (mut subscriber, _) = Subscriber::to(&cache).await;
    cache.close().await.unwrap();
    assert_eq!(subscriber.news().await, Notice::Disconnected);
    super::until("the end of the subscription", || async {
        !private.by_hand::<String>("CLIENT LIST TYPE pubsub").await.contains("sub=1")
    })
    .await;
}

#[tokio::test]
async fn an_instance_that_neither_announces_nor_listens_publishes_nothing() {
    let private = Private::start().await;
    let heartbeat = Duration::from_millis(20);
    let quiet = cache(RedisCacheOptions { heartbeat, ..private.options() }).await;
    private.by_hand::<()>("CONFIG RESETSTAT").await;
    let stats = || private.by_hand::<String>("INFO commandstats");
    super::until("a beat", || async { stats().await.contains("cmdstat_set:") }).await;
    assert!(!stats().await.contains("cmdstat_publish:"));
    // Whoever listens needs beats, and from this instance alone if there is no other.
    let listening = Subscriber::to(&quiet).await;
    drop(listening);
    super::until("silence", || async {
        private.by_hand::<()>("CONFIG RESETSTAT").await;
        super::until("a beat", || async { stats().await.contains("cmdstat_set:") }).await;
        !stats().await.contains("cmdstat_publish:")
    })
    .await;
}

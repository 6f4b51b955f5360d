//! A primary that sentinels name: failovers, servers that were left, and what is believed then.

use std::ops::Deref;
use std::time::Duration;

use terrace_core::testkit::key;
use terrace_core::{Cache, Journal as _, Runtime, Status};
use terrace_lab::testing::{self, WatchedRedis};
use terrace_lab::{Persistence, RedisServer};
use terrace_stores::{RedisCache, RedisCacheOptions, RedisJournal, RedisJournalOptions};

use super::{by_hand, cache, fill, hit, invalidate, lease, live, until};

struct Watched(WatchedRedis);

impl Deref for Watched {
    type Target = WatchedRedis;

    fn deref(&self) -> &WatchedRedis {
        &self.0
    }
}

impl Watched {
    async fn start(persistence: Persistence) -> Self {
        let watched = Self(testing::watched_redis(persistence).await);
        until("all know each other", async || {
            let mut known = 0;
            for sentinel in &watched.sentinels {
                let about = info(sentinel, "sentinel").await;
                known += usize::from(
                    about.contains("status=ok") && about.contains("slaves=1,sentinels=3"),
                );
            }
            known == 3
        })
        .await;
        watched
    }

    fn options(&self) -> RedisCacheOptions {
        RedisCacheOptions {
            backoff: Duration::from_millis(5),
            backoff_limit: Duration::from_millis(50),
            command_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(2),
            ..RedisCacheOptions::new(self.url())
        }
    }

    /// The replica has all that the primary has.
    async fn is_in_step(&self) {
        until("the replica has all", async || {
            let (of, to) = (
                info(&self.primary, "replication").await,
                info(&self.replica, "replication").await,
            );
            let field = |info: &str, name: &str| {
                info.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned)
            };
            to.contains("master_link_status:up")
                && field(&of, "master_repl_offset:") == field(&to, "master_repl_offset:")
        })
        .await;
    }

    /// The replica gets nothing any more. One that is only paused would find it in its socket.
    async fn hears_no_more(&self) {
        let url = self.replica.url();
        by_hand::<()>(&url, "CONFIG SET masterauth wrong").await;
        by_hand::<u64>(&url, "CLIENT KILL TYPE master").await;
    }

    async fn all_sentinels(&self, words: &str) {
        for sentinel in &self.sentinels {
            by_hand::<::redis::Value>(&sentinel.url(), words).await;
        }
    }
}

async fn info(server: &RedisServer, section: &str) -> String {
    by_hand(&server.url(), &format!("INFO {section}")).await
}

async fn note(cache: &RedisCache) -> String {
    cache.inspect().await.note.to_string()
}

/// A record is cached, the replica has it, and does not hear that it was written since. Then it is promoted.
async fn lost_invalidation(watched: &Watched, options: RedisCacheOptions) -> Option<u64> {
    let cache = cache(options).await;
    let reader = lease(&cache, &key("a")).await;
    fill(&cache, &key("a"), reader, 1).await;
    watched.is_in_step().await;
    watched.hears_no_more().await;
    invalidate(&cache, &key("a"), 2).await;
    assert_eq!(hit(&cache, &key("a")).await, None);
    watched.primary.kill();
    until("the cache is lost", async || cache.inspect().await.status == Status::Down).await;
    live(&cache).await;
    assert!(info(&watched.replica, "replication").await.contains("role:master"));
    hit(&cache, &key("a")).await
}

#[tokio::test]
async fn an_invalidation_lost_in_a_failover_shows_nothing_old() {
    let watched = Watched::start(Persistence::None).await;
    assert_eq!(lost_invalidation(&watched, watched.options()).await, None);
}

/// The same by a cache that believes any memory, so that the test above is known to see it.
#[cfg(feature = "mutants")]
#[tokio::test]
async fn a_cache_that_trusts_any_memory_shows_it() {
    use terrace_stores::redis::mutants::Mutant;
    let watched = Watched::start(Persistence::None).await;
    let options = RedisCacheOptions { mutant: Some(Mutant::TrustsAnyMemory), ..watched.options() };
    assert_eq!(lost_invalidation(&watched, options).await, Some(1));
}

#[tokio::test]
async fn a_server_that_was_left_is_left_though_it_answers() {
    let watched = Watched::start(Persistence::None).await;
    let cache = cache(watched.options()).await;
    live(&cache).await;
    // The sentinels name the replica; the primary takes writes as before.
    watched.all_sentinels("SENTINEL REMOVE main").await;
    let named = format!("SENTINEL MONITOR main 127.0.0.1 {} 2", watched.replica.port());
    watched.all_sentinels(&named).await;
    until("the replica is not believed", async || {
        note(&cache).await.contains("is a replica, though it is named as the primary")
    })
    .await;
    by_hand::<()>(&watched.replica.url(), "REPLICAOF NO ONE").await;
    live(&cache).await;
    let reader = lease(&cache, &key("a")).await;
    fill(&cache, &key("a"), reader, 1).await;
    let entry = "EXISTS {terrace}:entry:a";
    assert_eq!(by_hand::<u64>(&watched.replica.url(), entry).await, 1);
    assert_eq!(by_hand::<u64>(&watched.primary.url(), entry).await, 0);
}

#[tokio::test]
async fn one_sentinel_is_enough_and_a_wrong_name_is_told() {
    let watched = Watched::start(Persistence::None).await;
    let wrong = watched.url().replace("/main?", "/none?");
    let wrong = cache(RedisCacheOptions { url: wrong, ..watched.options() }).await;
    assert!(note(&wrong).await.contains("not known to its sentinels"), "{}", note(&wrong).await);
    let wrong = watched.url().replace("sentinel_password=shared", "sentinel_password=wrong");
    let wrong = cache(RedisCacheOptions { url: wrong, ..watched.options() }).await;
    assert!(note(&wrong).await.contains("user name or password"), "{}", note(&wrong).await);
    watched.sentinels[0].kill();
    watched.sentinels[1].pause();
    let cache = cache(watched.options()).await;
    live(&cache).await;
    watched.sentinels[1].resume();
}

#[tokio::test]
async fn a_journal_that_may_fail_over_claims_no_more_than_accepted() {
    let watched = Watched::start(Persistence::AofAlways).await;
    let runtime = Runtime::system();
    let open = async |url: String| {
        let options = RedisJournalOptions {
            connect_timeout: Duration::from_secs(2),
            ..RedisJournalOptions::new(url)
        };
        RedisJournal::connect(options, runtime.clone()).await.unwrap()
    };
    let alone = open(watched.primary.url()).await;
    assert!(durability(&alone).await.contains("journaled"));
    let journal = open(watched.url()).await;
    assert!(durability(&journal).await.contains("accepted"));
    watched.is_in_step().await;
    watched.primary.kill();
    until("the journal is lost", async || journal.inspect().await.status == Status::Down).await;
    until("the journal is back", async || {
        let claimed = durability(&journal).await;
        assert!(!claimed.contains("journaled"), "{claimed}");
        claimed.contains("accepted")
    })
    .await;
}

async fn durability(journal: &RedisJournal) -> String {
    format!("{:?}", journal.inspect().await.known("durability"))
}

//! What Redis lets its user do, as each part asks for it: with its own keys and its own channel.

use terrace_core::{Cache as _, Follower as _, Inspection, Journal as _, Runtime, Status};
use terrace_stores::redis::{RedisStream, RedisStreamOptions};
use terrace_stores::{RedisCache, RedisCacheOptions, RedisJournal, RedisJournalOptions};

use super::{Finding, finding};
use crate::config::Config;
use crate::levels::broker_name;

/// A database that was never served has no name yet; its patterns are looked at with this one.
const NO_HISTORY: &str = "doctor";
const GOOD: &str = "Redis answers, and lets its user do what is needed";

/// The parts whose servers are named. What they make there is theirs, and empty.
pub(super) async fn look(config: &Config, history: Option<&str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let name = |prefix: &str| broker_name(prefix, ':', history.unwrap_or(NO_HISTORY));
    let (space, runtime) = (&config.stores.namespace, Runtime::system());
    let (cache, journal) = (&config.cache.url, &config.journal.url);
    if !cache.is_empty() {
        let namespace = name(space);
        let options =
            RedisCacheOptions { namespace, announce: true, ..RedisCacheOptions::new(cache) };
        findings.push(match RedisCache::connect(options, runtime.clone()).await {
            Ok(cache) => told("cache", "Redis ", &cache.inspect().await),
            Err(error) => finding("cache", false, error.message()),
        });
        let key = format!("{}:{NO_HISTORY}", name(&format!("{space}:events")));
        let options = RedisStreamOptions::new(cache, key);
        let checkpoint = match RedisStream::new(options, runtime.clone()) {
            Ok(stream) => stream.checkpoint().await,
            Err(error) => Err(error),
        };
        findings.push(match checkpoint {
            Ok(_) => finding("event stream", true, GOOD),
            Err(error) => finding("event stream", false, error.message()),
        });
    }
    let engine = config.journal.engine.as_str();
    if ["auto", "redis"].contains(&engine) && !journal.is_empty() && !journal.starts_with("nats:") {
        let namespace = name(&format!("{space}-journal"));
        let options = RedisJournalOptions { namespace, ..RedisJournalOptions::new(journal) };
        findings.push(match RedisJournal::connect(options, runtime).await {
            Ok(journal) => told("journal", "", &journal.inspect().await),
            Err(error) => finding("journal", false, error.message()),
        });
    }
    findings
}

fn told(what: &str, subject: &str, tree: &Inspection) -> Finding {
    match tree.status {
        Status::Healthy => finding(what, true, GOOD),
        _ => finding(what, false, &format!("{subject}{}", tree.note)),
    }
}

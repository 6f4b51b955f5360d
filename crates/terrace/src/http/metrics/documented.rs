//! The names that the documents give to figures of level 10, with the meaning that they promise.
//!
//! Another level has those whose parts it has.

use hyper::StatusCode;
use terrace_core::{Inspection, PartKind};

use super::page::{Labels, Page, Value};
use super::requests::Requests;
use crate::http::documents::{breakers, by_shard};

/// Adds what there is of them.
pub(super) fn add(tree: &Inspection, requests: &Requests, page: &mut Page) {
    requests.add_to(page);
    let limited = Value::Counter(requests.with(StatusCode::TOO_MANY_REQUESTS));
    let help = "Requests refused because of a rate limit.";
    page.add("rate_limit_exceeded", help, Labels::new(), limited);
    add_caches(tree, page);
    add_shards(tree, page);
    for (service, state) in breakers(tree) {
        let value = match state {
            "open" => 1,
            "half_open" => 2,
            _ => 0,
        };
        let help = "Whether a shard or a cache is asked: 0 closed, 1 open, 2 half open.";
        page.add("circuit_breaker_state", help, vec![("service", service)], Value::Gauge(value));
    }
}

/// Where the records that clients were answered came from, which a fill of a cache is not.
fn add_caches(tree: &Inspection, page: &mut Page) {
    let Some(answers) = tree.find("observe") else { return };
    let from = |origin| answers.number(origin).unwrap_or_default();
    let levels = [("L1", "near-cache", "from_near"), ("L2", "cache-aside", "from_far")];
    let levels = levels.into_iter().filter(|(_, part, _)| tree.find(part).is_some());
    let mut is_cached = false;
    for (level, _, origin) in levels {
        is_cached = true;
        let (labels, hits) =
            (vec![("cache_level", level.to_owned())], Value::Counter(from(origin)));
        page.add("cache_hits", "Records read from a cache.", labels, hits);
    }
    if is_cached {
        let misses = ["from_primary", "from_replica", "from_shard"].map(from).iter().sum();
        let help = "Records read from a database, because no cache had them.";
        page.add("cache_misses", help, Labels::new(), Value::Counter(misses));
    }
}

fn add_shards(tree: &Inspection, page: &mut Page) {
    for (name, shard) in by_shard(tree, Clone::clone) {
        let labels = || vec![("shard", name.clone())];
        if let Some(times) = shard.timed("call_time") {
            let help = "Calls to the database of a shard: reads, writes and lists.";
            page.add("db_queries", help, labels(), Value::Counter(times.count()));
            let help = "How long the calls took that db_queries_total counts.";
            page.add("db_query_duration_seconds", help, labels(), Value::Times(times));
        }
        if let Some(pool) = shard.find_kind(PartKind::Pool) {
            let [open, idle] = ["pool_size", "pool_available"].map(|name| pool.number(name));
            let used = open.unwrap_or_default().saturating_sub(idle.unwrap_or_default());
            let help = "Connections to the database of a shard that are in use.";
            page.add("active_connections", help, labels(), Value::Gauge(used));
        }
    }
}

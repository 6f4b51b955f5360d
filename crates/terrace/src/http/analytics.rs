//! What the changes of all shards come to, by time.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::{Method, StatusCode};
use terrace_core::rollup::{Count, KEPT_MINUTES, minute_of};
use terrace_core::{RollupQuery, SLOTS, Timestamp};
use terrace_layers::ByShard;
use utoipa::openapi::path::ParameterIn;

use super::call::Call;
use super::documents;
use super::endpoint::Endpoint;
use super::face::Analytics;
use super::json::Object;
use super::path;
use super::problem::{Kind, Problem};
use super::reply::{self, Answer};
use super::schema::{Shape, array, object};

/// The most buckets of one answer.
const MAX_LIMIT: usize = 100;

/// The most names of one answer: no level has as many shards, nor so many prefixes in all of them.
const MAX_NAMES: usize = SLOTS as usize;

/// The lengths of a bucket, in minutes.
const BUCKETS: [(&str, i64); 3] = [("1m", 1), ("15m", 15), ("1h", 60)];

/// The row of the table for a level whose shards count their changes.
pub(crate) fn endpoints(analytics: &Arc<dyn Analytics>) -> Vec<Endpoint> {
    let count = object(&[
        (
            "name",
            Shape::Text.schema("The shard, or what keys begin with up to the first `/` or `:`."),
        ),
        ("count", Shape::Count.schema("")),
    ]);
    let bucket = object(&[
        ("from", Shape::Time.schema("When it begins.")),
        ("counts", array(count.build().into(), 1, MAX_NAMES)),
    ]);
    let shard = object(&[
        ("name", Shape::Text.schema("")),
        ("as_of", Shape::Text.schema("The place in its change log up to which it is counted.")),
        (
            "lag_ms",
            Shape::Count.schema("How long the oldest change has waited that is not counted."),
        ),
    ]);
    let answer = object(&[
        ("metric", METRIC.schema("")),
        ("bucket", BUCKET.schema("")),
        ("by", BY.schema("")),
        ("buckets", array(bucket.build().into(), 0, MAX_LIMIT)),
        ("shards", array(shard.build().into(), 1, MAX_NAMES)),
        (
            "unavailable",
            array(Shape::Text.schema("A shard whose counts are missing."), 0, MAX_NAMES),
        ),
    ]);
    let endpoint = Endpoint::new(analytics, Method::GET, "/v1/analytics", |analytics, call| {
        Box::pin(get(analytics, call))
    })
    .summary("Analytics", "Count writes over time")
    .description(
        "Each shard counts the changes of its change log, each once, and keeps the counts of a day. The \
         latest buckets that have any are answered, the latest first. Of each shard the first 100 prefixes \
         have a count of their own, and all others together one under `other`. Keys without a separator \
         have the empty prefix. A shard that does not answer is named in `unavailable`.",
    )
    .needs("metric", METRIC, "`writes`: changes, deletions too; `bytes`: of the values written.")
    .parameter(ParameterIn::Query, "bucket", BUCKET, "The length: `1m` (the default), `15m`, `1h`.")
    .parameter(ParameterIn::Query, "by", BY, "What is counted by itself; `shard` is the default.")
    .parameter(ParameterIn::Query, "limit", Shape::UpTo(MAX_LIMIT), "At most so many buckets; 20.")
    .problems(&[Kind::InvalidInput, Kind::Overloaded, Kind::Unavailable, Kind::DeadlineExceeded])
    .answers(StatusCode::OK, "The counts.", answer.build(), &[]);
    vec![endpoint]
}

const METRIC: Shape = Shape::Word(&["writes", "bytes"]);
const BUCKET: Shape = Shape::Word(&["1m", "15m", "1h"]);
const BY: Shape = Shape::Word(&["shard", "prefix"]);

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    metric: &'static str,
    bucket: (&'static str, i64),
    by_prefix: bool,
    limit: usize,
}

impl Asked {
    fn read(query: Option<&str>) -> Result<Self, Problem> {
        let query = path::query(query, &["metric", "bucket", "by", "limit"])?;
        let metric = match query.get("metric").map(String::as_str) {
            Some("writes") => "writes",
            Some("bytes") => "bytes",
            Some("reads") => {
                return Err(Problem::invalid(
                    "reads are not counted here, because most are answered from caches and leave nothing \
                     in a change log; see http_requests_total in /metrics, or ask for writes or bytes",
                ));
            }
            _ => return Err(Problem::invalid("metric must be writes or bytes")),
        };
        let bucket = query.get("bucket").map_or("1m", String::as_str);
        let bucket = BUCKETS.into_iter().find(|(name, _)| *name == bucket);
        let bucket = bucket.ok_or_else(|| Problem::invalid("bucket must be 1m, 15m or 1h"))?;
        let by_prefix = match query.get("by").map(String::as_str) {
            None | Some("shard") => false,
            Some("prefix") => true,
            Some(_) => return Err(Problem::invalid("by must be shard or prefix")),
        };
        let limit = path::limit_of(query.get("limit"), 20, MAX_LIMIT)?;
        Ok(Self { metric, bucket, by_prefix, limit })
    }

    /// The latest buckets, as far as all their minutes are kept.
    fn query(&self, now: Timestamp) -> RollupQuery {
        let (now, bucket) = (minute_of(now), self.bucket.1);
        let last = now.div_euclid(bucket);
        let limit = i64::try_from(self.limit).unwrap_or(1);
        let oldest = (now - KEPT_MINUTES).div_euclid(bucket) + 1;
        let since = (last - limit + 1).max(oldest) * bucket;
        RollupQuery { since, bucket, by_prefix: self.by_prefix }
    }

    fn figure(&self, count: &Count) -> u64 {
        if self.metric == "bytes" { count.bytes } else { count.writes }
    }
}

async fn get(analytics: &dyn Analytics, call: &mut Call) -> Answer {
    let asked = Asked::read(call.parts.uri.query())?;
    let query = asked.query(call.app.runtime.wall());
    let found = call.in_time(analytics.counts(&query, call.deadline())).await?;
    Ok(reply::json(answer(&asked, &found)))
}

/// By the beginning of the bucket, the latest first, and by name.
fn answer(asked: &Asked, found: &ByShard) -> Object {
    let mut buckets = BTreeMap::<i64, BTreeMap<&str, u64>>::new();
    let name = |number: &u16| documents::shard_name(*number);
    let names = found.shards.iter().map(|(number, _)| name(number)).collect::<Vec<_>>();
    for ((_, counted), shard) in found.shards.iter().zip(&names) {
        for count in &counted.counts {
            let name = if asked.by_prefix { count.prefix.as_str() } else { shard };
            let counts = buckets.entry(count.minute).or_default();
            *counts.entry(name).or_default() += asked.figure(count);
        }
    }
    let unavailable = found.unavailable.iter().map(name).collect::<Vec<_>>();
    Object::with_capacity(
        256 + buckets.values().map(|counts| 64 + counts.len() * 48).sum::<usize>(),
    )
    .field("metric", asked.metric)
    .field("bucket", asked.bucket.0)
    .field("by", if asked.by_prefix { "prefix" } else { "shard" })
    .objects("buckets", buckets.iter().rev(), |object, (minute, counts)| {
        let from = Timestamp::from_second(minute.saturating_mul(60)).unwrap_or_default();
        object.time("from", from).objects("counts", counts, |object, (name, count)| {
            object.field("name", *name).field("count", count)
        })
    })
    .objects("shards", found.shards.iter().zip(&names), |object, ((_, counted), shard)| {
        let lag = u64::try_from(counted.lag.as_millis()).unwrap_or(u64::MAX);
        object
            .field("name", shard)
            .field("as_of", &counted.position.to_string())
            .field("lag_ms", &lag)
    })
    .field("unavailable", &unavailable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_whole_and_no_older_than_what_is_kept() {
        let now = Timestamp::from_second(100_003 * 60 + 59).unwrap();
        let query = |text| Asked::read(Some(text)).unwrap().query(now);
        let wanted = RollupQuery { since: 99_984, bucket: 1, by_prefix: false };
        assert_eq!(query("metric=writes"), wanted);
        let wanted = RollupQuery { since: 99_960, bucket: 60, by_prefix: true };
        assert_eq!(query("metric=bytes&bucket=1h&by=prefix&limit=1"), wanted);
        let all = query("metric=bytes&bucket=1h&limit=100");
        assert!(all.since >= 100_003 - KEPT_MINUTES && all.since % 60 == 0, "{all:?}");
        for bad in [
            "",
            "metric=reads",
            "metric=",
            "metric=writes&bucket=2m",
            "metric=writes&by=key",
            "metric=writes&limit=0",
            "metric=writes&limit=101",
            "metric=writes&metric=writes",
            "x=1",
        ] {
            assert!(Asked::read(Some(bad)).is_err(), "{bad}");
        }
    }
}

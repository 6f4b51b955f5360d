//! What the query side answers beyond records by key: search, counts, activity.

use std::sync::Arc;
use std::time::Duration;

use hyper::{Method, StatusCode};
use terrace_core::read_model::{Counted, Row};
use terrace_core::{Fact, PartKind};
use utoipa::openapi::path::ParameterIn;
use utoipa::openapi::schema::Schema;

use super::call::Call;
use super::endpoint::Endpoint;
use super::face::{Queries, Whole};
use super::json::Object;
use super::path;
use super::problem::{Kind, Problem};
use super::reply::{self, Answer};
use super::schema::{Shape, array, object};

const GROUP: &str = "Queries";

/// The most records or buckets of one answer.
const MAX_LIMIT: usize = 1000;

/// The rows of the table for a level with a query side.
pub(crate) fn endpoints(queries: &Arc<dyn Queries>, whole: &Arc<dyn Whole>) -> Vec<Endpoint> {
    let records = || object(&[("records", array(row_schema(), 0, MAX_LIMIT))]).build();
    let buckets = object(&[("from", Shape::Time.schema("")), ("writes", Shape::Count.schema(""))]);
    let buckets = object(&[("buckets", array(buckets.build().into(), 0, MAX_LIMIT))]);
    let limit = "At most so many; 20.";
    vec![
        Endpoint::new(queries, Method::GET, "/v1/search", |queries, call| {
            Box::pin(search(queries, call))
        })
        .summary(GROUP, "Find records by words")
        .description(
            "Records whose key or value has all the words, the best first. Fewer than `limit` \
             where their values reach 16 MiB.",
        )
        .needs("q", WORDS, "The words; at most 1024 bytes.")
        .parameter(ParameterIn::Query, "limit", Shape::UpTo(MAX_LIMIT), limit)
        .problems(PROBLEMS)
        .answers(StatusCode::OK, "What was found.", records(), &[]),
        Endpoint::new(queries, Method::GET, "/v1/top", |queries, call| {
            Box::pin(top(queries, call))
        })
        .summary(GROUP, "Find the records most read or written")
        .needs("by", Shape::Word(&["reads", "writes"]), "Which count.")
        .parameter(ParameterIn::Query, "limit", Shape::UpTo(MAX_LIMIT), limit)
        .problems(PROBLEMS)
        .answers(StatusCode::OK, "The records, the highest first.", records(), &[]),
        Endpoint::new(queries, Method::GET, "/v1/activity", |queries, call| {
            Box::pin(activity(queries, call))
        })
        .summary(GROUP, "Tell values written over time")
        .description("The latest buckets that have any, the latest first.")
        .parameter(
            ParameterIn::Query,
            "bucket",
            BUCKET,
            "The length: `1m` (the default), `15m`, `2h`, `1d`.",
        )
        .parameter(ParameterIn::Query, "limit", Shape::UpTo(MAX_LIMIT), limit)
        .problems(PROBLEMS)
        .answers(StatusCode::OK, "The buckets.", buckets.build(), &[]),
        Endpoint::new(whole, Method::GET, "/v1/projection", |whole, _| Box::pin(projection(whole)))
            .summary(GROUP, "Tell how the projection does")
            .answers(StatusCode::OK, "As this instance sees it.", projection_schema(), &[]),
    ]
}

/// Something that is no space, without NUL. A character has up to four bytes.
const WORDS: Shape =
    Shape::Short("^[^\\u0000]*[^\\s\\u0000\\u0085\\ufeff][^\\u0000]*$", MAX_WORDS / 4);

/// Up to 366 days.
const BUCKET: Shape = Shape::Form(
    "^([1-9][0-9]{0,4}m|[1-9][0-9]{0,2}h|([1-9][0-9]?|[12][0-9][0-9]|3[0-5][0-9]|36[0-6])d)$",
);

/// The most bytes of the words of a search.
const MAX_WORDS: usize = 1024;

const PROBLEMS: &[Kind] =
    &[Kind::InvalidInput, Kind::Overloaded, Kind::Unavailable, Kind::DeadlineExceeded];

fn row_schema() -> Schema {
    object(&[
        ("key", Shape::Key.schema("")),
        ("value", Shape::Value.schema("")),
        ("version", Shape::Count.schema("")),
        ("created_at", Shape::Time.schema("")),
        ("updated_at", Shape::Time.schema("")),
        ("read_count", Shape::Count.schema("How often it was read.")),
        ("write_count", Shape::Count.schema("How many commands its key has had.")),
    ])
    .build()
    .into()
}

async fn search(queries: &dyn Queries, call: &mut Call) -> Answer {
    let query = path::query(call.parts.uri.query(), &["q", "limit"])?;
    let words = query.get("q").filter(|words| !words.trim().is_empty());
    let words = words.ok_or_else(|| Problem::invalid("q is missing; give the words to find"))?;
    if words.len() > MAX_WORDS {
        return Err(Problem::invalid("q is longer than 1024 bytes; give fewer words"));
    }
    let limit = path::limit_of(query.get("limit"), 20, MAX_LIMIT)?;
    call.in_time(queries.search(words, limit)).await.map(|rows| records(&rows))
}

async fn top(queries: &dyn Queries, call: &mut Call) -> Answer {
    let query = path::query(call.parts.uri.query(), &["by", "limit"])?;
    let by = match query.get("by").map(String::as_str) {
        Some("reads") => Counted::Reads,
        Some("writes") => Counted::Writes,
        _ => return Err(Problem::invalid("by must be reads or writes")),
    };
    let limit = path::limit_of(query.get("limit"), 20, MAX_LIMIT)?;
    call.in_time(queries.top(by, limit)).await.map(|rows| records(&rows))
}

async fn activity(queries: &dyn Queries, call: &mut Call) -> Answer {
    let query = path::query(call.parts.uri.query(), &["bucket", "limit"])?;
    let bucket = bucket(query.get("bucket").map_or("1m", String::as_str))?;
    let limit = path::limit_of(query.get("limit"), 20, MAX_LIMIT)?;
    let buckets = call.in_time(queries.activity(bucket, limit)).await?;
    let room = 32 + buckets.len() * 64;
    Ok(reply::json(Object::with_capacity(room).objects("buckets", &buckets, |object, bucket| {
        object.time("from", bucket.from).field("writes", &bucket.writes)
    })))
}

fn projection_schema() -> Schema {
    let lag = "From the oldest command of a batch to its projection; of the last minute.";
    object(&[
        ("projects", Shape::Bool.schema("Whether this instance projects; else another does.")),
        ("events_projected", Shape::Count.schema("By this instance.")),
        ("batches", Shape::Count.schema("By this instance.")),
        ("parked_keys", Shape::Count.schema("Keys that are stopped.")),
        ("lag_p50_us", Shape::Count.schema(lag)),
        ("lag_p99_us", Shape::Count.schema(lag)),
        (
            "behind_us",
            Shape::Count.schema(
                "How long the oldest command has waited that is committed and held back by a \
                 transaction that stays open; 0 when none is.",
            ),
        ),
    ])
    .build()
    .into()
}

async fn projection(whole: &dyn Whole) -> Answer {
    let tree = whole.inspect().await;
    let projector = tree.find("projector");
    let figure = |name| projector.and_then(|part| part.number(name)).unwrap_or(0);
    let parked =
        tree.find_kind(PartKind::ReadModel).and_then(|model| model.number("parked")).unwrap_or(0);
    let leads = projector.and_then(|part| part.known("leads")) == Some(&Fact::Flag(true));
    let lag = projector.and_then(|part| part.spread("lag")).unwrap_or_default();
    let answer = Object::with_capacity(160)
        .field("projects", &leads)
        .field("events_projected", &figure("changes"))
        .field("batches", &figure("batches"))
        .field("parked_keys", &parked)
        .field("lag_p50_us", &lag.p50)
        .field("lag_p99_us", &lag.p99)
        .field("behind_us", &figure("behind"));
    Ok(reply::json(answer))
}

fn records(rows: &[Row]) -> reply::Reply {
    let rows = rows.iter().filter_map(|row| Some((row.record.as_ref()?, row)));
    reply::json(Object::with_capacity(4096).objects("records", rows, |object, (record, row)| {
        object.record(record).field("read_count", &row.reads).field("write_count", &row.writes)
    }))
}

/// A whole number of minutes, hours or days, up to 366 days.
fn bucket(text: &str) -> Result<Duration, Problem> {
    let wrong = || Problem::invalid("bucket must be a number and m, h or d, such as 1m");
    let unit = match text.chars().last() {
        Some('m') => 60,
        Some('h') => 60 * 60,
        Some('d') => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let number = text.get(..text.len() - 1).and_then(|digits| digits.parse::<u64>().ok());
    let seconds = number.filter(|number| *number > 0).and_then(|number| number.checked_mul(unit));
    let seconds = seconds.filter(|seconds| *seconds <= 366 * 24 * 60 * 60);
    seconds.map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_read_or_refused() {
        assert_eq!(bucket("1m").unwrap(), Duration::from_secs(60));
        assert_eq!(bucket("2h").unwrap(), Duration::from_secs(7200));
        for bad in ["", "m", "0m", "1", "1s", "-1m", "99999999999999999999d", "400d", "1µ"] {
            assert!(bucket(bad).is_err(), "{bad}");
        }
    }
}

//! What several regions answer beyond records by key: the updates that were lost to others.

use std::sync::Arc;

use hyper::{Method, StatusCode};
use terrace_core::{Conflict, Deadline, Key, RegionName, Version, opaque};
use utoipa::openapi::path::ParameterIn;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};

use super::call::Call;
use super::endpoint::Endpoint;
use super::face::Regions;
use super::json::Object;
use super::path;
use super::problem::{Kind, Problem};
use super::reply::{self, Answer};
use super::schema::{Shape, array, object};

const GROUP: &str = "Regions";

/// What a cursor begins with, before a version and a key.
const CURSOR: &str = "c1~";

/// The most conflicts of one answer.
const MAX_LIMIT: usize = 1000;

/// The rows of the table for a level with several regions.
pub(crate) fn endpoints(regions: &Arc<dyn Regions>) -> Vec<Endpoint> {
    let answer = object(&[
        ("conflicts", array(conflict_schema(), 0, MAX_LIMIT)),
        ("next_cursor?", Shape::Text.schema("The cursor of the next page; absent on the last.")),
    ]);
    let limit = "At most so many; 100.";
    let cursors = format!("^{CURSOR}[0-9]{{1,16}}~{}{{1,{}}}$", opaque::PATTERN, Key::MAX_CHARS);
    let cursors = ObjectBuilder::new().schema_type(Type::String).pattern(Some(cursors)).build();
    let endpoint = Endpoint::new(regions, Method::GET, "/v1/conflicts", |regions, call| {
        Box::pin(conflicts(regions, call))
    })
    .summary(GROUP, "List updates that were lost")
    .description(
        "Two regions wrote one key, and neither had seen the other's update: the higher version is \
             in force everywhere, and the other one is listed here. By key, then by version. Every \
             region comes to the same list.",
    )
    .parameter_like(ParameterIn::Query, "cursor", cursors, "`next_cursor` of the page before.")
    .parameter(ParameterIn::Query, "limit", Shape::UpTo(MAX_LIMIT), limit)
    .problems(&[Kind::InvalidInput, Kind::Overloaded, Kind::Unavailable, Kind::DeadlineExceeded])
    .answers(StatusCode::OK, "One page.", answer.build(), &[]);
    vec![placed(endpoint, &regions.names())]
}

/// Adds the header that names a region to an endpoint of the record API.
pub(crate) fn placed(endpoint: Endpoint, regions: &[RegionName]) -> Endpoint {
    let names = regions.iter().map(RegionName::to_string);
    let names = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(names));
    let meaning = "Where to read or write; without it where the client is.";
    endpoint.parameter_like(ParameterIn::Header, "X-Region", names.build(), meaning)
}

/// Adds the header that asks for more than the commit in one region to an endpoint that writes.
pub(crate) fn confirming(endpoint: Endpoint) -> Endpoint {
    let meaning = "`replicated`: answer when most regions have it, `replicated=all` when all have it; \
                   504 `outcome-unknown` when that does not come in time.";
    endpoint.parameter(ParameterIn::Header, "Terrace-Durability", CONFIRMED, meaning)
}

const CONFIRMED: Shape = Shape::Word(&["committed", "replicated", "replicated=all"]);

fn conflict_schema() -> Schema {
    object(&[
        ("key", Shape::Key.schema("")),
        ("lost_version", Shape::Count.schema("The version of the update that was lost.")),
        ("lost_region", Shape::Text.schema("Where it was written.")),
        ("lost_digest", Shape::MaybeText.schema("SHA-256 of its value; null for a deletion.")),
        ("version", Shape::Count.schema("The version that was in force over it.")),
        ("region", Shape::Text.schema("Where that one was written.")),
        ("rule", Shape::Text.schema("Why that one is in force.")),
        ("noticed_at", Shape::Time.schema("When this region noticed.")),
    ])
    .build()
    .into()
}

async fn conflicts(regions: &dyn Regions, call: &mut Call) -> Answer {
    let query = path::query(call.parts.uri.query(), &["cursor", "limit"])?;
    let after = query.get("cursor").filter(|text| !text.is_empty());
    let after = after.map(|text| read_cursor(text)).transpose()?;
    let limit = path::limit_of(query.get("limit"), 100, MAX_LIMIT)?;
    let region = call.region(None)?;
    // One more than asked shows whether there is another page.
    let found = regions.conflicts(region, after, limit + 1);
    let found = call.app.runtime.within(call.deadline(), found).await;
    let mut found = found.unwrap_or_else(|| Err(Deadline::exceeded()))?;
    let more = found.len() > limit;
    found.truncate(limit);
    let answer = Object::with_capacity(64 + found.len() * 256);
    let name = |version| {
        let geography = call.app.geography.as_ref();
        geography.map(|it| it.region_of(version)).unwrap_or_default()
    };
    let answer = answer.objects("conflicts", &found, |object, conflict| {
        object
            .field("key", conflict.key.as_str())
            .field("lost_version", &conflict.loser.get())
            .field("lost_region", &name(conflict.loser))
            .field("lost_digest", &conflict.digest.as_ref().map(hex))
            .field("version", &conflict.winner.get())
            .field("region", &name(conflict.winner))
            .field("rule", Conflict::RULE)
            .time("noticed_at", conflict.noticed_at)
    });
    let answer = match found.last().filter(|_| more) {
        Some(last) => answer.field("next_cursor", &cursor(&last.key, last.loser)),
        None => answer,
    };
    Ok(reply::json(answer))
}

fn cursor(key: &Key, version: Version) -> String {
    let mut text = format!("{CURSOR}{version}~");
    opaque::escape(key.as_str(), &mut text);
    text
}

fn read_cursor(text: &str) -> Result<(Key, Version), Problem> {
    let parts = text.strip_prefix(CURSOR).and_then(|rest| rest.split_once('~'));
    let read = parts.and_then(|(version, key)| {
        let key = Key::new(opaque::unescape(key)?).ok()?;
        Some((key, Version::new(version.parse().ok()?)))
    });
    read.ok_or_else(|| {
        Problem::invalid("cursor is not one that Terrace gave; send next_cursor back unchanged")
    })
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

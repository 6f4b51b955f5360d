//! The documents' API of several regions: each answer says which one it came from.

use std::sync::Arc;
use std::time::Duration;

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use terrace_core::{Deadline, Inspection, Key, PartKind, Read, RegionName, Status, Write};
use utoipa::openapi::path::ParameterIn;

use super::parts::{self, figure};
use super::{Documents, GROUP};
use crate::http::call::Call;
use crate::http::endpoint::{Endpoint, Needs};
use crate::http::face::{Regions, Whole};
use crate::http::fields::{self, Raw};
use crate::http::json::Object;
use crate::http::records::value;
use crate::http::reply::{self, Answer, WithHeaders as _};
use crate::http::schema::{Shape, array, object};

/// How long a write waits for other regions before it is answered.
const CONFIRMED_WITHIN: Duration = Duration::from_millis(250);

const REGION: &str = "Where to read or write; an unknown name means the first region. Without it where \
     the client is.";

/// The records, and what their regions say.
#[derive(Debug)]
struct Regional {
    documents: Arc<Documents>,
    regions: Arc<dyn Regions>,
}

/// The rows of the table.
pub(super) fn endpoints(
    documents: &Arc<Documents>,
    regions: &Arc<dyn Regions>,
    whole: &Arc<dyn Whole>,
) -> Vec<Endpoint> {
    let all = Regional { documents: Arc::clone(documents), regions: Arc::clone(regions) };
    let all = Arc::new(all);
    vec![
        write_endpoint(&all),
        read_endpoint(documents),
        stats_endpoint(whole),
        list_endpoint(whole),
    ]
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    key: Raw<'a>,
    #[serde(borrow)]
    value: Raw<'a>,
    #[serde(borrow)]
    region: Raw<'a>,
}

fn write_endpoint(all: &Arc<Regional>) -> Endpoint {
    let answer = object(&[
        ("success", Shape::True.schema("")),
        ("key", Shape::Key.schema("")),
        ("message", Shape::Text.schema("")),
        ("primary_region", Shape::Text.schema("The region that took the write.")),
        ("replicated_to", array(Shape::Text.schema(""), 0, 62).clone()),
    ]);
    let request = object(&[
        ("key", Shape::Key.schema("")),
        ("value", Shape::Value.schema("")),
        (
            "region?",
            Shape::Text.schema("As the header X-Region, which counts where both are there."),
        ),
    ]);
    Endpoint::new(all, Method::POST, "/write", |all, call| Box::pin(write(all, call)))
        .summary(GROUP, "Write a record")
        .description(
            "Creates it or replaces its value. Waits up to 250 ms for the other regions, and names \
             those that have it. Unknown fields are ignored.",
        )
        .takes(request.build(), json!({"key": "greeting", "value": "hello", "region": "eu-west"}))
        .writes()
        .checks_keys()
        .parameter(ParameterIn::Header, "X-Region", Shape::Text, REGION)
        .answers(
            StatusCode::OK,
            "It is written, as safely as Terrace-Durability says.",
            answer.build(),
            &["Terrace-Origin", "Terrace-Durability", "Terrace-Token"],
        )
}

async fn write(all: &Regional, call: &mut Call) -> Answer {
    let records = &all.documents.records;
    let body = call.json().await?;
    let fields = fields::object::<Body<'_>>(&body)?;
    let key = Key::new(fields::text("key", fields.key)?)?;
    let value = value("value", fields.value, &call.app.limits)?;
    let named = fields.region.map(|raw| fields::text("region", Some(raw))).transpose()?;
    let mut how = call.write_options(&body)?;
    how.region = call.region(named.as_deref())?;
    let receipt = records.write_one(call, Write::put(key.clone(), value), &how).await?;
    let by = Deadline::at(call.app.runtime.now() + CONFIRMED_WITHIN).min(how.deadline);
    let confirmed = all.regions.confirmed(&key, &receipt, by).await;
    let region = shown(receipt.origin.region.or(how.region));
    let message = match confirmed.len() {
        0 => format!("Written to {region}"),
        1 => format!("Written to {region} and replicated to 1 region"),
        count => format!("Written to {region} and replicated to {count} regions"),
    };
    let confirmed = confirmed.into_iter().map(|it| shown(Some(it))).collect::<Vec<_>>();
    let answer = Object::with_capacity(192 + key.as_str().len())
        .field("success", &true)
        .field("key", key.as_str())
        .field("message", &message)
        .field("primary_region", &region)
        .field("replicated_to", &confirmed);
    Ok(reply::json(answer)
        .with_origin(receipt.origin)
        .with_durability(receipt.durability)
        .with_token(&receipt.token))
}

fn read_endpoint(documents: &Arc<Documents>) -> Endpoint {
    let answer = object(&[
        ("success", Shape::Bool.schema("Whether there is a record.")),
        ("key", Shape::Key.schema("")),
        ("value", Shape::MaybeText.schema("Null for a missing key.")),
        ("message", Shape::MaybeText.schema("Null beside a record.")),
        ("source", SOURCES.schema("What answered; `none` for a missing key.")),
        ("region", Shape::Text.schema("Where; `(fallback)` follows when it is not the one asked.")),
        ("latency_ms", Shape::Number.schema("How long the answer took here, in milliseconds.")),
    ]);
    Endpoint::new(documents, Method::GET, "/read/{key}", |documents, call| {
        Box::pin(read(documents, call))
    })
    .summary(GROUP, "Read a record")
    .description(
        "A key that the region does not have is looked for in the others. A missing key answers 200 \
         too, with `success: false`.",
    )
    .reads()
    .checks_keys()
    .parameter(ParameterIn::Header, "X-Region", Shape::Text, REGION)
    .answers(
        StatusCode::OK,
        "The record, or that there is none.",
        answer.build(),
        &["Terrace-Origin", "Terrace-Token"],
    )
}

const SOURCES: Shape = Shape::Word(&["cache", "database", "none"]);

async fn read(documents: &Documents, call: &mut Call) -> Answer {
    let key = call.key()?;
    let how = call.read_options()?;
    let begun = call.app.runtime.now();
    let read = documents.records.read_one(call, &key, &how).await?;
    let took = call.app.runtime.now().saturating_duration_since(begun);
    let record = read.record.as_ref();
    let value = record.map(|record| record.value.as_str());
    let answer = Object::with_capacity(224 + key.as_str().len() + value.map_or(0, str::len))
        .field("success", &record.is_some())
        .field("key", key.as_str())
        .field("value", &value)
        .field("message", &record.is_none().then_some(documents.face.missing))
        .field("source", source(&read))
        .field("region", &answered_by(&read, how.region))
        .field("latency_ms", &((took.as_secs_f64() * 100_000.0).round() / 100.0));
    Ok(reply::json(answer).with_origin(read.origin).with_token(&read.token))
}

fn source(read: &Read) -> &'static str {
    match &read.record {
        None => "none",
        Some(_) if read.origin.is_cache() => "cache",
        Some(_) => "database",
    }
}

/// The name of the region that answered.
fn answered_by(read: &Read, asked: Option<RegionName>) -> String {
    let region = read.origin.region.filter(|_| read.record.is_some());
    match region {
        Some(other) if asked.is_some_and(|asked| asked != other) => {
            format!("{} (fallback)", shown(Some(other)))
        }
        region => shown(region.or(asked)),
    }
}

/// The name of a region as the documents show it: `US-EAST`.
fn shown(region: Option<RegionName>) -> String {
    region.map(|region| region.as_str().to_uppercase()).unwrap_or_default()
}

fn stats_endpoint(whole: &Arc<dyn Whole>) -> Endpoint {
    let region = object(&[
        ("region", Shape::Text.schema("")),
        ("db_pool_size", Shape::Count.schema("Open connections to its database.")),
        ("cache_keys", Shape::Count.schema("Entries in its cache.")),
        ("total_records", Shape::Count.schema("Records in its database.")),
        ("healthy", Shape::Bool.schema("Whether it can be read or written.")),
    ]);
    let answer = object(&[
        ("regions", array(region.build().into(), 1, 63)),
        ("total_regions", Shape::Count.schema("")),
        ("healthy_regions", Shape::Count.schema("")),
        ("total_records_global", Shape::Count.schema("Every copy counts.")),
        ("replication_enabled", Shape::Bool.schema("Whether regions follow each other.")),
    ]);
    Endpoint::new(whole, Method::GET, "/stats", |whole, _| Box::pin(stats(whole)))
        .open_to(Needs::Figures)
        .summary(GROUP, "The regions, with their connections, caches and records")
        .answers(StatusCode::OK, "The numbers, of this instance.", answer.build(), &[])
}

async fn stats(whole: &dyn Whole) -> Answer {
    let tree = whole.inspect().await;
    let records = |part: &Inspection| figure(part.find_kind(PartKind::Database), "records");
    let all = regions(&tree).map(records).sum::<u64>();
    let answer = Object::with_capacity(512)
        .objects("regions", regions(&tree), |object, part| {
            object
                .field("region", &part.instance.to_uppercase())
                .field("db_pool_size", &figure(part.find_kind(PartKind::Pool), "pool_size"))
                .field("cache_keys", &figure(parts::far(part), "keys"))
                .field("total_records", &records(part))
                .field("healthy", &is_healthy(part))
        })
        .field("total_regions", &regions(&tree).count())
        .field("healthy_regions", &regions(&tree).filter(|it| is_healthy(it)).count())
        .field("total_records_global", &all)
        .field("replication_enabled", &parts::replicates(&tree));
    Ok(reply::json(answer))
}

fn list_endpoint(whole: &Arc<dyn Whole>) -> Endpoint {
    let region = object(&[
        ("key", Shape::Text.schema("What X-Region takes.")),
        ("name", Shape::Text.schema("What answers call it.")),
        ("healthy", Shape::Bool.schema("Whether it can be read or written.")),
    ]);
    let answer = object(&[("regions", array(region.build().into(), 1, 63))]);
    Endpoint::new(whole, Method::GET, "/regions", |whole, _| Box::pin(list(whole)))
        .open_to(Needs::Figures)
        .summary(GROUP, "The regions")
        .answers(StatusCode::OK, "In the order of the settings.", answer.build(), &[])
}

async fn list(whole: &dyn Whole) -> Answer {
    let tree = whole.inspect().await;
    let answer = Object::with_capacity(256);
    Ok(reply::json(answer.objects("regions", regions(&tree), |object, part| {
        object
            .field("key", &part.instance)
            .field("name", &part.instance.to_uppercase())
            .field("healthy", &is_healthy(part))
    })))
}

/// The regions, in the order of the settings.
pub(super) fn regions(tree: &Inspection) -> impl Iterator<Item = &Inspection> {
    let router = tree.find("geo-router").into_iter();
    router.flat_map(|router| &router.children).filter(|part| part.kind == PartKind::Region)
}

pub(super) fn is_healthy(region: &Inspection) -> bool {
    region.status != Status::Down
}

//! The documents' API of level 10: each answer says which shard and which cache it came from.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use terrace_core::{Fact, Inspection, Key, Origin, PartKind, Read, Status, Tier, Write};
use utoipa::openapi::schema::Schema;

use super::levels::PLAIN;
use super::parts::{self, figure};
use super::{Documents, DocumentsFace, GROUP};
use crate::http::call::Call;
use crate::http::endpoint::{Endpoint, Needs};
use crate::http::face::Whole;
use crate::http::fields::{self, Raw};
use crate::http::json::Object;
use crate::http::operations::HealthFields;
use crate::http::records::value;
use crate::http::reply::{self, Answer, WithHeaders as _};
use crate::http::schema::{Field, Getter, Shape, object};

/// Enterprise grade.
pub static L10: DocumentsFace =
    DocumentsFace { endpoints: Some(endpoints), health_fields: HEALTH, ..PLAIN };

fn endpoints(documents: &Arc<Documents>, whole: &Arc<dyn Whole>) -> Vec<Endpoint> {
    vec![write_endpoint(documents), read_endpoint(documents), stats_endpoint(whole)]
}

const HEALTH: HealthFields = &[
    Field::new("environment", "What the settings call the installation.", ENVIRONMENT),
    Field::new(
        "shards_healthy",
        "Whether each shard can be read or written.",
        Getter::Flags(|tree| by_shard(tree, |shard| shard.status != Status::Down)),
    ),
    Field::new(
        "caches_healthy",
        "Whether the near cache (L1) is in use and the far one (L2) can be reached.",
        Getter::Flags(|tree| {
            let near = parts::near(tree).is_some_and(|near| near.note.is_empty());
            let far = parts::is_up(parts::far(tree));
            [("L1".to_owned(), near), ("L2".to_owned(), far)].into()
        }),
    ),
    Field::new(
        "rate_limiter_healthy",
        "Whether requests are counted over all instances; also true where none are counted.",
        Getter::Bool(|tree| {
            tree.find("rate-limit").is_none_or(|part| part.status == Status::Healthy)
        }),
    ),
    Field::new("circuit_breakers", BREAKERS_ARE, BREAKERS),
];

const ENVIRONMENT: Getter<Inspection> = Getter::Text(|tree| {
    let environment = tree.find("enterprise").and_then(|part| part.known("environment"));
    environment.map(ToString::to_string).unwrap_or_default()
});

const BREAKERS_ARE: &str = "Whether each shard and each cache is asked. The near cache is not while it \
     does not hear what other instances write.";

const BREAKERS: Getter<Inspection> = Getter::Words(&["closed", "open", "half_open"], breakers);

/// Whether each shard and each cache that there is, is asked.
pub(crate) fn breakers(tree: &Inspection) -> BTreeMap<String, &'static str> {
    let mut words = by_shard(tree, shard_breaker);
    if let Some(near) = parts::near(tree) {
        let heard = near.note.is_empty();
        words.insert("cache_l1".to_owned(), if heard { "closed" } else { "open" });
    }
    if let Some(far) = tree.find("cache-aside") {
        words.insert("cache_l2".to_owned(), breaker(far));
    }
    words
}

fn breaker(part: &Inspection) -> &'static str {
    let state = part.known("breaker").map(ToString::to_string);
    match state.as_deref() {
        Some("open") => "open",
        Some("half-open") => "half_open",
        _ => "closed",
    }
}

/// Of a shard: whether it is looked at, and whether its calls are let through; the worst word.
fn shard_breaker(shard: &Inspection) -> &'static str {
    let around = shard.find("circuit-breaker").into_iter().flat_map(|part| &part.children);
    let words = around.map(breaker).chain([breaker(shard)]).collect::<Vec<_>>();
    ["open", "half_open"].into_iter().find(|word| words.contains(word)).unwrap_or("closed")
}

/// Something of each shard, by the names of the documents.
pub(crate) fn by_shard<T>(tree: &Inspection, of: impl Fn(&Inspection) -> T) -> BTreeMap<String, T> {
    let shards = tree.find("shard-router").map(|router| &router.children);
    let shards = shards.into_iter().flatten();
    let number = |shard| u16::try_from(figure(Some(shard), "number")).unwrap_or(u16::MAX);
    shards.map(|shard| (shard_name(number(shard)), of(shard))).collect()
}

/// The name of a shard: `shard1` is the first.
pub(crate) fn shard_name(number: u16) -> String {
    format!("shard{}", u32::from(number) + 1)
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    key: Raw<'a>,
    #[serde(borrow)]
    value: Raw<'a>,
}

fn write_endpoint(documents: &Arc<Documents>) -> Endpoint {
    let answer = object(&[
        ("success", Shape::True.schema("")),
        ("key", Shape::Key.schema("")),
        ("message", Shape::Text.schema("")),
        ("shard", Shape::MaybeText.schema("The shard that has it.")),
        ("cached", Shape::Bool.schema("Whether the caches hold what was written.")),
    ]);
    let request =
        object(&[("key", Shape::Key.schema("")), ("value", Shape::Value.schema(""))]).build();
    Endpoint::new(documents, Method::POST, "/write", |documents, call| {
        Box::pin(write(documents, call))
    })
    .summary(GROUP, "Write a record")
    .description(
        "Creates it or replaces its value, and fills the caches. Unknown fields are ignored.",
    )
    .takes(request, json!({"key": "greeting", "value": "hello"}))
    .writes()
    .checks_keys()
    .answers(
        StatusCode::OK,
        "It is written, as safely as Terrace-Durability says.",
        answer.build(),
        &["Terrace-Origin", "Terrace-Durability", "Terrace-Token"],
    )
}

async fn write(documents: &Documents, call: &mut Call) -> Answer {
    let records = &documents.records;
    let body = call.json().await?;
    let fields = fields::object::<Body<'_>>(&body)?;
    let key = Key::new(fields::text("key", fields.key)?)?;
    let value = value("value", fields.value, &call.app.limits)?;
    let how = call.write_options(&body)?;
    let receipt = records.write_one(call, Write::put(key.clone(), value), &how).await?;
    let shard = shard_of(documents, &key, receipt.origin);
    let place = shard.as_deref().unwrap_or("a shard");
    let message = match receipt.cached {
        true => format!("Written to {place} and cached"),
        false => format!("Written to {place}"),
    };
    let answer = Object::with_capacity(128 + key.as_str().len())
        .field("success", &true)
        .field("key", key.as_str())
        .field("message", &message)
        .field("shard", &shard)
        .field("cached", &receipt.cached);
    Ok(reply::json(answer)
        .with_origin(receipt.origin)
        .with_durability(receipt.durability)
        .with_token(&receipt.token))
}

fn shard_of(documents: &Documents, key: &Key, origin: Origin) -> Option<String> {
    documents.records.shard_of(key, origin).map(shard_name)
}

fn read_endpoint(documents: &Arc<Documents>) -> Endpoint {
    let answer = object(&[
        ("success", Shape::Bool.schema("Whether there is a record.")),
        ("key", Shape::Key.schema("")),
        ("value", Shape::MaybeText.schema("Null for a missing key.")),
        ("message", Shape::MaybeText.schema("Null beside a record.")),
        ("cache_hit", Shape::Bool.schema("Whether a cache answered.")),
        (
            "cache_level",
            Shape::MaybeText.schema("`L1` the near cache, `L2` the far one, else null."),
        ),
        ("shard", Shape::MaybeText.schema("The shard that answered; null for a cache.")),
        ("latency_ms", Shape::Number.schema("How long the answer took here, in milliseconds.")),
    ]);
    Endpoint::new(documents, Method::GET, "/read/{key}", |documents, call| {
        Box::pin(read(documents, call))
    })
    .summary(GROUP, "Read a record")
    .description("A missing key answers 200 too, with `success: false`.")
    .reads()
    .checks_keys()
    .answers(
        StatusCode::OK,
        "The record, or that there is none.",
        answer.build(),
        &["Terrace-Origin", "Terrace-Token"],
    )
}

async fn read(documents: &Documents, call: &mut Call) -> Answer {
    let key = call.key()?;
    let how = call.read_options()?;
    let begun = call.app.runtime.now();
    let read = documents.records.read_one(call, &key, &how).await?;
    let took = call.app.runtime.now().saturating_duration_since(begun);
    let record = read.record.as_ref();
    let value = record.map(|record| record.value.as_str());
    let cache = cache_level(&read);
    let shard = read.origin.shard.map(shard_name);
    let answer = Object::with_capacity(192 + key.as_str().len() + value.map_or(0, str::len))
        .field("success", &record.is_some())
        .field("key", key.as_str())
        .field("value", &value)
        .field("message", &record.is_none().then_some(documents.face.missing))
        .field("cache_hit", &cache.is_some())
        .field("cache_level", &cache)
        .field("shard", &shard)
        .field("latency_ms", &((took.as_secs_f64() * 100_000.0).round() / 100.0));
    Ok(reply::json(answer).with_origin(read.origin).with_token(&read.token))
}

fn cache_level(read: &Read) -> Option<&'static str> {
    match read.origin.tier {
        Tier::Near => Some("L1"),
        Tier::Far => Some("L2"),
        _ => None,
    }
}

fn stats_endpoint(whole: &Arc<dyn Whole>) -> Endpoint {
    let shard = object(&[
        ("healthy", Shape::Bool.schema("Whether it can be read or written.")),
        ("pool_size", Shape::Count.schema("Open connections to its database.")),
        ("records", Shape::Count.schema("Its records, at most a second old.")),
        ("reads", Shape::Count.schema("Reads through this instance.")),
        ("writes", Shape::Count.schema("Writes through this instance.")),
    ]);
    let shards = object(&[]).additional_properties(Some(Schema::from(shard.build())));
    let cache = object(&[
        ("l1_size", Shape::Count.schema("Entries in the near cache.")),
        ("l1_maxsize", Shape::Count.schema("The most entries of the near cache.")),
        ("l2_keys", Shape::Count.schema("Entries in the far cache.")),
    ]);
    let limits = object(&[
        ("enabled", Shape::Bool.schema("Whether requests are limited.")),
        ("max_requests", Shape::Count.schema("The most of a client in any window.")),
        ("window_seconds", Shape::Count.schema("The length of a window.")),
    ]);
    let answer = object(&[
        ("environment", Shape::Text.schema("What the settings call the installation.")),
        ("shards", shards.build().into()),
        ("cache", cache.build().into()),
        Field::new("circuit_breakers", BREAKERS_ARE, BREAKERS).described(),
        ("rate_limiting", limits.build().into()),
        ("features", Shape::Flags.schema("What is switched on.")),
    ]);
    Endpoint::new(whole, Method::GET, "/stats", |whole, _| Box::pin(stats(whole)))
        .open_to(Needs::Figures)
        .summary(GROUP, "The shards, the caches, and what stands before them")
        .answers(StatusCode::OK, "The numbers, of this instance.", answer.build(), &[])
}

const FEATURES: Getter<Inspection> = Getter::Flags(|tree| {
    let has = |part: &str| tree.find(part).is_some();
    let features = [
        ("authentication", has("authentication")),
        ("metrics", has("metrics")),
        ("circuit_breakers", true),
        ("rate_limiting", has("rate-limit")),
        ("multi_tier_cache", has("near-cache")),
        ("database_sharding", has("shard-router")),
    ];
    features.map(|(name, on)| (name.to_owned(), on)).into()
});

async fn stats(whole: &dyn Whole) -> Answer {
    let tree = whole.inspect().await;
    let shards = by_shard(&tree, |shard| {
        json!({
            "healthy": shard.status != Status::Down,
            "pool_size": figure(shard.find_kind(PartKind::Pool), "pool_size"),
            "records": figure(Some(shard), "records"),
            "reads": figure(Some(shard), "reads"),
            "writes": figure(Some(shard), "writes"),
        })
    });
    let near = parts::near(&tree);
    let cache = json!({
        "l1_size": figure(near, "keys"),
        "l1_maxsize": figure(near, "max_keys"),
        "l2_keys": figure(parts::far(&tree), "keys"),
    });
    let named = |name, getter| [Field::new(name, "", getter)];
    let answer = Object::with_capacity(1024);
    let answer = Field::write_all(&named("environment", ENVIRONMENT), &tree, answer)
        .field("shards", &shards)
        .field("cache", &cache);
    let answer = Field::write_all(&named("circuit_breakers", BREAKERS), &tree, answer)
        .field("rate_limiting", &rate_limiting(&tree));
    Ok(reply::json(Field::write_all(&named("features", FEATURES), &tree, answer)))
}

fn rate_limiting(tree: &Inspection) -> serde_json::Value {
    let part = tree.find("rate-limit");
    let fact = |name| part.and_then(|part| part.known(name));
    let max_requests = match fact("max_requests") {
        Some(Fact::Number(number)) => *number,
        _ => 0,
    };
    let window = match fact("window") {
        Some(Fact::Time(time)) => time.as_secs(),
        _ => 0,
    };
    json!({
        "enabled": part.is_some(), "max_requests": max_requests, "window_seconds": window,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_of_which_one_breaker_refuses_calls_is_not_closed() {
        let part = |state: &str| Inspection::new("breaker").text("breaker", state);
        let word = |looks, reads, writes| {
            let around = Inspection::new("circuit-breaker");
            let around = around.helped_by(part(reads)).helped_by(part(writes));
            let around = Inspection::new("retry").needs(around);
            let shard = Inspection::of(PartKind::Shard, "shard").text("breaker", looks);
            let router = Inspection::new("shard-router").needs(shard.needs(around));
            breakers(&router)["shard1"]
        };
        assert_eq!(word("closed", "closed", "closed"), "closed");
        assert_eq!(word("closed", "half-open", "open"), "open");
        assert_eq!(word("closed", "closed", "half-open"), "half_open");
        assert_eq!(word("open", "closed", "closed"), "open");
    }
}

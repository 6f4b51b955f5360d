//! The documents' API of level 8: transactions and documents, written and read.

use std::sync::Arc;

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use terrace_core::{Key, Write};

use super::{Polyglot, entries};
use crate::http::call::Call;
use crate::http::endpoint::Endpoint;
use crate::http::fields::{self, Raw};
use crate::http::json::Object;
use crate::http::records::{any_document, document};
use crate::http::reply::{self, Answer, WithHeaders as _};
use crate::http::schema::{Shape, array, object};

const GROUP: &str = "Documents";

/// The names that clients of the documents know, whatever the engine is; `/health` names the engines.
const LEDGER: &str = "PostgreSQL";
const STORE: &str = "MongoDB";
const CACHE: &str = "Redis (cache)";

pub(super) fn endpoints(polyglot: &Arc<Polyglot>) -> Vec<Endpoint> {
    vec![
        write_transaction(polyglot),
        write_document(polyglot),
        read_transaction(polyglot),
        read_document(polyglot),
    ]
}

fn write_transaction(polyglot: &Arc<Polyglot>) -> Endpoint {
    let (request, example) = entries::request();
    let answer = object(&[
        ("success", Shape::True.schema("")),
        ("transaction_id", Shape::Count.schema("")),
        ("message", Shape::Text.schema("")),
        ("stored_in", Shape::Word(&[LEDGER]).schema("")),
    ]);
    Endpoint::new(polyglot, Method::POST, "/write/transaction", |polyglot, call| {
        Box::pin(async {
            let posted = entries::posted(polyglot, call).await?;
            let answer = Object::with_capacity(128)
                .field("success", &true)
                .field("transaction_id", &posted.transaction.id)
                .field("message", "Transaction written to PostgreSQL")
                .field("stored_in", LEDGER);
            Ok(reply::json(answer)
                .with_origin(terrace_core::Origin::PRIMARY)
                .with_durability(posted.durability)
                .with_token(&posted.token))
        })
    })
    .summary(GROUP, "Add a transaction")
    .description("Unknown fields are ignored.")
    .takes(request, example)
    .writes()
    .checks_keys()
    .answers(StatusCode::OK, "It is added.", answer.build(), WRITTEN)
}

const WRITTEN: &[&str] = &["Terrace-Origin", "Terrace-Durability", "Terrace-Token"];
const READ: &[&str] = &["Terrace-Origin", "Terrace-Token"];

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    key: Raw<'a>,
    #[serde(borrow)]
    data: Raw<'a>,
}

fn document_schema() -> [(&'static str, utoipa::openapi::schema::Schema); 5] {
    [
        ("success", Shape::Bool.schema("")),
        ("key", Shape::Key.schema("")),
        ("data", any_document()),
        ("from_cache", Shape::Bool.schema("Whether the cache answered.")),
        ("stored_in", Shape::Word(&[STORE, CACHE]).schema("")),
    ]
}

fn write_document(polyglot: &Arc<Polyglot>) -> Endpoint {
    let request = object(&[("key", Shape::Key.schema("")), ("data", any_document())]);
    Endpoint::new(polyglot, Method::POST, "/write/document", |polyglot, call| {
        Box::pin(put(polyglot, call))
    })
    .summary(GROUP, "Write a document")
    .description("Creates it or replaces it. Unknown fields are ignored.")
    .takes(request.build(), json!({"key": "user:1", "data": {"name": "Ada"}}))
    .writes()
    .checks_keys()
    .answers(StatusCode::OK, "It is written.", object(&document_schema()).build(), WRITTEN)
}

async fn put(polyglot: &Polyglot, call: &mut Call) -> Answer {
    let body = call.json().await?;
    let fields = fields::object::<Body<'_>>(&body)?;
    let key = Key::new(fields::text("key", fields.key)?)?;
    let data = document(fields::inner_object("data", fields.data)?, &call.app.limits)?;
    let how = call.write_options(&body)?;
    let receipt =
        polyglot.by_key.write_one(call, Write::put(key.clone(), data.clone()), &how).await?;
    let answer = Object::with_capacity(128 + key.as_str().len() + data.as_str().len())
        .field("success", &true)
        .field("key", key.as_str())
        .json("data", data.as_str())
        .field("from_cache", &false)
        .field("stored_in", STORE);
    Ok(reply::json(answer)
        .with_origin(receipt.origin)
        .with_durability(receipt.durability)
        .with_token(&receipt.token))
}

fn read_document(polyglot: &Arc<Polyglot>) -> Endpoint {
    Endpoint::new(polyglot, Method::GET, "/read/document/{key}", |polyglot, call| {
        Box::pin(get(polyglot, call))
    })
    .summary(GROUP, "Read a document")
    .description("A missing key answers 200 too, with `success: false` and a message in `data`.")
    .reads()
    .checks_keys()
    .answers(StatusCode::OK, "The document.", object(&document_schema()).build(), READ)
}

async fn get(polyglot: &Polyglot, call: &mut Call) -> Answer {
    let key = call.key()?;
    let how = call.read_options()?;
    let read = polyglot.by_key.read_one(call, &key, &how).await?;
    let data = read.record.as_ref().map(|record| record.value.as_str());
    let cached = read.origin.is_cache();
    let room = 160 + key.as_str().len() + data.map_or(0, str::len);
    let answer = Object::with_capacity(room)
        .field("success", &data.is_some())
        .field("key", key.as_str())
        .json("data", data.unwrap_or(r#"{"message":"Document not found"}"#))
        .field("from_cache", &(cached && data.is_some()))
        .field("stored_in", if cached && data.is_some() { CACHE } else { STORE });
    Ok(reply::json(answer).with_origin(read.origin).with_token(&read.token))
}

fn read_transaction(polyglot: &Arc<Polyglot>) -> Endpoint {
    let entry = object(&[
        ("id", Shape::Count.schema("")),
        ("user_id", Shape::Key.schema("")),
        ("amount", entries::amount_schema()),
        ("transaction_type", Shape::Text.schema("")),
        ("created_at", Shape::MaybePlainTime.schema("UTC.")),
    ]);
    let list = array(entry.build().into(), 0, terrace_layers::CachedLedger::LATEST);
    let answer = object(&[
        ("success", Shape::Bool.schema("Whether there are any.")),
        ("key", Shape::Key.schema("The user.")),
        ("value", list),
        ("source", Shape::Word(&["postgres", "cache"]).schema("")),
        ("message", Shape::MaybeText.schema("Null beside transactions.")),
    ]);
    Endpoint::new(polyglot, Method::GET, "/read/transaction/{user_id}", |polyglot, call| {
        Box::pin(latest(polyglot, call))
    })
    .summary(GROUP, "Read a user's latest transactions")
    .description("The latest first, at most 1000.")
    .reads()
    .checks_keys()
    .answers(StatusCode::OK, "The transactions.", answer.build(), READ)
}

async fn latest(polyglot: &Polyglot, call: &mut Call) -> Answer {
    let user = call.key()?;
    call.may_touch(&user)?;
    let how = call.read_options()?;
    let ledger = polyglot.ledger.get()?;
    let mut latest = call.in_time(Box::pin(ledger.latest(&user, &how))).await?;
    if let Some(asked) = &how.token {
        latest.token.merge(asked);
    }
    let found = !latest.transactions.is_empty();
    let cached = found && latest.origin.is_cache();
    let room = 160 + latest.transactions.len() * (200 + user.as_str().len());
    let answer = Object::with_capacity(room)
        .field("success", &found)
        .field("key", user.as_str())
        .objects("value", &latest.transactions, |object, entry| {
            entries::described(object, entry).plain_time("created_at", Some(entry.created_at))
        })
        .field("source", if cached { "cache" } else { "postgres" })
        .field("message", &(!found).then_some("No transactions found"));
    Ok(reply::json(answer).with_origin(latest.origin).with_token(&latest.token))
}

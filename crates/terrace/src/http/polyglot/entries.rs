//! `POST /v1/transactions` and `GET /v1/transactions`, and what all say of a transaction.

use std::sync::Arc;

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use terrace_core::ledger::{Amount, Before, Kind, Posted, Posting, Transaction};
use terrace_core::{Error, Key, Ledger as _, Timestamp, WriteOptions, one};
use utoipa::openapi::path::ParameterIn;
use utoipa::openapi::schema::{Object as ObjectSchema, ObjectBuilder, Schema, Type};

use super::Polyglot;
use crate::http::call::Call;
use crate::http::endpoint::Endpoint;
use crate::http::fields::{self, Raw};
use crate::http::json::Object;
use crate::http::problem::Problem;
use crate::http::reply::{self, Answer, WithHeaders as _};
use crate::http::schema::{Shape, array, object};
use crate::http::{headers, path};

const GROUP: &str = "Transactions";
const MAX_LIMIT: usize = 1000;

pub(super) fn endpoints(polyglot: &Arc<Polyglot>) -> Vec<Endpoint> {
    vec![post(polyglot), page(polyglot)]
}

fn post(polyglot: &Arc<Polyglot>) -> Endpoint {
    let (request, example) = request();
    let answer = object(&[
        ("id", Shape::Count.schema("Drawn by the database.")),
        ("user_id", Shape::Key.schema("")),
        ("amount", amount_schema()),
        ("transaction_type", Shape::Text.schema("")),
        ("created_at", Shape::Time.schema("By the database's clock.")),
        ("durability", crate::http::records::DURABILITIES.schema("How safe it is now.")),
        ("token", Shape::Text.schema("Send it as Terrace-Token to read at least this.")),
    ]);
    Endpoint::new(polyglot, Method::POST, "/v1/transactions", |polyglot, call| {
        Box::pin(add(polyglot, call))
    })
    .summary(GROUP, "Add a transaction")
    .description("Transactions are never changed. The amount is kept exactly.")
    .takes(request, example)
    .writes()
    .checks_keys()
    .answers(
        StatusCode::CREATED,
        "It is added, as safely as Terrace-Durability says.",
        answer.build(),
        &["Terrace-Origin", "Terrace-Durability", "Terrace-Token"],
    )
}

async fn add(polyglot: &Polyglot, call: &mut Call) -> Answer {
    let posted = posted(polyglot, call).await?;
    let token = posted.token.to_string();
    let answer = described(Object::with_capacity(320), &posted.transaction)
        .time("created_at", posted.transaction.created_at)
        .field("durability", posted.durability.as_str())
        .field("token", &token);
    let mut reply = reply::json(answer);
    *reply.status_mut() = StatusCode::CREATED;
    Ok(reply
        .with_origin(terrace_core::Origin::PRIMARY)
        .with_durability(posted.durability)
        .with_token(&posted.token))
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    user_id: Raw<'a>,
    #[serde(borrow)]
    amount: Raw<'a>,
    #[serde(borrow)]
    transaction_type: Raw<'a>,
}

/// Posts the transaction in the body of a request.
pub(super) async fn posted(polyglot: &Polyglot, call: &mut Call) -> Result<Posted, Problem> {
    let body = call.json().await?;
    let how = call.write_options(&body)?;
    let seen = headers::token(&call.parts.headers)?;
    let posting = posting(&body)?;
    let mut posted = post_one(polyglot, call, posting, &how).await?;
    if let Some(seen) = &seen {
        posted.token.merge(seen);
    }
    Ok(posted)
}

fn posting(body: &[u8]) -> Result<Posting, Problem> {
    let fields = fields::object::<Body<'_>>(body)?;
    let user = fields::text("user_id", fields.user_id)?;
    let user = Key::new(user).map_err(|error| Problem::from(error).within("user_id"))?;
    let amount = fields::decimal("amount", fields.amount)?.parse::<Amount>()?;
    let kind = Kind::new(&fields::text("transaction_type", fields.transaction_type)?)?;
    Ok(Posting { user, amount, kind })
}

async fn post_one(
    polyglot: &Polyglot,
    call: &Call,
    posting: Posting,
    how: &WriteOptions,
) -> Result<Posted, Problem> {
    call.may_touch(&posting.user)?;
    let ledger = polyglot.ledger.get()?;
    let posted = call.app.runtime.within(how.deadline, ledger.post(vec![posting], how)).await;
    // What is under way may still be done.
    Ok(one(posted.unwrap_or_else(|| Err(late()))?)?)
}

fn late() -> Error {
    let message = "the ledger has not answered in time, and the transaction may have been added; read the \
                   list, or repeat the request with its Idempotency-Key";
    Error::new(terrace_core::ErrorKind::OutcomeUnknown, message)
}

fn page(polyglot: &Arc<Polyglot>) -> Endpoint {
    let entry = object(&[
        ("id", Shape::Count.schema("")),
        ("user_id", Shape::Key.schema("")),
        ("amount", amount_schema()),
        ("transaction_type", Shape::Text.schema("")),
        ("created_at", Shape::Time.schema("")),
    ]);
    let answer = object(&[
        ("transactions", array(entry.build().into(), 0, MAX_LIMIT)),
        ("next_cursor?", CURSOR.schema("The cursor of the next page; absent on the last.")),
    ]);
    Endpoint::new(polyglot, Method::GET, "/v1/transactions", |polyglot, call| {
        Box::pin(list(polyglot, call))
    })
    .summary(GROUP, "List a user's transactions")
    .description("The latest first, by time and number, out of the database.")
    .needs("user_id", Shape::Key, "Whose.")
    .parameter(ParameterIn::Query, "cursor", CURSOR, "`next_cursor` of the page before.")
    .parameter(ParameterIn::Query, "limit", Shape::UpTo(MAX_LIMIT), "At most so many; 100.")
    .reads()
    .checks_keys()
    .answers(
        StatusCode::OK,
        "One page.",
        answer.build(),
        &["Terrace-Origin", "Terrace-Token"],
    )
}

async fn list(polyglot: &Polyglot, call: &mut Call) -> Answer {
    let query = path::query(call.parts.uri.query(), &["user_id", "cursor", "limit"])?;
    let user = query.get("user_id").map(String::as_str).unwrap_or_default();
    let user = Key::new(user).map_err(|error| Problem::from(error).within("user_id"))?;
    call.may_touch(&user)?;
    let before = query.get("cursor").filter(|text| !text.is_empty());
    let before = before.map(|text| read_cursor(text)).transpose()?;
    let limit = path::limit_of(query.get("limit"), 100, MAX_LIMIT)?;
    let how = call.read_options()?;
    let ledger = polyglot.ledger.get()?;
    let page = ledger.page(&user, before, limit, &how);
    let mut page = call.in_time(page).await?;
    if let Some(asked) = &how.token {
        page.token.merge(asked);
    }
    let room = 64 + page.transactions.len() * (200 + user.as_str().len());
    let answer =
        Object::with_capacity(room).objects("transactions", &page.transactions, |object, entry| {
            described(object, entry).time("created_at", entry.created_at)
        });
    let answer = match page.next {
        Some(next) => answer.field("next_cursor", &cursor(next)),
        None => answer,
    };
    Ok(reply::json(answer).with_origin(terrace_core::Origin::PRIMARY).with_token(&page.token))
}

/// Adds what every answer says of a transaction, but for its time.
pub(super) fn described(object: Object, entry: &Transaction) -> Object {
    let Posting { user, amount, kind } = &entry.posting;
    object
        .field("id", &entry.id)
        .field("user_id", user.as_str())
        .json("amount", &amount.to_string())
        .field("transaction_type", kind.as_str())
}

/// The body of a transaction to add, with an example.
pub(super) fn request() -> (ObjectSchema, serde_json::Value) {
    let kind = Shape::Short("^[^\\u0000]+$", Kind::MAX_CHARS).schema("What kind, as `credit`.");
    let request = object(&[
        ("user_id", Shape::Key.schema("Whose.")),
        ("amount", amount_schema()),
        ("transaction_type", kind),
    ]);
    let example = json!({"user_id": "user123", "amount": 100.5, "transaction_type": "credit"});
    (request.build(), example)
}

/// Sent as a number; a string with the same text is taken, too.
pub(super) fn amount_schema() -> Schema {
    let meaning = "At most two decimals; also taken as a string, so that no float comes between.";
    ObjectBuilder::new()
        .schema_type(Type::Number)
        .minimum(Some(-99_999_999.99))
        .maximum(Some(99_999_999.99))
        .multiple_of(Some(0.01))
        .description(Some(meaning))
        .build()
        .into()
}

/// What amounts add up to.
pub(super) fn sum_schema() -> Schema {
    ObjectBuilder::new().schema_type(Type::Number).description(Some("Two decimals.")).build().into()
}

/// Microseconds of 17 digits end in the year 5138, within what a time can be.
const CURSOR: Shape = Shape::Form("^x1~-?[0-9]{1,17}~[0-9]{1,19}$");
const CURSOR_FORMAT: &str = "x1~";

fn cursor(before: Before) -> String {
    format!("{CURSOR_FORMAT}{}~{}", before.created_at.as_microsecond(), before.id)
}

fn read_cursor(text: &str) -> Result<Before, Problem> {
    let place = || {
        let (micros, id) = text.strip_prefix(CURSOR_FORMAT)?.split_once('~')?;
        let created_at = Timestamp::from_microsecond(micros.parse().ok()?).ok()?;
        Some(Before { created_at, id: id.parse().ok()? })
    };
    place().ok_or_else(|| {
        Problem::invalid("cursor is not one that Terrace gave; send next_cursor back unchanged")
    })
}

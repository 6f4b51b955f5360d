//! `POST /v1/batch/write`.

use std::sync::Arc;

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use terrace_core::{Durability, Key, Origin, Outcome, Precondition, Token, Version, Write};
use utoipa::openapi::schema::{AdditionalProperties, OneOfBuilder, Schema};

use super::{DURABILITIES, MAX_BATCH, Records, VERSION, Values, value};
use crate::http::Limits;
use crate::http::call::Call;
use crate::http::endpoint::Endpoint;
use crate::http::fields::{self, Raw};
use crate::http::json::Object;
use crate::http::problem::Problem;
use crate::http::reply::{self, Answer, WithHeaders as _};
use crate::http::schema::{Shape, array, object};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<'a> {
    #[serde(borrow)]
    writes: Raw<'a>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Item<'a> {
    #[serde(borrow)]
    op: Raw<'a>,
    #[serde(borrow)]
    key: Raw<'a>,
    #[serde(borrow)]
    value: Raw<'a>,
    #[serde(borrow)]
    if_version: Raw<'a>,
}

pub(super) fn endpoint(records: &Arc<Records>) -> Endpoint {
    let item = OneOfBuilder::new().item(put_schema()).item(delete_schema()).build();
    let request = object(&[("writes", array(item.into(), 1, MAX_BATCH))])
        .additional_properties(Some(AdditionalProperties::FreeForm(false)))
        .build();
    let result = object(&[
        ("key", Shape::Key.schema("")),
        ("status", STATUSES.schema("What the write came to.")),
        ("version", Shape::Count.schema("Of the write; the current one where it was not applied.")),
    ]);
    let answer = object(&[
        ("results", array(result.build().into(), 1, MAX_BATCH)),
        ("durability", DURABILITIES.schema("The least of all results.")),
        ("token", Shape::Text.schema("Send it as Terrace-Token to read at least this.")),
    ]);
    Endpoint::new(records, Method::POST, "/v1/batch/write", |records, call| Box::pin(write(records, call)))
        .summary(Values::Texts.group(), "Write many records")
        .description(
            "1 to 1000 writes, applied in order in one transaction, on a level with shards in one a \
             shard: there `status` may be `unavailable` or `unknown` for some. A failed `if_version` stops no \
             other write. `if_version: 0` means that there must be no record.",
        )
        .takes(request, json!({"writes": [{"op": "put", "key": "greeting", "value": "hello"}]}))
        .writes()
        .checks_keys()
        .answers(
            StatusCode::OK,
            "One result a write, in order.",
            answer.build(),
            &["Terrace-Origin", "Terrace-Durability", "Terrace-Token"],
        )
}

const STATUSES: Shape =
    Shape::Word(&["applied", "queued", "precondition_failed", "unavailable", "unknown"]);

fn put_schema() -> Schema {
    object(&[
        ("op", Shape::Word(&["put"]).schema("")),
        ("key", Shape::Key.schema("")),
        ("value", Shape::Value.schema("")),
        ("if_version?", Shape::Count.schema(VERSION)),
    ])
    .additional_properties(Some(AdditionalProperties::FreeForm(false)))
    .build()
    .into()
}

fn delete_schema() -> Schema {
    object(&[
        ("op", Shape::Word(&["delete"]).schema("")),
        ("key", Shape::Key.schema("")),
        ("if_version?", Shape::Count.schema(VERSION)),
    ])
    .additional_properties(Some(AdditionalProperties::FreeForm(false)))
    .build()
    .into()
}

async fn write(records: &Records, call: &mut Call) -> Answer {
    let body = call.json().await?;
    let fields = fields::object::<Body<'_>>(&body)?;
    let items = fields::array("writes", fields.writes, MAX_BATCH)?;
    let batch = items
        .into_iter()
        .enumerate()
        .map(|(index, raw)| one_write(&format!("writes[{index}]"), raw, &call.app.limits))
        .collect::<Result<Vec<_>, _>>()?;
    call.pay_for(batch.len()).await?;
    let how = call.write_options(&body)?;
    let keys = batch.iter().map(|write| write.key.clone()).collect::<Vec<_>>();
    let receipts = records.write(call, batch, &how).await?;
    let mut token = Token::default();
    receipts.iter().for_each(|receipt| token.merge(&receipt.token));
    let durability = receipts.iter().map(|receipt| receipt.durability).min();
    let durability = durability.unwrap_or(Durability::Accepted);
    let results = keys.iter().zip(&receipts);
    let answer = Object::with_capacity(96 * keys.len())
        .objects("results", results, |object, (key, receipt)| {
            object
                .field("key", key.as_str())
                .field("status", status(receipt.outcome))
                .field("version", &receipt.version.get())
        })
        .field("durability", durability.as_str())
        .field("token", &token.to_string());
    Ok(reply::json(answer)
        .with_origin(receipts.first().map_or(Origin::PRIMARY, |receipt| receipt.origin))
        .with_durability(durability)
        .with_token(&token))
}

fn one_write(place: &str, raw: &RawValue, limits: &Limits) -> Result<Write, Problem> {
    let item = fields::item::<Item<'_>>(place, raw)?;
    let named = |field: &str| format!("{place}.{field}");
    let key = Key::new(fields::text(&named("key"), item.key)?);
    let key = key.map_err(|error| Problem::from(error).within(place))?;
    let op = fields::text(&named("op"), item.op)?;
    let write = match (&*op, item.value) {
        ("put", raw) => Write::put(key, value(&named("value"), raw, limits)?),
        ("delete", None) => Write::delete(key),
        ("delete", Some(_)) => {
            let detail = format!("{place}.value does not belong to a delete; remove it");
            return Err(Problem::invalid(detail));
        }
        _ => {
            return Err(Problem::invalid(format!("{place}.op must be \"put\" or \"delete\"")));
        }
    };
    Ok(write.when(match fields::number(&named("if_version"), item.if_version)? {
        None => Precondition::None,
        Some(0) => Precondition::Absent,
        Some(number) => Precondition::Version(Version::new(number)),
    }))
}

/// A delete that found nothing is applied: afterwards things are as was asked.
fn status(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::PreconditionFailed => "precondition_failed",
        Outcome::Created | Outcome::Replaced | Outcome::Deleted | Outcome::Absent => "applied",
        Outcome::Queued => "queued",
        Outcome::Unavailable => "unavailable",
        Outcome::Unknown => "unknown",
    }
}

//! `POST /write`.

use std::sync::Arc;

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use terrace_core::{Key, Write};

use super::{Documents, GROUP, shard_id};
use crate::http::call::Call;
use crate::http::endpoint::Endpoint;
use crate::http::fields::{self, Raw};
use crate::http::json::Object;
use crate::http::records::value;
use crate::http::reply::{self, Answer, WithHeaders as _};
use crate::http::schema::{Field, Shape, object};

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    key: Raw<'a>,
    #[serde(borrow)]
    value: Raw<'a>,
}

pub(super) fn endpoint(documents: &Arc<Documents>) -> Endpoint {
    described(documents, Method::POST, documents.face.written).summary(GROUP, "Write a record")
}

/// `PUT /write`: the same with another message.
pub(super) fn update(documents: &Arc<Documents>, message: &'static str) -> Endpoint {
    described(documents, Method::PUT, message).summary(GROUP, "Update a record")
}

fn described(documents: &Arc<Documents>, method: Method, message: &'static str) -> Endpoint {
    let face = documents.face;
    let mut answer = vec![
        ("success", Shape::True.schema("")),
        ("key", Shape::Key.schema("")),
        ("message", Shape::Text.schema("")),
    ];
    answer.extend(face.write_fields.iter().map(Field::described));
    answer.extend(face.sharded.then(shard_id));
    let request =
        object(&[("key", Shape::Key.schema("")), ("value", Shape::Value.schema(""))]).build();
    Endpoint::new(documents, method, "/write", move |documents, call| {
        Box::pin(write(documents, call, message))
    })
    .description("Creates it or replaces its value. Unknown fields are ignored.")
    .takes(request, json!({"key": "greeting", "value": "hello"}))
    .writes()
    .checks_keys()
    .answers(
        StatusCode::OK,
        "It is written, as safely as Terrace-Durability says.",
        object(&answer).build(),
        &["Terrace-Origin", "Terrace-Durability", "Terrace-Token"],
    )
}

async fn write(documents: &Documents, call: &mut Call, message: &'static str) -> Answer {
    let Documents { face, records, .. } = documents;
    let body = call.json().await?;
    let fields = fields::object::<Body<'_>>(&body)?;
    let key = Key::new(fields::text("key", fields.key)?)?;
    let value = value("value", fields.value, &call.app.limits)?;
    let how = call.write_options(&body)?;
    let receipt = records.write_one(call, Write::put(key.clone(), value), &how).await?;
    let answer = Object::with_capacity(96 + key.as_str().len())
        .field("success", &true)
        .field("key", key.as_str());
    let answer = match face.sharded {
        false => answer.field("message", message),
        true => {
            let shard = records.shard_of(&key, receipt.origin);
            let number = shard.map(|shard| shard.to_string()).unwrap_or_default();
            answer.field("message", &format!("{message}{number}")).field("shard_id", &shard)
        }
    };
    let answer = Field::write_all(face.write_fields, &receipt, answer);
    Ok(reply::json(answer)
        .with_origin(receipt.origin)
        .with_durability(receipt.durability)
        .with_token(&receipt.token))
}

//! `POST /write`.

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use terrace_core::{Key, Write};

use super::{DocumentsFace, GROUP, shard_id};
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

pub(super) fn endpoint(face: &'static DocumentsFace) -> Endpoint {
    described(face, Method::POST, face.written).summary(GROUP, "Write a record")
}

/// `PUT /write`: the same with another message.
pub(super) fn update(face: &'static DocumentsFace, message: &'static str) -> Endpoint {
    described(face, Method::PUT, message).summary(GROUP, "Update a record")
}

fn described(face: &'static DocumentsFace, method: Method, message: &'static str) -> Endpoint {
    let mut answer = vec![
        ("success", Shape::True.schema("")),
        ("key", Shape::Key.schema("")),
        ("message", Shape::Text.schema("")),
    ];
    answer.extend(face.write_fields.iter().map(Field::described));
    answer.extend(face.sharded.then(shard_id));
    let request =
        object(&[("key", Shape::Key.schema("")), ("value", Shape::Value.schema(""))]).build();
    Endpoint::new(method, "/write", move |call| Box::pin(write(call, face, message)))
        .description("Creates it or replaces its value. Unknown fields are ignored.")
        .takes(request, json!({"key": "greeting", "value": "hello"}))
        .writes()
        .answers(
            StatusCode::OK,
            "It is written, as safely as Terrace-Durability says.",
            object(&answer).build(),
            &["Terrace-Origin", "Terrace-Durability", "Terrace-Token"],
        )
}

async fn write(call: &mut Call, face: &DocumentsFace, message: &str) -> Answer {
    let body = call.json().await?;
    let fields = fields::object::<Body<'_>>(&body)?;
    let key = Key::new(fields::text("key", fields.key)?)?;
    let value = value("value", fields.value, &call.app.limits)?;
    let how = call.write_options(&body)?;
    let receipt = call.write_one(Write::put(key.clone(), value), &how).await?;
    let answer = Object::with_capacity(96 + key.as_str().len())
        .field("success", &true)
        .field("key", key.as_str());
    let answer = match face.sharded {
        false => answer.field("message", message),
        true => {
            let shard = call.app.shard_of(&key, receipt.origin);
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

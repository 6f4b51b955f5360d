//! `GET /read/{key}`.

use std::sync::Arc;

use hyper::{Method, StatusCode};

use super::{Documents, GROUP, shard_id};
use crate::http::call::Call;
use crate::http::endpoint::Endpoint;
use crate::http::json::Object;
use crate::http::reply::{self, Answer, WithHeaders as _};
use crate::http::schema::{Field, Shape, object};

pub(super) fn endpoint(documents: &Arc<Documents>) -> Endpoint {
    let face = documents.face;
    let mut answer = vec![
        ("success", Shape::Bool.schema("Whether there is a record.")),
        ("key", Shape::Key.schema("")),
        ("value", Shape::MaybeText.schema("Null for a missing key.")),
        ("created_at", Shape::MaybePlainTime.schema("UTC. Survives updates.")),
        ("updated_at", Shape::MaybePlainTime.schema("UTC.")),
        ("message", Shape::MaybeText.schema("Null beside a record.")),
    ];
    if documents.queries.is_some() {
        let count = Shape::Count.schema("How often it was read, this read included.");
        answer.push(("read_count", count));
    }
    answer.extend(face.read_fields.iter().map(Field::described));
    answer.extend(face.sharded.then(shard_id));
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
        object(&answer).build(),
        &["Terrace-Origin", "Terrace-Token"],
    )
}

async fn read(documents: &Documents, call: &mut Call) -> Answer {
    let Documents { face, records, .. } = documents;
    let key = call.key()?;
    let how = call.read_options()?;
    let read = records.read_one(call, &key, &how).await?;
    let record = read.record.as_ref();
    let value = record.map(|record| record.value.as_str());
    let room = 224 + key.as_str().len() + value.map_or(0, str::len);
    let answer = Object::with_capacity(room)
        .field("success", &record.is_some())
        .field("key", key.as_str())
        .field("value", &value)
        .plain_time("created_at", record.map(|record| record.created_at))
        .plain_time("updated_at", record.map(|record| record.updated_at))
        .field("message", &record.is_none().then_some(face.missing));
    let answer = match &documents.queries {
        Some(queries) => answer.field("read_count", &queries.read_count(&key)),
        None => answer,
    };
    let mut answer = Field::write_all(face.read_fields, &read, answer);
    if face.sharded {
        answer = answer.field("shard_id", &records.shard_of(&key, read.origin));
    }
    Ok(reply::json(answer).with_origin(read.origin).with_token(&read.token))
}

//! `GET /health`, `/livez` and `/readyz`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hyper::header::{CACHE_CONTROL, HeaderValue};
use hyper::{Method, StatusCode};
use terrace_core::Status;

use super::{GROUP, Operations};
use crate::http::call::Call;
use crate::http::endpoint::{Endpoint, Needs};
use crate::http::json::Object;
use crate::http::problem::{Kind, Problem};
use crate::http::reply::{self, Answer, WithHeaders as _};
use crate::http::schema::{Field, Shape, object};

pub(super) fn health(operations: &Arc<Operations>) -> Endpoint {
    let mut answer = vec![
        ("status", STATUSES.schema("Degraded means that answers are right and may be slower.")),
        ("layer", Shape::Text.schema("The level.")),
        ("reason?", Shape::Text.schema("Why it is not healthy, where that is known.")),
    ];
    let fields = operations.fields.iter().copied().flatten();
    answer.extend(fields.map(Field::described));
    let answer = object(&answer).build();
    Endpoint::new(operations, Method::GET, "/health", |operations, call| {
        Box::pin(say_health(operations, call))
    })
    .open_to(Needs::Nothing)
    .summary(GROUP, "How well the level and its parts do")
    .answers(StatusCode::OK, "Records can be read or written.", answer.clone(), &[])
    .answers(StatusCode::SERVICE_UNAVAILABLE, "They can be neither.", answer, &[])
}

pub(super) fn livez() -> Endpoint {
    Endpoint::new(&Arc::new(()), Method::GET, "/livez", |(), _| {
        Box::pin(async { Ok(word("alive")) })
    })
    .open_to(Needs::Nothing)
    .summary(GROUP, "Whether the process serves at all")
    .description("Restart it when this fails. Says nothing of the engines.")
    .answers(StatusCode::OK, "It does.", word_schema("alive"), &[])
}

pub(super) fn readyz(operations: &Arc<Operations>) -> Endpoint {
    Endpoint::new(operations, Method::GET, "/readyz", |operations, call| {
        Box::pin(say_ready(operations, call))
    })
    .open_to(Needs::Nothing)
    .summary(GROUP, "Whether to send requests here")
    .answers(StatusCode::OK, "Yes.", word_schema("ready"), &[])
    .problems(&[Kind::Unavailable])
}

const STATUSES: Shape = Shape::Word(&["healthy", "degraded", "unhealthy"]);

async fn say_health(operations: &Operations, call: &mut Call) -> Answer {
    let tree = operations.whole.inspect().await;
    let (code, status) = match tree.status {
        Status::Healthy => (StatusCode::OK, "healthy"),
        Status::Degraded => (StatusCode::OK, "degraded"),
        Status::Down => (StatusCode::SERVICE_UNAVAILABLE, "unhealthy"),
    };
    let answer = Object::with_capacity(128).field("status", status).field("layer", call.app.name);
    let answer = match tree.reason() {
        none if none.is_empty() => answer,
        why => answer.field("reason", &why),
    };
    let fields = operations.fields.iter();
    let answer = fields.fold(answer, |answer, fields| Field::write_all(fields, &tree, answer));
    let mut reply = reply::json(answer);
    *reply.status_mut() = code;
    Ok(reply.with(CACHE_CONTROL, NO_STORE))
}

async fn say_ready(operations: &Operations, call: &mut Call) -> Answer {
    let is_down = operations.whole.inspect().await.status == Status::Down;
    // Looked at last: it may have been asked to stop meanwhile.
    if call.app.draining.load(Ordering::Relaxed) {
        let detail = "this instance is stopping; send requests to another";
        return Err(Problem::new(Kind::Unavailable, detail));
    }
    if is_down {
        let detail = "records can be neither read nor written; /health names the part";
        return Err(Problem::new(Kind::Unavailable, detail));
    }
    Ok(word("ready"))
}

const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

fn word(status: &'static str) -> reply::Reply {
    reply::json(Object::with_capacity(32).field("status", status)).with(CACHE_CONTROL, NO_STORE)
}

fn word_schema(status: &'static str) -> utoipa::openapi::schema::Schema {
    let words: &'static [&'static str] = if status == "alive" { &["alive"] } else { &["ready"] };
    object(&[("status", Shape::Word(words).schema(""))]).build().into()
}

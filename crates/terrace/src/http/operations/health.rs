//! `GET /health`, `/livez` and `/readyz`.

use std::sync::atomic::Ordering;

use hyper::header::{CACHE_CONTROL, HeaderValue};
use hyper::{Method, StatusCode};
use terrace_core::Status;

use super::GROUP;
use crate::http::call::Call;
use crate::http::documents::DocumentsFace;
use crate::http::endpoint::Endpoint;
use crate::http::json::Object;
use crate::http::problem::{Kind, Problem};
use crate::http::reply::{self, Answer, WithHeaders as _};
use crate::http::schema::{Field, Shape, object};

pub(super) fn health(face: Option<&'static DocumentsFace>) -> Endpoint {
    let mut answer = vec![
        ("status", STATUSES.schema("Degraded means that answers are right and may be slower.")),
        ("layer", Shape::Text.schema("The level.")),
    ];
    let fields = face.map_or(&[][..], |face| face.health_fields);
    answer.extend(fields.iter().map(Field::described));
    let answer = object(&answer).build();
    Endpoint::new(Method::GET, "/health", |call| Box::pin(say_health(call)))
        .summary(GROUP, "How well the level and its parts do")
        .answers(StatusCode::OK, "Records can be read or written.", answer.clone(), &[])
        .answers(StatusCode::SERVICE_UNAVAILABLE, "They can be neither.", answer, &[])
}

pub(super) fn livez() -> Endpoint {
    Endpoint::new(Method::GET, "/livez", |_| Box::pin(async { Ok(word("alive")) }))
        .summary(GROUP, "Whether the process serves at all")
        .description("Restart it when this fails. Says nothing of the engines.")
        .answers(StatusCode::OK, "It does.", word_schema("alive"), &[])
}

pub(super) fn readyz() -> Endpoint {
    Endpoint::new(Method::GET, "/readyz", |call| Box::pin(say_ready(call)))
        .summary(GROUP, "Whether to send requests here")
        .answers(StatusCode::OK, "Yes.", word_schema("ready"), &[])
        .problems(&[Kind::Unavailable])
}

const STATUSES: Shape = Shape::Word(&["healthy", "degraded", "unhealthy"]);

async fn say_health(call: &mut Call) -> Answer {
    let app = &call.app;
    let tree = app.store.inspect().await;
    let (code, status) = match tree.status {
        Status::Healthy => (StatusCode::OK, "healthy"),
        Status::Degraded => (StatusCode::OK, "degraded"),
        Status::Down => (StatusCode::SERVICE_UNAVAILABLE, "unhealthy"),
    };
    let fields = app.face.map_or(&[][..], |face| face.health_fields);
    let answer = Object::with_capacity(128).field("status", status).field("layer", app.level.name);
    let mut reply = reply::json(Field::write_all(fields, &tree, answer));
    *reply.status_mut() = code;
    Ok(reply.with(CACHE_CONTROL, NO_STORE))
}

async fn say_ready(call: &mut Call) -> Answer {
    if call.app.draining.load(Ordering::Relaxed) {
        let detail = "this instance is stopping; send requests to another";
        return Err(Problem::new(Kind::Unavailable, detail));
    }
    if call.app.store.inspect().await.status == Status::Down {
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

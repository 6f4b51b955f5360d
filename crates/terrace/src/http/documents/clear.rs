//! `POST /clear-cache`.

use hyper::{Method, StatusCode};
use terrace_core::Deadline;

use super::GROUP;
use crate::http::call::Call;
use crate::http::endpoint::Endpoint;
use crate::http::json::Object;
use crate::http::problem::Kind;
use crate::http::reply::{self, Answer};
use crate::http::schema::{Shape, object};

pub(super) fn endpoint() -> Endpoint {
    let answer =
        object(&[("success", Shape::True.schema("")), ("message", Shape::Text.schema(""))]);
    Endpoint::new(Method::POST, "/clear-cache", |call| Box::pin(clear(call)))
        .summary(GROUP, "Empty all caches")
        .description("For every instance that shares them.")
        .answers(StatusCode::OK, "They are empty.", answer.build(), &[])
        .problems(&[Kind::Unavailable, Kind::DeadlineExceeded])
}

/// The far cache is emptied before the near one, which could be filled from it in between.
async fn clear(call: &mut Call) -> Answer {
    let app = &call.app;
    let deadline = Deadline::at(app.runtime.now() + app.limits.request_time);
    for cache in app.caches.iter().rev() {
        let cleared = app.runtime.within(deadline, cache.clear()).await;
        cleared.unwrap_or_else(|| Err(Deadline::exceeded()))?;
    }
    let answer =
        Object::with_capacity(64).field("success", &true).field("message", "All caches cleared");
    Ok(reply::json(answer))
}

//! `POST /clear-cache`.

use std::sync::Arc;

use hyper::{Method, StatusCode};
use terrace_core::Deadline;

use super::{Documents, GROUP};
use crate::access::Scope;
use crate::http::call::Call;
use crate::http::endpoint::{Endpoint, Needs};
use crate::http::json::Object;
use crate::http::problem::Kind;
use crate::http::reply::{self, Answer};
use crate::http::schema::{Shape, object};

pub(super) fn endpoint(documents: &Arc<Documents>) -> Endpoint {
    let answer =
        object(&[("success", Shape::True.schema("")), ("message", Shape::Text.schema(""))]);
    Endpoint::new(documents, Method::POST, "/clear-cache", |documents, call| {
        Box::pin(clear(documents, call))
    })
    .summary(GROUP, "Empty all caches")
    .description("For every instance that shares them.")
    .open_to(Needs::Scope(Scope::Admin))
    .answers(StatusCode::OK, "They are empty.", answer.build(), &[])
    .problems(&[Kind::Unavailable, Kind::DeadlineExceeded])
}

/// The far cache is emptied before the near one, which could be filled from it in between.
async fn clear(documents: &Documents, call: &mut Call) -> Answer {
    let deadline = call.deadline();
    for cache in documents.caches.iter().rev() {
        let cleared = call.app.runtime.within(deadline, cache.clear()).await;
        cleared.unwrap_or_else(|| Err(Deadline::exceeded()))?;
    }
    let answer =
        Object::with_capacity(64).field("success", &true).field("message", "All caches cleared");
    Ok(reply::json(answer))
}

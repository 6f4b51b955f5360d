//! What is measured of requests, and `/metrics`.
//!
//! [`Metrics`] is a guard: the outermost, so that it sees what clients are answered, refusals of other
//! guards included.

mod requests;

use std::sync::{Arc, OnceLock};

use hyper::StatusCode;
use terrace_core::{BoxFuture, Inspection};

use super::call::Call;
use super::endpoint::Endpoint;
use super::face::{Face, Whole};
use super::middleware::{Middleware, Next};
use super::reply::Answer;
use super::routes::Route;
use requests::Requests;

/// Measures all requests of a level.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Made once the routes are known, which is before the first request.
    requests: OnceLock<Requests>,
}

impl Middleware for Metrics {
    fn learn(&self, routes: &[Route]) {
        let _ = self.requests.set(Requests::of(routes));
    }

    fn handle<'a>(&'a self, call: &'a mut Call, next: Next<'a>) -> BoxFuture<'a, Answer> {
        let Some(requests) = self.requests.get() else { return next.run(call) };
        Box::pin(async move {
            let route = next.route();
            // What is dropped unanswered was ended by a panic, which becomes a 500 further out.
            let mut open = Open { requests, route, status: StatusCode::INTERNAL_SERVER_ERROR };
            let answer = next.run(call).await;
            open.status = match &answer {
                Ok(reply) => reply.status(),
                Err(problem) => problem.status(),
            };
            answer
        })
    }

    fn face(self: Arc<Self>) -> Option<Face> {
        Some(Face::Metrics(self))
    }

    fn inspect(&self) -> BoxFuture<'_, Option<Inspection>> {
        let answered = self.requests.get().map_or(0, Requests::answered);
        Box::pin(async move { Some(Inspection::new("metrics").counter("requests", answered)) })
    }
}

/// A request that is not answered yet.
struct Open<'a> {
    requests: &'a Requests,
    route: usize,
    status: StatusCode,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.requests.note(self.route, self.status);
    }
}

/// The rows of the table.
pub(crate) fn endpoints(_metrics: &Arc<Metrics>, _whole: &Arc<dyn Whole>) -> Vec<Endpoint> {
    Vec::new()
}

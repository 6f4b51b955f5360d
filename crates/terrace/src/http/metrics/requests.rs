//! How often each route was answered, and how.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hyper::StatusCode;

use crate::http::routes::Route;

/// All routes, by their places.
#[derive(Debug)]
pub(super) struct Requests(Box<[Answered]>);

/// The statuses that are answered, the frequent ones first.
const STATUSES: [u16; 22] = [
    200, 404, 201, 204, 304, 202, 429, 401, 503, 504, 412, 422, 500, 400, 403, 405, 408, 413, 414,
    415, 431, 501,
];

/// One route. Everything a request touches was made before it: its route's place and a number or two.
#[derive(Debug, Default)]
struct Answered {
    /// By the place of the status, and one of all others.
    statuses: [AtomicU64; STATUSES.len() + 1],
}

impl Requests {
    pub(super) fn of(routes: &[Route]) -> Self {
        Self(routes.iter().map(|_| Answered::default()).collect())
    }

    /// A request of the route at this place was answered.
    pub(super) fn note(&self, route: usize, status: StatusCode) {
        let known = STATUSES.iter().position(|known| *known == status.as_u16());
        if let Some(answered) = self.0.get(route) {
            answered.statuses[known.unwrap_or(STATUSES.len())].fetch_add(1, Relaxed);
        }
    }

    /// How many were answered.
    pub(super) fn answered(&self) -> u64 {
        let counts = self.0.iter().flat_map(|route| &route.statuses);
        counts.map(|count| count.load(Relaxed)).sum()
    }
}

//! How requests were answered, and how long that took.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hyper::StatusCode;
use terrace_core::Durations;

use super::page::{Labels, Page, Value};
use crate::http::routes::Route;

/// All routes, by their places.
#[derive(Debug)]
pub(super) struct Requests(Box<[Answered]>);

/// One route. All that a request touches was made before it: its route has a place, and its status too.
#[derive(Debug)]
struct Answered {
    labels: [(&'static str, String); 2],
    /// By the place of the status; the last counts all others.
    statuses: [AtomicU64; STATUSES.len() + 1],
    times: Durations,
}

/// The statuses that are answered, the frequent ones first.
const STATUSES: [u16; 21] = [
    200, 404, 201, 204, 304, 202, 429, 401, 503, 504, 412, 422, 500, 400, 403, 405, 408, 413, 414,
    415, 431,
];

/// What methods, paths and statuses are called that Terrace does not know.
const OTHER: &str = "other";

impl Requests {
    pub(super) fn of(routes: &[Route]) -> Self {
        Self(routes.iter().map(Answered::of).collect())
    }

    /// Notes how a request of the route at this place was answered.
    pub(super) fn note(&self, route: usize, status: StatusCode, took: Option<Duration>) {
        let Some(answered) = self.0.get(route) else { return };
        let known = STATUSES.iter().position(|known| *known == status.as_u16());
        answered.statuses[known.unwrap_or(STATUSES.len())].fetch_add(1, Relaxed);
        if let Some(took) = took {
            answered.times.record(took);
        }
    }

    /// How many were answered with this status.
    pub(super) fn with(&self, status: StatusCode) -> u64 {
        let known = STATUSES.iter().position(|known| *known == status.as_u16());
        let counts = self.0.iter().map(|route| &route.statuses[known.unwrap_or(STATUSES.len())]);
        counts.map(|count| count.load(Relaxed)).sum()
    }

    /// How many were answered.
    pub(super) fn answered(&self) -> u64 {
        let counts = self.0.iter().flat_map(|route| &route.statuses);
        counts.map(|count| count.load(Relaxed)).sum()
    }

    /// Adds the figures of all routes that were asked for.
    pub(super) fn add_to(&self, page: &mut Page) {
        for route in &self.0 {
            route.add_to(page);
        }
    }
}

impl Answered {
    fn of(route: &Route) -> Self {
        let method = route.method.as_ref().map_or(OTHER, |method| method.as_str());
        let endpoint = route.path.unwrap_or(OTHER);
        Self {
            labels: [("method", method.to_owned()), ("endpoint", endpoint.to_owned())],
            statuses: [const { AtomicU64::new(0) }; STATUSES.len() + 1],
            times: Durations::default(),
        }
    }

    fn add_to(&self, page: &mut Page) {
        let names = STATUSES.map(|status| status.to_string());
        let names = names.iter().map(String::as_str).chain([OTHER]);
        for (name, count) in names.zip(&self.statuses) {
            let count = count.load(Relaxed);
            if count > 0 {
                let mut labels = Labels::from(self.labels.clone());
                labels.push(("status", name.to_owned()));
                page.add("http_requests", REQUESTS_ARE, labels, Value::Counter(count));
            }
        }
        let times = self.times.times();
        if times.count() > 0 {
            let labels = Labels::from(self.labels.clone());
            page.add("http_request_duration_seconds", TIMES_ARE, labels, Value::Times(times));
        }
    }
}

const REQUESTS_ARE: &str = "Requests answered, refused ones included. `endpoint` is the path as the \
     documentation has it.";
const TIMES_ARE: &str = "From a request's headers to the headers of its answer.";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::problem::Kind;

    #[test]
    fn every_problem_has_a_status_of_its_own() {
        for kind in Kind::ALL {
            assert!(STATUSES.contains(&kind.facts().0.as_u16()), "{kind:?}");
        }
    }
}

//! Refuses what is more than a client may ask for.
//!
//! By address before authentication, so that keys cannot be tried without end; by key after it. Endpoints
//! that are open, and those of figures, are not limited: whoever watches an installation under attack
//! must get through.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest as _, Sha256};
use terrace_core::{Admission, BoxFuture, Inspection, RateLimiter};
use utoipa::openapi::path::ParameterIn;

use super::call::Call;
use super::client_address::TrustedProxies;
use super::endpoint::{Access, Endpoint, Needs};
use super::front_caches::is_for_all;
use super::middleware::{Middleware, Next};
use super::problem::{Kind, Problem, whole_seconds};
use super::reply::Answer;
use super::schema::Shape;
use crate::access::ClientId;

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE: HeaderName = HeaderName::from_static("ratelimit");
const X_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// The same, as they are described.
const HEADERS: [&str; 5] = [
    "RateLimit-Policy",
    "RateLimit",
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
];

const CLIENT: &str = "Names one of several clients that share the key of the settings: each has a limit \
     of its own. Of other keys it counts nothing. The first 64 bytes count.";

/// Names a client of the key of the settings.
const X_CLIENT_ID: HeaderName = HeaderName::from_static("x-client-id");
/// So much of a client's id counts.
const CLIENT_ID_BYTES: usize = 64;

/// A step that admits so many requests of each client.
#[derive(Debug)]
pub(crate) struct RateLimit {
    rule: Rule,
    /// What answers call it.
    name: &'static str,
    limiter: Arc<RateLimiter>,
    proxies: TrustedProxies,
    /// What it says of limits; empty where another step does.
    told: Vec<Arc<RateLimiter>>,
    policy: HeaderValue,
}

/// Who is one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// An address.
    Address,
    /// A key, or whom a token is about; of the key of the settings, each of its clients.
    Key,
}

impl RateLimit {
    /// The one limit where clients have no keys: by address.
    pub(crate) fn alone(limiter: RateLimiter, proxies: TrustedProxies) -> Self {
        let limiter = Arc::new(limiter);
        let told = vec![Arc::clone(&limiter)];
        Self::new(Rule::Address, "default", limiter, proxies, told)
    }

    /// What stands before authentication, and what stands after it.
    pub(crate) fn around_keys(
        addresses: RateLimiter,
        keys: RateLimiter,
        proxies: TrustedProxies,
    ) -> [Self; 2] {
        let (addresses, keys) = (Arc::new(addresses), Arc::new(keys));
        let told = vec![Arc::clone(&keys), Arc::clone(&addresses)];
        [
            Self::new(Rule::Address, "address", addresses, proxies.clone(), Vec::new()),
            Self::new(Rule::Key, "default", keys, proxies, told),
        ]
    }

    fn new(
        rule: Rule,
        name: &'static str,
        limiter: Arc<RateLimiter>,
        proxies: TrustedProxies,
        told: Vec<Arc<RateLimiter>>,
    ) -> Self {
        let quota = limiter.quota();
        let policy = text(format!("\"{name}\";q={};w={}", quota.limit, quota.window.as_secs()));
        Self { rule, name, limiter, proxies, told, policy }
    }

    /// Whether requests of an endpoint are counted.
    fn counts(access: Access) -> bool {
        matches!(access.needs, Needs::Scope(_))
    }

    /// The name under which a request is counted.
    fn client(&self, call: &Call) -> String {
        let headers = &call.parts.headers;
        match (self.rule, &call.principal) {
            (Rule::Key, Some(principal)) => match &principal.id {
                ClientId::Key(id) => format!("key:{id}"),
                ClientId::Subject(subject) => digest("subject", subject.as_bytes()),
                // Who has this key names its clients; of other keys they would only be ways around.
                ClientId::Settings => {
                    headers.get(X_CLIENT_ID).map_or("settings".to_owned(), of_settings)
                }
            },
            _ => match call.peer {
                Some(peer) => format!("address:{}", network(self.proxies.client(peer, headers))),
                None => "address:unknown".to_owned(),
            },
        }
    }

    fn refusal(admission: &Admission) -> Problem {
        let seconds = whole_seconds(admission.more_in).max(1);
        let detail = format!("Rate limit exceeded. Try again in {seconds} seconds");
        Problem::new(Kind::RateLimited, detail).retry_after(admission.more_in)
    }

    fn tell(&self, admission: &Admission, headers: &mut HeaderMap) {
        // What an inner step has told is the narrower limit.
        if headers.contains_key(POLICY) {
            return;
        }
        let Admission { left, more_in, .. } = *admission;
        let seconds = whole_seconds(more_in);
        headers.insert(POLICY, self.policy.clone());
        headers.insert(STATE, text(format!("\"{}\";r={left};t={seconds}", self.name)));
        headers.insert(X_LIMIT, self.limiter.quota().limit.into());
        headers.insert(X_REMAINING, left.into());
        headers.insert(X_RESET, seconds.into());
    }
}

/// Names and numbers are always valid in a header.
fn text(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

/// A client of the key of the settings.
fn of_settings(id: &HeaderValue) -> String {
    let id = id.as_bytes();
    digest("settings", &id[..id.len().min(CLIENT_ID_BYTES)])
}

/// A client by a digest: an id may be anything, and of any length.
fn digest(of: &str, id: &[u8]) -> String {
    Sha256::digest(id)[..16].iter().fold(format!("{of}:"), |mut name, byte| {
        // Text does not fail to grow.
        let _ = write!(name, "{byte:02x}");
        name
    })
}

/// One client's: an address, but of version 6 the network of 64 bits, all of which one client has.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => {
            let [a, b, c, d, ..] = six.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        four @ IpAddr::V4(_) => four,
    }
}

impl Middleware for RateLimit {
    fn handle<'a>(&'a self, call: &'a mut Call, next: Next<'a>) -> BoxFuture<'a, Answer> {
        if !Self::counts(next.access()) {
            return next.run(call);
        }
        Box::pin(async move {
            let admission = self.limiter.admit(&self.client(call)).await;
            let mut answer = match admission.admitted {
                true => next.run(call).await,
                false => Err(Self::refusal(&admission)),
            };
            match &mut answer {
                // What is left is one client's.
                Ok(reply) if is_for_all(reply) => {}
                Ok(reply) => self.tell(&admission, reply.headers_mut()),
                Err(problem) => self.tell(&admission, problem.headers_mut()),
            }
            answer
        })
    }

    fn describe(&self, endpoint: Endpoint) -> Endpoint {
        // The headers of both are the same, and so are their refusals.
        if !Self::counts(endpoint.access) || self.told.is_empty() {
            return endpoint;
        }
        let endpoint = endpoint.problems(&[Kind::RateLimited]).always(&HEADERS);
        match self.rule {
            Rule::Address => endpoint,
            Rule::Key => {
                endpoint.parameter(ParameterIn::Header, "X-Client-ID", Shape::Text, CLIENT)
            }
        }
    }

    fn inspect(&self) -> BoxFuture<'_, Option<Inspection>> {
        Box::pin(async {
            let first = self.told.first()?;
            let (quota, (admitted, _)) = (first.quota(), first.counts());
            let refused = self.told.iter().map(|limiter| limiter.counts().1).sum();
            let tree = Inspection::new("rate-limit")
                .fact("enabled", true)
                .fact("max_requests", u64::from(quota.limit))
                .fact("window", quota.window)
                .counter("admitted", admitted)
                .counter("refused", refused);
            Some(match first.shared() {
                Some(shared) => shared.show(quota, tree).await,
                None => tree,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_client_however_it_is_written() {
        let of = |text: &str| network(text.parse().expect("an address")).to_string();
        assert_eq!(of("10.1.2.3"), "10.1.2.3");
        assert_eq!(of("::ffff:10.1.2.3"), "10.1.2.3");
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2:ffff::1"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
    }

    #[test]
    fn so_much_of_a_clients_id_counts() {
        let of = |id: &str| of_settings(&HeaderValue::try_from(id).expect("a header"));
        assert_ne!(of("a"), of("b"));
        let long = "x".repeat(64);
        assert_eq!(of(&long), of(&format!("{long}y")));
        assert_eq!(of(&long).len(), of("a").len());
    }
}

//! Refuses what is more than a client may ask for.
//!
//! By address before authentication, so that keys cannot be tried without end; by key after it. Endpoints
//! that are open, and those of figures, are not limited: whoever watches an installation under attack
//! must get through.
//!
//! A request costs one permit; one that looks through many records five, and a batch one for each ten
//! operations. So much was chosen that no batch costs more than the limit of a minute has by default.

use std::sync::Arc;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use terrace_core::{Admission, BoxFuture, Inspection, Quota, RateLimiter};
use utoipa::openapi::path::ParameterIn;

use super::call::Call;
use super::client_address::TrustedProxies;
use super::client_name;
use super::endpoint::{Access, Class, Endpoint, Needs};
use super::front_caches::is_for_all;
use super::middleware::{Middleware, Next};
use super::problem::{Kind, Problem, whole_seconds};
use super::reply::Answer;
use super::schema::Shape;

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

/// What a request costs that looks through many records.
const SCAN: u32 = 5;
/// So many operations of a batch cost as much as one request.
const OPERATIONS: usize = 10;

/// What a request was admitted by, so that it can pay more once it is known what it asks for.
#[derive(Debug)]
pub(crate) struct Charge {
    limiter: Arc<RateLimiter>,
    client: String,
    admission: Admission,
}

impl Call {
    /// Pays for so many operations; the first ones are paid.
    ///
    /// # Errors
    /// 429: nothing may be done.
    pub(crate) async fn pay_for(&mut self, operations: usize) -> Result<(), Problem> {
        let more = operations.div_ceil(OPERATIONS).saturating_sub(1);
        let Ok(cost @ 1..) = u32::try_from(more) else { return Ok(()) };
        for charge in &mut self.charges {
            charge.admission = charge.limiter.spend(&charge.client, cost).await;
            if !charge.admission.admitted {
                return Err(RateLimit::refusal(&charge.admission));
            }
        }
        Ok(())
    }
}

/// A step that admits requests of each client up to its limits.
#[derive(Debug)]
pub(crate) struct RateLimit {
    rule: Rule,
    /// What answers call each of its windows.
    names: Vec<String>,
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
        let quotas = limiter.quotas().all();
        let named = |(place, quota): (usize, &Quota)| match place {
            0 => name.to_owned(),
            _ => format!("{name}-{}s", quota.window.as_secs()),
        };
        let names = quotas.iter().enumerate().map(named).collect::<Vec<_>>();
        let policies = names.iter().zip(quotas).map(|(name, quota)| {
            format!("\"{name}\";q={};w={}", quota.limit, quota.window.as_secs())
        });
        let policy = text(policies.collect::<Vec<_>>().join(", "));
        Self { rule, names, limiter, proxies, told, policy }
    }

    /// What a request costs before it is known what it asks for.
    fn cost(class: Class) -> u32 {
        match class {
            Class::Scan => SCAN,
            Class::Keys | Class::Watch => 1,
        }
    }

    /// Whether requests of an endpoint are counted.
    fn counts(access: Access) -> bool {
        matches!(access.needs, Needs::Scope(_))
    }

    /// The name under which a request is counted.
    fn client(&self, call: &Call) -> String {
        let headers = &call.parts.headers;
        match (self.rule, &call.principal) {
            (Rule::Key, Some(principal)) => client_name::by_principal(principal, headers),
            _ => client_name::by_address(call.peer, headers, &self.proxies),
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
        let Admission { left, more_in, tightest, .. } = *admission;
        let seconds = whole_seconds(more_in);
        let limit = self.limiter.quotas().all().get(tightest).map_or(0, |quota| quota.limit);
        let name = self.names.get(tightest).map_or("", String::as_str);
        headers.insert(POLICY, self.policy.clone());
        headers.insert(STATE, text(format!("\"{name}\";r={left};t={seconds}")));
        headers.insert(X_LIMIT, limit.into());
        headers.insert(X_REMAINING, left.into());
        headers.insert(X_RESET, seconds.into());
    }
}

/// Names and numbers are always valid in a header.
fn text(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

impl Middleware for RateLimit {
    fn handle<'a>(&'a self, call: &'a mut Call, next: Next<'a>) -> BoxFuture<'a, Answer> {
        if !Self::counts(next.access()) {
            return next.run(call);
        }
        Box::pin(async move {
            let client = self.client(call);
            let mut admission = self.limiter.admit(&client, Self::cost(next.class())).await;
            let mut answer = if admission.admitted {
                let limiter = Arc::clone(&self.limiter);
                call.charges.push(Charge { limiter, client, admission });
                let answer = next.run(&mut *call).await;
                // A batch has paid more meanwhile.
                admission = call.charges.pop().map_or(admission, |charge| charge.admission);
                answer
            } else {
                Err(Self::refusal(&admission))
            };
            if call.charges.iter().any(|charge| !charge.admission.admitted) {
                // An outer step has refused it, and tells why.
                return answer;
            }
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
            let (quota, (admitted, _)) = (first.quotas().all().first()?, first.counts());
            let refused = self.told.iter().map(|limiter| limiter.counts().1).sum();
            let tree = Inspection::new("rate-limit")
                .fact("enabled", true)
                .fact("max_requests", u64::from(quota.limit))
                .fact("window", quota.window)
                .counter("admitted", admitted)
                .counter("refused", refused);
            Some(match first.shared() {
                Some(shared) => shared.show(first.quotas(), tree).await,
                None => tree,
            })
        })
    }
}

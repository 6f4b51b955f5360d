//! Asks every request for a key or a token, and refuses what the key is not for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use hyper::header::{AUTHORIZATION, CACHE_CONTROL, HeaderMap, HeaderValue};
use terrace_core::{BoxFuture, Error, ErrorKind, Inspection, Result, Runtime};

use super::call::Call;
use super::endpoint::{Access, Endpoint, Needs};
use super::front_caches::is_for_all;
use super::middleware::{Middleware, Next};
use super::problem::{Kind, Problem};
use super::reply::Answer;
use crate::access::{KeyId, KeyRing, Principal, Refusal, Scope, Tokens};

/// Why a request is refused is for the audit log alone: a client that tries keys hears one answer.
const INVALID: &str = "Invalid API key; send a valid one in the header X-API-Key, or as Authorization: \
                       Bearer";

const API_KEY: &str = "x-api-key";

/// What only the one who asked may keep. A cache in front of Terrace knows `Authorization`, but not
/// `X-API-Key`, and would give the answer to anybody.
const PRIVATE: HeaderValue = HeaderValue::from_static("private, no-cache");

/// Who asks, or why that is not known, with the id that a key claims.
type Found = std::result::Result<Arc<Principal>, (Refusal, Option<KeyId>)>;

/// A step that lets nobody pass without a key or a token, but for endpoints that are open.
#[derive(Debug)]
pub(crate) struct Authenticate {
    ring: KeyRing,
    /// Tokens, where an identity provider is named.
    tokens: Option<Tokens>,
    /// Whether figures are for those who may read.
    protects_figures: bool,
    audit: Audit,
}

impl Authenticate {
    /// By the keys of this ring, and by tokens.
    pub(crate) fn new(
        ring: KeyRing,
        tokens: Option<Tokens>,
        protects_figures: bool,
        runtime: Runtime,
    ) -> Self {
        Self { ring, tokens, protects_figures, audit: Audit::new(runtime) }
    }

    /// Who asks.
    async fn find(&self, call: &Call) -> Found {
        let Some(text) = key(&call.parts.headers) else { return Err((Refusal::Missing, None)) };
        match (self.ring.principal(text), &self.tokens) {
            (Err((Refusal::Malformed, _)), Some(tokens)) if Tokens::is_one(text) => {
                let mut found = tokens.principal(text);
                if found == Err(Refusal::UnknownSigner) && tokens.look_again().await {
                    found = tokens.principal(text);
                }
                found.map_err(|refusal| (refusal, None))
            }
            (found, _) => found,
        }
    }

    /// What the key of a request must be for; none where it needs none.
    fn scope(&self, access: Access) -> Option<Scope> {
        match access.needs {
            Needs::Nothing => None,
            Needs::Figures => self.protects_figures.then_some(Scope::Read),
            Needs::Scope(scope) => Some(scope),
        }
    }

    fn admit(
        &self,
        found: Found,
        call: &Call,
        scope: Scope,
        access: Access,
    ) -> std::result::Result<Arc<Principal>, Problem> {
        let principal = found.map_err(|(refusal, id)| {
            let error = match refusal {
                Refusal::Undecided => {
                    let message = "keys cannot be looked up at present; try again";
                    Error::new(ErrorKind::Unavailable, message)
                }
                _ => Error::new(ErrorKind::Unauthenticated, INVALID),
            };
            let id = id.map(|id| id.to_string()).unwrap_or_default();
            self.refused(error, refusal.as_str(), &id, call)
        })?;
        let id = || principal.id.to_string();
        if !principal.may(scope) {
            let message = format!("this API key is not for requests that {scope}; use one that is");
            let error = Error::new(ErrorKind::Forbidden, message);
            return Err(self.refused(error, "scope", &id(), call));
        }
        if principal.is_restricted() && !access.checks_keys {
            let message = "this API key is for some records alone, and this request is about all; use \
                           one that may touch all";
            let error = Error::new(ErrorKind::Forbidden, message);
            return Err(self.refused(error, "prefixes", &id(), call));
        }
        Ok(principal)
    }

    /// The answer, which is logged with its reason unless too many are.
    fn refused(&self, error: Error, reason: &'static str, key: &str, call: &Call) -> Problem {
        if !self.audit.has_room() {
            return Problem::new(error.kind().into(), error.message().to_owned());
        }
        let client = call.peer.map(|peer| peer.to_string()).unwrap_or_default();
        error
            .with("reason", reason)
            .with("key", key.to_owned())
            .with("client", client)
            .with("method", call.parts.method.to_string())
            .into()
    }
}

/// The key that came. Who sends two, sends the first.
fn key(headers: &HeaderMap) -> Option<&str> {
    let named = headers.get(API_KEY).and_then(|value| value.to_str().ok());
    let bearer = || {
        let (scheme, key) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key)
    };
    named.or_else(bearer).map(str::trim)
}

impl Middleware for Authenticate {
    fn handle<'a>(&'a self, call: &'a mut Call, next: Next<'a>) -> BoxFuture<'a, Answer> {
        let access = next.access();
        let Some(scope) = self.scope(access) else { return next.run(call) };
        Box::pin(async move {
            let found = self.find(call).await;
            call.principal = Some(self.admit(found, call, scope, access)?);
            let mut reply = next.run(call).await?;
            if !is_for_all(&reply) {
                reply.headers_mut().insert(CACHE_CONTROL, PRIVATE);
            }
            Ok(reply)
        })
    }

    fn describe(&self, endpoint: Endpoint) -> Endpoint {
        let Some(scope) = self.scope(endpoint.access) else { return endpoint };
        endpoint
            .asks_for_key(scope)
            .problems(&[Kind::Unauthenticated, Kind::Forbidden, Kind::Unavailable])
            .always(&["Cache-Control"])
    }

    fn inspect(&self) -> BoxFuture<'_, Option<Inspection>> {
        Box::pin(async {
            let tree = self.ring.inspect();
            let tree = tree.counter("refused", self.audit.refused.load(Relaxed));
            Some(match &self.tokens {
                Some(tokens) => tree.helped_by(tokens.inspect()),
                None => tree,
            })
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.ring.close()
    }
}

/// Keeps those who try keys from filling the log.
#[derive(Debug)]
struct Audit {
    refused: AtomicU64,
    /// Of this second: its number since `started`, and how many lines it has had, as one number.
    lines: AtomicU64,
    started: Instant,
    runtime: Runtime,
}

impl Audit {
    /// Lines in a second.
    const MOST: u64 = 20;

    fn new(runtime: Runtime) -> Self {
        let started = runtime.now();
        Self { refused: AtomicU64::new(0), lines: AtomicU64::new(0), started, runtime }
    }

    /// Counts a refusal, and whether it may be logged.
    fn has_room(&self) -> bool {
        self.refused.fetch_add(1, Relaxed);
        let since = self.runtime.now().saturating_duration_since(self.started);
        let second = (since.as_secs() + 1) << 32;
        let count = self.lines.fetch_update(Relaxed, Relaxed, |known| {
            Some(if known >> 32 == second >> 32 { known + 1 } else { second + 1 })
        });
        let lines = count.map_or(0, |known| if known >> 32 == second >> 32 { known } else { 0 });
        (lines & 0xffff_ffff) < Self::MOST
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_log_takes_some_lines_a_second() {
        let runtime = Runtime::system();
        let audit = Audit::new(runtime.clone());
        for _ in 0..2 {
            let lines = (0..1000).filter(|_| audit.has_room()).count();
            assert_eq!(lines as u64, Audit::MOST);
            runtime.sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(audit.refused.load(Relaxed), 2000);
    }

    #[test]
    fn a_key_comes_in_either_header() {
        let headers = |pairs: &[(&'static str, &str)]| -> HeaderMap {
            let pair = |(name, value): &(&'static str, &str)| {
                (hyper::header::HeaderName::from_static(name), value.parse().expect("a value"))
            };
            pairs.iter().map(pair).collect()
        };
        for (sent, wanted) in [
            (headers(&[("x-api-key", "a")]), Some("a")),
            (headers(&[("authorization", "Bearer b")]), Some("b")),
            (headers(&[("authorization", "bearer  b ")]), Some("b")),
            (headers(&[("x-api-key", "a"), ("authorization", "Bearer b")]), Some("a")),
            (headers(&[("authorization", "Basic b")]), None),
            (headers(&[]), None),
        ] {
            assert_eq!(key(&sent), wanted, "{sent:?}");
        }
    }
}

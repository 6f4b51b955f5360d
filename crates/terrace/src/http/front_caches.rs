//! Shared caches in front: what they may keep, and how they hear of writes.
//!
//! Without a word of the settings an answer is its client's own: `private, no-cache` where clients have keys
//! (RFC 9111, section 3.5, protects `Authorization`, and nobody protects `X-API-Key`), `no-cache` where there
//! are none. The client itself may keep it, and asks each time with `If-None-Match`.
//!
//! `edge.public` says of a prefix that everybody who reaches the cache may read its records. Terrace asks for
//! a key all the same; a cache has none to ask for. The answer to `GET /v1/records/{key}` then says
//! `public, max-age=0, s-maxage=N, stale-while-revalidate=0`:
//!
//! - `s-maxage` is the bound. It also forbids a shared cache to go on with what is over (section 5.2.2.10);
//!   `stale-while-revalidate=0` says so to Varnish, which by itself goes on for 10 s.
//! - `max-age=0`, because a purge reaches no browser.
//! - `Age` is how old the record was here, and counts.
//!
//! Such an answer is the same for all clients, so it names none: no limits, no id of a request. Three things
//! keep it so. It is given under one spelling of a key alone, the one that is purged. Who asks for more than
//! the level's freshness (`Terrace-Consistency`, `Terrace-Token`) gets an answer of its own, and `Vary` leads
//! such a request past what is kept. And no answer of a level with regions is public, because it depends on
//! where the client is. The documents' API says how each request went, so it is never public.
//!
//! After a write the caches are told by `PURGE` of the record's path: [`purges`]. That makes the usual case
//! fresh, and nothing stands on it: a cache that is down, or that was just filling, keeps to `s-maxage`.

use std::sync::Arc;
use std::time::Duration;

use hyper::header::{CACHE_CONTROL, HeaderName, HeaderValue, VARY};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use terrace_core::{BoxFuture, Inspection, Key, Result, Runtime};

use super::call::Call;
use super::middleware::{Middleware, Next};
use super::reply::{
    Answer, REVALIDATE, Reply, TERRACE_CONSISTENCY, TERRACE_TOKEN, WithHeaders as _,
};

mod purges;

use purges::Purges;

/// What a cache may be told to purge together: a record, and the prefix by which it is public.
const SURROGATE_KEY: HeaderName = HeaderName::from_static("surrogate-key");

/// What leads a request to an answer of its own.
const ASKS_FOR_MORE: [HeaderName; 2] = [TERRACE_CONSISTENCY, TERRACE_TOKEN];
const VARIES: HeaderValue = HeaderValue::from_static("Terrace-Consistency, Terrace-Token");

/// All but the unreserved characters of RFC 3986.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Where the records are.
const RECORDS: &str = "/v1/records/";

/// In an answer: it is for all clients, and says nothing of the one who asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForAll;

/// The caches in front of a service.
#[derive(Debug)]
pub(crate) struct FrontCaches {
    /// The longest first.
    prefixes: Vec<PublicPrefix>,
    purges: Vec<Purges>,
}

#[derive(Debug)]
struct PublicPrefix {
    prefix: String,
    /// The `Cache-Control` of its records.
    caching: HeaderValue,
}

impl FrontCaches {
    /// Caches that may keep what has these prefixes, each for so many seconds; those at the addresses are
    /// told of writes.
    ///
    /// # Errors
    /// `Invalid` for an address that is no URL.
    pub(crate) fn new(
        mut prefixes: Vec<(String, u64)>,
        addresses: &[String],
        runtime: &Runtime,
    ) -> Result<Self> {
        let bound = prefixes.iter().map(|(_, seconds)| *seconds).max().unwrap_or_default();
        let bound = Duration::from_secs(bound);
        let purges = addresses.iter().map(|address| Purges::start(address, bound, runtime));
        let purges = purges.collect::<Result<_>>()?;
        prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        let prefixes = prefixes.into_iter().map(|(prefix, seconds)| {
            let text = format!("public, max-age=0, s-maxage={seconds}, stale-while-revalidate=0");
            PublicPrefix { prefix, caching: value(text) }
        });
        Ok(Self { prefixes: prefixes.collect(), purges })
    }

    fn prefix_of(&self, key: &Key) -> Option<&PublicPrefix> {
        self.prefixes.iter().find(|known| key.as_str().starts_with(&known.prefix))
    }

    /// The caches of a request about records that may be public.
    fn of(call: &Call) -> Option<&Arc<Self>> {
        call.front_caches.as_ref().filter(|_| call.app.geography.is_none())
    }
}

/// The answer to a read of a record, for all clients where it is public and the request asks for no more.
pub(crate) fn shared(call: &Call, key: &Key, reply: Reply) -> Reply {
    let Some(public) = FrontCaches::of(call).and_then(|caches| caches.prefix_of(key)) else {
        return reply;
    };
    // On an answer of the client's own, too: Varnish remembers that one must not be kept, and without this
    // would take that for the word on all requests of the path.
    let reply = reply.with(VARY, VARIES);
    let (uri, headers) = (&call.parts.uri, &call.parts.headers);
    let tag = spelled(key.as_str());
    let is_spelled_so = uri.path().strip_prefix(RECORDS) == Some(&*tag) && uri.query().is_none();
    if !is_spelled_so || ASKS_FOR_MORE.iter().any(|name| headers.contains_key(name)) {
        return reply;
    }
    let tags = value(format!("{tag} prefix:{}", spelled(&public.prefix)));
    let mut reply = reply.with(CACHE_CONTROL, public.caching.clone());
    reply.extensions_mut().insert(ForAll);
    reply.with(SURROGATE_KEY, tags)
}

/// Whether an answer is for all clients.
pub(crate) fn is_for_all(reply: &Reply) -> bool {
    reply.extensions().get::<ForAll>().is_some()
}

/// The answer for this client alone, where it was for all.
pub(crate) fn for_the_client_alone(mut reply: Reply) -> Reply {
    if reply.extensions_mut().remove::<ForAll>().is_none() {
        return reply;
    }
    reply.headers_mut().remove(SURROGATE_KEY);
    reply.with(CACHE_CONTROL, REVALIDATE)
}

/// The caches are told of these keys when this is dropped, whatever came of the write: also of one whose
/// outcome nobody knows, or whose client has gone.
#[derive(Debug)]
pub(crate) struct TellWhenDropped {
    caches: Arc<FrontCaches>,
    keys: Vec<Key>,
}

/// What tells the caches of writes of these keys; none where nobody has to be told.
pub(crate) fn telling<'a>(
    call: &Call,
    keys: impl Iterator<Item = &'a Key>,
) -> Option<TellWhenDropped> {
    let caches = FrontCaches::of(call).filter(|caches| !caches.purges.is_empty())?;
    let keys: Vec<_> = keys.filter(|key| caches.prefix_of(key).is_some()).cloned().collect();
    (!keys.is_empty()).then(|| TellWhenDropped { caches: Arc::clone(caches), keys })
}

impl Drop for TellWhenDropped {
    fn drop(&mut self) {
        self.caches.purges.iter().for_each(|purges| purges.owe(&self.keys));
    }
}

/// A step that tells the endpoints of the caches in front.
#[derive(Debug)]
pub(crate) struct TellFrontCaches(Arc<FrontCaches>);

impl TellFrontCaches {
    /// Of these caches.
    pub(crate) fn new(caches: FrontCaches) -> Self {
        Self(Arc::new(caches))
    }
}

impl Middleware for TellFrontCaches {
    fn handle<'a>(&'a self, call: &'a mut Call, next: Next<'a>) -> BoxFuture<'a, Answer> {
        call.front_caches = Some(Arc::clone(&self.0));
        next.run(call)
    }

    fn inspect(&self) -> BoxFuture<'_, Option<Inspection>> {
        Box::pin(async {
            let tree = Inspection::new("front-caches");
            let told = self.0.purges.iter();
            Some(told.fold(tree, |tree, purges| tree.helped_by(purges.inspect())))
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            futures_util::future::join_all(self.0.purges.iter().map(Purges::settle)).await;
            Ok(())
        })
    }
}

/// The one spelling of a key in a path, and in a header.
fn spelled(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

/// Digits, words and escapes are always valid in a header.
fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("no-store"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_longest_prefix_says_for_how_long() {
        let prefixes = [("a/", 60), ("a/b/", 5)].map(|(prefix, bound)| (prefix.to_owned(), bound));
        let caches = FrontCaches::new(prefixes.to_vec(), &[], &Runtime::system()).expect("caches");
        let of = |key: &str| {
            let found = caches.prefix_of(&Key::new(key).expect("a key"));
            found.map(|known| known.prefix.clone())
        };
        assert_eq!(of("a/1").as_deref(), Some("a/"));
        assert_eq!(of("a/b/1").as_deref(), Some("a/b/"));
        assert_eq!(of("b/a/1"), None);
    }

    #[test]
    fn a_key_has_one_spelling() {
        assert_eq!(spelled("a/b c:é-._~"), "a%2Fb%20c%3A%C3%A9-._~");
    }
}

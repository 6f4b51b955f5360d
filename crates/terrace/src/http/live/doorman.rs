//! Who may ask the live page: the person at this machine, through the page itself.

use std::sync::Arc;

use hyper::Method;
use hyper::header::{HOST, HeaderMap, ORIGIN};
use subtle::ConstantTimeEq as _;
use terrace_core::BoxFuture;

use super::TERRACE_LIVE;
use crate::http::call::Call;
use crate::http::middleware::{Guards, Middleware, Next};
use crate::http::problem::{Kind, Problem};
use crate::http::reply::Answer;
use crate::live::Live;

/// Refuses all that does not come from the page, or from a program of this machine that knows its token.
#[derive(Debug)]
struct Doorman(Arc<Live>);

/// What stands before the page.
pub(crate) fn guards(live: &Arc<Live>) -> Guards {
    Guards::new(vec![Arc::new(Doorman(Arc::clone(live)))])
}

impl Middleware for Doorman {
    fn handle<'a>(&'a self, call: &'a mut Call, next: Next<'a>) -> BoxFuture<'a, Answer> {
        let changes = !matches!(call.parts.method, Method::GET | Method::HEAD);
        match check(&call.parts.headers, changes, self.0.token()) {
            Ok(()) => next.run(call),
            Err(detail) => Box::pin(async move { Err(Problem::new(Kind::Forbidden, detail)) }),
        }
    }
}

/// What is wrong with these headers.
fn check(headers: &HeaderMap, changes: bool, token: &str) -> Result<(), &'static str> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    // A name of somebody else's that leads here would make his page one of this origin.
    let host = text(HOST).unwrap_or_default();
    if !is_here(host) {
        return Err("the live page is for this machine; use http://127.0.0.1 with its port");
    }
    let origin = text(ORIGIN).map(|origin| origin.strip_prefix("http://") == Some(host));
    let site = headers.get("sec-fetch-site").map(|site| site == "same-origin" || site == "none");
    if origin == Some(false) || site == Some(false) {
        return Err("another page asks; open the URL that terrace printed");
    }
    if !changes {
        return Ok(());
    }
    if origin.is_none() {
        return Err("what changes something needs the header Origin with this page's own origin");
    }
    let known = headers.get(TERRACE_LIVE).map(|sent| sent.as_bytes().ct_eq(token.as_bytes()));
    match known.is_some_and(bool::from) {
        true => Ok(()),
        false => {
            Err("the token of this start is missing; open the URL that terrace printed, with \
                      all that follows its #")
        }
    }
}

/// Whether a host, with or without a port, is this machine.
fn is_here(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|it| it.is_ascii_digit()) => name,
        _ => host,
    };
    ["127.0.0.1", "localhost", "[::1]"].contains(&name)
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn judged(changes: bool, headers: &[(&'static str, &'static str)]) -> Result<(), &'static str> {
        let named = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        check(&named.collect(), changes, "secret")
    }

    #[test]
    fn only_this_machine_and_the_pages_own_origin_are_answered() {
        let here = ("host", "127.0.0.1:8020");
        for host in ["127.0.0.1:8020", "localhost:8020", "[::1]:8020", "localhost"] {
            assert_eq!(judged(false, &[("host", host)]), Ok(()), "{host}");
        }
        for host in
            ["evil.example:8020", "127.0.0.1.evil.example", "", "10.0.0.1:8020", "a@127.0.0.1"]
        {
            assert!(judged(false, &[("host", host)]).is_err(), "{host}");
        }
        assert!(judged(false, &[]).is_err());
        assert_eq!(judged(false, &[here, ("origin", "http://127.0.0.1:8020")]), Ok(()));
        for origin in
            ["http://evil.example", "http://127.0.0.1:8005", "https://127.0.0.1:8020", "null"]
        {
            assert!(judged(false, &[here, ("origin", origin)]).is_err(), "{origin}");
        }
        assert_eq!(judged(false, &[here, ("sec-fetch-site", "same-origin")]), Ok(()));
        assert!(judged(false, &[here, ("sec-fetch-site", "cross-site")]).is_err());
        assert!(judged(false, &[here, ("sec-fetch-site", "same-site")]).is_err());
    }

    #[test]
    fn a_change_needs_the_origin_and_the_token() {
        let here = ("host", "127.0.0.1:8020");
        let own = ("origin", "http://127.0.0.1:8020");
        assert_eq!(judged(true, &[here, own, ("terrace-live", "secret")]), Ok(()));
        assert!(judged(true, &[here, own, ("terrace-live", "secre")]).is_err());
        assert!(judged(true, &[here, own, ("terrace-live", "")]).is_err());
        assert!(judged(true, &[here, own]).is_err());
        assert!(judged(true, &[here, ("terrace-live", "secret")]).is_err());
    }
}

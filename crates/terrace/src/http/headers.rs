//! What the headers of a request ask of a store.

use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use hyper::header::{HeaderMap, HeaderName};
use sha2::{Digest as _, Sha256};
use terrace_core::{
    Consistency, Deadline, Durability, Idempotency, ReadOptions, Token, WriteOptions,
};

use super::etag;
use super::problem::Problem;
use super::reply::{TERRACE_CONSISTENCY, TERRACE_DURABILITY, TERRACE_TOKEN};

/// Names a request, so that repeating it is safe.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Asks for an answer after a write was applied.
pub(crate) const PREFER: HeaderName = HeaderName::from_static("prefer");

/// How to read: `Terrace-Consistency` and `Terrace-Token`. Several tokens ask for all of them.
///
/// # Errors
/// 422 that names the header.
pub(crate) fn read_options(
    headers: &HeaderMap,
    deadline: Deadline,
) -> Result<ReadOptions, Problem> {
    let consistency = match single(headers, &TERRACE_CONSISTENCY)? {
        None => Consistency::Default,
        Some(text) => consistency(text)?,
    };
    Ok(ReadOptions { consistency, token: token(headers)?, deadline, ..ReadOptions::default() })
}

/// What the client has seen, by all of its tokens.
///
/// # Errors
/// 422 that names the header.
pub(crate) fn token(headers: &HeaderMap) -> Result<Option<Token>, Problem> {
    let mut token: Option<Token> = None;
    for sent in headers.get_all(TERRACE_TOKEN) {
        let sent = sent.to_str().unwrap_or_default().trim().parse::<Token>();
        let sent = sent.map_err(|error| Problem::from(error).within("Terrace-Token"))?;
        match &mut token {
            Some(token) => token.merge(&sent),
            None => token = Some(sent),
        }
    }
    Ok(token)
}

/// How to write: `Idempotency-Key` and `Prefer: wait` (RFC 7240). The same key stands for the same
/// method, path, preconditions, preference and body.
///
/// # Errors
/// 422 that names the header.
pub(crate) fn write_options(
    method: &str,
    uri: &Uri,
    headers: &HeaderMap,
    body: &[u8],
    deadline: Deadline,
) -> Result<WriteOptions, Problem> {
    let idempotency = match single(headers, &IDEMPOTENCY_KEY)? {
        None => None,
        Some(key) => {
            let fingerprint = fingerprint(method, uri, headers, body);
            Some(Arc::new(Idempotency::new(key, fingerprint)?))
        }
    };
    let durability = waits(headers).then_some(Durability::Committed);
    Ok(WriteOptions { durability, idempotency, deadline, ..WriteOptions::default() })
}

/// Which regions must have a write before its answer: `Terrace-Durability`.
///
/// # Errors
/// 422 that names the header.
pub(crate) fn confirmed(headers: &HeaderMap, how: WriteOptions) -> Result<WriteOptions, Problem> {
    let everywhere = match single(headers, &TERRACE_DURABILITY)? {
        None | Some("committed") => return Ok(how),
        Some("replicated") => false,
        Some("replicated=all") => true,
        Some(_) => {
            let detail = "Terrace-Durability must be committed, replicated or replicated=all";
            return Err(Problem::invalid(detail));
        }
    };
    Ok(WriteOptions { durability: Some(Durability::Replicated), everywhere, ..how })
}

/// Whether the client would rather wait than be told that its write was accepted. How long, it may
/// say, but the deadline decides.
fn waits(headers: &HeaderMap) -> bool {
    let values = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|preference| {
        let name = preference.split(['=', ';']).next().unwrap_or_default();
        name.trim().eq_ignore_ascii_case("wait")
    })
}

/// A header that may be there once.
///
/// # Errors
/// 422 when it is there twice or is not printable ASCII.
pub(crate) fn single<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a str>, Problem> {
    let Some(first) = headers.get(name) else { return Ok(None) };
    if headers.get_all(name).iter().nth(1).is_some() {
        return Err(Problem::invalid(format!("{name} is there twice; send it once")));
    }
    let text = first.to_str().map_err(|_| {
        Problem::invalid(format!("{name} must have printable ASCII characters only"))
    })?;
    Ok(Some(text.trim()))
}

fn consistency(text: &str) -> Result<Consistency, Problem> {
    let wrong = || {
        Problem::invalid("Terrace-Consistency must be strong, default or max-stale=<milliseconds>")
    };
    if text.eq_ignore_ascii_case("strong") {
        return Ok(Consistency::Strong);
    }
    if text.eq_ignore_ascii_case("default") {
        return Ok(Consistency::Default);
    }
    let (name, number) = text.split_once('=').ok_or_else(wrong)?;
    // `u64::from_str` takes a plus sign, which the header does not have.
    if !name.eq_ignore_ascii_case("max-stale") || number.starts_with('+') {
        return Err(wrong());
    }
    let bound = number.parse().map(Duration::from_millis).map_err(|_| wrong())?;
    Ok(Consistency::MaxStale(bound))
}

fn fingerprint(method: &str, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> [u8; 32] {
    let mut digest = Sha256::new();
    let mut part = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_be_bytes());
        digest.update(bytes);
    };
    part(method.as_bytes());
    part(uri.path().as_bytes());
    for name in etag::ALL {
        for value in headers.get_all(name) {
            part(value.as_bytes());
        }
        part(b"");
    }
    part(if waits(headers) { b"wait" } else { b"" });
    part(body);
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderValue, IF_MATCH};

    use super::*;

    #[test]
    fn consistency_is_read_or_refused() {
        let bound = Consistency::MaxStale(Duration::from_millis(250));
        assert_eq!(consistency("max-stale=250").unwrap(), bound);
        assert_eq!(consistency("Strong").unwrap(), Consistency::Strong);
        assert_eq!(consistency("default").unwrap(), Consistency::Default);
        for bad in ["", "max-stale", "max-stale=", "max-stale=-1", "max-stale=+1", "eventual"] {
            assert!(consistency(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn another_request_has_another_fingerprint() {
        let uri = Uri::from_static("/v1/records/a");
        let mut headers = HeaderMap::new();
        let plain = fingerprint("PUT", &uri, &headers, b"{}");
        assert_eq!(plain, fingerprint("PUT", &uri, &headers, b"{}"));
        assert_ne!(plain, fingerprint("DELETE", &uri, &headers, b"{}"));
        assert_ne!(plain, fingerprint("PUT", &uri, &headers, b"{ }"));
        headers.insert(IF_MATCH, HeaderValue::from_static("\"1\""));
        assert_ne!(plain, fingerprint("PUT", &uri, &headers, b"{}"));
    }
}

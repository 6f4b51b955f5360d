//! The name of one request, in its answer, its problem document and its log lines.

use std::sync::atomic::{AtomicU64, Ordering};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use terrace_core::Runtime;

/// The header that carries it in both directions.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The name of one request: 1 to 128 visible ASCII characters. Cloning is a reference count.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(HeaderValue);

impl RequestId {
    /// The id as text.
    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or("")
    }

    /// The id as a header's value.
    pub(crate) fn into_header(self) -> HeaderValue {
        self.0
    }
}

/// Takes the ids of clients and makes those that are missing: a prefix drawn once for the process,
/// and a counter.
#[derive(Debug)]
pub(crate) struct RequestIds {
    prefix: [u8; 9],
    next: AtomicU64,
}

impl RequestIds {
    /// Ids with a prefix that this runtime draws.
    pub(crate) fn new(runtime: &Runtime) -> Self {
        let mut prefix = *b"00000000-";
        hex(runtime.random() >> 32, &mut prefix[..8]);
        Self { prefix, next: AtomicU64::new(1) }
    }

    /// The client's id where it sent exactly one that is fit for a log line, else a new one.
    pub(crate) fn of(&self, headers: &HeaderMap) -> RequestId {
        let mut sent = headers.get_all(X_REQUEST_ID).iter();
        match (sent.next(), sent.next()) {
            (Some(id), None) if is_fit(id.as_bytes()) => RequestId(id.clone()),
            _ => self.make(),
        }
    }

    fn make(&self) -> RequestId {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut text = *b"00000000-000000000000";
        text[..9].copy_from_slice(&self.prefix);
        hex(number, &mut text[9..]);
        // Hexadecimal digits and a hyphen are always a valid header value.
        let value = HeaderValue::from_bytes(&text);
        RequestId(value.unwrap_or_else(|_| HeaderValue::from_static("unknown")))
    }
}

fn is_fit(id: &[u8]) -> bool {
    (1..=128).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// Writes the low digits of a number, as many as there is room for.
fn hex(mut number: u64, into: &mut [u8]) {
    for digit in into.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 0xf) as usize];
        number >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fit_ids_are_kept_and_others_replaced() {
        let ids = RequestIds::new(&Runtime::seeded(1));
        let of = |sent: &[&str]| {
            let mut headers = HeaderMap::new();
            for id in sent {
                headers.append(X_REQUEST_ID, HeaderValue::from_str(id).unwrap());
            }
            ids.of(&headers).as_str().to_owned()
        };
        assert_eq!(of(&["order-7"]), "order-7");
        assert_ne!(of(&["two words"]), "two words");
        assert_ne!(of(&[&"x".repeat(129)]), "x".repeat(129));
        assert_ne!(of(&["a", "b"]), "a");
        assert_ne!(of(&[]), of(&[]));
    }
}

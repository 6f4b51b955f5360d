//! The trace that a request belongs to, in the lines that the log has of it.

use std::fmt;

use hyper::header::{HeaderMap, HeaderName};

/// The header in which a client names its trace (W3C Trace Context, section 3.2).
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The name of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TraceId(u128);

impl TraceId {
    /// The one of this number.
    #[cfg(feature = "otlp")]
    pub(crate) fn new(number: u128) -> Self {
        Self(number)
    }

    /// The one that a client names.
    pub(crate) fn sent_in(headers: &HeaderMap) -> Option<Self> {
        let id = headers.get(TRACEPARENT)?.to_str().ok()?.split('-').nth(1)?;
        let is_fit = |digit: u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
        let number = u128::from_str_radix(id, 16).ok()?;
        (id.len() == 32 && id.bytes().all(is_fit) && number != 0).then_some(Self(number))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn only_what_is_fit_for_a_log_line_is_taken() {
        let of = |text: &'static str| {
            let headers = HeaderMap::from_iter([(TRACEPARENT, HeaderValue::from_static(text))]);
            TraceId::sent_in(&headers).map(|id| id.to_string())
        };
        let id = "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(
            of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").as_deref(),
            Some(id)
        );
        for wrong in [
            "",
            "00",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        ] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}

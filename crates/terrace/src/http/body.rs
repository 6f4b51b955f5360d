//! Request bodies: JSON only, at most so large, and within a time.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderMap};
use terrace_core::{Deadline, Runtime};

use super::Limits;
use super::problem::{Kind, Problem};

/// How much of a body that nobody wants is read, so that the client gets to see the answer: closing
/// a connection with unread bytes resets it, and the reset can overtake the answer.
pub(crate) const DISCARDED_BYTES: usize = 8 * 1024 * 1024;

/// Reads the JSON body of a request.
///
/// # Errors
/// 415 when it is not declared as JSON or is compressed, 413 when it is too large, 408 when it takes too long, 422
/// when it breaks off.
pub(crate) async fn read(
    body: &mut Option<Incoming>,
    headers: &HeaderMap,
    limits: &Limits,
    runtime: &Runtime,
) -> Result<Bytes, Problem> {
    check_content_type(headers)?;
    check_content_encoding(headers)?;
    let Some(stream) = body.as_mut() else { return Ok(Bytes::new()) };
    let limit = limits.body_bytes;
    // A declared length decides before a byte is read.
    if stream.size_hint().lower() > limit as u64 {
        return Err(too_large(limit));
    }
    let deadline = Deadline::at(runtime.now() + limits.body_time);
    match runtime.within(deadline, collect(stream, limit)).await {
        Some(Ok(bytes)) => {
            *body = None;
            Ok(bytes)
        }
        Some(Err(problem)) => Err(problem),
        None => {
            *body = None;
            let seconds = limits.body_time.as_secs_f32();
            let detail = format!("the body did not come within {seconds} s; send it faster");
            Err(Problem::new(Kind::BodyTimeout, detail).header(header::CONNECTION, CLOSE))
        }
    }
}

/// `Connection: close`.
pub(crate) const CLOSE: header::HeaderValue = header::HeaderValue::from_static("close");

/// Reads and drops what is left of a body, within limits.
pub(crate) async fn discard(body: Incoming, headers: &HeaderMap, limits: &Limits, rt: &Runtime) {
    // Who asks before sending will not send after a refusal.
    if body.is_end_stream() || headers.contains_key(header::EXPECT) {
        return;
    }
    let mut body = body;
    let mut left = DISCARDED_BYTES;
    let drain = async {
        while let Some(Ok(frame)) = body.frame().await {
            let read = frame.data_ref().map_or(0, Bytes::len);
            if read > left {
                return;
            }
            left -= read;
        }
    };
    let _ = rt.within(Deadline::at(rt.now() + limits.body_time), drain).await;
}

async fn collect(body: &mut Incoming, limit: usize) -> Result<Bytes, Problem> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| {
            Problem::invalid("the body broke off or is badly chunked; send it again in full")
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + rest.len() + data.len() > limit {
            return Err(too_large(limit));
        }
        // Nearly every body comes in one piece, which is then used without a copy.
        if first.is_empty() {
            first = data;
        } else {
            rest.extend_from_slice(&data);
        }
    }
    if rest.is_empty() {
        return Ok(first);
    }
    let mut whole = BytesMut::with_capacity(first.len() + rest.len());
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&rest);
    Ok(whole.freeze())
}

fn too_large(limit: usize) -> Problem {
    let detail = format!("the body is larger than {limit} bytes; send less at once");
    Problem::new(Kind::BodyTooLarge, detail)
}

/// JSON must be declared. A request without a type is refused as well: a foreign web page can send
/// one from a visitor's browser without asking, and this is what keeps it from writing.
fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let sent = headers.get(header::CONTENT_TYPE);
    if sent.is_some_and(|value| is_json(value.as_bytes())) {
        return Ok(());
    }
    let found = if sent.is_some() { "declared as something else" } else { "not declared" };
    let detail = format!(
        "the body must be JSON and is {found}; send `Content-Type: application/json` \
         (curl: -H 'content-type: application/json')"
    );
    Err(Problem::new(Kind::UnsupportedMediaType, detail))
}

/// Compressed bodies are not taken: their size says nothing of what they grow to.
fn check_content_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    let mut sent = headers.get_all(header::CONTENT_ENCODING).iter();
    if sent.all(|coding| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity")) {
        return Ok(());
    }
    let detail = "the body is compressed, as Content-Encoding says; send it as it is";
    let refused = Problem::new(Kind::UnsupportedMediaType, detail);
    Err(refused.header(header::ACCEPT_ENCODING, header::HeaderValue::from_static("identity")))
}

fn is_json(content_type: &[u8]) -> bool {
    let media_type = content_type.split(|&byte| byte == b';').next().unwrap_or_default();
    let media_type = media_type.trim_ascii();
    if media_type.eq_ignore_ascii_case(b"application/json") {
        return true;
    }
    let is_application = media_type
        .split_at_checked(12)
        .is_some_and(|(family, _)| family.eq_ignore_ascii_case(b"application/"));
    let suffix = media_type.len().saturating_sub(5);
    is_application && media_type[suffix..].eq_ignore_ascii_case(b"+json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_told_from_other_types() {
        for yes in ["application/json", "Application/JSON; charset=utf-8", "application/a+json"] {
            assert!(is_json(yes.as_bytes()), "{yes}");
        }
        for no in ["", "text/plain", "application/x-www-form-urlencoded", "text/a+json", "json"] {
            assert!(!is_json(no.as_bytes()), "{no}");
        }
    }
}

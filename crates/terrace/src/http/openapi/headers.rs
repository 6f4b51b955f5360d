//! The headers of answers: what each means and what it can hold.

use utoipa::openapi::header::{Header, HeaderBuilder};

use crate::http::records::DURABILITIES;
use crate::http::schema::Shape;

const ORIGINS: Shape =
    Shape::Form("^(near|far|primary|journal|read-model|(shard|replica):[0-9]+|region:.+)$");

/// A header by its name.
pub(super) fn header(name: &str) -> Header {
    let (shape, meaning) = match name {
        "ETag" => {
            (Shape::Form("^\"[0-9]+\"$"), "The version, in quotes; for If-Match and If-None-Match.")
        }
        "Last-Modified" => (Shape::Text, "When the version was written, to the second."),
        "Age" => (Shape::Count, "Seconds since it was loaded from a database."),
        "Cache-Control" => (
            Shape::Text,
            "`no-cache`: ask again each time, with If-None-Match. `private`: only the one who asked may \
             keep it. `public`: a shared cache may give it to anybody, for `s-maxage` seconds.",
        ),
        "Terrace-Origin" => (ORIGINS, "Where it came from."),
        "Terrace-Durability" => (DURABILITIES, "How safe it is."),
        "Terrace-Token" => (Shape::Token, "Send it back in a later request to read at least this."),
        "X-Request-ID" => (
            Shape::Form("^[!-~]{1,128}$"),
            "The request, as in the log: the one that was sent, where it is 1 to 128 printable \
             characters without a space, else a new one.",
        ),
        "Retry-After" => (Shape::Count, "Seconds to wait before the next try."),
        "WWW-Authenticate" => (Shape::Text, "How a key is sent."),
        "RateLimit-Policy" => (
            Shape::Form("^\"[a-z]+\";q=[0-9]+;w=[0-9]+$"),
            "`q` requests in any window of `w` seconds.",
        ),
        "RateLimit" => (
            Shape::Form("^\"[a-z]+\";r=[0-9]+;t=[0-9]+$"),
            "`r` requests are left; more come in `t` seconds.",
        ),
        "X-RateLimit-Limit" => (Shape::Count, "`q` of RateLimit-Policy, for older clients."),
        "X-RateLimit-Remaining" => (Shape::Count, "`r` of RateLimit, for older clients."),
        "X-RateLimit-Reset" => (Shape::Count, "`t` of RateLimit, for older clients."),
        _ => (Shape::Text, ""),
    };
    HeaderBuilder::new().schema(Some(shape.schema(""))).description(Some(meaning)).build()
}

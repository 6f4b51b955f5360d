//! The page at `/docs`: the OpenAPI document to read, with a form that sends each request.
//!
//! It brings all it needs, and runs no script and no style but its own, by their digests. An API key that
//! is typed into it stays in the page's memory.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::header::HeaderValue;
use sha2::{Digest as _, Sha256};

use super::endpoint::Endpoint;
use super::openapi;
use super::problem::Kind;

const PAGE: &str = include_str!("docs/page.html");
const STYLE: &str = include_str!("docs/page.css");
const SCRIPT: &str = include_str!("docs/page.js");

/// The documents that a service answers, made once.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    /// `/openapi.json`.
    pub(crate) openapi: Bytes,
    /// `/docs`.
    pub(crate) docs: Bytes,
    /// What that page may do.
    pub(crate) policy: HeaderValue,
}

impl Pages {
    /// The documents for this table.
    pub(crate) fn new(level: &str, table: &[Endpoint]) -> Self {
        let openapi = serde_json::to_vec(&openapi::document(level, table));
        #[expect(clippy::expect_used, reason = "the proof stands in the message")]
        let openapi = openapi.expect("every key is a string, and a Vec takes every byte");
        // In a script element only `<` could end the data early; as an escape it cannot.
        let data = String::from_utf8_lossy(&openapi).replace('<', "\\u003c");
        let parts = [
            ("{{problems}}", problem_rows()),
            ("{{style}}", STYLE.to_owned()),
            ("{{script}}", SCRIPT.to_owned()),
            ("{{openapi}}", data),
        ];
        let page = parts
            .into_iter()
            .fold(PAGE.to_owned(), |page, (marker, part)| page.replacen(marker, &part, 1));
        Self { openapi: openapi.into(), docs: page.into(), policy: policy() }
    }
}

fn policy() -> HeaderValue {
    let source = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
    let (style, script) = (source(STYLE), source(SCRIPT));
    let policy = format!(
        "default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    // Base64 and words are always valid in a header.
    HeaderValue::from_maybe_shared(Bytes::from(policy)).unwrap_or(STRICTEST)
}

const STRICTEST: HeaderValue = HeaderValue::from_static("default-src 'none'");

fn problem_rows() -> String {
    let row = |kind: Kind| {
        let (status, slug, title) = kind.facts();
        let (code, advice) = (status.as_u16(), kind.advice().replace('<', "&lt;"));
        format!(
            "<dt id=\"{slug}\"><b>{code}</b> {title} <code>{slug}</code></dt><dd>{advice}</dd>\n"
        )
    };
    Kind::ALL.map(row).concat()
}

//! The files of the page, as they are in the program.

use std::sync::Arc;

use bytes::Bytes;
use hyper::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Method, Response, StatusCode};

use super::GROUP;
use crate::http::endpoint::{Described, Endpoint, Needs};
use crate::http::reply::{Reply, WithHeaders as _, full};
use crate::http::schema::Shape;

/// A file of the page.
#[derive(Clone, Copy, Debug)]
struct File {
    path: &'static str,
    kind: &'static str,
    text: &'static [u8],
}

macro_rules! file {
    ($path:literal, $name:literal, $kind:literal) => {
        File { path: $path, kind: $kind, text: include_bytes!(concat!("page/", $name)) }
    };
}

const FILES: [File; 8] = [
    file!("/", "page.html", "text/html; charset=utf-8"),
    file!("/page.css", "page.css", "text/css; charset=utf-8"),
    file!("/main.js", "main.js", "text/javascript; charset=utf-8"),
    file!("/model.js", "model.js", "text/javascript; charset=utf-8"),
    file!("/ladder.js", "ladder.js", "text/javascript; charset=utf-8"),
    file!("/stack.js", "stack.js", "text/javascript; charset=utf-8"),
    file!("/time.js", "time.js", "text/javascript; charset=utf-8"),
    file!("/try.js", "try.js", "text/javascript; charset=utf-8"),
];

/// Its own files and nothing else.
const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'";

pub(super) fn endpoints() -> Vec<Endpoint> {
    let row = |file: &'static File| {
        let described = Described {
            status: StatusCode::OK,
            meaning: "A file of the page.",
            content: Some((file.kind, Shape::Text.schema(""))),
            headers: &[],
        };
        Endpoint::new(&Arc::new(file), Method::GET, file.path, |file, _| {
            Box::pin(async { Ok(reply(file)) })
        })
        .open_to(Needs::Nothing)
        .summary(GROUP, "A part of the page")
        .described(described)
    };
    FILES.iter().map(row).collect()
}

fn reply(file: &File) -> Reply {
    Response::new(full(Bytes::from_static(file.text)))
        .with(CONTENT_TYPE, HeaderValue::from_static(file.kind))
        .with(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY))
        .with(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_writes_no_markup() {
        let all = FILES.iter().map(|file| file.text.len()).sum::<usize>();
        assert!(all <= 150 * 1024, "{all} bytes");
        for file in FILES {
            let text = std::str::from_utf8(file.text).expect("UTF-8");
            for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("]
            {
                assert!(!text.contains(word), "{word} in {}", file.path);
            }
            for word in ["https://", "<style", " style=", "onclick="] {
                assert!(!text.contains(word), "{word} in {}", file.path);
            }
        }
    }
}

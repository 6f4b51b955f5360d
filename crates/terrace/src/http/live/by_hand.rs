//! One request to a level, as the person at the page wants it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::header::{CONTENT_TYPE, HOST};
use serde::Deserialize;
use serde_json::json;

use crate::http::app::App;
use crate::http::call::Call;
use crate::http::in_process;
use crate::http::problem::Problem;
use crate::http::reply::Answer;
use crate::live::Live;

/// The most bytes of an answer.
const MOST: usize = 64 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ByHand {
    level: u8,
    method: String,
    path: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: Option<String>,
}

/// Sends it and tells what came.
pub(super) async fn request(live: &Arc<Live>, call: &mut Call) -> Answer {
    let ByHand { level, method, path, headers, body } = super::body(call).await?;
    let service = live.service_of(level).ok_or_else(|| super::no_such_level(level))?;
    // Its routes are made for it alone: nobody types so fast that it would matter.
    let app = Arc::new(App::new(service.clone()));
    let mut request =
        Request::builder().method(method.as_str()).uri(&path).header(HOST, "127.0.0.1");
    if body.is_some() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    for (name, value) in &headers {
        request = request.header(name, value);
    }
    let wrong = |error| Problem::invalid(format!("this is no request: {error}"));
    let request = request.body(Full::new(Bytes::from(body.unwrap_or_default()))).map_err(wrong)?;
    if !path.starts_with('/') {
        return Err(Problem::invalid("the path does not begin with a slash; write /read/user:1"));
    }
    let runtime = &call.app.runtime;
    let begun = runtime.now();
    let answer = in_process::ask(&app, request, MOST).await;
    let took = runtime.now().saturating_duration_since(begun);
    let answer =
        answer.map_err(|error| Problem::invalid(format!("the answer cannot be shown: {error}")))?;
    let headers = answer.headers().iter().map(|(name, value)| {
        (name.as_str(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    });
    Ok(super::said(json!({
        "status": answer.status().as_u16(),
        "headers": headers.collect::<Vec<_>>(),
        "body": String::from_utf8_lossy(answer.body()),
        "us": u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
    })))
}

//! `GET /v1/records`.

use std::sync::Arc;

use hyper::header::{AGE, HeaderValue};
use hyper::{Method, StatusCode};
use terrace_core::{Page, Record, Scan};
use utoipa::openapi::path::ParameterIn;

use super::Records;
use crate::http::call::Call;
use crate::http::endpoint::Endpoint;
use crate::http::json::Object;
use crate::http::path;
use crate::http::problem::Kind;
use crate::http::reply::{self, Answer, WithHeaders as _};
use crate::http::schema::{Shape, array, object};

const LIMIT: Shape = Shape::UpTo(Scan::MAX_LIMIT);
const HEADERS: &[&str] = &["Age", "Terrace-Origin", "Terrace-Token"];

pub(super) fn endpoint(records: &Arc<Records>) -> Endpoint {
    let values = records.values;
    let answer = object(&[
        (values.word("records", "documents"), array(values.listed_schema(), 0, Scan::MAX_LIMIT)),
        ("next_cursor?", Shape::Cursor.schema("The cursor of the next page; absent on the last.")),
    ]);
    Endpoint::new(records, Method::GET, values.path(), |records, call| {
        Box::pin(list(records, call))
    })
    .summary(values.group(), values.word("List records", "List documents"))
    .description(
        "By key, in the order of their bytes. A page ends early, with `next_cursor`, when its \
             values reach 16 MiB.",
    )
    .parameter(ParameterIn::Query, "prefix", Shape::Prefix, "Only keys that begin with this.")
    .parameter(ParameterIn::Query, "cursor", Shape::Cursor, "`next_cursor` of the page before.")
    .parameter(ParameterIn::Query, "limit", LIMIT, "At most so many; 100.")
    .reads()
    .checks_keys()
    .problems(&[Kind::InvalidInput])
    .answers(StatusCode::OK, "One page.", answer.build(), HEADERS)
}

async fn list(records: &Records, call: &mut Call) -> Answer {
    let scan = path::scan(call.parts.uri.query())?;
    let how = call.read_options()?;
    let page = bounded(records.scan(call, &scan, &how).await?);
    let size = |record: &Record| 160 + record.key.as_str().len() + record.value.as_str().len();
    let room = 64 + page.records.iter().map(size).sum::<usize>();
    let values = records.values;
    let answer = Object::with_capacity(room).objects(
        values.word("records", "documents"),
        &page.records,
        |object, record| values.listed(object, record),
    );
    let answer = match &page.next {
        Some(next) => answer.field("next_cursor", &path::cursor(next)),
        None => answer,
    };
    let age = HeaderValue::from(page.age.as_secs());
    Ok(reply::json(answer).with_origin(page.origin).with_token(&page.token).with(AGE, age))
}

/// The page, cut before the first record whose value does not fit any more.
fn bounded(mut page: Page) -> Page {
    let mut bytes = 0;
    let fit = page.records.iter().take_while(|record| {
        bytes += record.value.as_str().len();
        bytes <= Page::MAX_BYTES
    });
    // At least one, so that whoever follows the cursors gets on.
    let fit = fit.count().max(1);
    if fit < page.records.len() {
        page.records.truncate(fit);
        page.next = page.records.last().map(|record| record.key.clone());
    }
    page
}

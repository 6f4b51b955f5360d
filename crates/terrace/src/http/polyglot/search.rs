//! `GET /v1/documents/search`: documents by what is in them.

use std::sync::Arc;

use hyper::header::{AGE, HeaderValue};
use hyper::{Method, StatusCode};
use terrace_core::{Json, Scan, Selection};
use utoipa::openapi::path::ParameterIn;

use super::Polyglot;
use crate::http::call::Call;
use crate::http::endpoint::Endpoint;
use crate::http::json::Object;
use crate::http::path;
use crate::http::problem::Problem;
use crate::http::records::Values;
use crate::http::reply::{self, Answer, WithHeaders as _};
use crate::http::schema::{Shape, array, object};

/// The most bytes of the words of a search.
const MAX_WORDS: usize = 1024;

pub(super) fn endpoint(polyglot: &Arc<Polyglot>) -> Endpoint {
    let answer = object(&[
        ("documents", array(Values::Documents.listed_schema(), 0, Scan::MAX_LIMIT)),
        ("next_cursor?", Shape::Cursor.schema("The cursor of the next page; absent on the last.")),
    ]);
    let limit = Shape::UpTo(Scan::MAX_LIMIT);
    let words = WORDS.schema("1 to 32 words of any script; at most 1024 bytes.");
    let field = FIELD.schema("A name without a dot, not beginning with $.");
    let equals = SCALAR.schema("The value as JSON: `\"Oslo\"`, `42`, `true`, `null`.");
    let choice = [object(&[("q", words)]), object(&[("field", field), ("equals", equals)])];
    Endpoint::new(polyglot, Method::GET, "/v1/documents/search", |polyglot, call| {
        Box::pin(search(polyglot, call))
    })
    .summary(Values::Documents.group(), "Find documents by what is in them")
    .description(
        "Either `q`: documents that have all these words in their strings and numbers. Or `field` \
         and `equals`: documents of which this field at the top has this value, or is a list that \
         holds it. By key. A document whose key is `search` has the path `/v1/documents/%73earch`.",
    )
    .parameters_of("selection", choice)
    .parameter(ParameterIn::Query, "cursor", Shape::Cursor, "`next_cursor` of the page before.")
    .parameter(ParameterIn::Query, "limit", limit, "At most so many; 100.")
    .reads()
    .answers(
        StatusCode::OK,
        "One page.",
        answer.build(),
        &["Terrace-Origin", "Terrace-Token"],
    )
}

/// A pattern cannot tell what is a letter: of other scripts there is more than it says.
const WORDS: Shape = Shape::Form("^[0-9A-Za-z]{1,31}( [0-9A-Za-z]{1,31}){0,31}$");
const FIELD: Shape = Shape::Short("^[^.$\\u0000][^.\\u0000]*$", 255);
const SCALAR: Shape =
    Shape::Form("^(null|true|false|-?(0|[1-9][0-9]{0,17})|\"[0-9A-Za-z ]{0,255}\")$");

async fn search(polyglot: &Polyglot, call: &mut Call) -> Answer {
    let names = ["q", "field", "equals", "cursor", "limit"];
    let query = path::query(call.parts.uri.query(), &names)?;
    let what = selection(query.get("q"), query.get("field"), query.get("equals"))?;
    let mut scan = Scan::prefix("");
    scan.limit = path::limit_of(query.get("limit"), 100, Scan::MAX_LIMIT)?;
    scan.after = match query.get("cursor").filter(|text| !text.is_empty()) {
        Some(text) => Some(path::read_cursor(text)?),
        None => None,
    };
    let how = call.read_options()?;
    let mut page = call.in_time(polyglot.documents.select(&what, &scan, &how)).await?;
    if let Some(asked) = &how.token {
        page.token.merge(asked);
    }
    let documents = |object, record| Values::Documents.listed(object, record);
    let answer = Object::with_capacity(4096).objects("documents", &page.records, documents);
    let answer = match &page.next {
        Some(next) => answer.field("next_cursor", &path::cursor(next)),
        None => answer,
    };
    let age = HeaderValue::from(page.age.as_secs());
    Ok(reply::json(answer).with_origin(page.origin).with_token(&page.token).with(AGE, age))
}

fn selection(
    words: Option<&String>,
    field: Option<&String>,
    equals: Option<&String>,
) -> Result<Selection, Problem> {
    match (words, field, equals) {
        (Some(words), None, None) if words.len() > MAX_WORDS => {
            Err(Problem::invalid("q is longer than 1024 bytes; give fewer words"))
        }
        (Some(words), None, None) => Ok(Selection::words(words)?),
        (None, Some(field), Some(equals)) => {
            let value =
                Json::parse(equals).map_err(|error| Problem::from(error).within("equals"))?;
            Ok(Selection::field(field, value)?)
        }
        _ => Err(Problem::invalid(
            "give q, or field and equals: q=two words, or field=city&equals=\"Oslo\"",
        )),
    }
}

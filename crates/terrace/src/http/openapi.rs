//! The OpenAPI document and its page, made from the same table as the routes.

use std::collections::BTreeMap;

use bytes::Bytes;
use hyper::Method;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{HttpMethod, Operation, OperationBuilder, PathItem, PathsBuilder};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{ComponentsBuilder, Ref, Schema};
use utoipa::openapi::{Info, OpenApi, OpenApiBuilder, Required};

use super::endpoint::{Described, Endpoint};
use super::problem::Kind;
use super::schema::{Shape, object};

/// The documents that a service answers, made once.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    /// `/openapi.json`.
    pub(crate) openapi: Bytes,
    /// `/docs`.
    pub(crate) docs: Bytes,
}

/// The page; the document is put in place of the marker.
const PAGE: &str = include_str!("docs.html");
const MARKER: &str = "{{openapi}}";
const PROBLEMS_MARKER: &str = "{{problems}}";

impl Pages {
    /// The documents for this table.
    pub(crate) fn new(level: &str, table: &[Endpoint]) -> Self {
        let openapi = serde_json::to_vec(&document(level, table));
        #[expect(clippy::expect_used, reason = "the proof stands in the message")]
        let openapi = openapi.expect("every key is a string, and a Vec takes every byte");
        // In a script element only `<` could end the data early; as an escape it cannot.
        let data = String::from_utf8_lossy(&openapi).replace('<', "\\u003c");
        let page = PAGE.replacen(PROBLEMS_MARKER, &problem_rows(), 1).replacen(MARKER, &data, 1);
        Self { openapi: openapi.into(), docs: page.into() }
    }
}

fn document(level: &str, table: &[Endpoint]) -> OpenApi {
    let mut info = Info::new("Terrace", env!("CARGO_PKG_VERSION"));
    info.description = Some(format!(
        "Level `{level}`. Two faces over the same records: the documents' API, which differs from \
         level to level, and the record API under `/v1`, which does not. Every answer has \
         `X-Request-ID`, taken from the request or made. Errors are problem documents (RFC 9457). \
         What is no request of HTTP/1.1, or does not name one `Host`, is answered 400 under any path."
    ));
    let mut paths = BTreeMap::<&str, PathItem>::new();
    for endpoint in table {
        let item = paths.entry(endpoint.path).or_default();
        let operation = operation(endpoint);
        match endpoint.method {
            Method::GET => {
                item.head = Some(head_of(operation.clone()));
                item.get = Some(operation);
            }
            Method::PUT => item.put = Some(operation),
            Method::POST => item.post = Some(operation),
            Method::DELETE => item.delete = Some(operation),
            _ => item.merge_operations(PathItem::new(HttpMethod::Patch, operation)),
        }
    }
    let paths =
        paths.into_iter().fold(PathsBuilder::new(), |all, (path, item)| all.path(path, item));
    let components = ComponentsBuilder::new().schema("Problem", problem_schema()).build();
    OpenApiBuilder::new().info(info).paths(paths.build()).components(Some(components)).build()
}

fn operation(endpoint: &Endpoint) -> Operation {
    let id = format!("{} {}", endpoint.method, endpoint.path);
    let description = Some(endpoint.description.as_str()).filter(|text| !text.is_empty());
    let mut operation = OperationBuilder::new()
        .tag(endpoint.group)
        .operation_id(Some(id.to_lowercase().replace(|c: char| !c.is_alphanumeric(), "-")))
        .summary(Some(endpoint.summary))
        .description(description)
        .parameters(Some(endpoint.parameters.clone()));
    if let Some((schema, example)) = &endpoint.request {
        let content = ContentBuilder::new()
            .schema(Some(schema.clone()))
            .example(Some(example.clone()))
            .build();
        let body = RequestBodyBuilder::new()
            .content("application/json", content)
            .required(Some(Required::True));
        operation = operation.request_body(Some(body.build()));
    }
    let mut problems = BTreeMap::<u16, Vec<Kind>>::new();
    for kind in &endpoint.problems {
        problems.entry(kind.facts().0.as_u16()).or_default().push(*kind);
    }
    for (status, kinds) in problems {
        operation = operation.response(status.to_string(), problem_response(&kinds));
    }
    for answer in &endpoint.responses {
        operation = operation.response(answer.status.as_str(), response(answer));
    }
    operation.build()
}

fn response(answer: &Described) -> Response {
    let mut response = ResponseBuilder::new().description(answer.meaning);
    if let Some((content_type, schema)) = &answer.content {
        let content = ContentBuilder::new().schema(Some(schema.clone())).build();
        response = response.content(*content_type, content);
    }
    for name in answer.headers {
        let text = Shape::Text.schema("");
        let header = HeaderBuilder::new().schema(Some(text)).description(Some(meaning_of(name)));
        response = response.header(*name, header.build());
    }
    response.build()
}

fn problem_response(kinds: &[Kind]) -> Response {
    let meanings = kinds.iter().map(|kind| {
        let (_, slug, title) = kind.facts();
        format!("`{slug}`: {title}. {}", kind.advice())
    });
    let schema = Ref::from_schema_name("Problem");
    let content = ContentBuilder::new().schema(Some(schema)).build();
    ResponseBuilder::new()
        .description(meanings.collect::<Vec<_>>().join(" "))
        .content("application/problem+json", content)
        .build()
}

/// What HEAD answers: the same without bodies.
fn head_of(mut operation: Operation) -> Operation {
    operation.operation_id = operation.operation_id.map(|id| id.replacen("get", "head", 1));
    operation.summary = Some("As GET, without the body".to_owned());
    operation.description = None;
    for response in operation.responses.responses.values_mut() {
        if let utoipa::openapi::RefOr::T(response) = response {
            response.content.clear();
        }
    }
    operation
}

fn problem_schema() -> Schema {
    object(&[
        ("type", Shape::Text.schema("Which kind; leads to its paragraph in /docs.")),
        ("title", Shape::Text.schema("The kind in words.")),
        ("status", Shape::Count.schema("The status of the answer.")),
        ("detail", Shape::Text.schema("What is wrong and what to do about it.")),
        ("request_id", Shape::Text.schema("The request, as in the log.")),
    ])
    .build()
    .into()
}

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

fn meaning_of(header: &str) -> &'static str {
    match header {
        "ETag" => "The version, in quotes; for If-Match and If-None-Match.",
        "Last-Modified" => "When the version was written, to the second.",
        "Age" => "Seconds since it was loaded from a database.",
        "Cache-Control" => "`no-cache`: ask again each time, with If-None-Match.",
        "Terrace-Origin" => "Where it came from: near, far, primary, journal.",
        "Terrace-Durability" => "How safe it is: accepted, journaled, committed, replicated.",
        "Terrace-Token" => "Send it back in a later request to read at least this.",
        _ => "",
    }
}

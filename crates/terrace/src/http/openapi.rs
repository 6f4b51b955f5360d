//! The OpenAPI document, made from the same table as the routes.

use std::collections::BTreeMap;

use hyper::Method;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::path::{HttpMethod, Operation, OperationBuilder, PathItem, PathsBuilder};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{Components, ComponentsBuilder, Ref, Schema};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{Info, OpenApi, OpenApiBuilder, Required};

use super::endpoint::{Described, Endpoint};
use super::problem::Kind;
use super::records::Values;
use super::schema::{self, Shape, object};

mod headers;

/// The kinds of problems that every endpoint can answer.
const COMMON: [Kind; 4] =
    [Kind::MalformedRequest, Kind::UriTooLong, Kind::HeadersTooLarge, Kind::Internal];

/// The schemes under which a key is sent.
const SCHEMES: [&str; 2] = ["X-API-Key", "Bearer"];

/// The document for this table.
pub(crate) fn document(level: &str, table: &[Endpoint]) -> OpenApi {
    let mut info = Info::new("Terrace", env!("CARGO_PKG_VERSION"));
    info.description = Some(format!(
        "Level `{level}`. Two faces over the same records: the documents' API, which differs from \
         level to level, and the record API under `/v1`, which does not. Every answer has \
         `X-Request-ID`, taken from the request or made, unless it is for all clients of a cache in \
         front. Errors are problem documents (RFC 9457). \
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
    OpenApiBuilder::new()
        .info(info)
        .paths(paths.build())
        .components(Some(components(table)))
        .build()
}

fn components(table: &[Endpoint]) -> Components {
    let mut components = ComponentsBuilder::new().schema("Problem", problem_schema());
    if table.iter().any(|endpoint| endpoint.group == Values::Documents.group()) {
        components = components.schema(schema::JSON, schema::json());
    }
    if table.iter().any(|endpoint| endpoint.key_for.is_some()) {
        let key = "A key, as `terrace keys create` shows it.";
        let either = "The same key, or a token of the identity provider that the settings name.";
        let header = ApiKeyValue::with_description(SCHEMES[0], key);
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(either));
        components = components
            .security_scheme(SCHEMES[0], SecurityScheme::ApiKey(ApiKey::Header(header)))
            .security_scheme(SCHEMES[1], SecurityScheme::Http(bearer.build()));
    }
    components.build()
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
    if let Some(scope) = endpoint.key_for {
        for scheme in SCHEMES {
            operation = operation.security(SecurityRequirement::new(scheme, [scope.to_string()]));
        }
    }
    let mut problems = BTreeMap::<u16, Vec<Kind>>::new();
    for kind in endpoint.problems.iter().chain(&COMMON) {
        problems.entry(kind.facts().0.as_u16()).or_default().push(*kind);
    }
    for (status, kinds) in problems {
        let response = problem_response(&kinds, &endpoint.headers);
        operation = operation.response(status.to_string(), response);
    }
    for answer in &endpoint.responses {
        let response = response(answer, &endpoint.headers);
        operation = operation.response(answer.status.as_str(), response);
    }
    operation.build()
}

fn response(answer: &Described, always: &[&str]) -> Response {
    let mut response = ResponseBuilder::new().description(answer.meaning);
    if let Some((content_type, schema)) = &answer.content {
        let content = ContentBuilder::new().schema(Some(schema.clone())).build();
        response = response.content(*content_type, content);
    }
    with_headers(response, answer.headers.iter().chain(always)).build()
}

fn problem_response(kinds: &[Kind], always: &[&str]) -> Response {
    let meanings = kinds.iter().map(|kind| {
        let (_, slug, title) = kind.facts();
        format!("`{slug}`: {title}. {}", kind.advice())
    });
    let schema = Ref::from_schema_name("Problem");
    let content = ContentBuilder::new().schema(Some(schema)).build();
    let response = ResponseBuilder::new()
        .description(meanings.collect::<Vec<_>>().join(" "))
        .content("application/problem+json", content);
    let own = kinds.iter().flat_map(|kind| kind.headers());
    with_headers(response, own.chain(always)).build()
}

fn with_headers<'a>(
    response: ResponseBuilder,
    names: impl Iterator<Item = &'a &'a str>,
) -> ResponseBuilder {
    let names = names.chain(&["X-Request-ID"]);
    names.fold(response, |response, name| response.header(*name, headers::header(name)))
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

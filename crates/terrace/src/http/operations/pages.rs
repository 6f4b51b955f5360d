//! `GET /`, `/openapi.json` and `/docs`.

use std::sync::Arc;

use bytes::Bytes;
use hyper::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Response, StatusCode};
use utoipa::openapi::schema::{ObjectBuilder, Type};

use super::GROUP;
use crate::http::call::Call;
use crate::http::endpoint::{Described, Endpoint, Needs};
use crate::http::json::Object;
use crate::http::reply::{self, Answer, WithHeaders as _, full};
use crate::http::schema::{Shape, object};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");

pub(super) fn endpoints() -> [Endpoint; 3] {
    let (text, none) = (|| Shape::Text.schema(""), Arc::new(()));
    let names = ["service", "version", "layer", "docs", "openapi", "health"];
    let root = object(&names.map(|name| (name, text()))).build();
    let any = ObjectBuilder::new().schema_type(Type::Object).build();
    let page = Described {
        status: StatusCode::OK,
        meaning: "A page that needs nothing else.",
        content: Some(("text/html", text())),
        headers: &[],
    };
    [
        Endpoint::new(&none, Method::GET, "/", |(), call| Box::pin(root_of(call)))
            .open_to(Needs::Nothing)
            .summary(GROUP, "What this is and where to go on")
            .answers(StatusCode::OK, "Links.", root, &[]),
        Endpoint::new(&none, Method::GET, "/openapi.json", |(), call| {
            Box::pin(async { Ok(page_of(&call.app.pages.openapi, JSON)) })
        })
        .open_to(Needs::Nothing)
        .summary(GROUP, "This description, in OpenAPI 3.1")
        .answers(StatusCode::OK, "The document.", any, &[]),
        Endpoint::new(&none, Method::GET, "/docs", |(), call| {
            Box::pin(async {
                let policy = call.app.pages.policy.clone();
                Ok(page_of(&call.app.pages.docs, HTML).with(CONTENT_SECURITY_POLICY, policy))
            })
        })
        .open_to(Needs::Nothing)
        .summary(GROUP, "This description, to read and to try")
        .described(page),
    ]
}

async fn root_of(call: &mut Call) -> Answer {
    let answer = Object::with_capacity(160)
        .field("service", "terrace")
        .field("version", env!("CARGO_PKG_VERSION"))
        .field("layer", call.app.name)
        .field("docs", "/docs")
        .field("openapi", "/openapi.json")
        .field("health", "/health");
    Ok(reply::json(answer))
}

fn page_of(body: &Bytes, content_type: HeaderValue) -> reply::Reply {
    Response::new(full(body.clone())).with(CONTENT_TYPE, content_type)
}

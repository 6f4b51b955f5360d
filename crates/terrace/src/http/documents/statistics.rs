//! Endpoints that answer numbers out of the inspection of the stack.

use hyper::{Method, StatusCode};
use terrace_core::Inspection;

use super::{GROUP, Statistics};
use crate::http::call::Call;
use crate::http::endpoint::Endpoint;
use crate::http::json::Object;
use crate::http::reply::{self, Answer};
use crate::http::schema::{Field, object};

pub(super) fn endpoint(about: &'static Statistics) -> Endpoint {
    let fields = about.fields;
    let answer = fields.iter().map(Field::described).collect::<Vec<_>>();
    Endpoint::new(Method::GET, about.path, move |call| Box::pin(numbers(call, fields)))
        .summary(GROUP, about.summary)
        .answers(StatusCode::OK, "The numbers, of this instance.", object(&answer).build(), &[])
}

async fn numbers(call: &mut Call, fields: &'static [Field<Inspection>]) -> Answer {
    let tree = call.app.store.inspect().await;
    Ok(reply::json(Field::write_all(fields, &tree, Object::with_capacity(512))))
}

//! Endpoints that answer numbers out of the inspection of the stack.

use std::sync::Arc;

use hyper::{Method, StatusCode};
use terrace_core::Inspection;

use super::{GROUP, Statistics};
use crate::http::endpoint::{Endpoint, Needs};
use crate::http::face::Whole;
use crate::http::json::Object;
use crate::http::reply::{self, Answer};
use crate::http::schema::{Field, object};

pub(super) fn endpoint(whole: &Arc<dyn Whole>, about: &'static Statistics) -> Endpoint {
    let fields = about.fields;
    let answer = fields.iter().map(Field::described).collect::<Vec<_>>();
    Endpoint::new(whole, Method::GET, about.path, move |whole, _| Box::pin(numbers(whole, fields)))
        .summary(GROUP, about.summary)
        .open_to(Needs::Figures)
        .answers(StatusCode::OK, "The numbers, of this instance.", object(&answer).build(), &[])
}

async fn numbers(whole: &dyn Whole, fields: &'static [Field<Inspection>]) -> Answer {
    let tree = whole.inspect().await;
    Ok(reply::json(Field::write_all(fields, &tree, Object::with_capacity(512))))
}

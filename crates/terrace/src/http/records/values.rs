//! What the values of records are: texts, or documents. All else is the same.

use serde::Deserialize;
use serde_json::json;
use terrace_core::{Json, Record, Value, json};
use utoipa::openapi::schema::{AdditionalProperties, Schema};

use super::{VERSION, value};
use crate::http::Limits;
use crate::http::fields::{self, Raw};
use crate::http::json::Object;
use crate::http::problem::Problem;
use crate::http::reply::{self, Reply};
use crate::http::schema::{Shape, object};

/// What the values of records are, and so how they travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Values {
    /// Texts, each in a field of an object.
    #[default]
    Texts,
    /// Documents, each of which is a body.
    Documents,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<'a> {
    #[serde(borrow)]
    value: Raw<'a>,
}

impl Values {
    /// The path of all.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Texts => "/v1/records",
            Self::Documents => "/v1/documents",
        }
    }

    /// The path of one.
    pub(super) fn path_of_one(self) -> &'static str {
        match self {
            Self::Texts => "/v1/records/{key}",
            Self::Documents => "/v1/documents/{key}",
        }
    }

    /// The name under which the documentation lists the endpoints.
    pub(crate) fn group(self) -> &'static str {
        match self {
            Self::Texts => "Records",
            Self::Documents => "Documents by key",
        }
    }

    /// One of two words.
    pub(super) fn word(self, record: &'static str, document: &'static str) -> &'static str {
        match self {
            Self::Texts => record,
            Self::Documents => document,
        }
    }

    /// The value in the body of a request.
    ///
    /// # Errors
    /// 422 that says what is wrong.
    pub(super) fn read(self, body: &[u8], limits: &Limits) -> Result<Value, Problem> {
        match self {
            Self::Texts => {
                let fields = fields::object::<Body<'_>>(body)?;
                value("value", fields.value, limits)
            }
            Self::Documents => document(fields::json(body)?, limits),
        }
    }

    /// 200 with a record.
    pub(super) fn reply(self, record: &Record) -> Reply {
        match self {
            Self::Texts => {
                let room = 192 + record.key.as_str().len() + record.value.as_str().len();
                reply::json(Object::with_capacity(room).record(record))
            }
            Self::Documents => reply::document(&record.value),
        }
    }

    /// Adds what a list shows of a record.
    pub(crate) fn listed(self, object: Object, record: &Record) -> Object {
        match self {
            Self::Texts => object.record(record),
            Self::Documents => object
                .field("key", record.key.as_str())
                .json("data", record.value.as_str())
                .field("version", &record.version.get())
                .time("created_at", record.created_at)
                .time("updated_at", record.updated_at),
        }
    }

    /// The schema of the body of a request, with an example.
    pub(super) fn request(self) -> (Schema, serde_json::Value) {
        let closed = Some(AdditionalProperties::FreeForm(false));
        match self {
            Self::Texts => {
                let body = object(&[("value", Shape::Value.schema(""))]);
                let body = body.additional_properties(closed).build();
                (body.into(), json!({"value": "hello"}))
            }
            Self::Documents => (any_document(), json!({"name": "Ada", "tags": ["math"]})),
        }
    }

    /// The schema of the body of an answer.
    pub(super) fn answer(self) -> Schema {
        match self {
            Self::Texts => listed_schema(("value", Shape::Value.schema(""))),
            Self::Documents => any_document(),
        }
    }

    /// The schema of one in a list.
    pub(crate) fn listed_schema(self) -> Schema {
        match self {
            Self::Texts => self.answer(),
            Self::Documents => listed_schema(("data", any_document())),
        }
    }
}

/// Reads a document within the configured limit.
///
/// # Errors
/// 422 that says what is wrong.
pub(crate) fn document(text: &str, limits: &Limits) -> Result<Value, Problem> {
    let document = json::document(text)?;
    let limit = limits.value_bytes;
    if document.as_str().len() > limit {
        let detail = format!("the document is larger than {limit} bytes of JSON; send less");
        return Err(Problem::invalid(detail));
    }
    Ok(document)
}

/// The schema of any object.
pub(crate) fn any_document() -> Schema {
    let meaning = format!(
        "Any object: integers of up to 64 bits, names without NUL, at most {} levels.",
        Json::MAX_DEPTH
    );
    Shape::Document.schema(&meaning)
}

fn listed_schema(value: (&'static str, Schema)) -> Schema {
    object(&[
        ("key", Shape::Key.schema("")),
        value,
        ("version", Shape::Count.schema(VERSION)),
        ("created_at", Shape::Time.schema("Survives updates, starts anew after a delete.")),
        ("updated_at", Shape::Time.schema("When this version was written.")),
    ])
    .build()
    .into()
}

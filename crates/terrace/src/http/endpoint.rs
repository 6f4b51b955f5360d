//! One row of the table that both the routes and the OpenAPI document are made from.

use std::fmt;
use std::sync::Arc;

use hyper::{Method, StatusCode};
use terrace_core::BoxFuture;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn, ParameterStyle};
use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::openapi::{Required, path};

use super::call::Call;
use super::problem::Kind;
use super::reply::Answer;
use super::schema::Shape;
use crate::access::Scope;

/// What runs for a request.
pub(crate) trait Handle: Send + Sync {
    /// Answers it.
    fn handle<'a>(&'a self, call: &'a mut Call) -> BoxFuture<'a, Answer>;
}

/// A function over the port of its face.
struct Over<P: ?Sized, F> {
    port: Arc<P>,
    function: F,
}

impl<P, F> Handle for Over<P, F>
where
    P: Send + Sync + ?Sized,
    F: for<'a> Fn(&'a P, &'a mut Call) -> BoxFuture<'a, Answer> + Send + Sync,
{
    fn handle<'a>(&'a self, call: &'a mut Call) -> BoxFuture<'a, Answer> {
        (self.function)(&self.port, call)
    }
}

/// What a key is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// None is asked for.
    Nothing,
    /// It shows figures of the installation, and no record: reads, where the settings protect figures.
    Figures,
    /// This.
    Scope(Scope),
}

/// Who may call an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// What a key is asked for.
    pub(crate) needs: Needs,
    /// Whether it looks which records the key may touch. Where it does not, keys of some records alone
    /// are refused.
    pub(crate) checks_keys: bool,
}

impl Access {
    /// Anybody may.
    pub(crate) const OPEN: Self = Self { needs: Needs::Nothing, checks_keys: false };
}

/// What a request is to the databases behind it: who goes first where there is too much, and what it costs
/// of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Looks at the installation, or administers it. It takes no turn.
    Watch,
    /// Reads or writes records by key.
    Keys,
    /// Looks through many records. Refused before all others.
    Scan,
}

/// One method of one path: what runs, and what the documentation says of it.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) method: Method,
    /// The path, with at most one parameter, which is a key: `{key}`, `{user_id}`.
    pub(crate) path: &'static str,
    pub(crate) handler: Arc<dyn Handle>,
    pub(crate) access: Access,
    pub(crate) group: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) description: String,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) request: Option<(Schema, serde_json::Value)>,
    pub(crate) responses: Vec<Described>,
    pub(crate) problems: Vec<Kind>,
    /// What the key that it asks for must be for, where it asks for one.
    pub(crate) key_for: Option<Scope>,
    /// Headers that every answer may have, refusals included.
    pub(crate) headers: Vec<&'static str>,
}

/// An answer as the documentation describes it.
#[derive(Clone)]
pub(crate) struct Described {
    pub(crate) status: StatusCode,
    pub(crate) meaning: &'static str,
    pub(crate) content: Option<(&'static str, Schema)>,
    pub(crate) headers: &'static [&'static str],
}

impl Endpoint {
    /// An endpoint over a port, without documentation yet.
    pub(crate) fn new<P, F>(port: &Arc<P>, method: Method, path: &'static str, function: F) -> Self
    where
        P: Send + Sync + ?Sized + 'static,
        F: for<'a> Fn(&'a P, &'a mut Call) -> BoxFuture<'a, Answer> + Send + Sync + 'static,
    {
        let scope = if method == Method::GET { Scope::Read } else { Scope::Write };
        Self {
            method,
            path,
            handler: Arc::new(Over { port: Arc::clone(port), function }),
            access: Access { needs: Needs::Scope(scope), checks_keys: false },
            group: "",
            summary: "",
            description: String::new(),
            parameters: Vec::new(),
            request: None,
            responses: Vec::new(),
            problems: Vec::new(),
            key_for: None,
            headers: Vec::new(),
        }
        .with_key()
    }

    /// What a key must be for, in place of reads for GET and of writes for all else.
    pub(crate) fn open_to(mut self, needs: Needs) -> Self {
        self.access.needs = needs;
        self
    }

    /// It goes through a port that looks which records the key may touch.
    pub(crate) fn checks_keys(mut self) -> Self {
        self.access.checks_keys = true;
        self
    }

    /// In one sentence what it does, and the group it is listed under.
    pub(crate) fn summary(mut self, group: &'static str, summary: &'static str) -> Self {
        (self.group, self.summary) = (group, summary);
        self
    }

    /// What else a client should know.
    pub(crate) fn description(mut self, text: impl Into<String>) -> Self {
        self.description = text.into();
        self
    }

    /// A header or query parameter that it understands.
    pub(crate) fn parameter(
        mut self,
        place: ParameterIn,
        name: &'static str,
        shape: Shape,
        meaning: &'static str,
    ) -> Self {
        self.parameters.push(parameter(place, name, shape, meaning, Required::False));
        self
    }

    /// The same, with the schema of what it may be.
    pub(crate) fn parameter_like(
        mut self,
        place: ParameterIn,
        name: &'static str,
        schema: impl Into<Schema>,
        meaning: &'static str,
    ) -> Self {
        let parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(place)
            .required(Required::False)
            .description(Some(meaning))
            .schema(Some(schema.into()));
        self.parameters.push(parameter.build());
        self
    }

    /// Query parameters that go together: those of one of these objects. The name is not sent.
    pub(crate) fn parameters_of<const N: usize>(
        mut self,
        name: &'static str,
        choice: [ObjectBuilder; N],
    ) -> Self {
        let closed = |it: ObjectBuilder| {
            it.additional_properties(Some(AdditionalProperties::<Schema>::FreeForm(false))).build()
        };
        let choice = choice.into_iter().map(closed);
        let choice = choice.fold(OneOfBuilder::new(), |all, one| all.item(one));
        let parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Query)
            .required(Required::True)
            .style(Some(ParameterStyle::Form))
            .explode(Some(true))
            .schema(Some(Schema::from(choice.schema_type(Type::Object).build())));
        self.parameters.push(parameter.build());
        self
    }

    /// A query parameter that it cannot do without.
    pub(crate) fn needs(mut self, name: &'static str, shape: Shape, meaning: &'static str) -> Self {
        let place = ParameterIn::Query;
        self.parameters.push(parameter(place, name, shape, meaning, Required::True));
        self
    }

    /// The headers that every read understands.
    pub(crate) fn reads(self) -> Self {
        self.parameter(ParameterIn::Header, "Terrace-Consistency", FRESHNESS, CONSISTENCY)
            .parameter(ParameterIn::Header, "Terrace-Token", Shape::Token, TOKEN)
            .problems(&[
                Kind::InvalidInput,
                Kind::Overloaded,
                Kind::Unavailable,
                Kind::DeadlineExceeded,
            ])
    }

    /// The headers that every write understands.
    pub(crate) fn writes(self) -> Self {
        self.parameter(ParameterIn::Header, "Idempotency-Key", REQUEST, IDEMPOTENCY)
            .parameter(ParameterIn::Header, "Terrace-Token", Shape::Token, SEEN)
            .parameter(ParameterIn::Header, "Prefer", Shape::Text, PREFER)
            .problems(&[
                Kind::InvalidInput,
                Kind::Overloaded,
                Kind::Unavailable,
                Kind::DeadlineExceeded,
                Kind::OutcomeUnknown,
            ])
    }

    /// The JSON body that it takes, with an example.
    pub(crate) fn takes(mut self, schema: impl Into<Schema>, example: serde_json::Value) -> Self {
        self.request = Some((schema.into(), example));
        self.problems(&[
            Kind::InvalidInput,
            Kind::BodyTooLarge,
            Kind::UnsupportedMediaType,
            Kind::BodyTimeout,
        ])
    }

    /// A JSON answer.
    pub(crate) fn answers(
        self,
        status: StatusCode,
        meaning: &'static str,
        schema: impl Into<Schema>,
        headers: &'static [&'static str],
    ) -> Self {
        let content = Some(("application/json", schema.into()));
        self.described(Described { status, meaning, content, headers })
    }

    /// An answer of any kind.
    pub(crate) fn described(mut self, answer: Described) -> Self {
        self.responses.push(answer);
        self
    }

    /// Kinds of problems that it can answer.
    pub(crate) fn problems(mut self, kinds: &[Kind]) -> Self {
        for kind in kinds {
            if !self.problems.contains(kind) {
                self.problems.push(*kind);
            }
        }
        self
    }

    /// A guard asks for a key that is for this.
    pub(crate) fn asks_for_key(mut self, scope: Scope) -> Self {
        self.key_for = Some(scope);
        self
    }

    /// Headers that every answer may have.
    pub(crate) fn always(mut self, headers: &[&'static str]) -> Self {
        self.headers.extend(headers);
        self
    }

    /// The one rule by which every endpoint of every level has its class: what may be asked for so many
    /// records at most looks through as many.
    pub(crate) fn class(&self) -> Class {
        match self.access.needs {
            Needs::Nothing | Needs::Figures | Needs::Scope(Scope::Admin) => Class::Watch,
            _ if self.parameters.iter().any(|parameter| parameter.name == "limit") => Class::Scan,
            Needs::Scope(_) => Class::Keys,
        }
    }

    /// Whether it understands the headers of writes.
    pub(crate) fn writes_records(&self) -> bool {
        self.parameters.iter().any(|parameter| parameter.name == "Idempotency-Key")
    }

    /// The name of the key in its path.
    fn key(&self) -> Option<&'static str> {
        let (_, rest) = self.path.split_once('{')?;
        rest.split_once('}').map(|(name, _)| name)
    }

    fn with_key(mut self) -> Self {
        let Some(name) = self.key() else { return self };
        let meaning = if name == "key" { KEY } else { USER };
        self.parameters.push(parameter(
            ParameterIn::Path,
            name,
            Shape::Key,
            meaning,
            Required::True,
        ));
        self.problems(&[Kind::InvalidInput])
    }
}

/// Spaces at the ends do not count.
const REQUEST: Shape = Shape::Form("^[!-~]([ -~]{0,253}[!-~])?$");
const FRESHNESS: Shape = Shape::Form("^(strong|default|max-stale=[0-9]{1,19})$");

const SEEN: &str = "The `Terrace-Token` of an earlier answer: that of this one asks for both.";
const KEY: &str = "The record's name, percent-encoded; a slash is written as `%2F`.";
const USER: &str = "Whose, percent-encoded; 1 to 255 characters.";
const CONSISTENCY: &str = "How fresh the answer must be: `default` is what the level promises, \
     `strong` sees every write acknowledged before, `max-stale=<milliseconds>` allows that age.";
const TOKEN: &str =
    "The `Terrace-Token` of an earlier answer: this one is at least as new, or 503.";
const IDEMPOTENCY: &str = "Makes a repeated request answer the first result again, for 24 hours. \
     1 to 255 printable ASCII characters.";

const PREFER: &str = "`wait`: answer after the write was applied, also where it would be queued.";

fn parameter(
    place: ParameterIn,
    name: &'static str,
    shape: Shape,
    meaning: &'static str,
    required: Required,
) -> path::Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required)
        .description(Some(meaning))
        .schema(Some(shape.schema("")))
        .build()
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

#[cfg(test)]
mod classes;

//! The live page over HTTP: its files, its stream of frames, and what it can be told to do.
//!
//! The page can send requests and stop servers, so it is for the person who started the process and nobody
//! else: [`doorman`] answers browsers of this machine only, and only to pages of its own, and what changes
//! something needs the token that stands in the printed URL after `#`, which no browser sends anywhere.
//! The page runs no script and no style but its own files, and needs nothing from elsewhere.

mod by_hand;
pub(crate) mod doorman;
mod files;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use hyper::header::{CACHE_CONTROL, HeaderName, HeaderValue};
use hyper::{Method, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};

use super::call::Call;
use super::endpoint::{Described, Endpoint, Needs};
use super::problem::{Kind, Problem};
use super::reply::{self, Answer, WithHeaders as _, full};
use super::schema::Shape;
use crate::live::{Live, Order, Profile, Refused};

/// Under which the documentation lists all of it.
const GROUP: &str = "Live page";

/// What proves that the person who started the process asks.
pub(crate) const TERRACE_LIVE: HeaderName = HeaderName::from_static("terrace-live");

/// The longest that a server is stopped.
const LONGEST_FAULT: u64 = 60;

/// What the endpoints are over: who looks joins a loop that holds it, too.
struct Port(Arc<Live>);

/// The rows of the table.
pub(crate) fn endpoints(live: &Arc<Live>) -> Vec<Endpoint> {
    let mut table = files::endpoints();
    let port = &Arc::new(Port(Arc::clone(live)));
    let stream = Described {
        status: StatusCode::OK,
        meaning: "An event for each frame: `whole` has all of it, `tick` what changed.",
        content: Some(("text/event-stream", Shape::Text.schema(""))),
        headers: &[],
    };
    table.push(
        Endpoint::new(port, Method::GET, "/frames", |port, call| {
            Box::pin(async { Ok(stream::frames(&port.0, call)) })
        })
        .open_to(Needs::Nothing)
        .summary(GROUP, "All levels, twice a second")
        .description("`Last-Event-ID` goes on after that frame, where it is not too long ago.")
        .described(stream),
    );
    table.push(
        Endpoint::new(port, Method::GET, "/violations", |port, _| {
            Box::pin(async { Ok(said(json!(port.0.violations()))) })
        })
        .open_to(Needs::Nothing)
        .summary(GROUP, "The first answer of each level that it may not give, with its history")
        .answers(StatusCode::OK, "One entry for each such level.", anything(), &[]),
    );
    let traffic = json!({"level": 5, "profile": "reads", "rate": 20});
    table.push(
        changing(port, "/traffic", traffic, |port, call| Box::pin(order(&port.0, call)))
            .summary(GROUP, "Begin, change or end (`rate` 0) the traffic to a level"),
    );
    let fault = json!({"server": 0, "seconds": 10});
    table.push(
        changing(port, "/faults", fault, |port, call| Box::pin(break_server(&port.0, call)))
            .summary(GROUP, "Stop a private server; it goes on by itself"),
    );
    let request = json!({"level": 5, "method": "GET", "path": "/read/user:1", "headers": {}});
    table.push(
        changing(port, "/request", request, |port, call| Box::pin(by_hand::request(&port.0, call)))
            .summary(GROUP, "Send one request to a level, through its guards and endpoints"),
    );
    table
}

fn changing<F>(port: &Arc<Port>, path: &'static str, example: Value, function: F) -> Endpoint
where
    F: for<'a> Fn(&'a Port, &'a mut Call) -> terrace_core::BoxFuture<'a, Answer>
        + Send
        + Sync
        + 'static,
{
    Endpoint::new(port, Method::POST, path, function)
        .open_to(Needs::Nothing)
        .takes(anything(), example)
        .answers(StatusCode::OK, "It is done.", anything(), &[])
        .problems(&[Kind::Forbidden])
}

fn anything() -> Schema {
    ObjectBuilder::new().schema_type(Type::Object).build().into()
}

/// The body, as it must be.
async fn body<T: DeserializeOwned>(call: &mut Call) -> Result<T, Problem> {
    let bytes = call.json().await?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Problem::invalid(format!("the body is not what is taken: {error}")))
}

fn said(value: Value) -> reply::Reply {
    let mut reply = Response::new(full(value.to_string()));
    let json = HeaderValue::from_static("application/json");
    reply.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
    reply.with(CACHE_CONTROL, HeaderValue::from_static("no-store"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    level: u8,
    profile: Profile,
    rate: u32,
}

async fn order(live: &Arc<Live>, call: &mut Call) -> Answer {
    let Wanted { level, profile, rate } = body(call).await?;
    let order = (rate > 0).then_some(Order { profile, rate });
    match live.order(level, order).await {
        Ok(()) => Ok(said(json!({}))),
        Err(Refused::NoSuchLevel) => Err(no_such_level(level)),
        Err(Refused::NoRecords) => {
            Err(Problem::invalid(format!("level {level} keeps no records; choose another")))
        }
    }
}

fn no_such_level(level: u8) -> Problem {
    Problem::invalid(format!("level {level} is not served here; choose one of the page"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Breaking {
    server: usize,
    seconds: u64,
}

async fn break_server(live: &Arc<Live>, call: &mut Call) -> Answer {
    let Breaking { server, seconds } = body(call).await?;
    if !(1..=LONGEST_FAULT).contains(&seconds) {
        let detail = format!("seconds is {seconds}; choose from 1 to {LONGEST_FAULT}");
        return Err(Problem::invalid(detail));
    }
    match live.break_server(server, Duration::from_secs(seconds)) {
        Some(()) => Ok(said(json!({}))),
        None => Err(Problem::invalid(
            "there is no such server; only private servers can be stopped (--stores local)",
        )),
    }
}

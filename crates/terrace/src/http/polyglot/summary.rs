//! `GET /v1/users/{user_id}/summary`.

use std::sync::Arc;

use hyper::{Method, StatusCode};

use super::Polyglot;
use crate::http::call::Call;
use crate::http::endpoint::Endpoint;
use crate::http::json::Object;
use crate::http::problem::{Kind, Problem};
use crate::http::reply::{self, Answer, WithHeaders as _};
use crate::http::schema::{Shape, object};

const PATH: (&str, &str) = ("/v1/users/", "/summary");

pub(super) fn endpoint(polyglot: &Arc<Polyglot>) -> Endpoint {
    let answer = object(&[
        ("user_id", Shape::Key.schema("")),
        ("transactions", Shape::Count.schema("How many there are.")),
        ("balance", super::entries::sum_schema()),
        ("last_at", Shape::Time.schema("The time of the latest.")),
        ("lag_ms", Shape::MaybeCount.schema(LAG)),
    ]);
    Endpoint::new(polyglot, Method::GET, "/v1/users/{user_id}/summary", |polyglot, call| {
        Box::pin(get(polyglot, call))
    })
    .summary("Transactions", "Read what a user's transactions come to")
    .description(
        "Kept in the document store, which follows the ledger. A read with the token of a \
         transaction waits for it, 500 ms at most.",
    )
    .reads()
    .checks_keys()
    .answers(StatusCode::OK, "The summary.", answer.build(), &["Terrace-Origin", "Terrace-Token"])
    .problems(&[Kind::RecordMissing])
}

const LAG: &str = "Everything acknowledged longer ago than this is in it; null while the ledger cannot \
     be asked.";

async fn get(polyglot: &Polyglot, call: &mut Call) -> Answer {
    let user = call.key_between(PATH)?;
    call.may_touch(&user)?;
    let how = call.read_options()?;
    let summaries = polyglot.summaries.get()?;
    let mut summary = call.in_time(Box::pin(summaries.read(&user, &how))).await?;
    if let Some(asked) = &how.token {
        summary.token.merge(asked);
    }
    let origin = terrace_core::Origin::READ_MODEL;
    let Some(account) = summary.account else {
        let detail = "there is no transaction of this user, as far as the summaries have come";
        let missing = Problem::new(Kind::RecordMissing, detail);
        return Err(missing.with_origin(origin).with_token(&summary.token));
    };
    let lag = summary.lag.map(|lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX));
    let answer = Object::with_capacity(192 + user.as_str().len())
        .field("user_id", user.as_str())
        .field("transactions", &account.transactions)
        .json("balance", &account.balance.to_string())
        .time("last_at", account.last_at)
        .field("lag_ms", &lag);
    Ok(reply::json(answer).with_origin(origin).with_token(&summary.token))
}

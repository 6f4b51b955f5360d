//! `DELETE /v1/records/{key}`.

use hyper::{Method, StatusCode};
use terrace_core::{Outcome, Write};

use super::get::missing;
use super::put::conditional;
use super::{GROUP, precondition, queued, queueing};
use crate::http::call::Call;
use crate::http::endpoint::{Described, Endpoint};
use crate::http::problem::Kind;
use crate::http::reply::{self, Answer, WithHeaders as _};

pub(super) fn endpoint(queues: bool) -> Endpoint {
    let endpoint =
        Endpoint::new(Method::DELETE, "/v1/records/{key}", |call| Box::pin(delete(call)));
    queueing(conditional(endpoint), queues)
        .summary(GROUP, "Remove a record")
        .writes()
        .described(Described {
            status: StatusCode::NO_CONTENT,
            meaning: "There was a record; now there is none.",
            content: None,
            headers: &["Terrace-Origin", "Terrace-Durability", "Terrace-Token"],
        })
        .problems(&[Kind::RecordMissing])
}

async fn delete(call: &mut Call) -> Answer {
    let key = call.key()?;
    let how = call.write_options(b"")?;
    let receipt = precondition::apply(call, Write::delete(key.clone()), &how).await?;
    if receipt.outcome == Outcome::Queued {
        return Ok(queued(&key, &receipt));
    }
    if receipt.outcome == Outcome::Absent {
        return Err(missing().with_origin(receipt.origin).with_token(&receipt.token));
    }
    Ok(reply::empty(StatusCode::NO_CONTENT)
        .with_origin(receipt.origin)
        .with_durability(receipt.durability)
        .with_token(&receipt.token))
}

//! `DELETE /v1/records/{key}`.

use std::sync::Arc;

use hyper::{Method, StatusCode};
use terrace_core::{Outcome, Write};

use super::get::missing;
use super::put::conditional;
use super::{Records, precondition, queued, queueing};
use crate::http::call::Call;
use crate::http::endpoint::{Described, Endpoint};
use crate::http::problem::Kind;
use crate::http::reply::{self, Answer, WithHeaders as _};

pub(super) fn endpoint(records: &Arc<Records>) -> Endpoint {
    let values = records.values;
    let endpoint = Endpoint::new(records, Method::DELETE, values.path_of_one(), |records, call| {
        Box::pin(delete(records, call))
    });
    queueing(conditional(endpoint), records)
        .summary(values.group(), values.word("Remove a record", "Remove a document"))
        .writes()
        .checks_keys()
        .described(Described {
            status: StatusCode::NO_CONTENT,
            meaning: "There was a record; now there is none.",
            content: None,
            headers: &["Terrace-Origin", "Terrace-Durability", "Terrace-Token"],
        })
        .problems(&[Kind::RecordMissing])
}

async fn delete(records: &Records, call: &mut Call) -> Answer {
    let key = call.key()?;
    let how = call.write_options(b"")?;
    let receipt = precondition::apply(records, call, Write::delete(key.clone()), &how).await?;
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

//! Applies one write under the conditions of a request.

use terrace_core::{
    Consistency, Key, Outcome, Precondition, Read, ReadOptions, Receipt, Version, Write,
    WriteOptions,
};

use super::Records;
use super::get::failed;
use crate::http::call::Call;
use crate::http::etag::Conditions;
use crate::http::problem::{Kind, Problem};
use crate::http::reply::WithHeaders as _;

/// How often conditions that need a look at the record are tried, when others write in between.
const TRIES: usize = 4;

/// Applies a write under the conditions of its headers.
///
/// One version or `*` for "no record" go to the store as they are. Lists, `If-Match: *` and dates
/// need a look: the version read is pinned by a precondition, so that nothing can come in between.
///
/// # Errors
/// 412 with the current version when the conditions do not hold; 503 when they hold each time, but
/// others wrote in between every time.
pub(super) async fn apply(
    records: &Records,
    call: &Call,
    write: Write,
    how: &WriteOptions,
) -> Result<Receipt, Problem> {
    let conditions = Conditions::of(&call.parts.headers)?;
    if let Some(precondition) = conditions.as_precondition() {
        let receipt = records.write_one(call, write.when(precondition), how).await?;
        return settled(&conditions, receipt);
    }
    // With an idempotency key the first outcome stands, so there is only one try.
    let tries = if how.idempotency.is_some() { 1 } else { TRIES };
    for _ in 0..tries {
        let read = current(records, call, &write.key, how).await?;
        let Some(precondition) = conditions.pin(read.record.as_ref()) else {
            let version = read.record.as_ref().map(|record| record.version);
            return refused(records, call, write, how, (&conditions, version)).await;
        };
        let receipt = records.write_one(call, write.clone().when(precondition), how).await?;
        if receipt.outcome != Outcome::PreconditionFailed
            || !conditions.hold_again(current_version(&receipt))
        {
            return settled(&conditions, receipt);
        }
    }
    Err(overtaken(how))
}

async fn current(
    records: &Records,
    call: &Call,
    key: &Key,
    how: &WriteOptions,
) -> Result<Read, Problem> {
    let mut read = ReadOptions::strong(how.deadline);
    if how.region.is_some() {
        // A condition holds in the region that takes the write: what the others have does not count.
        read = ReadOptions { region: how.region, consistency: Consistency::Default, ..read };
    }
    records.read_one(call, key, &read).await
}

/// The conditions do not hold. A repeated request must still get its first result, which only the
/// store knows; it is asked with a precondition that never holds.
async fn refused(
    records: &Records,
    call: &Call,
    write: Write,
    how: &WriteOptions,
    (conditions, current): (&Conditions, Option<Version>),
) -> Result<Receipt, Problem> {
    if how.idempotency.is_none() {
        return Err(failed(conditions, current));
    }
    let never = Precondition::Version(Version::UNKNOWN);
    settled(conditions, records.write_one(call, write.when(never), how).await?)
}

fn settled(conditions: &Conditions, receipt: Receipt) -> Result<Receipt, Problem> {
    if receipt.outcome != Outcome::PreconditionFailed {
        return Ok(receipt);
    }
    let current = current_version(&receipt);
    Err(failed(conditions, current).with_origin(receipt.origin).with_token(&receipt.token))
}

fn current_version(receipt: &Receipt) -> Option<Version> {
    Some(receipt.version).filter(|version| *version != Version::NONE)
}

/// The conditions held before and after, so 412 would be wrong: what failed is only what pinned the
/// version read. Under an idempotency key that failure is kept, so the same key would meet it again.
fn overtaken(how: &WriteOptions) -> Problem {
    let detail = match how.idempotency {
        None => {
            "other writes of this record came first each time, and nothing was changed; try again"
        }
        Some(_) => {
            "another write of this record came first, and nothing was changed; try again with a \
             new Idempotency-Key"
        }
    };
    Problem::new(Kind::Overloaded, detail)
}

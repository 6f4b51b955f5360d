//! A walk that removes what is kept no longer, and indexes what other programs have written.

use std::sync::Arc;
use std::time::Duration;

use mongodb::Collection;
use mongodb::bson::{Bson, Document, RawBsonRef, RawDocument, RawDocumentBuf, doc};
use terrace_core::{Deadline, Idempotency, Json, Result, Runtime};

use super::query::CollectionRows;
use super::row::{Row, time};
use super::store::Shared;
use super::{failure, requests};
use crate::walks::Walk;

/// Rows of one page.
const PAGE: i64 = 500;

/// The walk over a collection.
#[derive(Debug)]
pub(super) struct Upkeep {
    shared: Arc<Shared>,
}

impl Upkeep {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl Walk for Upkeep {
    const NAME: &'static str = "mongodb-upkeep";

    async fn page(&mut self) -> Result<bool> {
        let kept_for = self.shared.options.tombstones_kept_for;
        let work = move |rows: CollectionRows| async move { page(&rows, kept_for).await };
        self.shared.run(Deadline::NEVER, work).await
    }
}

/// Answers whether nothing is left.
async fn page(rows: &CollectionRows, kept_for: Duration) -> Result<bool> {
    let before = |age: Duration, runtime: &Runtime| doc! { "$lt": time(runtime.wall() - age) };
    let runtime = &rows.session.runtime;
    let tombstones = doc! { "deleted": true, "updated_at": before(kept_for, runtime) };
    let removed = remove(&rows.collection, rows, tombstones).await?;
    let claims = rows.session.database.collection(requests::COLLECTION);
    let old = doc! { "at": before(Idempotency::KEPT_FOR, runtime) };
    let forgotten = remove(&claims, rows, old).await?;
    let indexed = index(rows).await?;
    Ok(removed.max(forgotten).max(indexed) < PAGE)
}

/// Removes up to a page of what is found.
async fn remove(
    from: &Collection<RawDocumentBuf>,
    rows: &CollectionRows,
    filter: Document,
) -> Result<i64> {
    let found = from.find(filter.clone()).projection(doc! { "_id": 1 }).limit(PAGE);
    let mut found = found.await.map_err(failure::of_read)?;
    let mut ids = Vec::new();
    while found.advance().await.map_err(failure::of_read)? {
        let id = found.current().get("_id").map_err(failure::bson)?;
        ids.extend(id.and_then(|id| Bson::try_from(id).ok()));
    }
    if ids.is_empty() {
        return Ok(0);
    }
    rows.session.writes()?;
    // The filter once more: it may have been written meanwhile.
    let mut gone = filter;
    gone.insert("_id", doc! { "$in": ids.clone() });
    from.delete_many(gone).await.map_err(failure::of_write)?;
    Ok(i64::try_from(ids.len()).unwrap_or(PAGE))
}

/// Adds the words of up to a page of rows that have none: another program has written them.
async fn index(rows: &CollectionRows) -> Result<i64> {
    let unindexed = doc! { "words": { "$exists": false }, "deleted": { "$ne": true } };
    let found = rows.collection.find(unindexed).limit(PAGE);
    let mut found = found.await.map_err(failure::of_read)?;
    let mut count = 0;
    while found.advance().await.map_err(failure::of_read)? {
        count += 1;
        let row = match Row::of(found.current()) {
            Ok(row) => row,
            Err(error) => {
                tracing::warn!(%error, "a row was left out of the index of words");
                continue;
            }
        };
        let words = doc! { "$set": { "words": words(found.current())? } };
        rows.session.writes()?;
        let indexed = rows.collection.update_one(row.unchanged(), words).await;
        indexed.map_err(failure::of_write)?;
    }
    Ok(count)
}

fn words(raw: &RawDocument) -> Result<Vec<String>> {
    let data = raw.get("data").map_err(failure::bson)?;
    Ok(match data {
        Some(data @ RawBsonRef::Document(_)) => super::bson::to_json(data)?.words(),
        _ => Json::Null.words(),
    })
}

//! A collection that follows the change log of a database: rows with the versions that they have there.

use std::fmt;
use std::sync::Arc;

use mongodb::Collection;
use mongodb::bson::{RawDocumentBuf, doc};
use terrace_core::{
    Batch, BoxFuture, Checkpoint, Deadline, Error, ErrorKind, Follower, Logged, Result, Value, json,
};

use super::query::CollectionRows;
use super::row::{Content, number};
use super::store::Shared;
use super::{failure, history, write};

/// Follows the accounts of a ledger into the collection of summaries.
///
/// A standalone server has no transactions, so the checkpoint, a document of `terrace_meta`, is written
/// after the rows. A row is written only over an older version, so what is applied again does nothing, and
/// a checkpoint that was read before a row never says more than the row shows.
#[derive(Clone, Debug)]
pub(super) struct MongoFollower {
    shared: Arc<Shared>,
}

impl MongoFollower {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn id(&self) -> String {
        format!("followed:{}", self.shared.options.collection)
    }
}

impl Follower for MongoFollower {
    fn checkpoint(&self) -> BoxFuture<'_, Result<Checkpoint>> {
        let id = self.id();
        let work =
            |rows: CollectionRows| async move { Ok(FollowedTo::of(&rows, id).read().await?.0) };
        Box::pin(self.shared.run(Deadline::NEVER, work))
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<bool>> {
        let (id, batch) = (self.id(), batch.clone());
        let work = |rows: CollectionRows| async move {
            apply(&rows, &FollowedTo::of(&rows, id), &batch).await
        };
        let applied = self.shared.run(Deadline::NEVER, work);
        Box::pin(async move { applied.await.map_err(|error| error.during("follow")) })
    }

    fn begin_anew<'a>(&'a self, log: &'a str) -> BoxFuture<'a, Result<()>> {
        let (id, log) = (self.id(), log.to_owned());
        let work = |rows: CollectionRows| async move {
            let place = FollowedTo::of(&rows, id);
            let (_, known) = place.read().await?;
            rows.session.writes()?;
            // Rows of another log may have versions that this one never comes to.
            rows.collection.delete_many(doc! {}).await.map_err(failure::of_write)?;
            let begun = place.moves(known, &Checkpoint::beginning(log.as_str())).await?;
            if begun { Ok(()) } else { Err(overtaken()) }
        };
        let begun = self.shared.run(Deadline::NEVER, work);
        Box::pin(async move { begun.await.map_err(|error| error.during("begin anew")) })
    }
}

async fn apply(rows: &CollectionRows, place: &FollowedTo, batch: &Batch) -> Result<bool> {
    if let Some(refused) = &batch.refused {
        let message = format!("a document cannot be set aside here: {refused}");
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    let (checkpoint, known) = place.read().await?;
    if checkpoint != batch.from {
        return Ok(false);
    }
    rows.session.writes()?;
    for change in &batch.changes {
        follow(rows, change).await?;
    }
    place.moves(known, &batch.to).await
}

/// Puts a change in the place of what is older.
async fn follow(rows: &CollectionRows, change: &Logged) -> Result<()> {
    // A person may have changed a value to what is no document; it is kept as it is.
    let value = change.record.as_ref().map(|record| &record.value);
    let document = value.and_then(|value| json::object(value).ok());
    let text = value.filter(|_| document.is_none()).map(Value::as_str);
    let now = rows.session.runtime.wall();
    let times = change.record.as_ref().map(|record| (record.created_at, record.updated_at));
    let (created_at, updated_at) = times.unwrap_or((now, now));
    let content = Content {
        document: document.as_ref(),
        text,
        version: change.version,
        created_at,
        updated_at,
        requests: &[],
    };
    let key = change.key.as_str();
    let older = doc! { "key": key, "version": { "$lt": number(change.version) } };
    let updated = rows.collection.update_one(older, doc! { "$set": content.fields() }).await;
    if updated.map_err(failure::of_write)?.matched_count == 0 {
        let mut fields = doc! { "key": key };
        fields.extend(content.fields());
        // A row that is there has this version or a newer one.
        let _added = write::insert(rows, &fields).await?;
    }
    Ok(())
}

/// Where the checkpoint is kept.
struct FollowedTo {
    metas: Collection<RawDocumentBuf>,
    id: String,
}

impl FollowedTo {
    fn of(rows: &CollectionRows, id: String) -> Self {
        Self { metas: rows.session.database.collection(history::COLLECTION), id }
    }

    /// The checkpoint, and its text as it is stored.
    async fn read(&self) -> Result<(Checkpoint, Option<String>)> {
        let found =
            self.metas.find_one(doc! { "_id": &self.id }).await.map_err(failure::of_read)?;
        let Some(found) = found else { return Ok((Checkpoint::default(), None)) };
        let text = found.get_str("checkpoint").map_err(|_| failure::corrupt("checkpoint"))?;
        let checkpoint = serde_json::from_str(text);
        let checkpoint =
            checkpoint.map_err(|error| failure::corrupt("checkpoint").caused_by(error))?;
        Ok((checkpoint, Some(text.to_owned())))
    }

    /// Moves it; `false` when another instance was faster.
    async fn moves(&self, known: Option<String>, to: &Checkpoint) -> Result<bool> {
        let text = serde_json::to_string(to).map_err(|error| {
            let message = "a checkpoint cannot be stored; report this defect";
            Error::new(ErrorKind::Internal, message).caused_by(error)
        })?;
        let Some(known) = known else {
            let first = doc! { "_id": &self.id, "checkpoint": text };
            let first = RawDocumentBuf::try_from(&first).map_err(failure::bson)?;
            return match self.metas.insert_one(first).await {
                Ok(_) => Ok(true),
                Err(error) if failure::is_duplicate(&error) => Ok(false),
                Err(error) => Err(failure::of_write(error)),
            };
        };
        let here = doc! { "_id": &self.id, "checkpoint": known };
        let moved = self.metas.update_one(here, doc! { "$set": { "checkpoint": text } }).await;
        Ok(moved.map_err(failure::of_write)?.matched_count == 1)
    }
}

fn overtaken() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "another instance follows into the same collection; try again",
    )
}

impl fmt::Display for MongoFollower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mongodb({})", self.shared.options.collection)
    }
}

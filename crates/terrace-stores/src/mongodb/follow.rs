//! A collection that follows the change log of a database: rows with the versions that they have there.

use std::fmt;
use std::sync::Arc;

use mongodb::Collection;
use mongodb::bson::{Document, RawDocumentBuf, doc};
use terrace_core::{
    Batch, BoxFuture, Checkpoint, Deadline, Error, ErrorKind, Follower, Logged, Result, Value,
    Version, json,
};

use super::query::CollectionRows;
use super::row::{Content, number};
use super::store::Shared;
use super::write::Writers;
use super::{failure, history, write};

/// Follows the accounts of a ledger into the collection of summaries.
///
/// A standalone server has no transactions, so the checkpoint, a document of `terrace_meta`, is written
/// after the rows. A row is written only over an older version, so what is applied again does nothing, and
/// a checkpoint that was read before a row never says more than the row shows.
///
/// A row has the number of the beginning that it was written after, and counts for no other one. Numbers
/// grow: who was overtaken by another beginning neither replaces its rows nor removes them.
#[derive(Clone, Debug)]
pub(super) struct MongoFollower {
    shared: Arc<Shared>,
}

impl MongoFollower {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl Follower for MongoFollower {
    fn checkpoint(&self) -> BoxFuture<'_, Result<Checkpoint>> {
        let work = |rows: CollectionRows| async move { Ok(FollowedTo::of(&rows).read().await?.0) };
        Box::pin(self.shared.run(Deadline::NEVER, work))
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<bool>> {
        let batch = batch.clone();
        let work = |rows: CollectionRows| async move { apply(&rows, &batch).await };
        let applied = self.shared.run(Deadline::NEVER, work);
        Box::pin(async move { applied.await.map_err(|error| error.during("follow")) })
    }

    fn begin_anew<'a>(&'a self, log: &'a str) -> BoxFuture<'a, Result<()>> {
        let (log, writers) = (log.to_owned(), Arc::clone(&self.shared.writers));
        let work = |rows: CollectionRows| async move { begin_anew(&rows, &writers, log).await };
        let begun = self.shared.run(Deadline::NEVER, work);
        Box::pin(async move { begun.await.map_err(|error| error.during("begin anew")) })
    }
}

async fn begin_anew(rows: &CollectionRows, writers: &Writers, log: String) -> Result<()> {
    let place = FollowedTo::of(rows);
    let (checkpoint, known) = place.read().await?;
    rows.session.writes()?;
    let last = Version::new(checkpoint.beginning);
    let beginning = writers.versions.next(last, &rows.session.runtime);
    let anew = Checkpoint { beginning: beginning.get(), ..Checkpoint::beginning(log) };
    if !place.moves(known, &anew).await? {
        return Err(overtaken());
    }
    let older = older_beginnings(beginning);
    if let Err(error) = rows.collection.delete_many(doc! { "$or": older }).await {
        tracing::warn!(%error, "rows of an older beginning are left, which count no more");
    }
    Ok(())
}

/// The rows that are there since the last beginning.
pub(super) async fn counted(rows: CollectionRows) -> Result<CollectionRows> {
    let (checkpoint, _) = FollowedTo::of(&rows).read().await?;
    Ok(CollectionRows { beginning: Some(number(Version::new(checkpoint.beginning))), ..rows })
}

async fn apply(rows: &CollectionRows, batch: &Batch) -> Result<bool> {
    if let Some(refused) = &batch.refused {
        let message = format!("a document cannot be set aside here: {refused}");
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    let place = FollowedTo::of(rows);
    let (checkpoint, known) = place.read().await?;
    if checkpoint != batch.from {
        return Ok(false);
    }
    rows.session.writes()?;
    for change in &batch.changes {
        follow(rows, change, Version::new(checkpoint.beginning)).await?;
    }
    place.moves(known, &batch.to).await
}

/// Puts a change in the place of what is older.
async fn follow(rows: &CollectionRows, change: &Logged, beginning: Version) -> Result<()> {
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
    let mut older = older_beginnings(beginning);
    let version = doc! { "$lt": number(change.version) };
    older.push(doc! { "beginning": number(beginning), "version": version });
    // Not beside `$or`, where servers that are not MongoDB leave it out.
    for one in &mut older {
        one.insert("key", key);
    }
    let mut fields = content.fields();
    fields.insert("beginning", number(beginning));
    let updated = rows.collection.update_one(doc! { "$or": older }, doc! { "$set": &fields });
    if updated.await.map_err(failure::of_write)?.matched_count == 0 {
        fields.insert("key", key);
        // A row that is there has this version or a newer one.
        let _added = write::insert(rows, &fields).await?;
    }
    Ok(())
}

/// Either of which a row matches that was written after an older beginning than this.
fn older_beginnings(beginning: Version) -> Vec<Document> {
    let older = doc! { "beginning": { "$lt": number(beginning) } };
    vec![older, doc! { "beginning": { "$exists": false } }]
}

/// Where the checkpoint is kept.
struct FollowedTo {
    metas: Collection<RawDocumentBuf>,
    id: String,
}

impl FollowedTo {
    fn of(rows: &CollectionRows) -> Self {
        let metas = rows.session.database.collection(history::COLLECTION);
        Self { metas, id: format!("followed:{}", rows.collection.name()) }
    }

    /// The checkpoint, and its text as it is stored.
    async fn read(&self) -> Result<(Checkpoint, Option<String>)> {
        let found =
            self.metas.find_one(doc! { "_id": &self.id }).await.map_err(failure::of_read)?;
        let Some(found) = found else { return Ok((Checkpoint::default(), None)) };
        let text = found.get_str("checkpoint").map_err(|_| failure::corrupt("checkpoint"))?;
        let checkpoint: Checkpoint = serde_json::from_str(text)
            .map_err(|error| failure::corrupt("checkpoint").caused_by(error))?;
        // Of an earlier Terrace, whose rows have no beginning: it is begun anew.
        let counts = checkpoint.beginning > 0;
        let checkpoint = if counts { checkpoint } else { Checkpoint::default() };
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

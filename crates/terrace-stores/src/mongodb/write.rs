//! Writes: the row's version is the condition of its next one.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use futures_util::stream::{self, StreamExt};
use mongodb::bson::{Document, RawDocumentBuf, doc};
use terrace_core::{
    Change, Current, Error, ErrorKind, Idempotency, Json, Key, Outcome, Result, Sequence,
    Timestamp, Version, Write, decide, json,
};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::doubts::Doubts;
use super::failure;
use super::query::CollectionRows;
use super::row::{Content, Noted, Row, number};
use super::versions::Versions;

/// What a write came to.
pub(super) type Outcomes = Vec<Result<(Outcome, Version)>>;

/// How often a write is tried while others are faster. Those of this process wait in line, so it is
/// as many other instances that must come between.
const TRIES: usize = 100;

/// Keys of one batch that are written at a time.
const KEYS_AT_A_TIME: usize = 8;

/// The latest requests that a row remembers: enough for a repeat of one whose result could not be kept.
/// All of a day would make the row of a busy document large.
const REMEMBERED: usize = 32;

/// What the writers of a process share.
#[derive(Debug)]
pub(super) struct Writers {
    pub(super) versions: Versions,
    /// Writers of a key wait in line here, and not for each other's versions.
    lines: Vec<Arc<Mutex<()>>>,
    pub(super) doubts: Arc<Doubts>,
}

impl Default for Writers {
    fn default() -> Self {
        const LINES: usize = 128;
        Self {
            versions: Versions::default(),
            lines: (0..LINES).map(|_| Arc::default()).collect(),
            doubts: Arc::default(),
        }
    }
}

impl Writers {
    /// The lines of these writes, one after the other; to be had before a turn at the server.
    pub(super) async fn lines(&self, batch: &[Prepared]) -> Vec<OwnedMutexGuard<()>> {
        let numbers = batch.iter().map(|prepared| self.line(&prepared.write.key));
        let mut lines = Vec::new();
        // In one order everywhere, or two batches could wait for each other.
        for number in numbers.collect::<BTreeSet<_>>() {
            lines.push(Arc::clone(&self.lines[number]).lock_owned().await);
        }
        lines
    }

    /// The line of a key, unless somebody is in it.
    pub(super) fn free_line(&self, key: &Key) -> Option<OwnedMutexGuard<()>> {
        Arc::clone(&self.lines[self.line(key)]).try_lock_owned().ok()
    }

    fn line(&self, key: &Key) -> usize {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let count = self.lines.len() as u64;
        usize::try_from(hasher.finish() % count).unwrap_or(0)
    }
}

/// The keys of these writes.
pub(super) fn keys(batch: &[Prepared]) -> BTreeSet<Key> {
    batch.iter().map(|prepared| prepared.write.key.clone()).collect()
}

/// One write, with the document that it brings.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    write: Write,
    document: Option<Json>,
    /// The request's key and the number of the write in it.
    request: Option<String>,
}

/// Checks writes before anything is asked of the server.
///
/// # Errors
/// `InvalidInput` for a value that is no document, and for a write of a journal.
pub(super) fn prepare(batch: Vec<Write>, request: Option<&Idempotency>) -> Result<Vec<Prepared>> {
    let prepared = batch.into_iter().enumerate().map(|(number, write)| {
        if let terrace_core::Precondition::After(_) = write.precondition {
            return Err(Error::invalid(
                "documents of this store are not written through a journal",
            ));
        }
        let document = match &write.change {
            Change::Put(value) => Some(json::object(value)?),
            Change::Delete => None,
        };
        let request = request.map(|request| format!("{number}:{}", request.key()));
        Ok(Prepared { write, document, request })
    });
    prepared.collect()
}

/// Applies the writes of each key in their order, some keys at a time, and answers each. After one
/// that fails no later one of its key is tried. The caller has the lines of the keys.
pub(super) async fn apply(
    rows: &CollectionRows,
    writers: &Arc<Writers>,
    batch: Vec<Prepared>,
) -> Outcomes {
    let count = batch.len();
    let mut by_key = HashMap::<Key, Vec<(usize, Prepared)>>::new();
    for (number, prepared) in batch.into_iter().enumerate() {
        by_key.entry(prepared.write.key.clone()).or_default().push((number, prepared));
    }
    let work = by_key.into_values().map(|writes| one_key(rows, writers, writes));
    let done = stream::iter(work).buffer_unordered(KEYS_AT_A_TIME).collect::<Vec<_>>().await;
    let mut outcomes = (0..count).map(|_| Err(untried())).collect::<Outcomes>();
    for (number, outcome) in done.into_iter().flatten() {
        outcomes[number] = outcome;
    }
    outcomes
}

async fn one_key(
    rows: &CollectionRows,
    writers: &Writers,
    writes: Vec<(usize, Prepared)>,
) -> Vec<(usize, Result<(Outcome, Version)>)> {
    let mut done = Vec::with_capacity(writes.len());
    for (number, prepared) in writes {
        let outcome = one(rows, writers, &prepared).await;
        let failed = outcome.is_err();
        done.push((number, outcome));
        if failed {
            break;
        }
    }
    done
}

async fn one(
    rows: &CollectionRows,
    writers: &Writers,
    prepared: &Prepared,
) -> Result<(Outcome, Version)> {
    let key = &prepared.write.key;
    for _ in 0..TRIES {
        let row = rows.head(key).await?;
        if let (Some(row), Some(request)) = (&row, &prepared.request)
            && let Some(done) = row.done_for(request)
        {
            return Ok(done);
        }
        let current = row.as_ref().map_or_else(Current::default, |row| Current {
            version: row.version(),
            live: row.is_live,
            applied: Sequence::NONE,
        });
        let decision = match decide(&prepared.write, &current) {
            Ok(decision) => decision,
            Err(answer) => return Ok(answer),
        };
        let version = writers.versions.next(current.version, &rows.session.runtime);
        let answer = decision.answer(version);
        if put(rows, prepared, row.as_ref(), answer).await? {
            return Ok(answer);
        }
    }
    let message = "too many others write this document at the same time; try again";
    Err(Error::new(ErrorKind::Overloaded, message))
}

/// Puts the new content in the place of the row, unless somebody was faster.
async fn put(
    rows: &CollectionRows,
    prepared: &Prepared,
    row: Option<&Row>,
    (outcome, version): (Outcome, Version),
) -> Result<bool> {
    let now = rows.session.runtime.wall();
    let updated_at = row.map_or(now, |row| now.max(row.updated_at));
    let created_at = row.filter(|row| row.is_live).map_or(updated_at, |row| row.created_at);
    let requests = remembered(row, prepared.request.as_ref(), (outcome, version), now);
    let document = prepared.document.as_ref();
    let content =
        Content { document, text: None, version, created_at, updated_at, requests: &requests };
    rows.session.writes()?;
    match row {
        Some(row) => {
            let fields = doc! { "$set": content.fields() };
            let updated = rows.collection.update_one(row.unchanged(), fields).await;
            Ok(updated.map_err(failure::of_write)?.matched_count == 1)
        }
        None => {
            let mut fields = doc! { "key": prepared.write.key.as_str() };
            fields.extend(content.fields());
            insert(rows, &fields).await
        }
    }
}

/// Gives the row of a key another version and leaves its content as it is: no write that was sent before
/// can be applied any more. Where there is no row, that of a deleted document is made.
pub(super) async fn fence(rows: &CollectionRows, writers: &Writers, key: &Key) -> Result<()> {
    let row = rows.head(key).await?;
    let current = row.as_ref().map_or(Version::NONE, Row::version);
    let version = writers.versions.next(current, &rows.session.runtime);
    rows.session.writes()?;
    // Whoever is faster gives it another version, too.
    if let Some(row) = row {
        let fields = doc! { "$set": { "version": number(version) } };
        let fenced = rows.collection.update_one(row.unchanged(), fields).await;
        return fenced.map(drop).map_err(failure::of_write);
    }
    let now = rows.session.runtime.wall();
    let content = Content {
        document: None,
        text: None,
        version,
        created_at: now,
        updated_at: now,
        requests: &[],
    };
    let mut fields = doc! { "key": key.as_str() };
    fields.extend(content.fields());
    insert(rows, &fields).await.map(drop)
}

/// Adds a row; `false` when there is one with its key.
pub(super) async fn insert(rows: &CollectionRows, fields: &Document) -> Result<bool> {
    let raw = RawDocumentBuf::try_from(fields).map_err(failure::bson)?;
    match rows.collection.insert_one(raw).await {
        Ok(_) => Ok(true),
        Err(error) if failure::is_duplicate(&error) => Ok(false),
        Err(error) => Err(failure::of_write(error)),
    }
}

/// The requests that the row is to remember: those of the last day, the latest ones.
fn remembered(
    row: Option<&Row>,
    request: Option<&String>,
    (outcome, version): (Outcome, Version),
    now: Timestamp,
) -> Vec<Noted> {
    let is_recent = |noted: &&Noted| {
        let age = now.duration_since(noted.at);
        age.as_secs() < i64::try_from(Idempotency::KEPT_FOR.as_secs()).unwrap_or(i64::MAX)
    };
    let known = row.map_or(&[][..], |row| &row.requests);
    let mut all = known.iter().filter(is_recent).cloned().collect::<Vec<_>>();
    all.extend(request.map(|request| Noted {
        request: request.clone(),
        outcome,
        version,
        at: now,
    }));
    let forgotten = all.len().saturating_sub(REMEMBERED);
    all.drain(..forgotten);
    all
}

fn untried() -> Error {
    Error::new(ErrorKind::Unavailable, "an earlier write of the same document failed; try again")
}

//! What is asked of a collection.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mongodb::bson::{Bson, Document, RawDocumentBuf, doc};
use mongodb::options::ReadConcern;
use mongodb::{Collection, Cursor};
use terrace_core::{Budget, Deadline, Json, Key, Origin, Page, Record, Result, Scan, Selection};

use super::link::ServerSession;
use super::row::Row;
use super::server::Server;
use super::{bson, failure};
use crate::row::successor;

/// How long a question may look through documents: less than a call may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The rows of one collection, within a session.
#[derive(Clone, Debug)]
pub(super) struct CollectionRows {
    pub(super) session: ServerSession,
    pub(super) collection: Collection<RawDocumentBuf>,
    /// Only rows of this beginning count, where a log is followed.
    pub(super) beginning: Option<i64>,
}

impl CollectionRows {
    pub(super) fn of(session: ServerSession, collection: &str) -> Self {
        let collection = session.database.collection(collection);
        Self { session, collection, beginning: None }
    }

    /// The row of a key without its content.
    pub(super) async fn head(&self, key: &Key) -> Result<Option<Row>> {
        let found = self.collection.find_one(doc! { "key": key.as_str() });
        // What is not confirmed by a majority yet counts, too, or a write would wait for it in a loop.
        let found = found.read_concern(ReadConcern::local());
        let found = found.projection(doc! { "data": 0, "words": 0 }).await;
        found.map_err(failure::of_read)?.map(|raw| Row::of(&raw)).transpose()
    }

    /// The rows of these keys, in any order, until they are more than the budget holds.
    pub(super) async fn of_keys(&self, keys: &[Key], mut budget: Budget) -> Result<Vec<Row>> {
        let keys = keys.iter().map(Key::as_str).collect::<Vec<_>>();
        let mut found = self.find(doc! { "key": { "$in": keys } }).await?;
        let mut rows = Vec::new();
        while found.advance().await.map_err(failure::of_read)? {
            let row = Row::of(found.current())?;
            budget.spend(row.record()?.map_or(0, |record| record.value.as_str().len()))?;
            rows.push(row);
        }
        Ok(rows)
    }

    /// A page of the documents that are selected, of all without a selection. `asks` says whether the
    /// server is asked to select, see [`is_understood`]. What cannot be read is left out, and counted.
    pub(super) async fn page(
        &self,
        what: Option<&Selection>,
        asks: bool,
        scan: &Scan,
        unreadable: &AtomicU64,
    ) -> Result<Page> {
        let limit = scan.limit.clamp(1, Scan::MAX_LIMIT);
        let mut found = self.find(filter(what.filter(|_| asks), scan)).await?;
        let (mut records, mut bytes) = (Vec::<Record>::new(), 0);
        let runtime = &self.session.runtime;
        let until = Deadline::at(runtime.now() + PATIENCE);
        // One more than the page has shows that there is another one.
        while records.len() <= limit {
            if !found.advance().await.map_err(failure::of_read)? {
                break;
            }
            if until.passed(runtime.now()) {
                return Err(failure::took_long());
            }
            let record = match Row::of(found.current()).and_then(|row| row.record()) {
                Ok(Some(record)) => record,
                Ok(None) => continue,
                Err(error) => {
                    if unreadable.fetch_add(1, Ordering::Relaxed) == 0 {
                        tracing::warn!(%error, "documents that cannot be read are left out of lists");
                    }
                    continue;
                }
            };
            if !is_selected(what, &record) {
                continue;
            }
            let is_full = bytes >= Page::MAX_BYTES;
            bytes += record.value.as_str().len();
            records.push(record);
            if is_full {
                break;
            }
        }
        Ok(Page::cut(records, limit, Origin::PRIMARY))
    }

    /// How many documents there are.
    pub(super) async fn count(&self) -> Result<u64> {
        // Only texts are keys.
        let all = doc! { "key": { "$gte": "" }, "deleted": { "$ne": true } };
        self.collection.count_documents(all).max_time(PATIENCE).await.map_err(failure::of_read)
    }

    async fn find(&self, mut filter: Document) -> Result<Cursor<RawDocumentBuf>> {
        if let Some(beginning) = self.beginning {
            filter.insert("beginning", beginning);
        }
        let found = self.collection.find(filter).sort(doc! { "key": 1 });
        let found = found.projection(doc! { "words": 0, "requests": 0 });
        found.max_time(PATIENCE).await.map_err(failure::of_read)
    }
}

/// Whether the server can be asked for this; otherwise all documents are looked through. Servers that are
/// not MongoDB take some names of fields for something else, and do not find `null` in lists.
pub(super) fn is_understood(what: &Selection, server: &Server) -> bool {
    match what {
        Selection::Field(name, value) => {
            let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            server.is_mongodb() || (is_plain && *value != Json::Null)
        }
        Selection::Words(_) => true,
    }
}

/// Whether the document is one; servers that are not MongoDB take `true` for `1`, and all take what is
/// missing for `null`. An index of words needs no second look.
fn is_selected(what: Option<&Selection>, record: &Record) -> bool {
    match what {
        Some(what @ Selection::Field(..)) => {
            Json::parse(record.value.as_str()).is_ok_and(|document| what.selects(&document))
        }
        Some(Selection::Words(_)) | None => true,
    }
}

fn filter(what: Option<&Selection>, scan: &Scan) -> Document {
    let mut keys = doc! { "$gte": &scan.prefix };
    if let Some(end) = successor(&scan.prefix) {
        keys.insert("$lt", end);
    }
    if let Some(after) = &scan.after {
        keys.insert("$gt", after.as_str());
    }
    let mut filter = doc! { "key": keys, "deleted": { "$ne": true } };
    match what {
        Some(Selection::Field(name, value)) => {
            filter.insert(format!("data.{name}"), bson::of_json(value));
        }
        // `$all` is what asks an index over lists.
        Some(Selection::Words(words)) => {
            filter.insert("words", doc! { "$all": Bson::from(words.clone()) });
        }
        None => {}
    }
    filter
}

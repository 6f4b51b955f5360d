//! A store of summaries in memory, which a test can change by hand and hold up.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use terrace_core::testkit::key;
use terrace_core::{
    Batch, BoxFuture, Checkpoint, Error, ErrorKind, Follower, Inspection, Key, Origin, Page, Read,
    ReadOptions, Receipt, Record, Result, Runtime, Scan, Store, Token, Value, Version, Write,
    WriteOptions,
};
use terrace_layers::SummaryStore;

pub(super) type Rows = BTreeMap<Key, (Version, Option<Record>)>;

#[derive(Debug, Default)]
pub(super) struct Kept {
    state: Mutex<(Rows, Checkpoint)>,
    held: AtomicBool,
    loses_all: AtomicBool,
    largest: AtomicUsize,
}

impl Kept {
    pub(super) fn as_summaries(self: &Arc<Self>) -> SummaryStore {
        SummaryStore { store: Arc::clone(self) as _, follower: Arc::clone(self) as _ }
    }

    /// Applies nothing more, or again.
    pub(super) fn hold(&self, held: bool) {
        self.held.store(held, Ordering::SeqCst);
    }

    /// Another instance begins anew as soon as the next read comes.
    pub(super) fn begin_anew_at_the_next_read(&self) {
        self.loses_all.store(true, Ordering::SeqCst);
    }

    /// The most changes that were applied at once.
    pub(super) fn largest_batch(&self) -> usize {
        self.largest.load(Ordering::SeqCst)
    }

    fn lose_all(&self, log: &str) {
        let (rows, checkpoint) = &mut *self.state.lock().unwrap();
        rows.clear();
        let beginning = checkpoint.beginning + 1;
        *checkpoint = Checkpoint { beginning, ..Checkpoint::beginning(log) };
    }

    pub(super) fn rows(&self) -> Rows {
        self.state.lock().unwrap().0.clone()
    }

    pub(super) fn record(&self, user: &str) -> Option<Record> {
        self.rows().get(&key(user)).and_then(|(_, record)| record.clone())
    }

    /// Says that it has come as far, whatever it has.
    pub(super) fn stand_at(&self, checkpoint: Checkpoint) {
        self.state.lock().unwrap().1 = checkpoint;
    }

    /// Changes a row by hand.
    pub(super) fn change(&self, user: &str, version: Version, value: Option<Value>) {
        let at = Runtime::system().wall();
        let record = value.map(|value| Record {
            key: key(user),
            value,
            version,
            created_at: at,
            updated_at: at,
        });
        self.state.lock().unwrap().0.insert(key(user), (version, record));
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("kept")
    }
}

impl Follower for Kept {
    fn checkpoint(&self) -> BoxFuture<'_, Result<Checkpoint>> {
        Box::pin(async { Ok(self.state.lock().unwrap().1.clone()) })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            if self.held.load(Ordering::SeqCst) {
                return Err(Error::new(ErrorKind::Unavailable, "held up"));
            }
            self.largest.fetch_max(batch.changes.len(), Ordering::SeqCst);
            let (rows, checkpoint) = &mut *self.state.lock().unwrap();
            if *checkpoint != batch.from {
                return Ok(false);
            }
            for change in &batch.changes {
                let row = rows.entry(change.key.clone()).or_default();
                if change.version > row.0 {
                    *row = (change.version, change.record.clone());
                }
            }
            *checkpoint = batch.to.clone();
            Ok(true)
        })
    }

    fn begin_anew<'a>(&'a self, log: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.lose_all(log);
            Ok(())
        })
    }
}

impl Store for Kept {
    fn read<'a>(&'a self, keys: &'a [Key], _: &'a ReadOptions) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(async move {
            if self.loses_all.swap(false, Ordering::SeqCst) {
                let log = self.state.lock().unwrap().1.log.clone();
                self.lose_all(&log);
            }
            let rows = self.rows();
            let read = |key| {
                let (version, record) = rows.get(key).cloned().unwrap_or_default();
                let (origin, age, token) = (Origin::PRIMARY, Duration::ZERO, Token::default());
                Read { record, version, origin, age, token, proof: None }
            };
            Ok(keys.iter().map(read).collect())
        })
    }

    fn write<'a>(
        &'a self,
        _: Vec<Write>,
        _: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async { Err(Error::new(ErrorKind::Internal, "followers only")) })
    }

    fn scan<'a>(&'a self, scan: &'a Scan, _: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            let after = |record: &Record| scan.after.as_ref().is_none_or(|it| record.key > *it);
            let records = self.rows().into_values().filter_map(|(_, record)| record);
            let records = records.filter(after).take(scan.limit + 1).collect();
            Ok(Page::cut(records, scan.limit, Origin::PRIMARY))
        })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async { Inspection::new("kept") })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

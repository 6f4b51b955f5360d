//! Documents in a SQLite file.

use std::fmt;
use std::sync::Arc;

use terrace_core::{
    BoxFuture, Change, Deadline, Documents, Generations, Inspection, Json, Key, Page, Position,
    Read, ReadOptions, Receipt, Result, Runtime, Scan, Selection, Store, Write, WriteOptions, json,
};

use super::lane::Lane;
use super::reader::{Reader, SCAN};
use super::shared::Shared;
use super::{SqliteOptions, SqliteStore, failure, words};

/// A [`SqliteStore`] whose values are documents, with an index of their words.
///
/// The text of a document is kept as it was written. A batch is atomic. The index changes in the
/// transaction of the write; a document that somebody else puts into the file is looked through by
/// every search until the next start, which indexes it. Selections by field walk over the documents.
/// Selections and counts run on a thread of their own, so they hold up no other read.
#[derive(Debug)]
pub struct SqliteDocuments {
    store: Arc<SqliteStore>,
    questions: Lane,
}

impl SqliteDocuments {
    /// Opens the file as [`SqliteStore::open`] does, and indexes what is not.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub fn open(options: SqliteOptions, runtime: Runtime) -> Result<Self> {
        let store = SqliteStore::open_for(options, runtime, true)?;
        let shared = &store.shared;
        let questions = Lane::start(&shared.options, "sqlite-select", shared.runtime.clone())?;
        Ok(Self { store: Arc::new(store), questions })
    }

    /// The histories and generations of the file, for caches.
    pub fn generations(&self) -> Arc<dyn Generations> {
        Arc::clone(&self.store) as _
    }

    /// What the work answers on the thread for questions, by this deadline.
    async fn ask<T: Send + 'static>(
        &self,
        deadline: Deadline,
        work: impl FnOnce(&mut Reader<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = Arc::clone(&self.store.shared);
        deadline.check(shared.runtime.now())?;
        let runtime = shared.runtime.clone();
        let asked = self.questions.run(move |connection| {
            // It may have waited.
            deadline.check(shared.runtime.now())?;
            work(&mut Reader::new(&shared, connection).map_err(failure::of)?)
        });
        runtime.within(deadline, asked).await.unwrap_or_else(|| Err(Deadline::exceeded()))
    }
}

fn select(
    reader: &mut Reader<'_>,
    shared: &Shared,
    what: &Selection,
    scan: &Scan,
    asked: Option<Position>,
    deadline: Deadline,
) -> Result<Page> {
    let selects = |text: &str| {
        deadline.check(shared.runtime.now())?;
        Ok(Json::parse(text).is_ok_and(|document| what.selects(&document)))
    };
    reader.in_snapshot(asked, |reader, seen| match what {
        Selection::Words(all) => words::select(reader, all, scan, seen, selects),
        Selection::Field(..) => {
            reader.page(SCAN, &[], scan, seen, |record| selects(record.value.as_str()))
        }
    })
}

impl Documents for SqliteDocuments {
    fn select<'a>(
        &'a self,
        what: &'a Selection,
        scan: &'a Scan,
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            let (what, scan, deadline) = (what.clone(), scan.clone(), how.deadline);
            let (asked, shared) = (self.store.asked(how)?, Arc::clone(&self.store.shared));
            let page = self.ask(deadline, move |reader| {
                select(reader, &shared, &what, &scan, asked, deadline)
            });
            page.await.map_err(|error| error.during("select"))
        })
    }

    fn count(&self) -> BoxFuture<'_, Result<u64>> {
        const COUNT: &str = "SELECT (SELECT count(*) FROM records)
            - (SELECT count(*) FROM records WHERE deleted = 1)";
        Box::pin(async move {
            let count = self.ask(Deadline::NEVER, |reader| reader.number(COUNT));
            count.await.map_err(|error| error.during("count"))
        })
    }
}

impl fmt::Display for SqliteDocuments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for SqliteDocuments {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        self.store.read(keys, how)
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async move {
            for write in &batch {
                if let Change::Put(value) = &write.change {
                    json::object(value).map_err(|error| error.during("write"))?;
                }
            }
            self.store.write(batch, how).await
        })
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        self.store.scan(scan, how)
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        self.store.inspect()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.questions.close();
            self.store.close().await
        })
    }
}

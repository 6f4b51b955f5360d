//! The words of records, indexed behind the projection.
//!
//! Taking a value apart and indexing its words costs twice what its row costs, and of a key that is
//! written again and again only the last value is searched. So the projection leaves the words of a
//! row as they are, and whoever projects brings them up to date once a second, each key once, several
//! parts at a time. A search on that instance brings them up to date first; elsewhere it may miss what
//! came within the last second. It never finds a record by words that it has no more.
//!
//! `worded` is the version that a row's words are of. Which rows are behind is known in memory alone;
//! that any may be is noted beside the checkpoint, in the same transaction. Who takes the projection
//! over and finds that note looks through all rows, some at a time.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use terrace_core::read_model::Batch;
use terrace_core::{Deadline, Key, Position, Result};
use tokio_postgres::types::Type;

use super::super::connect::Connection;
use super::super::work::{Failure, Progress, Work, Worker};
use super::apply::signed;
use super::steps::{LOCK, SHARE, Statement, Typed, locked};

/// The searched words of a row. The text is bounded, for the index refuses entries above 1 MiB.
macro_rules! words {
    ($key:literal, $value:literal) => {
        concat!("to_tsvector('simple'::regconfig, ", $key, " || ' ' || left(", $value, ", 100000))")
    };
}
pub(super) use words;

/// How long a search elsewhere may be behind.
const PACE: Duration = Duration::from_secs(1);
/// Rows of one statement: it holds the checkpoint's row meanwhile.
const PART: usize = 500;
/// More keys than this are not kept in mind.
const MOST: usize = 100_000;

/// What is known of rows whose words are behind.
#[derive(Debug, Default)]
pub(super) struct Words {
    behind: Mutex<Behind>,
    /// One at a time.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Behind {
    keys: BTreeSet<Key>,
    /// The checkpoint after the last batch.
    place: Position,
    /// How often rows may have been left behind that nobody here knows of, and for how many of these
    /// times all rows were looked through.
    noted: u64,
    looked: u64,
}

impl Words {
    fn behind(&self) -> MutexGuard<'_, Behind> {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The projection goes on from here, and rows may be behind: of batches that others applied, or
    /// that this instance did without hearing of it.
    pub(super) fn begin(&self, place: Position) {
        let mut behind = self.behind();
        if behind.place != place {
            behind.place = place;
            behind.noted += 1;
        }
    }

    /// A batch was applied.
    pub(super) fn applied(&self, batch: &Batch) {
        let mut behind = self.behind();
        behind.place = batch.to;
        behind.keys.extend(batch.folded.iter().map(|folded| folded.newest.key.clone()));
        if behind.keys.len() > MOST {
            behind.keys.clear();
            behind.noted += 1;
        }
    }

    /// Indexes the words of all rows that are known to be behind.
    pub(super) async fn catch_up(&self, worker: &Worker) -> Result<()> {
        let _turn = self.turn.lock().await;
        let (keys, place) = {
            let mut behind = self.behind();
            (std::mem::take(&mut behind.keys), behind.place)
        };
        if keys.is_empty() {
            return Ok(());
        }
        let back = PutBack { words: self, keys };
        let all = back.keys.iter().collect::<Vec<_>>();
        let lanes = std::thread::available_parallelism().map_or(1, |cores| cores.get() / 2);
        let lanes = lanes.clamp(1, 4);
        try_join_all((0..lanes).map(|lane| index(worker, &all, lane, lanes))).await?;
        back.done();
        let whole = {
            let behind = self.behind();
            behind.noted == behind.looked && behind.keys.is_empty()
        };
        if whole {
            perform(worker, Settled { place }).await?;
        }
        Ok(())
    }

    /// Once a second, until the pool is closed.
    pub(super) async fn run(&self, worker: &Worker) {
        let mut failing = false;
        while !worker.pool.is_closed() {
            worker.runtime.sleep(worker.runtime.jitter(PACE, 0.1)).await;
            let done = self.look_through(worker).await;
            match done.and(self.catch_up(worker).await) {
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(%error, "words are not indexed; searches may miss the latest \
                        changes; it is tried again");
                }
                done => failing &= done.is_err(),
            }
        }
    }

    /// Looks through all rows for some that are behind, if there may be any.
    async fn look_through(&self, worker: &Worker) -> Result<()> {
        let noted = {
            let behind = self.behind();
            if behind.noted == behind.looked {
                return Ok(());
            }
            behind.noted
        };
        tracing::info!("words of the read model may be behind; all rows are looked through");
        let mut from = Some(String::new());
        while let Some(after) = from {
            from = perform(worker, Look { after: &after }).await?;
        }
        self.behind().looked = noted;
        Ok(())
    }
}

/// Every so many parts, one after the other.
async fn index(worker: &Worker, keys: &[&Key], lane: usize, lanes: usize) -> Result<()> {
    for keys in keys.chunks(PART).skip(lane).step_by(lanes) {
        perform(worker, Index { keys }).await?;
    }
    Ok(())
}

async fn perform<W: Work>(worker: &Worker, work: W) -> Result<W::Answer> {
    worker.perform(&work, Deadline::at(worker.runtime.now() + worker.patience * 2)).await
}

/// Keys that are behind again unless all went well.
struct PutBack<'a> {
    words: &'a Words,
    keys: BTreeSet<Key>,
}

impl PutBack<'_> {
    fn done(mut self) {
        self.keys.clear();
    }
}

impl Drop for PutBack<'_> {
    fn drop(&mut self) {
        self.words.behind().keys.append(&mut self.keys);
    }
}

/// Indexes the words of these keys' rows, in the order of the keys.
struct Index<'a> {
    keys: &'a [&'a Key],
}

impl Work for Index<'_> {
    type Answer = ();

    const OPERATION: &'static str = "index words";

    async fn run(&self, connection: &Connection, progress: &Progress) -> Result<(), Failure> {
        const TEXT: &str = concat!(
            "UPDATE records r SET worded = r.version, words = ",
            words!("r.key", "r.value"),
            " FROM unnest($1::text[]) AS u(k) \
             WHERE r.key = u.k AND r.worded IS DISTINCT FROM r.version"
        );
        let keys = self.keys.iter().map(|key| key.as_str()).collect::<Vec<_>>();
        let parameters: [Typed<'_>; 1] = [(&keys, Type::TEXT_ARRAY)];
        locked(connection, progress, SHARE, Statement::Once(TEXT), &parameters).await.map(drop)
    }
}

/// Indexes the words of some rows after a key, where they are behind; answers the last key that was
/// looked at.
struct Look<'a> {
    after: &'a str,
}

impl Work for Look<'_> {
    type Answer = Option<String>;

    const OPERATION: &'static str = "look for words that are behind";

    async fn run(
        &self,
        connection: &Connection,
        progress: &Progress,
    ) -> Result<Option<String>, Failure> {
        const TEXT: &str = concat!(
            "WITH page AS (SELECT key FROM records WHERE key > $1 ORDER BY key LIMIT $2), \
             done AS (UPDATE records r SET worded = r.version, words = ",
            words!("r.key", "r.value"),
            " FROM page WHERE r.key = page.key AND r.worded IS DISTINCT FROM r.version) \
             SELECT max(key) FROM page"
        );
        let limit = signed(PART as u64);
        let parameters: [Typed<'_>; 2] = [(&self.after, Type::TEXT), (&limit, Type::INT8)];
        let rows = locked(connection, progress, SHARE, Statement::Once(TEXT), &parameters).await?;
        Ok(rows.first().and_then(|row| row.get(0)))
    }
}

/// Notes that no row is behind, unless the projection went on meanwhile.
struct Settled {
    place: Position,
}

impl Work for Settled {
    type Answer = ();

    const OPERATION: &'static str = "note that words are indexed";

    async fn run(&self, connection: &Connection, progress: &Progress) -> Result<(), Failure> {
        const TEXT: &str = "UPDATE projection SET words_behind = false \
             WHERE name = 'live' AND words_behind AND epoch = $1 AND place = $2";
        let (epoch, place) = (signed(self.place.epoch), signed(self.place.offset));
        let parameters: [Typed<'_>; 2] = [(&epoch, Type::INT8), (&place, Type::INT8)];
        locked(connection, progress, LOCK, Statement::Once(TEXT), &parameters).await.map(drop)
    }
}

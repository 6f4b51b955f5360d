//! The words of records, indexed behind the projection.
//!
//! Taking a value apart and indexing its words costs twice what its row costs, and of a key that is
//! written again and again only the last value is searched. So the projection leaves the words of a
//! row as they are, and whoever projects brings them up to date, each key once, several parts at a
//! time: after a second in calm, and under load after a rest of [`REST`] times the work, up to
//! [`LONGEST`], for keys that change again meanwhile. A search on that instance brings them up to date
//! first, for as long as a second; elsewhere it may miss what came since. It never finds a record by
//! words that it has no more.
//!
//! `worded` is the version that a row's words are of. Which rows are behind is known in memory alone;
//! that any may be is noted beside the checkpoint, in the same transaction. Who takes the projection
//! over and finds that note looks through all rows, some at a time. A row is forgotten when its words
//! are on disk: a crash of the server takes back the last changes and all that followed them.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use terrace_core::read_model::Batch;
use terrace_core::{Deadline, ErrorKind, Key, LogPosition, Result};
use tokio_postgres::types::Type;

use super::super::connect::Connection;
use super::super::work::{Failure, Progress, Work, Worker, corrupt, not_allowed};
use super::apply::signed;
use super::steps::{LOCK, SHARE, Statement, Typed, locked};

/// The searched words of a row. The text is bounded, for the index refuses entries above 1 MiB.
macro_rules! words {
    ($key:literal, $value:literal) => {
        concat!("to_tsvector('simple'::regconfig, ", $key, " || ' ' || left(", $value, ", 100000))")
    };
}
pub(super) use words;

/// How long words rest in calm, and a search here may wait.
const PACE: Duration = Duration::from_secs(1);
/// They rest so many times as long as their last work took: a twentieth of the time is work,
const REST: u32 = 19;
/// no longer than this,
const LONGEST: Duration = Duration::from_secs(5);
/// and only until so many keys are behind: waiting saves nothing where each key is another.
const ENOUGH: usize = 20_000;
/// Rows of one statement: it holds the checkpoint's row meanwhile. Halved where that is too much.
const PART: usize = 500;
/// With more keys than this in mind the projection waits for their words.
const MANY: usize = 100_000;

/// What is known of rows whose words are behind.
#[derive(Debug, Default)]
pub(super) struct Words {
    behind: Mutex<Behind>,
    /// One at a time.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Behind {
    keys: HashSet<Key>,
    /// The checkpoint after the last batch.
    place: LogPosition,
    /// Whether the note beside the checkpoint may stand.
    note: bool,
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
    pub(super) fn begin(&self, place: LogPosition) {
        let mut behind = self.behind();
        behind.note = true;
        if behind.place != place {
            behind.place = place;
            behind.noted += 1;
        }
    }

    /// A batch will be applied: who reads its changes may search for them before this instance hears
    /// that they are there. Where words cannot follow, it waits for them.
    pub(super) async fn applying(&self, batch: &Batch, worker: &Worker) {
        if self.behind().keys.len() > MANY {
            let _tried = self.catch_up(worker).await;
        }
        self.remember(batch);
    }

    /// It was applied.
    pub(super) fn applied(&self, batch: &Batch) {
        // Once more: what was indexed meanwhile may have been the state before.
        self.remember(batch);
        let mut behind = self.behind();
        behind.place = batch.to;
        behind.note = true;
    }

    fn remember(&self, batch: &Batch) {
        let mut behind = self.behind();
        behind.keys.extend(batch.folded.iter().map(|folded| folded.newest.key.clone()));
        if behind.keys.len() > 4 * MANY {
            // Nothing can be indexed, for long; memory has an end.
            behind.keys.clear();
            behind.noted += 1;
        }
    }

    /// As [`Words::catch_up`], for as long as a search may wait.
    pub(super) async fn catch_up_soon(&self, worker: &Worker) {
        let until = Deadline::at(worker.runtime.now() + PACE);
        let caught_up = worker.runtime.within(until, self.catch_up(worker));
        let _what_fails_is_tried_again = caught_up.await;
    }

    /// Indexes the words of all rows that are known to be behind. Cancellation safe.
    pub(super) async fn catch_up(&self, worker: &Worker) -> Result<()> {
        let _turn = self.turn.lock().await;
        let (keys, place) = {
            let mut behind = self.behind();
            if behind.keys.is_empty() && !behind.note {
                return Ok(());
            }
            (std::mem::take(&mut behind.keys), behind.place)
        };
        let back = PutBack { words: self, keys };
        let mut keys = back.keys.iter().collect::<Vec<_>>();
        keys.sort_unstable();
        index_all(worker, &keys).await?;
        back.done();
        let whole = {
            let behind = self.behind();
            behind.noted == behind.looked && behind.keys.is_empty() && behind.place == place
        };
        if whole {
            perform(worker, Settled { place }).await?;
            // Where another has gone on, the note is the other's.
            let mut behind = self.behind();
            behind.note &= behind.place != place;
        }
        Ok(())
    }

    /// Again and again, until the pool is closed.
    pub(super) async fn run(&self, worker: &Worker) {
        let (mut failing, mut took, mut enough) = (false, Duration::ZERO, ENOUGH);
        while !worker.pool.is_closed() {
            self.rest(took.saturating_mul(REST).min(LONGEST), enough, worker).await;
            let (began, count) = (worker.runtime.now(), self.behind().keys.len());
            let done = match self.look_through(worker).await {
                Ok(()) => self.catch_up(worker).await,
                failed => failed,
            };
            match done {
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(%error, "words are not indexed; searches may miss the latest \
                        changes; it is tried again");
                }
                done => failing &= done.is_err(),
            }
            took = worker.runtime.now() - began;
            enough = enough_for_a_search(count, took);
        }
    }

    /// Lets changes gather for so long, at least [`PACE`], or until there are enough.
    async fn rest(&self, rest: Duration, enough: usize, worker: &Worker) {
        let until = worker.runtime.now() + rest;
        let mut pause = PACE;
        while !pause.is_zero() && !worker.pool.is_closed() {
            worker.runtime.sleep(worker.runtime.jitter(pause, 0.1)).await;
            if self.behind().keys.len() >= enough {
                return;
            }
            pause = until.saturating_duration_since(worker.runtime.now()).min(PACE);
        }
    }

    /// Looks through all rows for some that are behind, if there may be any; what is known goes first.
    async fn look_through(&self, worker: &Worker) -> Result<()> {
        let noted = {
            let behind = self.behind();
            if behind.noted == behind.looked {
                return Ok(());
            }
            behind.noted
        };
        tracing::info!("words of the read model may be behind; all rows are looked through");
        let mut next = worker.runtime.now();
        let mut from = Some(String::new());
        while let Some(after) = from {
            if next <= worker.runtime.now() {
                self.catch_up(worker).await?;
                next = worker.runtime.now() + PACE;
            }
            let (behind, last) = perform(worker, Look { after: &after }).await?;
            index_all(worker, &behind.iter().collect::<Vec<_>>()).await?;
            from = last;
        }
        self.behind().looked = noted;
        Ok(())
    }
}

/// How many keys may be behind when so many took so long: a search has time for twice as many.
fn enough_for_a_search(count: usize, took: Duration) -> usize {
    let Ok(keys) = u32::try_from(count.min(ENOUGH)) else { return ENOUGH };
    let each = took.checked_div(keys).unwrap_or(Duration::ZERO);
    match (PACE / 2).as_nanos().checked_div(each.as_nanos()) {
        Some(keys) => usize::try_from(keys).unwrap_or(ENOUGH).min(ENOUGH),
        None => ENOUGH,
    }
}

/// Several parts beside each other, then the next: in between the projection gets its turn.
async fn index_all(worker: &Worker, keys: &[&Key]) -> Result<()> {
    let lanes = std::thread::available_parallelism().map_or(1, |cores| cores.get() / 2);
    for round in keys.chunks(PART * lanes.clamp(1, 4)) {
        let mut parts = Vec::new();
        for keys in round.chunks(PART) {
            parts.push(index(worker, keys));
        }
        try_join_all(parts).await?;
    }
    Ok(())
}

/// A part; in halves where it is too much, or where one of its rows is refused, which is left.
async fn index(worker: &Worker, keys: &[&Key]) -> Result<()> {
    let mut parts = vec![keys];
    while let Some(keys) = parts.pop() {
        let Err(error) = perform(worker, Index { keys }).await else { continue };
        let refused = matches!(
            error.kind(),
            ErrorKind::InvalidInput | ErrorKind::Internal | ErrorKind::Corrupt
        );
        if !refused && error.kind() != ErrorKind::DeadlineExceeded {
            return Err(error);
        }
        match keys {
            [key] if refused => {
                let key = key.as_str();
                tracing::warn!(key, %error, "the words of a record cannot be indexed; it is not \
                    found by them");
            }
            [] | [_] => return Err(error),
            keys => {
                let (one, other) = keys.split_at(keys.len() / 2);
                parts.extend([other, one]);
            }
        }
    }
    Ok(())
}

async fn perform<W: Work>(worker: &Worker, work: W) -> Result<W::Answer> {
    worker.perform(&work, Deadline::at(worker.runtime.now() + worker.patience * 2)).await
}

/// Keys that are behind again unless all went well.
struct PutBack<'a> {
    words: &'a Words,
    keys: HashSet<Key>,
}

impl PutBack<'_> {
    fn done(mut self) {
        self.keys.clear();
    }
}

impl Drop for PutBack<'_> {
    fn drop(&mut self) {
        self.words.behind().keys.extend(self.keys.drain());
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
        let work = Statement::OnDisk(TEXT);
        locked(connection, progress, SHARE, work, &parameters).await.map(drop)
    }
}

/// Which of some rows after a key are behind, and the last of all that were looked at.
struct Look<'a> {
    after: &'a str,
}

impl Work for Look<'_> {
    type Answer = (Vec<Key>, Option<String>);

    const OPERATION: &'static str = "look for words that are behind";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<Self::Answer, Failure> {
        const TEXT: &str = "SELECT key, worded IS DISTINCT FROM version FROM records \
             WHERE key > $1 ORDER BY key LIMIT $2";
        let limit = signed(PART as u64);
        let parameters: [Typed<'_>; 2] = [(&self.after, Type::TEXT), (&limit, Type::INT8)];
        let rows = connection.ask(TEXT, &parameters).await?;
        let mut behind = Vec::new();
        for row in &rows {
            if row.try_get(1).map_err(corrupt)? {
                let key = row.try_get::<_, &str>(0).map_err(corrupt)?;
                behind.push(Key::new(key).map_err(not_allowed)?);
            }
        }
        let last = rows.last().map(|row| row.try_get(0)).transpose().map_err(corrupt)?;
        Ok((behind, last))
    }
}

/// Notes that no row is behind, unless the projection went on meanwhile.
struct Settled {
    place: LogPosition,
}

impl Work for Settled {
    type Answer = ();

    const OPERATION: &'static str = "note that words are indexed";

    async fn run(&self, connection: &Connection, progress: &Progress) -> Result<(), Failure> {
        const TEXT: &str = "UPDATE projection SET words_behind = false \
             WHERE name = 'live' AND epoch = $1 AND place = $2";
        let (epoch, place) = (signed(self.place.epoch), signed(self.place.offset));
        let parameters: [Typed<'_>; 2] = [(&epoch, Type::INT8), (&place, Type::INT8)];
        locked(connection, progress, LOCK, Statement::Once(TEXT), &parameters).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_gather_than_a_search_has_time_for() {
        let enough = |count, millis| enough_for_a_search(count, Duration::from_millis(millis));
        assert_eq!(enough(0, 0), ENOUGH, "nothing is known");
        assert_eq!(enough(10_000, 100), ENOUGH, "10 us each");
        assert_eq!(enough(1000, 1000), 500, "1 ms each, half a second");
        assert_eq!(enough(1, 10_000), 0, "each time");
    }
}

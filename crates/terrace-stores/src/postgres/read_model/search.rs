//! The search index: a follower of its own, behind the projection.
//!
//! Taking a value apart and indexing its words costs twice what its row costs, and of a key that is
//! written again and again only the last value is searched. So the index follows the log at a slower
//! pace, in batches in which each key comes once. A search may miss what came in the last seconds; it
//! never finds a record by words that it has no more, for it looks at the row, too.

use std::fmt;

use terrace_core::read_model::fold;
use terrace_core::{Batch, BoxFuture, Checkpoint, Deadline, Follower, Result};
use tokio_postgres::types::Type;

use super::super::connection::Connection;
use super::super::work::{Failure, Progress, Work};
use super::super::worker::Worker;
use super::apply::signed;
use super::query::FindCheckpoint;
use super::rebuild::Begin;
use super::steps::{LOCK_SEARCH, Statement, Typed, locked};
use super::tables::{SEARCH, words};

/// Indexes the words of what the log says.
#[derive(Clone)]
pub(super) struct SearchIndex(pub(super) Worker);

impl SearchIndex {
    async fn perform<W: Work>(&self, work: &W) -> Result<W::Answer> {
        let deadline = Deadline::at(self.0.runtime.now() + self.0.patience * 2);
        self.0.perform(work, deadline).await
    }
}

impl Follower for SearchIndex {
    fn checkpoint(&self) -> BoxFuture<'_, Result<Checkpoint>> {
        Box::pin(async { self.perform(&FindCheckpoint(SEARCH)).await })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move { self.perform(&Index(batch)).await })
    }

    fn begin_anew<'a>(&'a self, log: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.perform(&Begin { name: SEARCH, log }).await })
    }
}

impl fmt::Display for SearchIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.pool.connector().fmt(f)
    }
}

impl fmt::Debug for SearchIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SearchIndex")
    }
}

/// One batch. A deletion keeps its version, so that an older change that comes later is not indexed; so
/// does a change whose words are refused.
struct Index<'a>(&'a Batch);

impl Work for Index<'_> {
    type Answer = bool;

    const OPERATION: &'static str = "index words";

    async fn run(&self, connection: &Connection, progress: &Progress) -> Result<bool, Failure> {
        const TEXT: &str = concat!(
            "WITH moved AS ( \
               UPDATE terrace_projection SET epoch = $1, place = $2 \
               WHERE name = 'search' AND source = $3 AND epoch = $4 AND place = $5 RETURNING 1), \
             indexed AS ( \
               INSERT INTO terrace_words AS w (key, version, words) \
               SELECT u.k, u.n, CASE WHEN u.v IS NULL THEN '' ELSE ",
            words!("u.k", "u.v"),
            " END FROM moved, unnest($6::text[], $7::text[], $8::bigint[]) AS u(k, v, n) \
               ON CONFLICT (key) DO UPDATE SET version = excluded.version, words = excluded.words \
               WHERE w.version <= excluded.version) \
             SELECT count(*) FROM moved"
        );
        let Batch { from, to, changes, refused, .. } = self.0;
        let folded = fold(changes);
        let keys = folded.iter().map(|it| it.newest.key.as_str()).collect::<Vec<_>>();
        let value = |it: &terrace_core::Logged| {
            let record = it.record.as_ref().filter(|_| refused.is_none());
            record.map(|record| record.value.as_str().to_owned())
        };
        let values = folded.iter().map(|it| value(&it.newest)).collect::<Vec<_>>();
        let versions = folded.iter().map(|it| signed(it.newest.version.get())).collect::<Vec<_>>();
        let (to, log) = (to.position, from.log.as_str());
        let [epoch, place, from_epoch, from_place] =
            [to.epoch, to.offset, from.position.epoch, from.position.offset].map(signed);
        let parameters: [Typed<'_>; 8] = [
            (&epoch, Type::INT8),
            (&place, Type::INT8),
            (&log, Type::TEXT),
            (&from_epoch, Type::INT8),
            (&from_place, Type::INT8),
            (&keys, Type::TEXT_ARRAY),
            (&values, Type::TEXT_ARRAY),
            (&versions, Type::INT8_ARRAY),
        ];
        let rows =
            locked(connection, progress, LOCK_SEARCH, Statement::Once(TEXT), &parameters).await?;
        Ok(rows.first().is_some_and(|row| row.get::<_, i64>(0) > 0))
    }
}

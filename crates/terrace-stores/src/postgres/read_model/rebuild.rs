//! A projection made anew beside the one that answers.

use terrace_core::read_model::{Difference, Projection};
use tokio_postgres::types::Type;

use super::super::connection::Connection;
use super::super::log::difference;
use super::super::work::{Failure, Progress, Work, end_transaction};
use super::steps::{LOCK, LOCK_NEXT, LOCK_SEARCH};
use super::tables::{self, DROP_NEXT, EMPTY, NEXT, SEARCH, SWAP};

/// Makes a projection, or the search index, empty, at the beginning of this log.
pub(super) struct Begin<'a> {
    pub(super) name: &'static str,
    pub(super) log: &'a str,
}

impl Work for Begin<'_> {
    type Answer = ();

    const OPERATION: &'static str = "begin a projection";

    async fn run(&self, connection: &Connection, progress: &Progress) -> Result<(), Failure> {
        const START: &str = "UPDATE terrace_projection SET source = $2, epoch = 0, place = 0, \
             whole = false, paused_until = NULL WHERE name = $1";
        let (lock, tables) = match self.name {
            SEARCH => (LOCK_SEARCH, "TRUNCATE terrace_words"),
            name if name == tables::name(Projection::Next) => (LOCK_NEXT, NEXT),
            _ => (LOCK, EMPTY),
        };
        progress.in_transaction(true);
        connection.command("BEGIN").await?;
        let done = async {
            connection.command(lock).await?;
            connection.command(tables).await?;
            connection.ask(START, &[(&self.name, Type::TEXT), (&self.log, Type::TEXT)]).await
        };
        end_transaction(connection, progress, done.await.map(drop).map_err(Failure::from)).await
    }
}

/// Compares, and swaps.
pub(super) struct Finish {
    pub(super) swap: bool,
}

/// Everything but reads, which are no changes of the log. Commands that the log no longer has are counted
/// by the live side alone; it forgets none before a week.
const COMPARE: &str = "WITH compared AS ( \
       SELECT coalesce(a.key, b.key) AS key, \
         (a.value, a.version, a.created_at, a.updated_at, a.deleted) IS DISTINCT FROM \
         (b.value, b.version, b.created_at, b.updated_at, b.deleted) \
         OR a.write_count < b.write_count \
         OR a.write_count > b.write_count AND NOT EXISTS (SELECT 1 FROM terrace_activity \
           WHERE minute < extract(epoch FROM now()) / 60 - 7 * 24 * 60) AS differs \
       FROM records a FULL JOIN terrace_records_next b ON a.key = b.key) \
     SELECT count(*), count(*) FILTER (WHERE differs), \
       ARRAY(SELECT key FROM compared WHERE differs ORDER BY key LIMIT 10) FROM compared";

const READS: &str = "UPDATE terrace_records_next n SET read_count = r.read_count FROM records r \
     WHERE r.key = n.key AND r.read_count > 0";

impl Work for Finish {
    type Answer = Option<Difference>;

    const OPERATION: &'static str = "finish a rebuild";

    async fn run(
        &self,
        connection: &Connection,
        progress: &Progress,
    ) -> Result<Option<Difference>, Failure> {
        progress.in_transaction(true);
        connection.command("BEGIN").await?;
        let done = self.compare_and_swap(connection).await;
        end_transaction(connection, progress, done).await
    }
}

impl Finish {
    async fn compare_and_swap(
        &self,
        connection: &Connection,
    ) -> Result<Option<Difference>, Failure> {
        const SAME: &str = "SELECT a.source = b.source AND a.epoch = b.epoch AND a.place = b.place \
             FROM terrace_projection a, terrace_projection b WHERE a.name = 'live' AND b.name = 'next'";
        const GO_ON: &str = "UPDATE terrace_projection SET paused_until = NULL WHERE name = 'live'; \
             UPDATE terrace_projection SET source = '', epoch = 0, place = 0 WHERE name = 'next'";
        /// The search index is made anew, too; it answers meanwhile.
        const INDEX: &str =
            "UPDATE terrace_projection SET epoch = 0, place = 0 WHERE name = 'search'";
        // Readers queue behind a swap that waits for one of them.
        const NOT_LONG: &str = "SET LOCAL lock_timeout = '400ms'";
        // The store's sessions are told to look rows up one by one; here all are compared. The reads
        // of a table that goes away end before it does.
        const FOR_ALL: &str = "SET LOCAL enable_hashjoin = on; SET LOCAL enable_seqscan = on; \
             SET LOCAL statement_timeout = '10min'";
        connection.command(LOCK).await?;
        // Nor may another rebuild begin between the look and the swap.
        connection.command(LOCK_NEXT).await?;
        connection.command(FOR_ALL).await?;
        let same = connection.ask(SAME, &[]).await?;
        if same.first().is_none_or(|row| row.get::<_, Option<bool>>(0) != Some(true)) {
            return Ok(None);
        }
        let compared = connection.ask(COMPARE, &[]).await?;
        let difference = difference(compared.first())?;
        if self.swap {
            connection.command(READS).await?;
            connection.command(NOT_LONG).await?;
            connection.command(SWAP).await?;
            connection.command(INDEX).await?;
        } else {
            connection.command(DROP_NEXT).await?;
        }
        connection.command(GO_ON).await?;
        Ok(Some(difference))
    }
}

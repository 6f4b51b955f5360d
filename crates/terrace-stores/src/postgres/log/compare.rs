//! The log compared with the records themselves.
//!
//! Triggers fill the log, and a session may have switched them off (`session_replication_role`), as may
//! have whoever owns the table. What was changed then is in the records and not in the log. In one
//! snapshot both say the same of every key, or it was changed so.
//!
//! **Mending** changes such a row to what it is, so that the triggers see it: it gets a new version and
//! its change is logged. A row that is gone leaves the row of a deletion, as one that Terrace deletes.

use terrace_core::Result;
use terrace_core::read_model::Difference;
use tokio_postgres::Row;

use super::super::connection::Connection;
use super::super::work::{Failure, Progress, Work, corrupt, end_transaction};

/// Compares, and mends.
pub(super) struct CompareWithRecords {
    pub(super) mend: bool,
}

/// Each key, whether its record is not what the log says, and whether it has no row.
const COMPARED: &str = "WITH compared AS MATERIALIZED ( \
       SELECT coalesce(r.key, c.key) AS key, r.key IS NULL AS is_gone, \
         NOT (coalesce(r.deleted, true) AND coalesce(c.deleted, true)) \
         AND (r.deleted, r.version, r.value, r.created_at, r.updated_at) IS DISTINCT FROM \
         (c.deleted, c.version, c.value, c.created_at, c.time) AS differs \
       FROM records r FULL JOIN ( \
         SELECT DISTINCT ON (key) key, type = 'RecordDeleted' AS deleted, version, value, \
           created_at, time FROM commands ORDER BY key, version DESC, transaction DESC) c \
         ON c.key = r.key)";

/// Somebody may put a row in the place of the one that is gone meanwhile; then that is logged.
const MENDED: &str = "changed AS (UPDATE records r SET value = r.value FROM compared c \
         WHERE c.key = r.key AND c.differs), \
     gone AS (INSERT INTO records (key, value, deleted) \
       SELECT key, '', true FROM compared WHERE differs AND is_gone ON CONFLICT (key) DO NOTHING)";

const FOUND: &str = "SELECT count(*), count(*) FILTER (WHERE differs), \
       ARRAY(SELECT key FROM compared WHERE differs ORDER BY key LIMIT 10) FROM compared";

impl Work for CompareWithRecords {
    type Answer = Difference;

    const OPERATION: &'static str = "compare the change log with the records";

    async fn run(
        &self,
        connection: &Connection,
        progress: &Progress,
    ) -> Result<Difference, Failure> {
        // The store's sessions are told to look rows up one by one; here all are compared.
        const FOR_ALL: &str = "BEGIN; SET LOCAL enable_hashjoin = on; SET LOCAL enable_seqscan = on; \
             SET LOCAL statement_timeout = '10min'";
        let text = match self.mend {
            true => format!("{COMPARED}, {MENDED} {FOUND}"),
            false => format!("{COMPARED} {FOUND}"),
        };
        progress.in_transaction(true);
        connection.command(FOR_ALL).await?;
        let found = connection.ask(&text, &[]).await.map_err(Failure::from);
        let found = found.and_then(|rows| difference(rows.first()));
        end_transaction(connection, progress, found).await
    }
}

/// Keys, those that differ, and some of these.
pub(in super::super) fn difference(row: Option<&Row>) -> Result<Difference, Failure> {
    let Some(row) = row else { return Ok(Difference::default()) };
    let count = |column| {
        let number = row.try_get::<_, i64>(column).map_err(corrupt)?;
        Ok::<_, Failure>(u64::try_from(number).unwrap_or(0))
    };
    let examples = row.try_get::<_, Vec<String>>(2).map_err(corrupt)?;
    Ok(Difference { keys: count(0)?, differing: count(1)?, examples })
}

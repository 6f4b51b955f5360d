//! All rows of a shard, in one snapshot.

use terrace_core::{
    BoxFuture, Error, ErrorKind, Key, LogPosition, Logged, Record, Result, Rows, Value,
};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::super::connection::Connection;
use super::super::read::version;
use super::super::statements::Moment;
use super::{Inner, LOCK, number_of_table, refused};

/// How many rows are asked for at once, and about how many bytes of values at most.
const PAGE: i64 = 1000;
const PAGE_BYTES: i64 = 4 * 1024 * 1024;

impl Inner {
    pub(super) async fn rows(
        &self,
        after: Option<Key>,
        quiet: Option<BoxFuture<'_, Result<()>>>,
    ) -> Result<Box<dyn Rows>> {
        let mut session = self.open().await?;
        let Some(quiet) = quiet else {
            begin(&mut session).await?;
            return Ok(Box::new(Snapshot { session, after, ended: false }));
        };
        let mut alone = self.open().await?;
        let table = number_of_table(&self.schema);
        let lock = format!(
            "BEGIN; SET LOCAL lock_timeout = 0; SELECT pg_advisory_xact_lock({LOCK}, {table}::int)"
        );
        alone.client().batch_execute(&lock).await.map_err(refused)?;
        quiet.await?;
        begin(&mut session).await?;
        // Should this session have been lost meanwhile, its lock was, too.
        alone.client().batch_execute("ROLLBACK").await.map_err(refused)?;
        Ok(Box::new(Snapshot { session, after, ended: false }))
    }
}

/// Takes the snapshot: that is done by the first statement which reads.
async fn begin(session: &mut Connection) -> Result<()> {
    const BEGIN: &str =
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT 1 FROM terrace_shard";
    session.client().batch_execute(BEGIN).await.map_err(refused)
}

struct Snapshot {
    session: Connection,
    after: Option<Key>,
    ended: bool,
}

const NEXT: &str = "SELECT key, version, deleted, created_at, updated_at, value FROM ( \
       SELECT *, sum(octet_length(value)) OVER ( \
         ORDER BY key ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before \
       FROM (SELECT * FROM records WHERE key > $1 ORDER BY key LIMIT $2) AS page) AS page \
     WHERE before IS NULL OR before < $3 ORDER BY key";

impl Rows for Snapshot {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Logged>>> {
        Box::pin(async move {
            if self.ended {
                return Ok(Vec::new());
            }
            let after = self.after.as_ref().map_or("", Key::as_str).to_owned();
            let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] =
                [(&after, Type::TEXT), (&PAGE, Type::INT8), (&PAGE_BYTES, Type::INT8)];
            let rows = self.session.client().query_typed(NEXT, &parameters).await;
            let rows = rows.map_err(refused)?;
            let rows = rows.iter().map(logged).collect::<Result<Vec<_>>>()?;
            self.after = rows.last().map(|row| row.key.clone());
            self.ended = rows.is_empty();
            Ok(rows)
        })
    }
}

fn logged(row: &Row) -> Result<Logged> {
    let corrupt = |error: Error| error.into_kind(ErrorKind::Corrupt);
    let key = Key::new(row.get::<_, &str>(0)).map_err(corrupt)?;
    let version = version(row.get(1));
    let record = match row.get::<_, bool>(2) {
        true => None,
        false => Some(Record {
            key: key.clone(),
            value: Value::new(row.get::<_, &str>(5)).map_err(corrupt)?,
            version,
            created_at: row.get::<_, Moment>(3).0,
            updated_at: row.get::<_, Moment>(4).0,
        }),
    };
    Ok(Logged { position: LogPosition::default(), key, version, record, ancestry: None })
}

//! Rows of a region, for first copies, comparisons and repairs; and the removal of deleted ones.

use std::collections::HashMap;
use std::sync::Arc;

use terrace_core::region::ValueDigest;
use terrace_core::{
    Ancestry, Conflict, Error, ErrorKind, Key, KeyRange, LogPosition, Logged, Page, RangeDigest,
    Record, RegionOptions, Seen, Value, Version,
};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::super::connection::Connection;
use super::super::log::of_region::stays;
use super::super::read::version;
use super::super::statements::Moment;
use super::super::work::{Failure, Progress, Work, corrupt, end_transaction, not_allowed};
use super::merge::{HORIZON, RAISE_HORIZON, collected, seen};

type Typed<'a> = (&'a (dyn ToSql + Sync), Type);

/// Rows of a range that may leave the region; a version that only a person can have set has none of them.
macro_rules! leaving {
    () => {
        concat!(
            "records r WHERE r.key > $1 AND ($2::text IS NULL OR r.key <= $2) \
             AND r.version BETWEEN 1 AND 9007199254740991 AND NOT ",
            stays!("r.key", "$3")
        )
    };
}

/// One snapshot for all statements that are sent; many rows take longer than a request may.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
     SET LOCAL statement_timeout = '10min'";

/// See [`terrace_core::RegionStore::digest`].
pub(super) struct Digest<'a> {
    pub(super) options: &'a RegionOptions,
    pub(super) range: &'a KeyRange,
}

fn ends(range: &KeyRange) -> (&str, Option<&str>) {
    (range.after.as_ref().map_or("", Key::as_str), range.through.as_ref().map(Key::as_str))
}

impl Work for Digest<'_> {
    type Answer = RangeDigest;

    const OPERATION: &'static str = "compare regions";

    async fn run(
        &self,
        connection: &Connection,
        progress: &Progress,
    ) -> Result<RangeDigest, Failure> {
        const TEXT: &str = concat!(
            "SELECT count(*), (coalesce(sum(('x' || substr(encode(sha256(convert_to( \
                 r.version || ':' || r.key || CASE WHEN r.deleted THEN '' ELSE ':' || r.value END, \
                 'UTF8')), 'hex'), 1, 15))::bit(60)::bigint), 0) % 1152921504606846976)::bigint, \
               percentile_disc(0.5) WITHIN GROUP (ORDER BY r.key) FROM ",
            leaving!()
        );
        let (after, through) = ends(self.range);
        let parameters: [Typed<'_>; 3] = [
            (&after, Type::TEXT),
            (&through, Type::TEXT),
            (&self.options.resident, Type::TEXT_ARRAY),
        ];
        progress.in_transaction(true);
        connection.command(BEGIN).await?;
        let found = connection.ask(TEXT, &parameters).await.map_err(Failure::from);
        let found = end_transaction(connection, progress, found).await?;
        let row = found.first().ok_or_else(nothing)?;
        let number = |column| row.try_get::<_, i64>(column).map_err(corrupt);
        let middle = row.try_get::<_, Option<&str>>(2).map_err(corrupt)?;
        Ok(RangeDigest {
            rows: number(0)?.unsigned_abs(),
            sum: number(1)?.unsigned_abs(),
            middle: middle.map(Key::new).transpose().map_err(not_allowed)?,
        })
    }
}

fn nothing() -> Failure {
    Failure::Refused(Error::new(ErrorKind::Internal, "the database answered nothing"))
}

/// See [`terrace_core::RegionStore::rows`].
pub(super) struct ReadRows<'a> {
    pub(super) options: &'a RegionOptions,
    pub(super) range: &'a KeyRange,
    pub(super) limit: usize,
}

impl Work for ReadRows<'_> {
    type Answer = Vec<Logged>;

    const OPERATION: &'static str = "read rows of a region";

    async fn run(
        &self,
        connection: &Connection,
        progress: &Progress,
    ) -> Result<Vec<Logged>, Failure> {
        progress.in_transaction(true);
        connection.command(BEGIN).await?;
        let rows = self.read(connection).await;
        end_transaction(connection, progress, rows).await
    }
}

impl ReadRows<'_> {
    async fn read(&self, connection: &Connection) -> Result<Vec<Logged>, Failure> {
        const ROWS: &str = concat!(
            "SELECT p.key, p.version, p.deleted, p.created_at, p.updated_at, p.value, a.seen FROM ( \
               SELECT *, sum(octet_length(value)) OVER ( \
                 ORDER BY key ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before \
               FROM (SELECT * FROM ",
            leaving!(),
            " ORDER BY r.key LIMIT $4) AS page) AS p \
             LEFT JOIN terrace_arrived a ON a.key = p.key \
             WHERE p.before IS NULL OR p.before < $5 ORDER BY p.key"
        );
        const LISTED: &str = "SELECT key, version, winner, digest, noticed_at, awaited \
             FROM terrace_conflicts WHERE key = ANY ($1::text[]) ORDER BY key, version";
        let (after, through) = ends(self.range);
        let limit = i64::try_from(self.limit).unwrap_or(i64::MAX);
        let bytes = i64::try_from(Page::MAX_BYTES).unwrap_or(i64::MAX);
        let parameters: [Typed<'_>; 5] = [
            (&after, Type::TEXT),
            (&through, Type::TEXT),
            (&self.options.resident, Type::TEXT_ARRAY),
            (&limit, Type::INT8),
            (&bytes, Type::INT8),
        ];
        let rows = connection.ask(ROWS, &parameters).await?;
        let keys = rows.iter().map(|row| row.try_get::<_, &str>(0)).collect::<Result<Vec<_>, _>>();
        let keys = keys.map_err(corrupt)?;
        let listed = connection.ask(LISTED, &[(&keys, Type::TEXT_ARRAY)]).await?;
        // Where deletions were collected, all of them have arrived.
        let horizon = collected(&connection.ask(HORIZON, &[]).await?)?;
        let mut known = HashMap::<&str, (Vec<Conflict>, Vec<Version>)>::new();
        for row in &listed {
            let (lost, awaited) = known.entry(row.try_get(0).map_err(corrupt)?).or_default();
            match row.try_get(5).map_err(corrupt)? {
                true => awaited.push(version(row.try_get(1).map_err(corrupt)?)),
                false => lost.push(conflict(row)?),
            }
        }
        let each = |row: &Row| {
            let name = row.try_get::<_, &str>(0).map_err(corrupt)?;
            let (lost, awaited) = known.remove(name).unwrap_or_default();
            let mut seen = seen(row, 6).map_err(corrupt)?;
            seen.add(horizon);
            logged(row, seen, lost, awaited)
        };
        rows.iter().map(each).collect()
    }
}

fn logged(
    row: &Row,
    mut seen: Seen,
    lost: Vec<Conflict>,
    awaited: Vec<Version>,
) -> Result<Logged, Failure> {
    let key = Key::new(row.try_get::<_, &str>(0).map_err(corrupt)?).map_err(not_allowed)?;
    let version = version(row.try_get(1).map_err(corrupt)?);
    seen.add(version);
    let Moment(created_at) = row.try_get(3).map_err(corrupt)?;
    let Moment(updated_at) = row.try_get(4).map_err(corrupt)?;
    let record = match row.try_get(2).map_err(corrupt)? {
        true => None,
        false => {
            let value = row.try_get::<_, &str>(5).map_err(corrupt)?;
            let value = Value::new(value).map_err(not_allowed)?;
            Some(Record { key: key.clone(), value, version, created_at, updated_at })
        }
    };
    let ancestry = Some(Arc::new(Ancestry::Row { seen, lost, awaited }));
    Ok(Logged { position: LogPosition::default(), key, version, record, ancestry })
}

fn conflict(row: &Row) -> Result<Conflict, Failure> {
    let number = |column| row.try_get(column).map(version).map_err(corrupt);
    let digest = row.try_get::<_, Option<Vec<u8>>>(3).map_err(corrupt)?;
    let digest = digest.map(ValueDigest::try_from).transpose().map_err(|_| {
        let message = "a digest in the table `terrace_conflicts` has not 32 bytes; remove the row";
        Failure::Refused(Error::new(ErrorKind::Corrupt, message))
    })?;
    let Moment(noticed_at) = row.try_get(4).map_err(corrupt)?;
    let key = Key::new(row.try_get::<_, &str>(0).map_err(corrupt)?).map_err(not_allowed)?;
    Ok(Conflict { key, winner: number(2)?, loser: number(1)?, digest, noticed_at })
}

/// See [`terrace_core::RegionStore::conflicts`].
pub(super) struct ListConflicts<'a> {
    pub(super) after: Option<&'a (Key, Version)>,
    pub(super) limit: usize,
}

impl Work for ListConflicts<'_> {
    type Answer = Vec<Conflict>;

    const OPERATION: &'static str = "list conflicts";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<Vec<Conflict>, Failure> {
        const LIST: &str = "SELECT key, version, winner, digest, noticed_at FROM terrace_conflicts \
             WHERE (key, version) > ($1, $2) AND NOT awaited ORDER BY key, version LIMIT $3";
        let key = self.after.map_or("", |(key, _)| key.as_str());
        let version = self.after.map_or(0, |(_, version)| version.get().cast_signed());
        let limit = i64::try_from(self.limit).unwrap_or(i64::MAX);
        let parameters: [Typed<'_>; 3] =
            [(&key, Type::TEXT), (&version, Type::INT8), (&limit, Type::INT8)];
        connection.ask(LIST, &parameters).await?.iter().map(conflict).collect()
    }
}

/// Removes some deleted records up to a horizon, after a key; answers how many, and the last one.
pub(super) struct Collect<'a> {
    pub(super) horizon: Version,
    pub(super) after: &'a str,
}

impl Work for Collect<'_> {
    type Answer = (u64, Option<String>);

    const OPERATION: &'static str = "collect deleted records";

    async fn run(
        &self,
        connection: &Connection,
        progress: &Progress,
    ) -> Result<Self::Answer, Failure> {
        const COLLECT: &str = "WITH old AS MATERIALIZED (SELECT key FROM records \
               WHERE deleted AND version <= $1 AND key > $2 ORDER BY key LIMIT 1000 \
               FOR UPDATE SKIP LOCKED), \
             gone AS (DELETE FROM records WHERE key = ANY (ARRAY(SELECT key FROM old))), \
             forgotten AS (DELETE FROM terrace_arrived WHERE key = ANY (ARRAY(SELECT key FROM old))) \
             SELECT count(*), max(key) FROM old";
        let horizon = self.horizon.get().cast_signed();
        progress.commits();
        if self.after.is_empty() {
            // Before any row goes: a key that is made anew has overwritten its deletion, and has a later
            // version.
            let both: [Typed<'_>; 2] = [(&horizon, Type::INT8), (&horizon, Type::INT8)];
            connection.ask(RAISE_HORIZON, &both).await?;
        }
        let parameters: [Typed<'_>; 2] = [(&horizon, Type::INT8), (&self.after, Type::TEXT)];
        let rows = connection.ask(COLLECT, &parameters).await?;
        let row = rows.first().ok_or_else(nothing)?;
        let count = row.try_get::<_, i64>(0).map_err(corrupt)?;
        Ok((count.unsigned_abs(), row.try_get(1).map_err(corrupt)?))
    }
}

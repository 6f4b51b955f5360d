//! The change log of a database that is one of several regions: the changes of this region alone, each
//! with the version that it has overwritten and, at the first of a repeatable request, its result.

use std::sync::Arc;

use terrace_core::shard::RequestResult;
use terrace_core::{Ancestry, LogPosition, RegionId, RegionOptions, Result};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::super::connection::Connection;
use super::super::read::version;
use super::super::work::{Failure, Progress, Work, corrupt};
use super::install::tell;

/// Whether a change never leaves the region.
macro_rules! stays {
    ($key:literal, $prefixes:literal) => {
        concat!(
            "EXISTS (SELECT 1 FROM unnest(",
            $prefixes,
            "::text[]) AS p WHERE starts_with(",
            $key,
            ", p))"
        )
    };
}
pub(in super::super) use stays;

/// As [`super::AFTER`]. Changes that stay come without their value, so that a page of them is a step,
/// too.
pub(super) const AFTER: &str = concat!(
    "SELECT c.transaction, c.version, c.type = 'RecordDeleted', c.created_at, c.time, \
       CASE WHEN octet_length(c.value) <= $4 AND NOT c.stays THEN c.value END, c.key, c.stays, \
       c.replaced, i.key, i.fingerprint, i.result, \
       (extract(epoch FROM i.created_at) * 1000000)::bigint \
     FROM (SELECT *, ",
    stays!("key", "$5"),
    " AS stays FROM commands \
       WHERE (transaction, version) > ($1::text::xid8, $2) \
         AND transaction < pg_snapshot_xmin(pg_current_snapshot()) \
       ORDER BY transaction, version FETCH FIRST $3 ROWS WITH TIES) AS c \
     LEFT JOIN terrace_idempotency i ON i.version = c.version AND i.result IS NOT NULL \
     ORDER BY c.transaction, c.version"
);

/// As [`super::AFTER_LARGE`].
pub(super) const AFTER_LARGE: &str = concat!(
    "WITH now AS MATERIALIZED ( \
       SELECT pg_snapshot_xmin(pg_current_snapshot()) AS horizon) \
     SELECT c.transaction, c.version, c.type = 'RecordDeleted', c.created_at, c.time, \
       CASE WHEN NOT c.stays THEN c.value END, c.key, c.stays, \
       c.replaced, i.key, i.fingerprint, i.result, \
       (extract(epoch FROM i.created_at) * 1000000)::bigint \
     FROM now CROSS JOIN LATERAL ( \
       SELECT *, sum(octet_length(value)) OVER ( \
         ORDER BY transaction, version GROUPS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before \
       FROM (SELECT *, ",
    stays!("key", "$5"),
    " AS stays FROM commands \
         WHERE (transaction, version) > ($1::text::xid8, $2) AND transaction < now.horizon \
         ORDER BY transaction, version FETCH FIRST $3 ROWS WITH TIES) AS page \
     ) AS c LEFT JOIN terrace_idempotency i ON i.version = c.version AND i.result IS NOT NULL \
     WHERE coalesce(c.before, 0) < $4 \
     ORDER BY c.transaction, c.version"
);

/// Whether the change never leaves the region.
pub(super) fn is_resident(row: &Row) -> Result<bool, Failure> {
    row.try_get(7).map_err(corrupt)
}

/// What a change says for other regions.
pub(super) fn ancestry(row: &Row) -> Result<Arc<Ancestry>, Failure> {
    let replaced = version(row.try_get(8).map_err(corrupt)?);
    let request = match row.try_get::<_, Option<String>>(9).map_err(corrupt)? {
        None => None,
        Some(key) => Some(RequestResult {
            key,
            fingerprint: row.try_get(10).map_err(corrupt)?,
            result: row.try_get(11).map_err(corrupt)?,
            at_micros: row.try_get(12).map_err(corrupt)?,
        }),
    };
    Ok(Arc::new(Ancestry::Change { replaced, request }))
}

/// Whether the log has a change after a place, up to a transaction, that may leave the region.
pub(in super::super) struct HasNews<'a> {
    pub(in super::super) region: &'a RegionOptions,
    pub(in super::super) after: LogPosition,
    pub(in super::super) until: u64,
}

impl Work for HasNews<'_> {
    type Answer = bool;

    const OPERATION: &'static str = "look for news in the change log";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<bool, Failure> {
        const NEWS: &str = concat!(
            // A transaction up to there that is still open may yet bring some.
            "SELECT $3::text::xid8 >= pg_snapshot_xmin(pg_current_snapshot()) \
               OR EXISTS (SELECT 1 FROM commands \
               WHERE (transaction, version) > ($1::text::xid8, $2) AND transaction <= $3::text::xid8 \
               AND NOT ",
            stays!("key", "$4"),
            ")"
        );
        let offset = i64::try_from(self.after.offset).unwrap_or(i64::MAX);
        let (epoch, until) = (self.after.epoch.to_string(), self.until.to_string());
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 4] = [
            (&epoch, Type::TEXT),
            (&offset, Type::INT8),
            (&until, Type::TEXT),
            (&self.region.resident, Type::TEXT_ARRAY),
        ];
        let rows = connection.ask(NEWS, &parameters).await?;
        rows.first().map_or(Ok(false), |row| row.try_get(0)).map_err(corrupt)
    }
}

/// What takes the place of the functions and of a trigger of a log. Rows of other regions have a negative
/// number in `replaced`, and are not logged. What people do is told by a row that changes and says of
/// nothing else than before that it was overwritten.
pub(in super::super) fn functions(schema: &str, region: RegionId) -> String {
    let tell = tell();
    let log = format!(
        "INSERT INTO {schema}.commands (version, type, key, value, created_at, time, replaced)"
    );
    let bury = format!("INSERT INTO {schema}.records (key, value, deleted, replaced)");
    format!(
        "CREATE OR REPLACE FUNCTION {schema}.commands_changed() RETURNS trigger
        LANGUAGE plpgsql AS $function$ BEGIN
            {log}
            SELECT version, CASE WHEN deleted THEN 'RecordDeleted'
                WHEN created_at = updated_at THEN 'RecordCreated' ELSE 'RecordUpdated' END,
                key, CASE WHEN deleted THEN NULL ELSE value END, created_at, updated_at, replaced
            FROM changed WHERE replaced >= 0 AND version & 63 = {region};
            {tell}
        END $function$;
        CREATE OR REPLACE FUNCTION {schema}.commands_gone() RETURNS trigger
        LANGUAGE plpgsql AS $function$ BEGIN
            {bury}
            SELECT key, '', true, version FROM gone WHERE NOT deleted ON CONFLICT (key) DO NOTHING;
            RETURN NULL;
        END $function$;
        CREATE OR REPLACE FUNCTION {schema}.commands_truncated() RETURNS trigger
        LANGUAGE plpgsql AS $function$ BEGIN
            {log}
            SELECT {schema}.terrace_version(), 'RecordDeleted', key, NULL, created_at, now(), version
            FROM {schema}.records WHERE NOT deleted;
            {tell}
        END $function$;
        CREATE OR REPLACE FUNCTION {schema}.commands_renamed() RETURNS trigger
        LANGUAGE plpgsql AS $function$ BEGIN
            {bury}
            VALUES (OLD.key, '', true, OLD.version) ON CONFLICT (key) DO NOTHING;
            RETURN NULL;
        END $function$;
        CREATE OR REPLACE FUNCTION {schema}.commands_by_hand() RETURNS trigger
        LANGUAGE plpgsql AS $function$ BEGIN
            IF NEW.version <= OLD.version OR NEW.version & 63 <> {region} THEN
                NEW.version := greatest({schema}.terrace_version(),
                    {schema}.terrace_after(OLD.version));
            END IF;
            NEW.replaced := OLD.version;
            IF NEW.updated_at = OLD.updated_at THEN
                NEW.updated_at := greatest(now(), OLD.updated_at + interval '1 microsecond',
                    OLD.created_at + interval '1 microsecond');
            END IF;
            RETURN NEW;
        END $function$;
        DROP TRIGGER IF EXISTS commands_0_brought ON {schema}.records;
        DROP TRIGGER IF EXISTS commands_5_by_hand ON {schema}.records;
        CREATE TRIGGER commands_5_by_hand BEFORE UPDATE ON {schema}.records FOR EACH ROW
            WHEN (NEW.replaced = OLD.replaced AND OLD.version < 9007199254740992)
            EXECUTE FUNCTION {schema}.commands_by_hand();"
    )
}

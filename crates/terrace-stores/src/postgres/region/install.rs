//! What the database of a region has, made by the first start.

use terrace_core::{Error, RegionOptions, Result, Timestamp, Version};
use tokio_postgres::{Client, Transaction};

use super::super::altering::{failed, lock, run};
use super::super::log::of_region;
use super::super::tables::{self, Table};

/// The class of the advisory lock of who raises the sequence; the object is the sequence.
const RAISING: i32 = 1_952_805_494;

/// How far a version may lie behind the clock: 10 ms.
const BEHIND: u64 = 10 << 13;

const TABLES: [Table; 4] = [
    Table::new("terrace_conflicts", &["key", "version", "awaited", "winner", "digest"]),
    Table::new("terrace_arrived", &["key", "seen"]),
    Table::new("terrace_followed", &["origin", "checkpoint", "moved"]),
    Table::new("terrace_follows", &["origin", "owner", "leased_until"]),
];

const KNOWN: &str = "SELECT value FROM terrace_meta WHERE name = 'region'";

/// Refuses a database that is another region than is asked for, or one though none is.
pub(in super::super) async fn check(client: &Client, asked: Option<&RegionOptions>) -> Result<()> {
    let known = client.query_opt(KNOWN, &[]).await.map_err(failed)?;
    let Some(known) = known.map(|row| row.get::<_, String>(0)) else { return Ok(()) };
    let asked = asked.map_or_else(|| "no region".to_owned(), identity);
    if known == asked {
        return Ok(());
    }
    let message = "the database is a region of its own number and name; open it as that region, or name \
                   another database";
    Err(Error::invalid(message).with("is", known).with("asked", asked))
}

fn identity(options: &RegionOptions) -> String {
    format!("{} {}", options.id, options.name)
}

/// Makes the database the region that it is asked to be, unless it is. It has a change log already.
pub(in super::super) async fn install(
    client: &mut Client,
    schema: &str,
    options: &RegionOptions,
    now: Timestamp,
) -> Result<()> {
    // A log that was begun anew has none of this.
    const IS_WHOLE: &str = "SELECT count(*) = 2 AND to_regproc('terrace_version') IS NOT NULL FROM pg_attribute WHERE attname = 'replaced' \
         AND attrelid IN (to_regclass('commands'), to_regclass('records'))";
    check(client, Some(options)).await?;
    let is_known = client.query_opt(KNOWN, &[]).await.map_err(failed)?.is_some();
    let tables = tables::complete(client, &TABLES).await?;
    let is_whole: bool = client.query_one(IS_WHOLE, &[]).await.map_err(failed)?.get(0);
    if is_known && is_whole && tables.into_iter().all(|complete| complete) {
        return Ok(());
    }
    let transaction = client.transaction().await.map_err(failed)?;
    lock(&transaction, schema).await?;
    check(transaction.client(), Some(options)).await?;
    let schema = format!("\"{schema}\"");
    run(&transaction, &make(&schema)).await?;
    run(&transaction, &functions(&schema, options)).await?;
    if transaction.query_opt(KNOWN, &[]).await.map_err(failed)?.is_none() {
        redraw(&transaction, &schema, options, now).await?;
        let keep = "INSERT INTO terrace_meta VALUES ('region', $1)";
        transaction.execute(keep, &[&identity(options)]).await.map_err(failed)?;
    }
    let own = format!("DELETE FROM {schema}.commands WHERE version & 63 <> {}", options.id);
    run(&transaction, &own).await?;
    run(&transaction, &of_region::functions(&schema, options.id)).await?;
    run(
        &transaction,
        &format!(
            "ALTER TABLE {schema}.records ALTER version SET DEFAULT {schema}.terrace_version()"
        ),
    )
    .await?;
    transaction.commit().await.map_err(failed)
}

fn make(schema: &str) -> String {
    format!(
        "LOCK TABLE {schema}.records IN ACCESS EXCLUSIVE MODE;
        ALTER TABLE {schema}.records ADD COLUMN IF NOT EXISTS replaced bigint NOT NULL DEFAULT 0;
        ALTER TABLE {schema}.commands ADD COLUMN IF NOT EXISTS replaced bigint NOT NULL DEFAULT 0;
        ALTER TABLE {schema}.terrace_idempotency ADD COLUMN IF NOT EXISTS version bigint;
        CREATE INDEX IF NOT EXISTS terrace_idempotency_version
            ON {schema}.terrace_idempotency (version) WHERE version IS NOT NULL;
        CREATE TABLE IF NOT EXISTS {schema}.terrace_conflicts (
            key text COLLATE \"C\",
            version bigint,
            awaited boolean NOT NULL,
            winner bigint NOT NULL,
            digest bytea,
            noticed_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (key, version)
        );
        CREATE INDEX IF NOT EXISTS terrace_conflicts_age ON {schema}.terrace_conflicts (noticed_at);
        CREATE TABLE IF NOT EXISTS {schema}.terrace_arrived (
            key text COLLATE \"C\" PRIMARY KEY,
            seen bigint[] NOT NULL
        );
        CREATE TABLE IF NOT EXISTS {schema}.terrace_followed (
            origin smallint PRIMARY KEY,
            checkpoint text NOT NULL,
            moved xid8 NOT NULL DEFAULT pg_current_xact_id()
        );
        CREATE TABLE IF NOT EXISTS {schema}.terrace_follows (
            origin smallint PRIMARY KEY,
            owner text NOT NULL,
            pid integer NOT NULL,
            session_begun timestamptz,
            leased_until timestamptz NOT NULL
        );
        CREATE SEQUENCE IF NOT EXISTS {schema}.terrace_gate AS bigint CACHE 1;
        ALTER SEQUENCE {schema}.records_version INCREMENT {step};",
        step = Version::STEP
    )
}

/// See the [module](super). A simple expression is worked out in the order in which it is written, with no
/// look for a cancellation in between.
fn functions(schema: &str, options: &RegionOptions) -> String {
    let (region, since) = (options.id, Version::SINCE);
    let (sequence, gate) =
        (format!("'{schema}.records_version'"), format!("'{schema}.terrace_gate'"));
    let lock = format!("{RAISING}, {sequence}::regclass::oid::integer");
    format!(
        "CREATE OR REPLACE FUNCTION {schema}.terrace_after(version bigint) RETURNS bigint
        LANGUAGE sql IMMUTABLE AS 'SELECT ((version >> 6) + 1 << 6) + {region}';
        CREATE OR REPLACE FUNCTION {schema}.terrace_clock() RETURNS bigint LANGUAGE sql VOLATILE AS
        $$ SELECT ((date_part('epoch', clock_timestamp()) * 1000)::bigint - {since}) << 13 $$;
        CREATE OR REPLACE FUNCTION {schema}.terrace_version_above(floor bigint) RETURNS bigint
        LANGUAGE plpgsql AS $$ BEGIN
            RETURN (ARRAY[
                CASE WHEN pg_advisory_lock({lock}) IS NULL THEN 0 ELSE 1 END,
                setval({gate}, coalesce(pg_sequence_last_value({gate}), 0) | 1),
                setval({sequence}, {schema}.terrace_after(
                    greatest(nextval({sequence}), {schema}.terrace_clock(), floor))),
                setval({gate}, (pg_sequence_last_value({gate}) | 1) + 1),
                CASE WHEN pg_advisory_unlock({lock}) THEN 1 ELSE 0 END
            ])[3];
        END $$;
        CREATE OR REPLACE FUNCTION {schema}.terrace_version() RETURNS bigint
        LANGUAGE plpgsql AS $$ DECLARE
            gate bigint := pg_sequence_last_value({gate});
            drawn bigint := nextval({sequence});
        BEGIN
            IF drawn >= {schema}.terrace_clock() - {BEHIND} AND drawn & 63 = {region}
                AND gate & 1 = 0 AND gate = pg_sequence_last_value({gate}) THEN
                RETURN drawn;
            END IF;
            RETURN {schema}.terrace_version_above(0);
        END $$;"
    )
}

/// Gives all rows versions of this region, in their order, and begins the log with them.
async fn redraw(
    transaction: &Transaction<'_>,
    schema: &str,
    options: &RegionOptions,
    now: Timestamp,
) -> Result<()> {
    const LATEST: &str = "SELECT last_value FROM records_version";
    let latest = transaction.query_one(LATEST, &[]).await.map_err(failed)?;
    let latest = Version::of_row(latest.get(0)).unwrap_or_default();
    options.check_clock(latest, now).map_err(|_| {
        let message = "the database's versions are ahead of the clock; give the region another one";
        Error::invalid(message).during("migrate")
    })?;
    run(
        transaction,
        &format!(
            "ALTER TABLE {schema}.records DISABLE TRIGGER USER;
            UPDATE {schema}.records r SET version = drawn.version, replaced = 0
            FROM (SELECT key, {schema}.terrace_version() AS version
                FROM (SELECT key FROM {schema}.records ORDER BY version, key) AS ordered) AS drawn
            WHERE r.key = drawn.key;
            ALTER TABLE {schema}.records ENABLE TRIGGER USER;
            DELETE FROM {schema}.commands;
            INSERT INTO {schema}.commands (version, type, key, value, created_at, time)
            SELECT version, CASE WHEN deleted THEN 'RecordDeleted' ELSE 'RecordCreated' END, key,
                CASE WHEN deleted THEN NULL ELSE value END, created_at, updated_at
            FROM {schema}.records ORDER BY version;"
        ),
    )
    .await
}

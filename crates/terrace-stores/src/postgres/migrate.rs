//! The tables: made by the first start, taken over from a table that was there, never changed back.

use terrace_core::{Error, ErrorKind, Result};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Transaction};

use super::history;
use super::sqlstate::{Stage, explain};

/// The version of the tables that this program knows.
const NEWEST: i32 = 4;

/// Text constraints of both columns, as the contract has them.
const CHECKS: &str = "
    ALTER TABLE records
        ADD CONSTRAINT records_key_length CHECK (char_length(key) BETWEEN 1 AND 255),
        ADD CONSTRAINT records_value_length CHECK (octet_length(value) <= 1048576)";

/// The sequence belongs to no column, so that `TRUNCATE records RESTART IDENTITY` leaves versions
/// rising, and hands out numbers one by one, so that their order is that of the writes.
///
/// One fifth of each page is left free: the new version of a row then fits beside the old one and
/// needs no new index entry (heap-only tuples).
const RECORDS: &str = "
    CREATE TABLE records (
        key text COLLATE \"C\" PRIMARY KEY,
        value text NOT NULL,
        version bigint NOT NULL DEFAULT nextval('records_version'),
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        deleted boolean NOT NULL DEFAULT false
    ) WITH (fillfactor = 80)";

const IDEMPOTENCY: &str = "
    CREATE TABLE IF NOT EXISTS idempotency (
        key text COLLATE \"C\" PRIMARY KEY,
        fingerprint bytea NOT NULL,
        result text,
        created_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE INDEX IF NOT EXISTS idempotency_age ON idempotency (created_at)";

/// The last write of a journal that was applied to a row. A column with a constant default is added
/// without touching the rows.
const PLACES: &str = "ALTER TABLE records ADD COLUMN IF NOT EXISTS seq bigint NOT NULL DEFAULT 0";

/// Makes what is missing, and the first history.
///
/// Any number of instances may start at once: one transaction under an advisory lock does it, the
/// others wait and find it done. It works behind a transaction pooler, too.
pub(super) async fn migrate(client: &mut Client, schema: &str) -> Result<()> {
    if let Some(known) = current(client).await.map_err(failed)? {
        if known.is_ok() && sequence_is_behind(client).await.map_err(failed)? {
            let transaction = client.transaction().await.map_err(failed)?;
            lock(&transaction, schema).await?;
            raise_sequence(&transaction).await?;
            transaction.commit().await.map_err(failed)?;
        }
        return known;
    }
    let transaction = client.transaction().await.map_err(failed)?;
    change(&transaction, schema).await?;
    transaction.commit().await.map_err(failed)
}

pub(super) fn failed(error: tokio_postgres::Error) -> Error {
    explain(error, Stage::Harmless).during("migrate")
}

/// Whether the tables need no change; a user without the right to change them can start.
async fn current(client: &Client) -> Result<Option<Result<()>>, tokio_postgres::Error> {
    let known =
        "SELECT to_regclass('meta') IS NOT NULL AND to_regclass('terrace_history') IS NOT NULL";
    if !client.query_one(known, &[]).await?.get::<_, bool>(0) {
        return Ok(None);
    }
    let rows = client.query("SELECT value FROM meta WHERE name = 'schema'", &[]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(match row.get::<_, &str>(0).parse::<i32>() {
        Ok(NEWEST) => Some(Ok(())),
        Ok(older) if older < NEWEST => None,
        _ => Some(Err(newer())),
    })
}

fn newer() -> Error {
    Error::invalid(
        "the tables were made by a newer Terrace; start that version, or name another schema or \
         database",
    )
    .during("migrate")
}

/// Whether rows have versions that the sequence has yet to draw, as after a restore of the data
/// alone. There is no index on versions, so of a large table a sample of 16 MiB is looked at: such
/// rows come in great numbers.
async fn sequence_is_behind(client: &Client) -> Result<bool, tokio_postgres::Error> {
    const SHARE: &str = "SELECT least(100, 100 * 16777216.0 / \
         greatest(pg_relation_size(to_regclass('records')), 1))::real";
    const BEHIND: &str = "SELECT EXISTS (SELECT 1 FROM records TABLESAMPLE SYSTEM ($1::real) \
         WHERE version > (SELECT last_value FROM records_version))";
    let share = client.query_one(SHARE, &[]).await?.get::<_, Option<f32>>(0);
    match share {
        Some(share) => Ok(client.query_one(BEHIND, &[&share]).await?.get(0)),
        None => Ok(false),
    }
}

/// Lets the sequence go on after the highest version there is; nobody can draw or write meanwhile.
async fn raise_sequence(transaction: &Transaction<'_>) -> Result<()> {
    run(
        transaction,
        "LOCK TABLE records IN EXCLUSIVE MODE; \
         SELECT setval('records_version', newest) \
         FROM (SELECT max(version) AS newest FROM records) AS r, records_version AS s \
         WHERE newest >= s.last_value",
    )
    .await
}

pub(super) async fn lock(transaction: &Transaction<'_>, schema: &str) -> Result<()> {
    // Others may hold the lock for as long as a large table is being rewritten.
    let settings =
        "SET LOCAL statement_timeout = '10min'; SET LOCAL client_min_messages = 'warning'";
    run(transaction, settings).await?;
    let lock = "SELECT pg_advisory_xact_lock(1952805490, hashtext($1))";
    transaction.execute(lock, &[&schema]).await.map_err(failed).map(drop)
}

async fn change(transaction: &Transaction<'_>, schema: &str) -> Result<()> {
    lock(transaction, schema).await?;
    let there = "SELECT 1 FROM pg_namespace WHERE nspname = $1";
    if transaction.query_opt(there, &[&schema]).await.map_err(failed)?.is_none() {
        run(transaction, &format!("CREATE SCHEMA {schema}")).await?;
    }
    run(
        transaction,
        "CREATE TABLE IF NOT EXISTS meta (name text PRIMARY KEY, value text NOT NULL); \
         INSERT INTO meta VALUES ('schema', '0') ON CONFLICT DO NOTHING",
    )
    .await?;
    let value = "SELECT value FROM meta WHERE name = $1";
    let version = transaction.query_one(value, &[&"schema"]).await.map_err(failed)?;
    match version.get::<_, &str>(0).parse::<i32>() {
        Ok(version) if version <= NEWEST => {
            if version < 1 {
                first(transaction).await?;
            }
            if version < 2 {
                run(transaction, PLACES).await?;
            }
            run(transaction, history::TABLE).await?;
        }
        _ => return Err(newer()),
    }
    let done = format!("UPDATE meta SET value = '{NEWEST}' WHERE name = 'schema'");
    run(transaction, &done).await?;
    history::begin_first(transaction).await
}

async fn first(transaction: &Transaction<'_>) -> Result<()> {
    run(transaction, "CREATE SEQUENCE IF NOT EXISTS records_version AS bigint CACHE 1").await?;
    let there = transaction.query_one("SELECT to_regclass('records') IS NOT NULL", &[]).await;
    if there.map_err(failed)?.get(0) {
        take_over(transaction).await?;
    } else {
        run(transaction, RECORDS).await?;
    }
    if let Err(error) = transaction.batch_execute(CHECKS).await {
        return Err(match error.code() {
            Some(&SqlState::CHECK_VIOLATION) => refused(
                "the table `records` has keys that are empty or longer than 255 characters, or \
                 values longer than 1 MiB; correct them, or name another schema",
            ),
            _ => failed(error),
        });
    }
    run(transaction, IDEMPOTENCY).await
}

/// Extends a table of records that Terrace did not make.
async fn take_over(transaction: &Transaction<'_>) -> Result<()> {
    const COLUMNS: &str = "SELECT a.attname::text, format_type(a.atttypid, NULL), \
             a.attnotnull AND NOT a.atthasdef AND a.attidentity = '', \
             EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisunique \
                 AND i.indisvalid AND i.indpred IS NULL AND i.indnatts = 1 \
                 AND i.indkey[0] = a.attnum) \
         FROM pg_attribute a \
         WHERE a.attrelid = to_regclass('records') AND a.attnum > 0 AND NOT a.attisdropped";
    let rows = transaction.query(COLUMNS, &[]).await.map_err(failed)?;
    let mut changes = vec![
        "ADD COLUMN IF NOT EXISTS version bigint NOT NULL DEFAULT nextval('records_version')"
            .into(),
        "ADD COLUMN IF NOT EXISTS deleted boolean NOT NULL DEFAULT false".into(),
    ];
    let mut texts = 0;
    let mut moments = vec!["created_at", "updated_at"];
    for row in rows {
        let (name, kind): (&str, &str) = (row.get(0), row.get(1));
        let (demanded, unique): (bool, bool) = (row.get(2), row.get(3));
        match (name, kind) {
            ("key", "text" | "character varying") if unique => {
                changes.push("ALTER key TYPE text COLLATE \"C\", ALTER key SET NOT NULL".into());
                texts += 1;
            }
            ("value", "text" | "character varying") => {
                changes.push("ALTER value TYPE text, ALTER value SET NOT NULL".into());
                texts += 1;
            }
            ("version", "bigint") => {
                raise_sequence(transaction).await?;
                changes.push(VERSION.into());
            }
            ("deleted", "boolean") => changes.push(DELETED.into()),
            ("created_at" | "updated_at", "timestamp with time zone") => {
                moments.retain(|moment| *moment != name);
                changes.push(moment(name, ""));
            }
            ("created_at" | "updated_at", "timestamp without time zone") => {
                moments.retain(|moment| *moment != name);
                changes.push(moment(name, " AT TIME ZONE 'UTC'"));
            }
            ("key" | "value" | "version" | "deleted" | "created_at" | "updated_at", _) => {
                return Err(not_like_records());
            }
            _ if demanded => return Err(not_like_records()),
            _ => {}
        }
    }
    if texts != 2 {
        return Err(not_like_records());
    }
    for missing in moments {
        changes.push(format!("ADD COLUMN {missing} timestamptz NOT NULL DEFAULT now()"));
    }
    run(transaction, &format!("ALTER TABLE records {}", changes.join(", "))).await?;
    run(transaction, "ALTER TABLE records SET (fillfactor = 80)").await
}

/// A version that no sequence draws means that there was none.
const VERSION: &str = "ALTER version DROP IDENTITY IF EXISTS, ALTER version DROP DEFAULT, \
     ALTER version TYPE bigint \
         USING CASE WHEN version > 0 THEN version ELSE nextval('records_version') END, \
     ALTER version SET DEFAULT nextval('records_version'), ALTER version SET NOT NULL";

const DELETED: &str = "ALTER deleted DROP DEFAULT, \
     ALTER deleted TYPE boolean USING coalesce(deleted, false), \
     ALTER deleted SET DEFAULT false, ALTER deleted SET NOT NULL";

/// A column of times as the store needs it; a time that was not known is that of the change.
fn moment(name: &str, zone: &str) -> String {
    format!(
        "ALTER {name} DROP DEFAULT, \
         ALTER {name} TYPE timestamptz USING coalesce({name}{zone}, now()), \
         ALTER {name} SET DEFAULT now(), ALTER {name} SET NOT NULL"
    )
}

fn not_like_records() -> Error {
    refused(
        "there is a table `records` that Terrace cannot use; it needs the text columns `key` (unique) \
         and `value`, and no other column that must be given; name another schema",
    )
}

fn refused(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidInput, message).during("migrate")
}

pub(super) async fn run(transaction: &Transaction<'_>, commands: &str) -> Result<()> {
    transaction.batch_execute(commands).await.map_err(failed)
}

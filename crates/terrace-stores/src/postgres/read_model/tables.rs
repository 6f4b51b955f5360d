//! The tables of a read model.

use terrace_core::Result;
use terrace_core::read_model::Projection;
use tokio_postgres::Client;

use super::super::altering::{failed, lock, run};
use super::super::migrate::make_schema;
use super::super::tables::{self, Table};

/// The searched words of a row. The text is bounded, for the index refuses entries above 1 MiB.
macro_rules! words {
    ($key:literal, $value:literal) => {
        concat!("to_tsvector('simple'::regconfig, ", $key, " || ' ' || left(", $value, ", 100000))")
    };
}
pub(super) use words;

/// The search index's row in the table of checkpoints.
pub(super) const SEARCH: &str = "search";

/// What the names of a projection's other tables end in.
pub(super) fn suffix(of: Projection) -> &'static str {
    match of {
        Projection::Live => "",
        Projection::Next => "_next",
    }
}

/// The table of a projection's rows.
pub(super) fn records(of: Projection) -> &'static str {
    match of {
        Projection::Live => "records",
        Projection::Next => "terrace_records_next",
    }
}

/// The name of a projection's row in the table of checkpoints.
pub(super) fn name(of: Projection) -> &'static str {
    match of {
        Projection::Live => "live",
        Projection::Next => "next",
    }
}

const CHECKPOINTS: &str = "CREATE TABLE IF NOT EXISTS terrace_projection (
        name text PRIMARY KEY,
        source text NOT NULL DEFAULT '',
        epoch bigint NOT NULL DEFAULT 0,
        place bigint NOT NULL DEFAULT 0,
        owner text,
        leased_until timestamptz,
        paused_until timestamptz
    );
    ALTER TABLE terrace_projection ADD COLUMN IF NOT EXISTS pid integer,
        ADD COLUMN IF NOT EXISTS session_begun timestamptz,
        ADD COLUMN IF NOT EXISTS whole boolean NOT NULL DEFAULT false, DROP COLUMN IF EXISTS words_behind;
";

/// The rows of the checkpoints, which somebody may have removed.
pub(super) const ROWS: &str = "INSERT INTO terrace_projection (name) \
     VALUES ('live'), ('next'), ('search') ON CONFLICT DO NOTHING";

/// Who empties a table by hand takes its checkpoint along: it is filled again.
const EMPTIED: &str = "CREATE OR REPLACE FUNCTION terrace_emptied() RETURNS trigger
    LANGUAGE plpgsql AS $function$ BEGIN
        EXECUTE format('UPDATE %I.terrace_projection SET source = '''', epoch = 0, place = 0, \
whole = false WHERE name = %L', TG_TABLE_SCHEMA, TG_ARGV[0]);
        RETURN NULL;
    END $function$;
    CREATE OR REPLACE TRIGGER terrace_emptied BEFORE TRUNCATE ON records
        EXECUTE FUNCTION terrace_emptied('live');
    CREATE OR REPLACE TRIGGER terrace_emptied BEFORE TRUNCATE ON terrace_parked
        EXECUTE FUNCTION terrace_emptied('live');
    CREATE OR REPLACE TRIGGER terrace_emptied BEFORE TRUNCATE ON terrace_activity
        EXECUTE FUNCTION terrace_emptied('live');
    CREATE OR REPLACE TRIGGER terrace_emptied BEFORE TRUNCATE ON terrace_words
        EXECUTE FUNCTION terrace_emptied('search');";

/// One fifth of each page is left free, so that a changed row stays in its page.
const RECORDS: &str = "CREATE TABLE IF NOT EXISTS records (
        key text COLLATE \"C\" PRIMARY KEY,
        value text NOT NULL,
        created_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL,
        read_count bigint NOT NULL DEFAULT 0,
        write_count bigint NOT NULL DEFAULT 0,
        version bigint NOT NULL,
        deleted boolean NOT NULL DEFAULT false
    ) WITH (fillfactor = 80);
    ALTER TABLE records DROP COLUMN IF EXISTS terrace_words, DROP COLUMN IF EXISTS worded;";

/// The words of each key at a version; a deleted record has none.
const WORDS: &str = "CREATE TABLE IF NOT EXISTS terrace_words (
        key text COLLATE \"C\" PRIMARY KEY,
        version bigint NOT NULL,
        words tsvector NOT NULL
    );
    CREATE INDEX IF NOT EXISTS terrace_words_words ON terrace_words USING gin (words);";

const PARKED: &str = "CREATE TABLE IF NOT EXISTS terrace_parked (
        key text COLLATE \"C\" PRIMARY KEY,
        epoch bigint NOT NULL,
        place bigint NOT NULL,
        commands bigint NOT NULL,
        reason text NOT NULL,
        value text NOT NULL,
        version bigint NOT NULL,
        created_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL,
        deleted boolean NOT NULL
    );";

/// By the minute, of all values written.
const ACTIVITY: &str = "CREATE TABLE IF NOT EXISTS terrace_activity (
        minute bigint PRIMARY KEY,
        writes bigint NOT NULL
    );";

/// The first is the one by which an earlier Terrace's are known.
const TABLES: [Table; 5] = [
    Table::new(
        "terrace_projection",
        &["name", "source", "epoch", "place", "owner", "leased_until", "paused_until"],
    )
    .with_later(&["pid", "session_begun", "whole"])
    .formerly("projection"),
    Table::new("records", &["key", "value", "version", "read_count", "write_count", "deleted"])
        .with_later(&["created_at", "updated_at"]),
    Table::new("terrace_words", &["key", "version", "words"]).formerly("words"),
    Table::new("terrace_parked", PARKED_COLUMNS).formerly("parked"),
    Table::new("terrace_activity", &["minute", "writes"]).formerly("activity"),
];

/// Those of a rebuild that was under way.
const NEXT_TABLES: [Table; 3] = [
    Table::new("terrace_records_next", &["key", "value", "version", "read_count", "write_count"])
        .formerly("records_next"),
    Table::new("terrace_parked_next", PARKED_COLUMNS).formerly("parked_next"),
    Table::new("terrace_activity_next", &["minute", "writes"]).formerly("activity_next"),
];

const PARKED_COLUMNS: &[&str] = &[
    "key",
    "epoch",
    "place",
    "commands",
    "reason",
    "value",
    "version",
    "created_at",
    "updated_at",
    "deleted",
];

/// Makes what is missing. A user without the right to make anything can start where nothing is.
pub(super) async fn make(client: &mut Client, schema: &str) -> Result<()> {
    // The triggers are younger than the tables: who owns those makes them.
    const WHOLE: &str = "SELECT count(*) = 3 AND ( \
           to_regprocedure('terrace_emptied()') IS NOT NULL \
           OR NOT has_schema_privilege(current_schema(), 'CREATE') \
           OR NOT EXISTS (SELECT FROM pg_class WHERE oid = 'records'::regclass \
             AND pg_has_role(relowner, 'USAGE'))) \
         FROM terrace_projection WHERE name IN ('live', 'next', 'search')";
    let complete = tables::complete(client, &TABLES).await?.into_iter().all(|complete| complete);
    if complete && client.query_one(WHOLE, &[]).await.map_err(failed)?.get(0) {
        return Ok(());
    }
    let transaction = client.transaction().await.map_err(failed)?;
    lock(&transaction, schema).await?;
    make_schema(&transaction, schema).await?;
    if tables::rename(&transaction, &TABLES).await? {
        tables::rename(&transaction, &NEXT_TABLES).await?;
        let index = "ALTER INDEX IF EXISTS words_words RENAME TO terrace_words_words";
        run(&transaction, index).await?;
    }
    tables::complete(transaction.client(), &TABLES).await?;
    tables::must_be_owned(&transaction, &TABLES).await?;
    // Before they are made: what has lost a table is made again from the beginning of the log.
    const LOST: &str = "SELECT to_regclass('records') IS NULL OR to_regclass('terrace_parked') IS NULL \
         OR to_regclass('terrace_activity') IS NULL, to_regclass('terrace_words') IS NULL";
    let lost = transaction.query_one(LOST, &[]).await.map_err(failed)?;
    for table in [CHECKPOINTS, ROWS, RECORDS, WORDS, PARKED, ACTIVITY, EMPTIED] {
        run(&transaction, table).await?;
    }
    for (lost, name) in [(lost.get::<_, bool>(0), "live"), (lost.get(1), SEARCH)] {
        let begin = format!(
            "UPDATE terrace_projection SET source = '', epoch = 0, place = 0 \
             WHERE {lost} AND name = '{name}'"
        );
        run(&transaction, &begin).await?;
    }
    transaction.commit().await.map_err(failed)
}

/// Makes the tables of the next projection, empty.
pub(super) const NEXT: &str = "DROP TABLE IF EXISTS
        terrace_records_next, terrace_parked_next, terrace_activity_next;
    CREATE TABLE terrace_records_next (LIKE records INCLUDING ALL) WITH (fillfactor = 80);
    CREATE TABLE terrace_parked_next (LIKE terrace_parked INCLUDING ALL);
    CREATE TABLE terrace_activity_next (LIKE terrace_activity INCLUDING ALL);
    CREATE TRIGGER terrace_emptied BEFORE TRUNCATE ON terrace_records_next
        EXECUTE FUNCTION terrace_emptied('live');
    CREATE TRIGGER terrace_emptied BEFORE TRUNCATE ON terrace_parked_next
        EXECUTE FUNCTION terrace_emptied('live');
    CREATE TRIGGER terrace_emptied BEFORE TRUNCATE ON terrace_activity_next
        EXECUTE FUNCTION terrace_emptied('live');";

/// Empties the live tables.
pub(super) const EMPTY: &str = "TRUNCATE records, terrace_parked, terrace_activity";

/// Puts the next tables in the place of the live ones.
pub(super) const SWAP: &str = "DROP TABLE records, terrace_parked, terrace_activity;
    ALTER TABLE terrace_records_next RENAME TO records;
    ALTER TABLE terrace_parked_next RENAME TO terrace_parked;
    ALTER TABLE terrace_activity_next RENAME TO terrace_activity;";

/// Forgets what a comparison was made with.
pub(super) const DROP_NEXT: &str =
    "DROP TABLE IF EXISTS terrace_records_next, terrace_parked_next, terrace_activity_next";

//! The tables of a read model.

use terrace_core::Result;
use terrace_core::read_model::Projection;
use tokio_postgres::Client;

use super::super::altering::{failed, lock, run};

/// The searched words of a row. The text is bounded, for the index refuses entries above 1 MiB.
macro_rules! words {
    ($key:literal, $value:literal) => {
        concat!("to_tsvector('simple'::regconfig, ", $key, " || ' ' || left(", $value, ", 100000))")
    };
}
pub(super) use words;

/// The search index's row in the table of checkpoints.
pub(super) const SEARCH: &str = "search";

/// What the names of a projection's tables end in.
pub(super) fn suffix(of: Projection) -> &'static str {
    match of {
        Projection::Live => "",
        Projection::Next => "_next",
    }
}

/// The name of a projection's row in the table of checkpoints.
pub(super) fn name(of: Projection) -> &'static str {
    match of {
        Projection::Live => "live",
        Projection::Next => "next",
    }
}

const CHECKPOINTS: &str = "CREATE TABLE IF NOT EXISTS projection (
        name text PRIMARY KEY,
        source text NOT NULL DEFAULT '',
        epoch bigint NOT NULL DEFAULT 0,
        place bigint NOT NULL DEFAULT 0,
        owner text,
        leased_until timestamptz,
        paused_until timestamptz
    );
    ALTER TABLE projection ADD COLUMN IF NOT EXISTS pid integer,
        ADD COLUMN IF NOT EXISTS session_begun timestamptz, DROP COLUMN IF EXISTS words_behind;
    INSERT INTO projection (name) VALUES ('live'), ('next'), ('search') ON CONFLICT DO NOTHING;";

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
    ALTER TABLE records DROP COLUMN IF EXISTS words, DROP COLUMN IF EXISTS worded;";

/// The words of each key at a version; a deleted record has none.
const WORDS: &str = "CREATE TABLE IF NOT EXISTS words (
        key text COLLATE \"C\" PRIMARY KEY,
        version bigint NOT NULL,
        words tsvector NOT NULL
    );
    CREATE INDEX IF NOT EXISTS words_words ON words USING gin (words);";

const PARKED: &str = "CREATE TABLE IF NOT EXISTS parked (
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
const ACTIVITY: &str = "CREATE TABLE IF NOT EXISTS activity (
        minute bigint PRIMARY KEY,
        writes bigint NOT NULL
    );";

/// Makes what is missing.
pub(super) async fn make(client: &mut Client, schema: &str) -> Result<()> {
    let transaction = client.transaction().await.map_err(failed)?;
    lock(&transaction, schema).await?;
    let there = "SELECT 1 FROM pg_namespace WHERE nspname = $1";
    if transaction.query_opt(there, &[&schema]).await.map_err(failed)?.is_none() {
        run(&transaction, &format!("CREATE SCHEMA {schema}")).await?;
    }
    let known = "SELECT to_regclass('records') IS NOT NULL AND to_regclass('projection') IS NULL";
    if transaction.query_one(known, &[]).await.map_err(failed)?.get(0) {
        return Err(terrace_core::Error::invalid(
            "the read model's schema has a table `records` that is no read model; name another \
             database in READ_DB_URL",
        ));
    }
    for table in [CHECKPOINTS, RECORDS, WORDS, PARKED, ACTIVITY] {
        run(&transaction, table).await?;
    }
    transaction.commit().await.map_err(failed)
}

/// Makes the tables of the next projection, empty.
pub(super) const NEXT: &str = "DROP TABLE IF EXISTS records_next, parked_next, activity_next;
    CREATE TABLE records_next (LIKE records INCLUDING ALL) WITH (fillfactor = 80);
    CREATE TABLE parked_next (LIKE parked INCLUDING ALL);
    CREATE TABLE activity_next (LIKE activity INCLUDING ALL);";

/// Empties the live tables.
pub(super) const EMPTY: &str = "TRUNCATE records, parked, activity";

/// Puts the next tables in the place of the live ones.
pub(super) const SWAP: &str = "DROP TABLE records, parked, activity;
    ALTER TABLE records_next RENAME TO records;
    ALTER TABLE parked_next RENAME TO parked;
    ALTER TABLE activity_next RENAME TO activity;";

/// Forgets what a comparison was made with.
pub(super) const DROP_NEXT: &str = "DROP TABLE IF EXISTS records_next, parked_next, activity_next";

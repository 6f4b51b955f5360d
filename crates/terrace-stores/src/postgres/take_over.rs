//! A table of records that Terrace did not make, or that was brought back alone.

use terrace_core::{Error, Result};
use tokio_postgres::Transaction;
use tokio_postgres::error::SqlState;

use super::altering::{failed, run};
use super::tables::refused;

/// Lets the sequence go on after the highest version there is; nobody can draw or write meanwhile.
pub(super) async fn raise_sequence(transaction: &Transaction<'_>) -> Result<()> {
    run(
        transaction,
        "LOCK TABLE records IN EXCLUSIVE MODE; \
         SELECT setval('records_version', newest) \
         FROM (SELECT max(version) AS newest FROM records WHERE version < 9007199254740992) AS r, \
           records_version AS s \
         WHERE newest >= s.last_value",
    )
    .await
}

/// Gives the table what it lacks. What is in the way is named, with what to do about it.
pub(super) async fn take_over(transaction: &Transaction<'_>) -> Result<()> {
    const COLUMNS: &str = "SELECT a.attname::text, format_type(a.atttypid, NULL), \
             a.attnotnull AND NOT a.atthasdef AND a.attidentity = '', \
             EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisunique \
                 AND i.indisvalid AND i.indpred IS NULL AND i.indnatts = 1 \
                 AND i.indkey[0] = a.attnum), \
             a.attgenerated <> '' \
         FROM pg_attribute a \
         WHERE a.attrelid = to_regclass('records') AND a.attnum > 0 AND NOT a.attisdropped";
    const NEEDED: [&str; 6] = ["key", "value", "version", "deleted", "created_at", "updated_at"];
    let rows = transaction.query(COLUMNS, &[]).await.map_err(failed)?;
    let mut changes = vec![
        "ADD COLUMN IF NOT EXISTS version bigint NOT NULL DEFAULT nextval('records_version')"
            .into(),
        "ADD COLUMN IF NOT EXISTS deleted boolean NOT NULL DEFAULT false".into(),
    ];
    let mut missing = NEEDED.to_vec();
    for row in rows {
        let (name, kind): (&str, &str) = (row.get(0), row.get(1));
        let (demanded, unique, generated): (bool, bool, bool) =
            (row.get(2), row.get(3), row.get(4));
        if !NEEDED.contains(&name) {
            if demanded {
                return Err(demands(name));
            }
            continue;
        }
        missing.retain(|needed| *needed != name);
        if generated {
            return Err(is_generated(name));
        }
        match (name, kind) {
            ("key", "text" | "character varying") if !unique => return Err(is_not_unique()),
            ("key", "text" | "character varying") => {
                changes.push("ALTER key TYPE text COLLATE \"C\", ALTER key SET NOT NULL".into());
            }
            ("value", "text" | "character varying") => {
                changes.push("ALTER value TYPE text, ALTER value SET NOT NULL".into());
            }
            ("version", "bigint") => {
                raise_sequence(transaction).await?;
                changes.push(VERSION.into());
            }
            ("deleted", "boolean") => changes.push(DELETED.into()),
            ("created_at" | "updated_at", "timestamp with time zone") => {
                changes.push(moment(name, ""));
            }
            ("created_at" | "updated_at", "timestamp without time zone") => {
                changes.push(moment(name, " AT TIME ZONE 'UTC'"));
            }
            _ => return Err(is_of_another_type(name, kind)),
        }
    }
    if let Some(text) = missing.iter().find(|needed| ["key", "value"].contains(needed)) {
        return Err(lacks(text));
    }
    for moment in missing.iter().filter(|needed| needed.ends_with("_at")) {
        changes.push(format!("ADD COLUMN {moment} timestamptz NOT NULL DEFAULT now()"));
    }
    let change = format!("ALTER TABLE records {}", changes.join(", "));
    transaction.batch_execute(&change).await.map_err(in_the_way)?;
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

/// What the server refuses to change, in its words: they name tables, columns and views, and what is in
/// rows in the detail of classes 22 and 23 alone.
fn in_the_way(error: tokio_postgres::Error) -> Error {
    let Some(said) = error.as_db_error() else { return failed(error) };
    match (said.code(), said.column()) {
        (&SqlState::NOT_NULL_VIOLATION, Some(column)) => refused(format!(
            "the column `{column}` of the table `records` has rows with NULL; fill or delete them, or \
             {ELSEWHERE}"
        )),
        (code, _) if ["0A", "2B", "42"].contains(&&code.code()[..2]) => refused(format!(
            "the table `records` cannot be taken over: {} ({}); drop what depends on it, start Terrace, \
             and make it again, or {ELSEWHERE}",
            said.message(),
            said.detail().unwrap_or("no detail")
        )),
        _ => failed(error),
    }
}

const ELSEWHERE: &str = "name another schema with database.schema";

fn demands(column: &str) -> Error {
    refused(format!(
        "the column `{column}` of the table `records` must be given for each row, and Terrace gives it \
         none; give it a default, let it be NULL, or {ELSEWHERE}"
    ))
}

fn is_generated(column: &str) -> Error {
    refused(format!(
        "the column `{column}` of the table `records` is generated, and Terrace must write it; run ALTER \
         TABLE records ALTER {column} DROP EXPRESSION, or {ELSEWHERE}"
    ))
}

fn is_not_unique() -> Error {
    refused(format!(
        "the column `key` of the table `records` is not unique; make it the primary key, or {ELSEWHERE}"
    ))
}

fn is_of_another_type(column: &str, kind: &str) -> Error {
    let wanted = match column {
        "key" | "value" => "text",
        "version" => "bigint",
        "deleted" => "boolean",
        _ => "timestamptz",
    };
    refused(format!(
        "the column `{column}` of the table `records` is {kind}, and Terrace needs {wanted}; change it, \
         or {ELSEWHERE}"
    ))
}

fn lacks(column: &str) -> Error {
    refused(format!(
        "there is a table `records` without a column `{column}`, so it is not Terrace's; rename it, or \
         {ELSEWHERE}"
    ))
}

//! A table that Terrace did not make, or that was brought back alone: records here, transactions by the
//! ledger.

use terrace_core::{Error, Result};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Row, Transaction};

use super::altering::{failed, run};
use super::tables::refused;

/// Lets the sequence go on from the highest version there is, in its steps; nobody can draw or write meanwhile.
pub(super) async fn raise_sequence(transaction: &Transaction<'_>) -> Result<()> {
    run(
        transaction,
        "LOCK TABLE records IN EXCLUSIVE MODE; \
         SELECT setval('records_version', newest + mod(mod(s.last_value - newest, i) + i, i)) \
         FROM (SELECT max(version) AS newest FROM records WHERE version < 9007199254740992) AS r, \
           records_version AS s, (SELECT seqincrement AS i FROM pg_sequence \
             WHERE seqrelid = 'records_version'::regclass) AS step \
         WHERE newest >= s.last_value",
    )
    .await
}

/// A column of such a table.
pub(super) struct Column {
    pub(super) name: String,
    /// Its type, without modifiers.
    pub(super) kind: String,
    /// Whether it must be given for each row.
    demanded: bool,
    pub(super) unique: bool,
    generated: bool,
    /// Whether rows that do not give it get a value.
    pub(super) has_default: bool,
}

impl Column {
    fn of(row: &Row) -> Self {
        Self {
            name: row.get(0),
            kind: row.get(1),
            demanded: row.get(2),
            unique: row.get(3),
            generated: row.get(4),
            has_default: row.get(5),
        }
    }
}

/// A table that is taken over, and what Terrace needs of it.
pub(super) struct Taken {
    pub(super) table: &'static str,
    pub(super) needed: &'static [&'static str],
}

impl Taken {
    /// Its columns that are needed.
    ///
    /// # Errors
    /// `InvalidInput` where one is generated, or another one must be given.
    pub(super) async fn columns(&self, transaction: &Transaction<'_>) -> Result<Vec<Column>> {
        const COLUMNS: &str = "SELECT a.attname::text, format_type(a.atttypid, NULL), \
                 a.attnotnull AND NOT a.atthasdef AND a.attidentity = '', \
                 EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisunique \
                     AND i.indisvalid AND i.indpred IS NULL AND i.indnatts = 1 \
                     AND i.indkey[0] = a.attnum), \
                 a.attgenerated <> '', a.atthasdef OR a.attidentity <> '' \
             FROM pg_attribute a \
             WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped";
        let rows = transaction.query(COLUMNS, &[&self.table]).await.map_err(failed)?;
        let (needed, others): (Vec<_>, Vec<_>) =
            rows.iter().map(Column::of).partition(|it| self.needed.contains(&it.name.as_str()));
        if let Some(column) = others.iter().find(|column| column.demanded) {
            return Err(self.demands(&column.name));
        }
        match needed.iter().find(|column| column.generated) {
            Some(column) => Err(self.is_generated(&column.name)),
            None => Ok(needed),
        }
    }

    /// Changes it.
    pub(super) async fn alter(
        &self,
        transaction: &Transaction<'_>,
        changes: &[String],
    ) -> Result<()> {
        let change = format!("ALTER TABLE {} {}", self.table, changes.join(", "));
        transaction.batch_execute(&change).await.map_err(|error| self.in_the_way(error))
    }
}

const RECORDS: Taken = Taken {
    table: "records",
    needed: &["key", "value", "version", "deleted", "created_at", "updated_at"],
};

/// Gives the table of records what it lacks. What is in the way is named, with what to do about it.
pub(super) async fn take_over(transaction: &Transaction<'_>) -> Result<()> {
    let mut changes = vec![
        "ADD COLUMN IF NOT EXISTS version bigint NOT NULL DEFAULT nextval('records_version')"
            .into(),
        "ADD COLUMN IF NOT EXISTS deleted boolean NOT NULL DEFAULT false".into(),
    ];
    let mut missing = RECORDS.needed.to_vec();
    for Column { name, kind, unique, .. } in RECORDS.columns(transaction).await? {
        missing.retain(|needed| *needed != name);
        match (name.as_str(), kind.as_str()) {
            ("key", "text" | "character varying") if !unique => {
                return Err(RECORDS.is_not_unique("key"));
            }
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
                changes.push(moment(&name, ""));
            }
            ("created_at" | "updated_at", "timestamp without time zone") => {
                changes.push(moment(&name, " AT TIME ZONE 'UTC'"));
            }
            _ => return Err(RECORDS.is_of_another_type(&name, &kind, wanted(&name))),
        }
    }
    if let Some(text) = missing.iter().find(|needed| ["key", "value"].contains(needed)) {
        return Err(RECORDS.lacks(text));
    }
    for moment in missing.iter().filter(|needed| needed.ends_with("_at")) {
        changes.push(format!("ADD COLUMN {moment} timestamptz NOT NULL DEFAULT now()"));
    }
    RECORDS.alter(transaction, &changes).await?;
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
pub(super) fn moment(name: &str, zone: &str) -> String {
    format!(
        "ALTER {name} DROP DEFAULT, \
         ALTER {name} TYPE timestamptz USING coalesce({name}{zone}, now()), \
         ALTER {name} SET DEFAULT now(), ALTER {name} SET NOT NULL"
    )
}

fn wanted(column: &str) -> &'static str {
    match column {
        "key" | "value" => "text",
        "version" => "bigint",
        "deleted" => "boolean",
        _ => "timestamptz",
    }
}

pub(super) const ELSEWHERE: &str = "name another schema with database.schema";

/// What is in the way.
impl Taken {
    /// What the server refuses to change, in its words: they name tables, columns and views, and what is
    /// in rows in the detail of classes 22 and 23 alone.
    fn in_the_way(&self, error: tokio_postgres::Error) -> Error {
        let Some(said) = error.as_db_error() else { return failed(error) };
        let table = self.table;
        match (said.code(), said.column()) {
            (&SqlState::NOT_NULL_VIOLATION, Some(column)) => refused(format!(
                "the column `{column}` of the table `{table}` has rows with NULL; fill or delete them, or \
                 {ELSEWHERE}"
            )),
            (code, _) if ["0A", "2B", "42"].contains(&&code.code()[..2]) => refused(format!(
                "the table `{table}` cannot be taken over: {} ({}); drop what depends on it, start \
                 Terrace, and make it again, or {ELSEWHERE}",
                said.message(),
                said.detail().unwrap_or("no detail")
            )),
            _ => failed(error),
        }
    }

    fn demands(&self, column: &str) -> Error {
        let table = self.table;
        refused(format!(
            "the column `{column}` of the table `{table}` must be given for each row, and Terrace gives \
             it none; give it a default, let it be NULL, or {ELSEWHERE}"
        ))
    }

    fn is_generated(&self, column: &str) -> Error {
        let table = self.table;
        refused(format!(
            "the column `{column}` of the table `{table}` is generated, and Terrace must write it; run \
             ALTER TABLE {table} ALTER {column} DROP EXPRESSION, or {ELSEWHERE}"
        ))
    }

    pub(super) fn is_not_unique(&self, column: &str) -> Error {
        refused(format!(
            "the column `{column}` of the table `{}` is not unique; make it the primary key, or \
             {ELSEWHERE}",
            self.table
        ))
    }

    pub(super) fn is_of_another_type(&self, column: &str, kind: &str, wanted: &str) -> Error {
        refused(format!(
            "the column `{column}` of the table `{}` is {kind}, and Terrace needs {wanted}; change it, \
             or {ELSEWHERE}",
            self.table
        ))
    }

    fn lacks(&self, column: &str) -> Error {
        refused(format!(
            "there is a table `{}` without a column `{column}`, so it is not Terrace's; rename it, or \
             {ELSEWHERE}",
            self.table
        ))
    }
}

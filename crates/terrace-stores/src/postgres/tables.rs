//! The tables that Terrace makes: which of them are there, whose they are, what they were called.
//!
//! A table is known by its columns. One that has the name and not the columns is another program's: it
//! is refused by name and left as it is.

use terrace_core::{Error, Result};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row, Transaction};

use super::altering::{failed, run};

/// One of them.
pub(super) struct Table {
    pub(super) name: &'static str,
    /// `r` for a table, `S` for a sequence, as in `pg_class`.
    pub(super) kind: &'static str,
    /// The columns that it has had from the beginning.
    pub(super) known_by: &'static [&'static str],
    /// Those that came later.
    pub(super) later: &'static [&'static str],
    /// What earlier Terraces called it.
    pub(super) formerly: Option<&'static str>,
}

impl Table {
    /// A table that has always had this name and these columns.
    pub(super) const fn new(name: &'static str, known_by: &'static [&'static str]) -> Self {
        Self { name, kind: "r", known_by, later: &[], formerly: None }
    }

    /// The same, of which earlier Terraces had this name.
    pub(super) const fn formerly(self, name: &'static str) -> Self {
        Self { formerly: Some(name), ..self }
    }

    /// The same, which has got these columns since.
    pub(super) const fn with_later(self, later: &'static [&'static str]) -> Self {
        Self { later, ..self }
    }
}

/// What has the name of a table.
struct Found {
    kind: String,
    columns: Vec<String>,
    /// Whether a policy hides rows from this user.
    hides_rows: bool,
    /// Who must be asked to change it.
    owner: Option<String>,
}

impl Found {
    fn of(row: &Row) -> Option<Self> {
        Some(Self {
            kind: row.get::<_, Option<String>>(0)?,
            columns: row.get(1),
            hides_rows: row.get(2),
            owner: row.get(3),
        })
    }

    fn has(&self, columns: &[&str]) -> bool {
        columns.iter().all(|column| self.columns.iter().any(|it| it == column))
    }

    fn is(&self, table: &Table) -> bool {
        self.kind == table.kind && self.has(table.known_by)
    }
}

async fn find(client: &Client, names: &[&str]) -> Result<Vec<Option<Found>>> {
    const FIND: &str = "SELECT c.relkind::text, \
           ARRAY(SELECT a.attname::text FROM pg_attribute a \
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), \
           row_security_active(c.oid), \
           CASE WHEN NOT pg_has_role(c.relowner, 'USAGE') THEN pg_get_userbyid(c.relowner)::text END \
         FROM unnest($1::text[]) WITH ORDINALITY AS u(name, i) \
         LEFT JOIN pg_class c ON c.oid = to_regclass(u.name) ORDER BY u.i";
    let rows = client.query_typed(FIND, &[(&names, Type::TEXT_ARRAY)]).await.map_err(failed)?;
    Ok(rows.iter().map(Found::of).collect())
}

/// For each table whether it is there with all its columns.
///
/// # Errors
/// `InvalidInput` for what has the name and is not Terrace's, or whose rows a policy hides.
pub(super) async fn complete(client: &Client, tables: &[Table]) -> Result<Vec<bool>> {
    let names = tables.iter().map(|table| table.name).collect::<Vec<_>>();
    let found = find(client, &names).await?;
    let complete = tables.iter().zip(found).map(|(table, found)| match found {
        None => Ok(false),
        Some(found) if !found.is(table) => Err(foreign(table.name, &found.kind)),
        Some(found) if found.hides_rows => Err(hidden(table.name)),
        Some(found) => Ok(found.has(table.later)),
    });
    complete.collect()
}

/// Gives tables of an earlier Terrace their names of today, if the first of these is one; answers
/// whether it was.
pub(super) async fn rename(transaction: &Transaction<'_>, tables: &[Table]) -> Result<bool> {
    let renamed = tables.iter().filter_map(|table| Some((table, table.formerly?)));
    let renamed = renamed.collect::<Vec<_>>();
    let names = renamed.iter().flat_map(|(table, formerly)| [table.name, formerly]);
    let names = names.collect::<Vec<_>>();
    let found = find(transaction.client(), &names).await?;
    let mut any = false;
    for ((table, formerly), found) in renamed.iter().zip(found.chunks(2)) {
        match found {
            [None, Some(earlier)] if earlier.is(table) => {
                if let Some(owner) = &earlier.owner {
                    return Err(owned(transaction, formerly, owner).await);
                }
                run(transaction, &format!("ALTER TABLE {formerly} RENAME TO {}", table.name))
                    .await?;
                any = true;
            }
            _ if !any => return Ok(false),
            _ => {}
        }
    }
    Ok(any)
}

/// Refuses tables that are there and that this user may not change.
pub(super) async fn must_be_owned(transaction: &Transaction<'_>, tables: &[Table]) -> Result<()> {
    let names = tables.iter().map(|table| table.name).collect::<Vec<_>>();
    let found = find(transaction.client(), &names).await?;
    for (name, found) in names.into_iter().zip(found) {
        if let Some(owner) = found.and_then(|found| found.owner) {
            return Err(owned(transaction, name, &owner).await);
        }
    }
    Ok(())
}

async fn owned(transaction: &Transaction<'_>, name: &str, owner: &str) -> Error {
    let user = match transaction.query_one("SELECT current_user::text", &[]).await {
        Ok(row) => row.get::<_, String>(0),
        Err(error) => return failed(error),
    };
    refused(format!(
        "`{name}` belongs to {owner} and must be changed, which {user} may not; run ALTER TABLE {name} \
         OWNER TO {user}, or start Terrace once as {owner}, or name another schema with database.schema"
    ))
}

fn foreign(name: &str, kind: &str) -> Error {
    let kind = match kind {
        "r" => "table of another program's",
        "p" => "partitioned table",
        "v" => "view",
        "m" => "materialized view",
        "f" => "foreign table",
        "S" => "sequence",
        _ => "relation of another program's",
    };
    refused(format!(
        "there is a {kind} `{name}` where Terrace has a table of its own; rename it, or name another \
         schema with database.schema"
    ))
}

fn hidden(name: &str) -> Error {
    refused(format!(
        "row-level security is in force on the table `{name}` and would hide rows; turn it off with \
         ALTER TABLE {name} DISABLE ROW LEVEL SECURITY, or give the database's user BYPASSRLS"
    ))
}

/// The error of a start with tables that cannot be used as they are.
pub(super) fn refused(message: String) -> Error {
    Error::invalid(message).during("migrate")
}

//! The log's table and triggers: installed and removed while the database is in use.

use std::sync::Arc;
use std::time::Duration;

use terrace_core::{Error, ErrorKind, Result, Runtime};
use tokio_postgres::{Client, Transaction};

use super::super::migrate::{failed, lock, run};

/// What a log holds at its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogBegin {
    /// A creation for each record that there is; writers wait while they are copied.
    WithRecords,
    /// Nothing: changes from now on.
    Empty,
}

/// The class of the advisory lock that says that somebody waits; the object is the table.
pub(super) const WAITING: i32 = 1_952_805_491;

/// What the notifications' channel begins with; the table's number follows.
pub(super) const CHANNEL: &str = "terrace_commands_";

/// Rows are found in the order of commits by transaction and version; nothing is looked up by key.
fn table(schema: &str) -> String {
    format!(
        "CREATE TABLE {schema}.commands (
            transaction xid8 NOT NULL DEFAULT pg_current_xact_id(),
            version bigint NOT NULL,
            type text NOT NULL,
            key text COLLATE \"C\" NOT NULL,
            value text,
            created_at timestamptz NOT NULL,
            time timestamptz NOT NULL
        );
        CREATE INDEX commands_order ON {schema}.commands (transaction, version);"
    )
}

/// The tail of each function: tells who waits, after the change was logged.
fn tell() -> String {
    format!(
        "IF FOUND THEN
            IF pg_try_advisory_lock({WAITING}, TG_RELID::integer) THEN
                PERFORM pg_advisory_unlock({WAITING}, TG_RELID::integer);
            ELSE
                PERFORM pg_notify('{CHANNEL}' || TG_RELID, '');
            END IF;
        END IF;
        RETURN NULL;"
    )
}

/// A replaced row's time is past both of its times, so only a new record has two equal ones.
fn functions(schema: &str) -> String {
    let tell = tell();
    let log =
        format!("INSERT INTO {schema}.commands (version, type, key, value, created_at, time)");
    format!(
        "CREATE OR REPLACE FUNCTION {schema}.commands_changed() RETURNS trigger
        LANGUAGE plpgsql AS $function$ BEGIN
            {log}
            SELECT version, CASE WHEN deleted THEN 'RecordDeleted'
                WHEN created_at = updated_at THEN 'RecordCreated' ELSE 'RecordUpdated' END,
                key, CASE WHEN deleted THEN NULL ELSE value END, created_at, updated_at
            FROM changed;
            {tell}
        END $function$;
        CREATE OR REPLACE FUNCTION {schema}.commands_gone() RETURNS trigger
        LANGUAGE plpgsql AS $function$ BEGIN
            {log}
            SELECT nextval('{schema}.records_version'), 'RecordDeleted', key, NULL, created_at, now()
            FROM gone WHERE NOT deleted;
            {tell}
        END $function$;
        CREATE OR REPLACE FUNCTION {schema}.commands_truncated() RETURNS trigger
        LANGUAGE plpgsql AS $function$ BEGIN
            {log}
            SELECT nextval('{schema}.records_version'), 'RecordDeleted', key, NULL, created_at, now()
            FROM {schema}.records WHERE NOT deleted;
            {tell}
        END $function$;
        CREATE OR REPLACE FUNCTION {schema}.commands_renamed() RETURNS trigger
        LANGUAGE plpgsql AS $function$ BEGIN
            {log}
            VALUES (nextval('{schema}.records_version'), 'RecordDeleted', OLD.key, NULL,
                OLD.created_at, now());
            {tell}
        END $function$;
        CREATE OR REPLACE FUNCTION {schema}.commands_by_hand() RETURNS trigger
        LANGUAGE plpgsql AS $function$ BEGIN
            NEW.version := greatest(nextval('{schema}.records_version'), OLD.version + 1);
            IF NEW.updated_at = OLD.updated_at THEN
                NEW.updated_at := greatest(now(), OLD.updated_at + interval '1 microsecond',
                    OLD.created_at + interval '1 microsecond');
            END IF;
            RETURN NEW;
        END $function$;"
    )
}

/// The last two act only on what people do: a row changed without a new version gets one, and a new
/// key ends the old one. The names order them before triggers that people add.
fn triggers(schema: &str) -> String {
    let on = format!("ON {schema}.records");
    let statement = |function: &str| {
        format!("FOR EACH STATEMENT EXECUTE FUNCTION {schema}.commands_{function}();")
    };
    format!(
        "CREATE TRIGGER commands_1_inserted AFTER INSERT {on} REFERENCING NEW TABLE AS changed {changed}
        CREATE TRIGGER commands_2_updated AFTER UPDATE {on} REFERENCING NEW TABLE AS changed {changed}
        CREATE TRIGGER commands_3_deleted AFTER DELETE {on} REFERENCING OLD TABLE AS gone {gone}
        CREATE TRIGGER commands_4_truncated BEFORE TRUNCATE {on} {truncated}
        CREATE TRIGGER commands_5_by_hand BEFORE UPDATE {on} FOR EACH ROW
            WHEN (NEW.version <= OLD.version) EXECUTE FUNCTION {schema}.commands_by_hand();
        CREATE TRIGGER commands_6_renamed AFTER UPDATE {on} FOR EACH ROW
            WHEN (NEW.key <> OLD.key AND NOT OLD.deleted)
            EXECUTE FUNCTION {schema}.commands_renamed();",
        changed = statement("changed"),
        gone = statement("gone"),
        truncated = statement("truncated"),
    )
}

/// Triggers come and go under a lock of the table that waits for whoever uses it, and behind which
/// everybody else queues.
const NOT_LONG: &str = "SET LOCAL lock_timeout = '400ms'";

/// Removes all of it, whatever is there of it.
fn removal(schema: &str) -> String {
    let mut text = String::new();
    for name in ["1_inserted", "2_updated", "3_deleted", "4_truncated", "5_by_hand", "6_renamed"] {
        text.push_str(&format!("DROP TRIGGER IF EXISTS commands_{name} ON {schema}.records;"));
    }
    for name in ["changed", "gone", "truncated", "renamed", "by_hand"] {
        text.push_str(&format!("DROP FUNCTION IF EXISTS {schema}.commands_{name}();"));
    }
    text.push_str(&format!(
        "DROP TABLE IF EXISTS {schema}.commands; DELETE FROM {schema}.meta WHERE name = 'log'"
    ));
    text
}

/// The name of the log, if there is one whose transactions this server has counted.
pub(in super::super) async fn current(
    client: &Client,
) -> Result<Option<Arc<str>>, tokio_postgres::Error> {
    const NAME: &str = "SELECT value FROM meta WHERE name = 'log'";
    const AHEAD: &str = "SELECT EXISTS (SELECT 1 FROM commands \
         WHERE transaction >= pg_snapshot_xmax(pg_current_snapshot()))";
    let Some(row) = client.query_opt(NAME, &[]).await? else { return Ok(None) };
    let ahead: bool = client.query_one(AHEAD, &[]).await?.get(0);
    Ok((!ahead).then(|| Arc::from(row.get::<_, &str>(0))))
}

/// Installs the log that begins so, and answers its name; or removes it. The table is in use, so it is
/// tried again and again for a moment each, between which the others go on.
///
/// # Errors
/// `Unavailable` when somebody holds the table for too long; nothing was changed.
pub(in super::super) async fn change(
    client: &mut Client,
    schema: &str,
    begin: Option<LogBegin>,
    runtime: &Runtime,
) -> Result<Option<Arc<str>>> {
    const TRIES: u32 = 10;
    const PAUSE: Duration = Duration::from_secs(1);
    let mut tries = 0;
    loop {
        let done = match begin {
            Some(begin) => install(client, schema, begin).await.map(Some),
            None => remove(client, schema).await.map(|()| None),
        };
        tries += 1;
        match done {
            Err(error) if error.kind() == ErrorKind::Overloaded && tries < TRIES => {
                tracing::debug!(%error, "the table is in use; trying again");
                runtime.sleep(PAUSE).await;
            }
            Err(error) if error.kind() == ErrorKind::Overloaded => {
                let message = "somebody's transaction holds the table `records`, as a backup does, and \
                               the table must be changed; try again when that has ended";
                return Err(Error::new(ErrorKind::Unavailable, message).caused_by(error));
            }
            done => return done,
        }
    }
}

/// Installs the log unless it is there, and answers its name. A log that cannot be followed any more
/// is begun anew.
async fn install(client: &mut Client, schema: &str, begin: LogBegin) -> Result<Arc<str>> {
    if let Some(name) = current(client).await.map_err(failed)? {
        return Ok(name);
    }
    let transaction = client.transaction().await.map_err(failed)?;
    lock(&transaction, schema).await?;
    if let Some(name) = current(transaction.client()).await.map_err(failed)? {
        return Ok(name);
    }
    make(&transaction, schema, begin).await?;
    let name = "SELECT value FROM meta WHERE name = 'log'";
    let name = transaction.query_one(name, &[]).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    Ok(Arc::from(name.get::<_, &str>(0)))
}

async fn make(transaction: &Transaction<'_>, schema: &str, begin: LogBegin) -> Result<()> {
    run(transaction, NOT_LONG).await?;
    run(transaction, &removal(schema)).await?;
    run(transaction, &table(schema)).await?;
    run(transaction, &functions(schema)).await?;
    run(transaction, &triggers(schema)).await?;
    run(
        transaction,
        "INSERT INTO meta VALUES \
         ('log', 'log-' || left(replace(gen_random_uuid()::text, '-', ''), 12))",
    )
    .await?;
    if begin == LogBegin::WithRecords {
        let copy = format!(
            "INSERT INTO {schema}.commands (version, type, key, value, created_at, time) \
             SELECT version, 'RecordCreated', key, value, created_at, updated_at \
             FROM {schema}.records WHERE NOT deleted ORDER BY version"
        );
        run(transaction, &copy).await?;
    }
    Ok(())
}

/// Removes the log; followers find nothing any more.
async fn remove(client: &mut Client, schema: &str) -> Result<()> {
    let transaction = client.transaction().await.map_err(failed)?;
    lock(&transaction, schema).await?;
    run(&transaction, NOT_LONG).await?;
    run(&transaction, &removal(schema)).await?;
    transaction.commit().await.map_err(failed)
}

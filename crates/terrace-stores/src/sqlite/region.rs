//! A file that is one of several regions.
//!
//! It has what `region_tables.sql` adds: what has arrived of each key (`records.seen`), what each change
//! replaced (`commands.replaced`), and the table `conflicts`. The log has the changes of this region
//! alone. Versions are drawn by the writer, which is the only one, from the counter and the clock; the
//! triggers that draw them for people are replaced by ones that do the same in SQL.
//!
//! Rows of other regions are merged by the writer in the transaction that moves the checkpoint, and the
//! counter goes on above them. So what has arrived has moved the position of the history, too.

mod merge;
mod port;

use std::fmt;
use std::sync::Arc;

use rusqlite::{Connection, Transaction, params};
use terrace_core::{Error, Inspection, RegionOptions, Result, Runtime, Unit, Version};

use super::apply::{INSERT, UPDATE};
use super::lane::Lane;
use super::log::SqliteLog;
use super::shared::Shared;
use super::{failure, follow, schema};

pub(super) use merge::perform;

/// What a store has open for this.
pub(super) struct RegionParts {
    pub(super) log: Arc<SqliteLog>,
    /// For what requests wait for.
    pub(super) quick: Lane,
    /// For walks over many rows.
    pub(super) slow: Lane,
}

impl RegionParts {
    pub(super) fn open(shared: &Arc<Shared>) -> Result<Option<Self>> {
        let (Some(name), Some(_)) = (&shared.log, &shared.options.region) else { return Ok(None) };
        let lane = |name| Lane::start(&shared.options, name, shared.runtime.clone());
        let log = Arc::new(SqliteLog::open(Arc::clone(name), Arc::clone(shared))?);
        Ok(Some(Self { log, quick: lane("sqlite-region")?, slow: lane("sqlite-region-walk")? }))
    }

    /// Says how many losses are listed.
    pub(super) async fn told(&self, tree: Inspection) -> Inspection {
        const COUNT: &str = "SELECT count(*) FROM conflicts WHERE awaited = 0";
        let count = |it: &mut Connection| {
            it.query_row(COUNT, [], |row| row.get::<_, i64>(0)).map_err(failure::of)
        };
        match self.quick.run(count).await {
            Ok(listed) => tree.gauge("conflicts", listed.unsigned_abs(), Unit::Count),
            Err(_) => tree,
        }
    }

    pub(super) fn close(&self) {
        self.log.close();
        self.quick.close();
        self.slow.close();
    }
}

impl fmt::Debug for RegionParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegionParts").finish_non_exhaustive()
    }
}

/// Refuses a file that is another region than is asked for, or none, or one.
pub(super) fn check(connection: &Connection, asked: Option<&RegionOptions>) -> Result<()> {
    let known = schema::text(connection, "region")?;
    let asked = asked.map(identity);
    if known == asked || known.is_none() {
        return Ok(());
    }
    let message = "the file is a region of its own number and name; open it as that region, or give \
                   another file";
    let asked = asked.unwrap_or_else(|| "no region".to_owned());
    Err(Error::invalid(message).with("is", known.unwrap_or_default()).with("asked", asked))
}

fn identity(options: &RegionOptions) -> String {
    format!("{} {}", options.id, options.name)
}

/// The statements that write a record: an insert and an update. What the row had is seen by the change.
pub(super) fn statements(options: &RegionOptions) -> (String, String) {
    const HORIZON: &str = "(SELECT iif(value > 0, json_array(value), '[]') FROM meta
        WHERE name = 'collected')";
    let insert = INSERT.replace("seq)", "seq, seen)").replace("?6)", &format!("?6, {HORIZON})"));
    let seen = format!(
        "seen = iif(version & 63 = {} OR version <= 0, seen, json_insert(seen, '$[#]', version))",
        options.id
    );
    (insert, UPDATE.replace("seq = ?7", &format!("seq = ?7, {seen}")))
}

/// Makes the file the region that it is asked to be, unless it is. Its records get versions of the region.
pub(super) fn install(
    transaction: &Transaction<'_>,
    options: &RegionOptions,
    runtime: &Runtime,
) -> Result<()> {
    const IS_NEW: &str = "SELECT count(*) = 0 FROM pragma_table_info('commands')
        WHERE name = 'replaced'";
    let failed = |error| failure::of(error).during("migrate");
    // The log may have been lost, and begun anew with records of all regions.
    if schema::ask::<bool>(transaction, IS_NEW)? {
        let own = format!(
            "ALTER TABLE commands ADD COLUMN replaced INTEGER NOT NULL DEFAULT 0;
             DELETE FROM commands WHERE version & 63 <> {}",
            options.id
        );
        transaction.execute_batch(&own).map_err(failed)?;
    }
    if schema::text(transaction, "region")?.is_none() {
        transaction.execute_batch(include_str!("region_tables.sql")).map_err(failed)?;
        redraw(transaction, options, runtime)?;
        schema::keep(transaction, "region", &identity(options))?;
    }
    transaction.execute_batch(&triggers(options)).map_err(failed)
}

fn triggers(options: &RegionOptions) -> String {
    let region = options.id.to_string();
    let clock = format!(
        "(CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) - {}) << 13",
        Version::SINCE
    );
    let next = format!(
        "(max(value, {clock}, (SELECT ifnull(max(version), 0) FROM records
            WHERE version < 9007199254740992)) >> 6 << 6) + 64 + {region}"
    );
    include_str!("region.sql").replace("{region}", &region).replace("{next}", &next)
}

/// Gives all rows versions of this region, in their order, and begins the log with them.
fn redraw(transaction: &Transaction<'_>, options: &RegionOptions, runtime: &Runtime) -> Result<()> {
    const ROWS: &str = "SELECT count(*) FROM records";
    const REDRAW: &str = "UPDATE records SET version = ?1 + 64 * drawn.number, seen = '[]' FROM
        (SELECT rowid AS row, row_number() OVER (ORDER BY version) AS number FROM records) AS drawn
        WHERE records.rowid = drawn.row";
    const LOG: &str = "DELETE FROM commands;
        INSERT INTO commands (position, type, key, value, version, created_at, time)
        SELECT version, iif(deleted, 'RecordDeleted', 'RecordCreated'), key,
            iif(deleted, NULL, value), version, created_at, updated_at FROM records";
    let failed = |error| failure::of(error).during("migrate");
    let number = |text| transaction.query_row(text, [], |row| row.get::<_, i64>(0));
    let (rows, latest) =
        (number(ROWS).map_err(failed)?, number(super::log::LATEST).map_err(failed)?);
    let now = runtime.wall();
    let latest = Version::of_row(latest).unwrap_or(Version::NONE);
    options.check_clock(latest, now).map_err(|_| {
        Error::invalid("the file's versions are ahead of the clock; give the region another file")
    })?;
    let base = latest.next_in(options.id, now).get();
    let base = i64::try_from(base).map_err(|_| failure::corrupt("version"))?;
    follow::as_is(transaction, |connection, _| {
        connection.execute(REDRAW, params![base]).map_err(failed)?;
        connection.execute_batch(LOG).map_err(failed)?;
        Ok(((), base + 64 * rows))
    })
}

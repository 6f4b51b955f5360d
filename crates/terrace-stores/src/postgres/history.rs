//! Which database this is, and the generation of what is cached from it.
//!
//! A name that is kept in a database is copied with it, so `terrace_history` keeps beside the name
//! what cannot be copied: the server's system identifier, its timeline, the object id of the database
//! and the number of the file that has the table `records`. They are compared on every new connection.
//! Where they differ, as in a clone, after a restore, a failover or when the table was emptied or made
//! again, a new history begins before anything is answered: it gets a name of its own, and versions go
//! on above all that any earlier one can have given out.
//!
//! A name is `pg-<lineage>.<number>`. In the same database on the same server, or on one that was
//! promoted, the number goes on, with something random, for two standbys may be promoted beside each
//! other; a copy has a lineage of its own, `pg-<lineage>-of-<the first one>`, by which tokens of other
//! copies are known to be of these data. What waits for a database by its lineage, as a journal does,
//! survives a failover and is not taken over by a clone. A physical copy that was made a server of its
//! own cannot be told from a failover; [`renew`] begins a lineage.
//!
//! **A way back**, when a server takes its place again after another one had it, begins a new history,
//! too: what was done in between is lost. Nothing in the database tells, so whoever has seen the other
//! one does it, on the first connection that leads back.
//!
//! **A restart** of the server keeps the history and raises the generation. A crash loses no
//! acknowledged write, but it takes back transaction ids of which nothing was on disk, and gives them
//! out again: what a snapshot proved before it says nothing about the same number after it. So a
//! position holds the count of restarts above the transaction id ([`super::snapshot::position`]).
//! Restarts are told by when the server was started and when its statistics were begun anew, which a
//! crash does, too, that its postmaster survives. Where `synchronous_commit` or `fsync` was off, a crash
//! may have taken acknowledged writes back; that is noted while it is so, and the next restart begins a
//! history.
//!
//! Every statement of requests names the history that its connection found, and does nothing under
//! another one. So a connection that lives through a restore answers nothing under the old name.

use std::sync::Arc;

use terrace_core::history::copy_of;
use terrace_core::{Error, ErrorKind, Generation, Result, Standing};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row, Transaction};

use super::altering::{failed, lock, run};
use super::connection::Connection;
use super::snapshot::RESTART;
use super::work::{Failure, Progress, Work, corrupt};

/// The table. The row that is in force has an identity; the others are past.
pub(super) const TABLE: &str = "CREATE TABLE IF NOT EXISTS terrace_history (
        name text PRIMARY KEY,
        generation bigint NOT NULL DEFAULT 0,
        identity text,
        records oid,
        started text,
        lossy boolean NOT NULL DEFAULT false,
        began_at timestamptz NOT NULL DEFAULT now()
    ) WITH (fillfactor = 50);
    ALTER TABLE terrace_history ADD COLUMN IF NOT EXISTS started text,
        ADD COLUMN IF NOT EXISTS lossy boolean NOT NULL DEFAULT false";

/// Whether a crash leaves the tables whole, how a commit waits for the disk, and whether for standbys.
macro_rules! safety {
    () => {
        "current_setting('fsync') = 'on' AND (SELECT bool_and(relpersistence = 'p') FROM pg_class \
           WHERE oid IN (to_regclass('records'), to_regclass('terrace_idempotency'), \
             to_regclass('commands'))) IS NOT FALSE, \
         current_setting('synchronous_commit'), current_setting('synchronous_standby_names') <> ''"
    };
}
pub(super) use safety;

/// What a server says of itself, in the order of [`Look::of`].
macro_rules! look {
    ($identifier:literal, $timeline:literal) => {
        concat!(
            "SELECT concat_ws('/', ",
            $identifier,
            ", d.oid, pg_relation_filenode(to_regclass('records'))), \
               CASE WHEN pg_is_in_recovery() THEN NULL ELSE ",
            $timeline,
            " END, pg_is_in_recovery(), h.name, h.generation, h.identity, \
               ARRAY(SELECT p.name FROM terrace_history p WHERE p.identity IS NULL), \
               ",
            safety!(),
            ", h.started, h.lossy, \
               concat_ws('/', extract(epoch FROM pg_postmaster_start_time()), \
                 (SELECT extract(epoch FROM stats_reset) FROM pg_stat_bgwriter)), \
               current_setting('transaction_read_only') = 'on' \
             FROM pg_database d LEFT JOIN terrace_history h ON h.identity IS NOT NULL \
             WHERE d.datname = current_database()"
        )
    };
}

const LOOK: &str = look!(
    "(pg_control_system()).system_identifier",
    "left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)"
);

/// Where the functions are forbidden: a failover and a clone on another server are then noticed by
/// the numbers of the database and the table alone.
const LOOK_WITHOUT: &str = look!("'-'", "'-'");

/// What a server said of itself.
#[derive(Debug)]
pub(super) struct Look {
    /// What cannot be copied, but for the timeline.
    fixed: String,
    timeline: Option<String>,
    pub(super) is_replica: bool,
    /// The row in force.
    kept: Option<(String, i64, String)>,
    /// Which run of the server the row in force knows, and which this is.
    kept_run: Option<String>,
    run: String,
    /// Whether transactions may write nothing now.
    reads_only: bool,
    /// Whether the row in force says that a crash may take acknowledged writes back.
    lossy: bool,
    past: Vec<String>,
    /// See [`safety`].
    pub(super) settings: (bool, String, bool),
}

impl Look {
    fn of(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let kept = match row.try_get::<_, Option<String>>(3)? {
            Some(name) => Some((name, row.try_get(4)?, row.try_get(5)?)),
            None => None,
        };
        Ok(Self {
            fixed: row.try_get(0)?,
            timeline: row.try_get(1)?,
            is_replica: row.try_get(2)?,
            kept,
            past: row.try_get(6)?,
            settings: (row.try_get(7)?, row.try_get(8)?, row.try_get(9)?),
            kept_run: row.try_get(10)?,
            lossy: row.try_get::<_, Option<bool>>(11)?.unwrap_or_default(),
            run: row.try_get(12)?,
            reads_only: row.try_get(13)?,
        })
    }

    fn identity(&self) -> String {
        format!("{}/{}", self.fixed, self.timeline.as_deref().unwrap_or_default())
    }

    /// Whether this is the database with that identity. What this user may not see, or the one who
    /// wrote it down might not, tells nothing.
    fn is_of(&self, identity: &str) -> bool {
        let found = self.identity();
        let (found, kept) = (found.split('/'), identity.split('/'));
        found.clone().count() == kept.clone().count()
            && found.zip(kept).all(|(found, kept)| found == kept || found == "-" || kept == "-")
    }

    /// The number of the timeline of a server that takes writes.
    pub(super) fn timeline(&self) -> u64 {
        let digits = self.timeline.as_deref().unwrap_or_default();
        u64::from_str_radix(digits, 16).unwrap_or(0)
    }

    /// What is in force, if this is the database that it is of and the run of the server that it knows.
    /// A replica shows what its primary keeps.
    pub(super) fn standing(&self) -> Option<Standing> {
        let (name, generation, identity) = self.kept.as_ref()?;
        let is_known = || self.is_of(identity) && self.kept_run.as_ref() == Some(&self.run);
        (self.is_replica || is_known()).then(|| Standing {
            history: name.as_str().into(),
            generation: self::generation(*generation),
            past: self.past(),
        })
    }

    /// The same, unless it is a way back.
    fn standing_after(&self, known: &Standing) -> Option<Standing> {
        self.standing().filter(|it| self.is_replica || !known.past.contains(&it.history))
    }

    fn past(&self) -> Vec<Arc<str>> {
        self.past.iter().map(|name| name.as_str().into()).collect()
    }

    /// Whether a crash takes no acknowledged write back, as the server is set up now.
    fn is_durable(&self) -> bool {
        let (fsync, commit, _) = &self.settings;
        *fsync && commit != "off"
    }

    /// Whether it has yet to be noted, for the next run, that this one may lose acknowledged writes.
    fn is_newly_lossy(&self) -> bool {
        !self.reads_only && !self.lossy && !self.is_durable()
    }

    /// Whether this is another run of the same server.
    fn is_restarted(&self) -> bool {
        self.kept.as_ref().is_some_and(|(_, _, identity)| self.is_of(identity))
    }

    /// The name of the history that begins: the next of the lineage on the same system and in the same
    /// database, else the first of a new one.
    fn next_name(&self) -> Option<String> {
        let (name, _, identity) = self.kept.as_ref()?;
        let (lineage, number) = name.rsplit_once('.')?;
        let number: u64 = number.split('-').next()?.parse().ok()?;
        let mut parts = identity.split('/');
        let (system, database) = (parts.next()?, parts.next()?);
        self.is_of(&format!("{system}/{database}/-/-")).then(|| format!("{lineage}.{}", number + 1))
    }
}

/// Generations are never negative.
pub(super) fn generation(number: i64) -> Generation {
    Generation::new(u64::try_from(number).unwrap_or(0))
}

/// Asks the server.
pub(super) async fn look(client: &Client) -> Result<Look, tokio_postgres::Error> {
    let none: &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)] = &[];
    let rows = match client.query_typed(LOOK, none).await {
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            client.query_typed(LOOK_WITHOUT, none).await?
        }
        rows => rows?,
    };
    // The database that one is connected to is in the list of databases.
    Look::of(&rows[0])
}

/// What is in force on this server, after what was `known`; begins a new history where the one that is
/// kept is of another database, or past.
pub(super) async fn settle(
    client: &mut Client,
    schema: &str,
    known: &Standing,
) -> Result<(Standing, Look)> {
    let found = look(client).await.map_err(failed)?;
    settle_found(client, schema, known, found).await
}

/// As [`settle`], for what was looked at a moment ago.
pub(super) async fn settle_found(
    client: &mut Client,
    schema: &str,
    known: &Standing,
    found: Look,
) -> Result<(Standing, Look)> {
    if let Some(standing) = found.standing_after(known) {
        if found.is_newly_lossy() {
            client.query_typed(LOSSY, &[]).await.map_err(failed)?;
        }
        return Ok((standing, found));
    }
    if found.is_replica {
        return Err(not_received());
    }
    let transaction = client.transaction().await.map_err(failed)?;
    lock(&transaction, schema).await?;
    let standing = begin_if_another(&transaction, known).await?;
    transaction.commit().await.map_err(failed)?;
    Ok((standing, found))
}

/// Under the lock: what is in force, or what begins now.
async fn begin_if_another(transaction: &Transaction<'_>, known: &Standing) -> Result<Standing> {
    // What nobody in this database knows of: the lives of the server that had its place.
    const LOST: &str = "INSERT INTO terrace_history (name) SELECT unnest($1::text[]) \
         ON CONFLICT (name) DO NOTHING";
    let mut found = look(transaction.client()).await.map_err(failed)?;
    if let Some(standing) = found.standing_after(known) {
        return Ok(standing);
    }
    let kept = found.kept.as_ref().map(|(name, ..)| name.as_str());
    if kept.is_some_and(|kept| known.past.iter().any(|past| **past == *kept)) {
        let lost = known.past.iter().chain([&known.history]).filter(|name| kept != Some(&***name));
        let lost = lost.map(|name| &**name).collect::<Vec<_>>();
        transaction.execute(LOST, &[&lost]).await.map_err(failed)?;
        found.past.extend(lost.into_iter().map(str::to_owned));
    } else if found.is_restarted() && !found.lossy {
        return go_on(transaction, &found).await;
    }
    begin(transaction, &found, found.next_name()).await
}

/// Versions go on above all that can have been given out and was not on disk. The commit waits for no
/// standby: one that is promoted without it begins a history of its own.
///
/// A region draws instead, which raises its sequence above the clock.
async fn go_above(transaction: &Transaction<'_>, above: &str) -> Result<()> {
    const IS_REGION: &str = "SELECT EXISTS (SELECT 1 FROM terrace_meta WHERE name = 'region')";
    let is_region = transaction.query_one(IS_REGION, &[]).await.map_err(failed)?;
    let raise = match is_region.get::<_, bool>(0) {
        true => {
            "SELECT terrace_version_above(last_value + 1048576) FROM records_version".to_owned()
        }
        false => format!("SELECT setval('records_version', {above}) FROM records_version"),
    };
    run(transaction, &format!("SET LOCAL synchronous_commit = local; {raise}")).await
}

const ABOVE: &str = "last_value + 1048576";

/// Notes that a crash may take acknowledged writes back. Durable itself.
const LOSSY: &str = "UPDATE terrace_history SET lossy = true WHERE identity IS NOT NULL \
     AND set_config('synchronous_commit', 'local', true) IS NOT NULL";

/// Goes on with the history after a restart.
async fn go_on(transaction: &Transaction<'_>, found: &Look) -> Result<Standing> {
    const GO_ON: &str = "UPDATE terrace_history SET generation = generation + $1, started = $2 \
         WHERE identity IS NOT NULL RETURNING name, generation";
    go_above(transaction, ABOVE).await?;
    let step = i64::try_from(RESTART).unwrap_or(i64::MAX);
    let row = transaction.query_one(GO_ON, &[&step, &found.run]).await.map_err(failed)?;
    let (name, generation) = (row.get::<_, &str>(0), self::generation(row.get(1)));
    tracing::info!(history = name, "the database server was restarted; caches are filled anew");
    Ok(Standing { history: name.into(), generation, past: found.past() })
}

/// Begins the first history of tables that had none, in the lineage of an earlier Terrace's if there
/// was one.
pub(super) async fn begin_first(transaction: &Transaction<'_>) -> Result<()> {
    const EARLIER: &str = "SELECT value || '.1' FROM terrace_meta WHERE name = 'history'";
    let found = look(transaction.client()).await.map_err(failed)?;
    if found.kept.is_none() {
        let name = transaction.query_opt(EARLIER, &[]).await.map_err(failed)?;
        begin(transaction, &found, name.map(|row| row.get(0))).await?;
    }
    Ok(())
}

/// Begins a history under this name, or as the first of a new lineage.
///
/// Versions go on above the microseconds since 1970: no earlier history has given out as many, and
/// they stay below 2^53.
async fn begin(
    transaction: &Transaction<'_>,
    found: &Look,
    name: Option<String>,
) -> Result<Standing> {
    const BEGIN: &str = "WITH old AS ( \
           UPDATE terrace_history SET identity = NULL, records = NULL \
           WHERE identity IS NOT NULL RETURNING generation) \
         INSERT INTO terrace_history (name, generation, identity, started, lossy, records) \
         SELECT coalesce($1 || '-' || left(md5(gen_random_uuid()::text), 6), \
             'pg-' || left(replace(gen_random_uuid()::text, '-', ''), 12) || $5 || '.1'), \
           coalesce((SELECT max(generation) FROM old), 0) + 1, $2, $3, $4, \
           pg_relation_filenode(to_regclass('records')) \
         RETURNING name, generation";
    const NOW: &str = "greatest(last_value + 1048576, \
           (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)";
    if found.kept.is_some() {
        go_above(transaction, NOW).await?;
    }
    let copy_of = found.kept.as_ref().map(|(old, _, _)| copy_of(old)).unwrap_or_default();
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
        [&name, &found.identity(), &found.run, &!found.is_durable(), &copy_of];
    let row = transaction.query_one(BEGIN, &parameters).await.map_err(failed)?;
    let (name, generation) = (row.get::<_, &str>(0), self::generation(row.get(1)));
    if let Some((old, _, _)) = &found.kept {
        tracing::warn!(
            history = name,
            old,
            "this is another life of the database (a failover, a copy, a restore, or a table made \
             again): what was cached is not believed, and tokens from before are lost"
        );
    }
    let mut past = found.past();
    past.extend(found.kept.iter().map(|(name, _, _)| Arc::from(name.as_str())));
    Ok(Standing { history: name.into(), generation, past })
}

/// The error of a replica on which the tables are not as its primary has them.
pub(super) fn not_received() -> Error {
    let message = "the replica has not received Terrace's tables from its primary yet; try again";
    Error::new(ErrorKind::Unavailable, message)
}

/// Whether an error says that the table is missing, or is of an earlier Terrace.
pub(super) fn is_missing(error: &tokio_postgres::Error) -> bool {
    let missing = [&SqlState::UNDEFINED_TABLE, &SqlState::UNDEFINED_COLUMN];
    error.code().is_some_and(|code| missing.contains(&code))
}

/// Begins a new lineage, for a copy that cannot be told from its original.
pub(super) async fn renew(client: &mut Client, schema: &str) -> Result<Standing> {
    let transaction = client.transaction().await.map_err(failed)?;
    lock(&transaction, schema).await?;
    let found = look(transaction.client()).await.map_err(failed)?;
    let standing = begin(&transaction, &found, None).await?;
    transaction.commit().await.map_err(failed)?;
    Ok(standing)
}

/// Asks what is in force, in a session that is open.
pub(super) struct LookAgain;

impl Work for LookAgain {
    type Answer = Look;

    const OPERATION: &'static str = "look at the history";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<Look, Failure> {
        let found = look(connection.driver()).await?;
        // The next session begins a history where this one is of another database.
        match found.standing() {
            Some(standing) if standing.history == connection.history => {
                if found.is_newly_lossy() {
                    connection.ask(LOSSY, &[]).await?;
                }
                Ok(found)
            }
            _ => Err(Failure::AnotherHistory),
        }
    }
}

/// Raises the generation, and answers it. Durable whatever the settings are.
pub(super) struct Raise<'a> {
    pub(super) history: &'a str,
}

impl Work for Raise<'_> {
    type Answer = Generation;

    const OPERATION: &'static str = "raise the generation";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<Generation, Failure> {
        // The setting is read at the commit. One statement, so no session that stands still keeps the
        // row from others.
        const RAISE: &str = "UPDATE terrace_history SET generation = generation + 1 \
             WHERE name = $1 AND records = pg_relation_filenode('records') \
             AND set_config('synchronous_commit', 'local', true) IS NOT NULL RETURNING generation";
        let raised = connection.ask(RAISE, &[(&self.history, Type::TEXT)]).await?;
        let row = raised.first().ok_or(Failure::AnotherHistory)?;
        Ok(generation(row.try_get(0).map_err(corrupt)?))
    }
}

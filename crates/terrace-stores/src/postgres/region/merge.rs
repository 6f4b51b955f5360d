//! Merges changes and rows of other regions, in the transaction that moves the checkpoint.
//!
//! The rows are locked in the order of their keys, what becomes of them is worked out over the locked rows,
//! and written: two round trips. A row that is made meanwhile by a writer of this region ends the
//! transaction, and the next try finds it.

mod columns;

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::{join4, join5};
use terrace_core::{
    Ancestry, Checkpoint, Conflict, Error, ErrorKind, KeyState, Logged, RegionId, RegionOptions,
    Seen, Timestamp, Version, region,
};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::super::connection::Connection;
use super::super::made::make;
use super::super::statements::{Parameter, Sql};
use super::super::work::{Failure, Progress, Work, corrupt};
use columns::{Arrived, INSERT, Losses, Records, Results, UPDATE};

/// Changes of an origin, or rows of any region.
pub(super) struct Merge<'a> {
    pub(super) options: &'a RegionOptions,
    pub(super) changes: &'a [Logged],
    /// Of an origin: where its checkpoint is before, and after.
    pub(super) follow: Option<(RegionId, &'a Checkpoint, &'a Checkpoint)>,
    pub(super) now: Timestamp,
}

type Typed<'a> = (&'a (dyn ToSql + Sync), Type);

/// Moves the checkpoint from where it is to be, and so keeps others from it.
const MOVE: &str = "INSERT INTO terrace_followed AS f (origin, checkpoint) \
     SELECT $1, $3 WHERE $4 OR EXISTS (SELECT 1 FROM terrace_followed WHERE origin = $1) \
     ON CONFLICT (origin) DO UPDATE SET checkpoint = excluded.checkpoint, \
       moved = pg_current_xact_id() WHERE f.checkpoint = $2 RETURNING true";

const LOCK: &str = "SELECT key, version, deleted FROM records WHERE key = ANY ($1::text[]) \
     ORDER BY key FOR UPDATE";
const ARRIVED: &str = "SELECT key, seen FROM terrace_arrived WHERE key = ANY ($1::text[])";

/// Up to when deletions were collected. Asked after the rows were looked for: it is raised before they go.
pub(super) const HORIZON: &str = "SELECT value::bigint FROM terrace_meta WHERE name = 'collected'";

/// Raises it to `$1`, and the sequence above `$2`.
pub(super) const RAISE_HORIZON: &str = "INSERT INTO terrace_meta AS m (name, value) \
     VALUES ('collected', $1::bigint::text) ON CONFLICT (name) DO UPDATE \
       SET value = greatest(m.value::bigint, $1)::text RETURNING terrace_version_above($2)";

/// Of changes, what they may have replaced; of rows, all.
const LISTED: &str = "SELECT key, version, awaited FROM terrace_conflicts \
     WHERE key = ANY ($1::text[]) AND (awaited OR $3 OR version = ANY ($2::bigint[]))";

impl Work for Merge<'_> {
    type Answer = bool;

    const OPERATION: &'static str = "follow another region";

    async fn run(&self, connection: &Connection, progress: &Progress) -> Result<bool, Failure> {
        progress.in_transaction(true);
        // Boxed: they are large.
        let known = Box::pin(self.look(connection)).await;
        let merged = known.and_then(|known| known.map(|known| self.merge(known)).transpose());
        let merged = match merged {
            Ok(Some(merged)) => merged,
            other => {
                connection.command("ROLLBACK").await?;
                progress.in_transaction(false);
                return other.map(|_| false);
            }
        };
        progress.commits();
        let written = Box::pin(self.write(connection, progress, &merged)).await;
        if written.is_ok() {
            progress.in_transaction(false);
        }
        written.map(|()| true)
    }
}

/// A key of the batch.
#[derive(Default)]
struct Known<'a> {
    /// Whether it has a row.
    exists: bool,
    before: KeyState,
    now: KeyState,
    /// What brought the record that is to be; nothing where it stays as it is.
    record: Option<&'a Logged>,
    noticed: BTreeMap<Version, Loss>,
}

/// A loss that was noticed. The digest of a value that is in the table is worked out there.
struct Loss {
    conflict: Conflict,
    is_here: bool,
}

type Keys<'a> = BTreeMap<&'a str, Known<'a>>;

impl Merge<'_> {
    /// Begins, moves the checkpoint, locks, and finds what is known; nothing when the checkpoint is
    /// elsewhere.
    async fn look(&self, connection: &Connection) -> Result<Option<Keys<'_>>, Failure> {
        const CLOCK: &str = "SELECT terrace_clock()";
        let names = self.changes.iter().map(|change| change.key.as_str());
        let names = names.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>();
        let (versions, all) = self.asked();
        let none: &[Typed<'_>] = &[];
        let history: [Parameter<'_>; 1] = [&&*connection.history];
        let keys: [Typed<'_>; 3] =
            [(&names, Type::TEXT_ARRAY), (&versions, Type::INT8_ARRAY), (&all, Type::BOOL)];
        let begin = join4(
            connection.command("BEGIN"),
            connection.run(Sql::Transaction, &history),
            self.move_checkpoint(connection),
            connection.ask(CLOCK, none),
        );
        let find = join4(
            connection.ask(LOCK, &keys[..1]),
            connection.ask(ARRIVED, &keys[..1]),
            connection.ask(LISTED, &keys),
            connection.ask(HORIZON, none),
        );
        let ((begun, in_force, moved, clock), (locked, arrived, listed, horizon)) =
            futures_util::future::join(begin, find).await;
        begun?;
        in_force?.first().ok_or(Failure::AnotherHistory)?;
        if !moved? {
            return Ok(None);
        }
        let clock = clock?.first().map_or(Ok(0), |row| row.try_get(0)).map_err(corrupt)?;
        let newest = self.newest().unwrap_or_default();
        let clock = super::super::read::version(clock).time();
        self.options.check_clock(newest, clock).map_err(Failure::Refused)?;
        let mut keys = names.into_iter().map(|name| (name, Known::default())).collect();
        let horizon = collected(&horizon?)?;
        known(&mut keys, &locked?, &arrived?, &listed?, horizon).map_err(corrupt)?;
        Ok(Some(keys))
    }

    fn newest(&self) -> Option<Version> {
        self.changes.iter().map(|change| change.version).max()
    }

    /// The versions that the changes write and replace, and whether more must be known.
    fn asked(&self) -> (Vec<i64>, bool) {
        let mut versions = Vec::with_capacity(self.changes.len() * 2);
        let mut all = false;
        for change in self.changes {
            versions.push(signed(change.version));
            match change.ancestry.as_deref() {
                Some(Ancestry::Change { replaced, .. }) => versions.push(signed(*replaced)),
                _ => all = true,
            }
        }
        (versions, all)
    }

    async fn move_checkpoint(&self, connection: &Connection) -> Result<bool, Failure> {
        let Some((origin, from, to)) = self.follow else { return Ok(true) };
        let (is_first, origin) = (*from == Checkpoint::default(), i16::from(origin.get()));
        let (from, to) = (text_of(from)?, text_of(to)?);
        let parameters: [Typed<'_>; 4] = [
            (&origin, Type::INT2),
            (&from, Type::TEXT),
            (&to, Type::TEXT),
            (&is_first, Type::BOOL),
        ];
        Ok(!connection.ask(MOVE, &parameters).await?.is_empty())
    }

    /// Goes through the changes in their order.
    fn merge<'a>(&'a self, mut keys: Keys<'a>) -> Result<Keys<'a>, Failure> {
        for change in self.changes {
            let Some(known) = keys.get_mut(change.key.as_str()) else { continue };
            let after = known.now.with(change);
            for &loser in after.lost.difference(&known.now.lost) {
                let was_record = loser == known.now.version;
                let digest = known.record.filter(|_| was_record).map(|was| was.record.as_ref());
                let digest = digest.map(|it| it.map(|it| region::digest_of(&it.value)));
                let is_here = was_record && known.record.is_none();
                let digest = if is_here { Some(None) } else { digest };
                let conflict = Conflict::noticed(change, loser, after.version, digest, self.now);
                known.noticed.insert(loser, Loss { conflict, is_here });
            }
            if after.version != known.now.version {
                known.record = Some(change);
            }
            known.now = after;
        }
        Ok(keys)
    }

    /// Writes what has come of it, and commits.
    async fn write(
        &self,
        connection: &Connection,
        progress: &Progress,
        keys: &Keys<'_>,
    ) -> Result<(), Failure> {
        let (made, changed) = (Records::of(keys, false), Records::of(keys, true));
        let (losses, seen) = (Losses::of(keys), Arrived::of(keys));
        let results = Results::of(self.changes);
        // Rows that are followed are those of a first copy.
        let rows = if self.follow.is_some() { self.changes } else { &[] };
        let collected = Seen::collected(rows);
        let (listed, inserted, updated, arrived, rest) = join5(
            losses.keep(connection),
            make(
                connection,
                progress,
                keys.values().any(|it| it.exists),
                made.run(connection, INSERT),
            ),
            changed.run(connection, UPDATE),
            seen.keep(connection),
            join4(
                losses.drop(connection),
                results.keep(connection),
                raise(connection, self.newest(), collected),
                connection.command("COMMIT"),
            ),
        )
        .await;
        // After a failure COMMIT ends the transaction as a ROLLBACK; the first failure is the cause.
        listed?;
        inserted?;
        updated?;
        arrived?;
        let (dropped, kept, raised, committed) = rest;
        dropped?;
        kept?;
        raised?;
        Ok(committed?)
    }
}

fn known(
    keys: &mut Keys<'_>,
    locked: &[Row],
    arrived: &[Row],
    listed: &[Row],
    horizon: Version,
) -> Result<(), tokio_postgres::Error> {
    for row in locked {
        let Some(known) = keys.get_mut(row.try_get::<_, &str>(0)?) else { continue };
        known.exists = true;
        // Over a version that a person made up everything is new.
        let version = row.try_get::<_, Option<i64>>(1)?.and_then(Version::of_row);
        known.before.version = version.unwrap_or_default();
        known.before.deleted = row.try_get(2)?;
    }
    for row in arrived {
        let Some(known) = keys.get_mut(row.try_get::<_, &str>(0)?) else { continue };
        known.before.seen = seen(row, 1)?;
    }
    for row in listed {
        let Some(known) = keys.get_mut(row.try_get::<_, &str>(0)?) else { continue };
        let version = Version::of_row(row.try_get(1)?);
        let is_awaited = row.try_get::<_, bool>(2)?;
        let list = if is_awaited { &mut known.before.awaited } else { &mut known.before.lost };
        list.extend(version);
    }
    for known in keys.values_mut() {
        known.before.seen.add(known.before.version);
        known.before.seen.add(horizon);
        known.now = known.before.clone();
    }
    Ok(())
}

/// What has arrived, as it is stored.
pub(super) fn seen(row: &Row, column: usize) -> Result<Seen, tokio_postgres::Error> {
    let versions = row.try_get::<_, Option<Vec<i64>>>(column)?.unwrap_or_default();
    Ok(versions.into_iter().filter_map(Version::of_row).collect())
}

/// What [`HORIZON`] has answered.
pub(super) fn collected(rows: &[Row]) -> Result<Version, Failure> {
    let horizon = rows.first().map_or(Ok(0), |row| row.try_get(0)).map_err(corrupt)?;
    Ok(super::super::read::version(horizon))
}

pub(super) fn text_of(checkpoint: &Checkpoint) -> Result<String, Failure> {
    serde_json::to_string(checkpoint).map_err(|error| {
        let message = "a checkpoint cannot be written";
        Failure::Refused(Error::new(ErrorKind::Internal, message).caused_by(error))
    })
}

fn signed(version: Version) -> i64 {
    version.get().cast_signed()
}

type Done = Result<(), tokio_postgres::Error>;

/// The sequence goes on above what has come, before that can be seen; and above the horizon that has come.
/// That is written last, so that whoever has it locked waits for nobody.
async fn raise(connection: &Connection, newest: Option<Version>, collected: Version) -> Done {
    const RAISE: &str = "SELECT terrace_version_above($1)";
    let Some(newest) = newest else { return Ok(()) };
    let (newest, horizon) = (signed(newest.max(collected)), signed(collected));
    if collected == Version::NONE {
        return connection.ask(RAISE, &[(&newest, Type::INT8)]).await.map(drop);
    }
    let both: [Typed<'_>; 2] = [(&horizon, Type::INT8), (&newest, Type::INT8)];
    connection.ask(RAISE_HORIZON, &both).await.map(drop)
}

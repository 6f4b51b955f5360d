//! Applies writes within a transaction that is already open.

use rusqlite::{Connection, OptionalExtension, Statement, params};
use terrace_core::{
    Current, Decision, Idempotency, Outcome, Precondition, RegionOptions, Result, Sequence, Value,
    Version, Write, decide,
};

use super::follow::{self, Target};
use super::job::Task;
use super::schema::LATEST;
use super::shared::Shared;
use super::{failure, idempotency, log, region, schema, words};

/// A row that was not there, and one that was.
pub(super) const INSERT: &str =
    "INSERT INTO records (key, value, version, created_at, updated_at, deleted, seq)
     VALUES (?1, ?2, ?3, ?4, ?4, ?5, ?6)";
pub(super) const UPDATE: &str =
    "UPDATE records SET value = ?2, version = ?3, created_at = ?4, updated_at = ?5,
     deleted = ?6, seq = ?7 WHERE rowid = ?1";

/// The moment of a group of writes: its time, and the latest version drawn so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) latest: u64,
    pub(super) micros: i64,
    pub(super) is_replica: bool,
    /// The journal has settled everything up to here, as writes of this group say.
    pub(super) settled: Sequence,
}

impl Moment {
    /// Draws the next version of a row.
    fn draw(&mut self, region: Option<&RegionOptions>, current: &Current) -> Version {
        // A row copied in by hand may be ahead of the counter; its next version must still be newer.
        let drawn = match region {
            None => Decision::successor(Version::new(self.latest + 1), current),
            Some(region) => {
                let latest = Version::new(self.latest).max(current.version);
                latest.next_in(region.id, log::moment(self.micros))
            }
        };
        self.latest = drawn.get();
        drawn
    }
}

/// A connection's prepared statements for writing.
pub(super) struct Statements<'c> {
    connection: &'c Connection,
    region: Option<RegionOptions>,
    begin: Statement<'c>,
    commit: Statement<'c>,
    find: Statement<'c>,
    refused: Statement<'c>,
    insert: Statement<'c>,
    update: Statement<'c>,
    count: Statement<'c>,
    counted: Statement<'c>,
    /// Whether the records are documents, whose words are kept.
    indexed: bool,
}

/// The row of a key as it stands in this transaction.
struct Found {
    row: i64,
    current: Current,
    created_at: i64,
    updated_at: i64,
}

impl<'c> Statements<'c> {
    pub(super) fn prepare(connection: &'c Connection, shared: &Shared) -> rusqlite::Result<Self> {
        let region = shared.options.region.clone();
        let (insert, update) = match &region {
            None => (INSERT.to_owned(), UPDATE.to_owned()),
            Some(region) => region::statements(region),
        };
        Ok(Self {
            connection,
            region,
            begin: connection.prepare("BEGIN IMMEDIATE")?,
            commit: connection.prepare("COMMIT")?,
            find: connection.prepare(
                "SELECT rowid, version, deleted, created_at, seq, updated_at FROM records
                 WHERE key = ?1",
            )?,
            refused: connection
                .prepare("SELECT ifnull(max(value), 0) FROM meta WHERE name = 'settled'")?,
            insert: connection.prepare(&insert)?,
            update: connection.prepare(&update)?,
            count: connection.prepare(if shared.log.is_some() { log::LATEST } else { LATEST })?,
            counted: connection.prepare("UPDATE meta SET value = ?1 WHERE name = 'version'")?,
            indexed: shared.documents,
        })
    }

    /// Takes the file's write lock.
    pub(super) fn begin(&mut self) -> rusqlite::Result<()> {
        self.begin.execute([]).map(drop)
    }

    pub(super) fn commit(&mut self) -> rusqlite::Result<()> {
        self.commit.execute([]).map(drop)
    }

    /// The version drawn last.
    pub(super) fn latest(&mut self) -> Result<u64> {
        let latest: i64 = self.count.query_row([], |row| row.get(0)).map_err(failure::of)?;
        u64::try_from(latest).map_err(|_| failure::corrupt("version"))
    }

    /// Keeps the version drawn last.
    pub(super) fn keep_latest(&mut self, latest: u64) -> Result<()> {
        self.counted.execute([signed(latest)?]).map(drop).map_err(failure::of)
    }

    /// Applies one caller's batch whole, or not at all and answers why.
    ///
    /// After an error the transaction is still open, unless SQLite has rolled all of it back.
    pub(super) fn apply(
        &mut self,
        task: &Task,
        moment: &mut Moment,
    ) -> Result<idempotency::Results> {
        if let Task::Write { epoch: Some(epoch), .. } = task {
            schema::check_epoch(self.connection, *epoch)?;
        }
        // A single change is one statement, which SQLite undoes by itself.
        if let Task::Write { writes, idempotency: None, .. } = task
            && writes.len() <= 1
            && !self.indexed
        {
            return self.apply_all(writes, None, moment);
        }
        self.run("SAVEPOINT batch")?;
        let applied = match task {
            Task::Write { writes, idempotency, .. } => {
                self.apply_all(writes, idempotency.as_deref(), moment)
            }
            Task::Ledger(accounts) => accounts.perform(self.connection, self, moment),
            Task::Follow(follow) if let Some(region) = &self.region => {
                let came = region::perform(follow, self.connection, region, moment.micros);
                came.map(|came| {
                    // What has come moves the position, which is the counter.
                    if let Some(newest) = came {
                        let newest = Current { version: newest, ..Current::default() };
                        moment.draw(Some(region), &newest);
                    }
                    Vec::new()
                })
            }
            Task::Follow(follow) => {
                let to = Target { is_replica: moment.is_replica, now_micros: moment.micros };
                follow::perform(follow, self.connection, &to).map(|highest| {
                    // Versions of this file go on after what it has from elsewhere.
                    if !moment.is_replica {
                        moment.latest = moment.latest.max(highest.get());
                    }
                    Vec::new()
                })
            }
        };
        if applied.is_err() && !self.connection.is_autocommit() {
            self.run("ROLLBACK TO batch")?;
        }
        if !self.connection.is_autocommit() {
            self.run("RELEASE batch")?;
        }
        applied
    }

    fn apply_all(
        &mut self,
        writes: &[Write],
        request: Option<&Idempotency>,
        moment: &mut Moment,
    ) -> Result<idempotency::Results> {
        if let Some(request) = request
            && let Some(done) = idempotency::find(self.connection, request, moment.micros)?
        {
            return Ok(done);
        }
        let mut results = Vec::with_capacity(writes.len());
        for write in writes {
            results.push(self.apply_one(write, moment)?);
        }
        if let Some(request) = request {
            idempotency::keep(self.connection, request, &results, moment.micros)?;
            if self.region.is_some() {
                idempotency::travels(self.connection, request, &results)?;
            }
        }
        Ok(results)
    }

    pub(super) fn apply_one(
        &mut self,
        write: &Write,
        moment: &mut Moment,
    ) -> Result<(Outcome, Version)> {
        let found = self.find(write)?;
        let mut current = found.as_ref().map_or_else(Current::default, |row| row.current);
        if let Precondition::After(at) = write.precondition {
            moment.settled = moment.settled.max(at.settled);
            // A write that is settled comes too late, and the row that would tell may be gone.
            current.applied = current.applied.max(self.refused()?);
        }
        let decision = match decide(write, &current) {
            Ok(decision) => decision,
            Err(answer) => return Ok(answer),
        };
        let drawn = moment.draw(self.region.as_ref(), &current);
        let (version, seq) = (signed(drawn.get())?, signed(decision.applied.get())?);
        let (key, value) = (write.key.as_str(), decision.value.map_or("", |value| value.as_str()));
        let deleted = decision.value.is_none();
        let now = decision.accepted.map_or(moment.micros, |at| at.as_microsecond());
        let done = match &found {
            None => self.insert.execute(params![key, value, version, now, deleted, seq]),
            Some(row) => {
                // What a journal accepted may be older than a direct write.
                let now = now.max(row.updated_at.saturating_add(1));
                let created_at = if current.live { row.created_at } else { now };
                self.update.execute(params![row.row, value, version, created_at, now, deleted, seq])
            }
        };
        done.map_err(failure::of)?;
        if self.indexed {
            words::index(self.connection, key, decision.value.map(Value::as_str))?;
        }
        Ok(decision.answer(drawn))
    }

    fn find(&mut self, write: &Write) -> Result<Option<Found>> {
        let found = self.find.query_row([write.key.as_str()], |row| {
            let current = Current {
                // Over a version that a person made up the next one of all is new.
                version: Version::of_row(row.get(1)?).unwrap_or(Version::NONE),
                live: row.get::<_, i64>(2)? == 0,
                applied: Sequence::new(u64::try_from(row.get::<_, i64>(4)?).unwrap_or(0)),
            };
            let (row, created_at, updated_at) = (row.get(0)?, row.get(3)?, row.get(5)?);
            Ok(Found { row, current, created_at, updated_at })
        });
        found.optional().map_err(failure::of)
    }

    /// The furthest sequence of a journal whose row is gone: no write up to there is applied any more.
    fn refused(&mut self) -> Result<Sequence> {
        let refused: i64 = self.refused.query_row([], |row| row.get(0)).map_err(failure::of)?;
        Ok(Sequence::new(u64::try_from(refused).unwrap_or(0)))
    }

    /// Removes up to `most` tombstones from before `before_micros`, and of a journal's deletions those
    /// that are settled. An older put of the journal may still come from a flusher that was taken for
    /// dead; from now on none up to there is applied.
    pub(super) fn collect_tombstones(
        &self,
        most: usize,
        before_micros: i64,
        settled: Sequence,
    ) -> rusqlite::Result<()> {
        const COLLECT: &str = "DELETE FROM records WHERE rowid IN (SELECT rowid FROM records
             WHERE deleted = 1 AND updated_at <= ?1 AND seq <= ?3 ORDER BY updated_at LIMIT ?2)
             RETURNING seq";
        const REFUSE: &str = "INSERT INTO meta (name, value) VALUES ('settled', ?1)
             ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)";
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let settled = i64::try_from(settled.get()).unwrap_or(0);
        let mut collect = self.connection.prepare_cached(COLLECT)?;
        let gone = collect.query_map(params![before_micros, most, settled], |row| row.get(0))?;
        let gone = gone.collect::<rusqlite::Result<Vec<i64>>>()?.into_iter().max();
        if let Some(furthest) = gone.filter(|sequence| *sequence > 0) {
            self.connection.prepare_cached(REFUSE)?.execute([furthest])?;
        }
        Ok(())
    }

    fn run(&self, statement: &str) -> Result<()> {
        let prepared = self.connection.prepare_cached(statement);
        prepared.and_then(|mut prepared| prepared.execute([])).map(drop).map_err(failure::of)
    }
}

/// SQLite's integers are signed; a counter that grows by one will not reach their end.
fn signed(version: u64) -> Result<i64> {
    i64::try_from(version).map_err(|_| failure::corrupt("version"))
}

//! Answers reads: one snapshot for all that wait, one prepared lookup a key.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row, Statement};
use terrace_core::{
    Budget, Error, Key, Load, LogPosition, Logged, Origin, Page, Position, Proof, Read, Record,
    Result, Scan, Standing, Timestamp, Value, Version, history,
};

use super::apply::Statements;
use super::job::{LogPart, ReadJob};
use super::ledger::{Question, reads};
use super::schema::{COUNTER, LATEST};
use super::shared::Shared;
use super::vitals::ThreadRole;
use super::{connect, failure, follow, schema};
use crate::row::{in_row, successor};

pub(super) const LOOKUP: &str =
    "SELECT value, version, created_at, updated_at, deleted FROM records WHERE key = ?1";

/// Both bounds may be empty: every key sorts after the empty text and before the empty blob.
pub(super) const SCAN: &str =
    "SELECT value, version, created_at, updated_at, deleted, key FROM records
    WHERE key >= ?1 AND key < ?2 AND deleted = 0 ORDER BY key";

/// Without rows that a person gave a version which none can follow.
const LOG: &str = "SELECT value, version, created_at, updated_at, deleted, key FROM records
    WHERE version > ?1 AND version < 9007199254740992 ORDER BY version";

const FLOOR: &str = "SELECT value FROM meta WHERE name = 'floor'";

/// Serves reads on a kept connection until the queue is closed and empty.
///
/// # Errors
/// When its statements cannot be prepared.
pub(super) fn run_shared(shared: &Shared, connection: &Connection) -> Result<()> {
    connect::end_transaction(connection)?;
    let mut reader = Reader::new(shared, connection).map_err(failure::of)?;
    let (mut jobs, most) = (Vec::new(), Load::parts(shared.options.max_read_batch));
    while shared.reads.wait_and_take(&mut jobs, most) {
        shared.vitals.measured(&shared.runtime, ThreadRole::Reader, || reader.serve(&mut jobs));
    }
    Ok(())
}

/// Serves each read on a connection that is opened for it, until the queue is closed and empty.
///
/// # Errors
/// None: each read is told its own.
pub(super) fn run_per_request(shared: &Shared) -> Result<()> {
    let mut jobs = Vec::new();
    while shared.reads.wait_and_take(&mut jobs, Load::parts(1)) {
        shared.vitals.measured(&shared.runtime, ThreadRole::Reader, || {
            let connection = match connect::another(&shared.options) {
                Ok(connection) => connection,
                Err(error) => return refuse(shared, &mut jobs, &error),
            };
            match Reader::new(shared, &connection) {
                Ok(mut reader) => reader.serve(&mut jobs),
                Err(error) => refuse(shared, &mut jobs, &failure::of(error)),
            }
        });
    }
    Ok(())
}

/// One connection with its prepared statements.
pub(super) struct Reader<'c> {
    shared: &'c Shared,
    connection: &'c Connection,
    begin: Statement<'c>,
    end: Statement<'c>,
    lookup: Statement<'c>,
}

impl<'c> Reader<'c> {
    pub(super) fn new(shared: &'c Shared, connection: &'c Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            shared,
            connection,
            begin: connection.prepare("BEGIN DEFERRED")?,
            end: connection.prepare("COMMIT")?,
            lookup: connection.prepare(LOOKUP)?,
        })
    }

    fn serve(&mut self, jobs: &mut Vec<ReadJob>) {
        // What was cached before the snapshot is as old as this at the most.
        let standing = self.shared.histories.standing();
        if let Err(error) = self.begin.execute([]) {
            return refuse(self.shared, jobs, &failure::of(error));
        }
        let reached = match self.reached() {
            Ok(reached) => reached,
            Err(error) => {
                self.end();
                return refuse(self.shared, jobs, &error);
            }
        };
        let seen = Seen { standing, reached };
        for job in jobs.drain(..) {
            match job {
                ReadJob::Keys { keys, epoch, asked, budget, reply } => {
                    let answer = self.check(epoch).and_then(|()| self.require(asked, &seen));
                    let answer = answer.and_then(|()| self.keys(&keys, budget, &seen));
                    self.count(&answer, keys.len());
                    let _ = reply.send(answer);
                }
                ReadJob::Scan { scan, epoch, asked, reply } => {
                    let answer = self.check(epoch).and_then(|()| self.scan(&scan, asked, &seen));
                    self.count(&answer, 1);
                    let _ = reply.send(answer);
                }
                ReadJob::Log { after, limit, reply } => {
                    let _ = reply.send(self.log(after, limit));
                }
                ReadJob::Checkpoint { source, reply } => {
                    let _ = reply.send(follow::checkpoint(self.connection, &source));
                }
                ReadJob::Ledger(question) => self.answer(question, &seen),
                ReadJob::Nothing { reply } => {
                    let found = self.lookup.exists([""]).map_err(failure::of);
                    let _ = reply.send(found.map(|_| self.could_write()));
                }
            }
        }
        self.end();
    }

    fn answer(&mut self, question: Question, seen: &Seen) {
        match question {
            Question::Page { user, before, limit, asked, reply } => {
                let account = self.require(asked, seen);
                let account = account.and_then(|()| self.one(&user, &mut Budget::default(), seen));
                let page = account.and_then(|account| {
                    reads::page(self.connection, &user, before, limit, account)
                });
                self.count(&page, 1);
                let _ = reply.send(page);
            }
            Question::Count(reply) => drop(reply.send(reads::count(self.connection))),
            Question::Audit { after, limit, reply } => {
                let _ = reply.send(reads::audit(self.connection, after.as_ref(), limit));
            }
        }
    }

    /// Whether statements that write can be made, with all that the triggers of the tables need.
    fn could_write(&self) -> Result<()> {
        if self.shared.is_replica() {
            return Ok(());
        }
        let made = Statements::prepare(self.connection, self.shared);
        made.map(drop).map_err(failure::of)
    }

    fn end(&mut self) {
        // Some failures end the transaction on their own.
        if !self.connection.is_autocommit()
            && let Err(error) = self.end.execute([])
        {
            tracing::warn!(%error, "a SQLite read transaction did not end; it is rolled back");
            let _ = self.connection.execute_batch("ROLLBACK");
        }
    }

    fn count<T>(&self, answer: &Result<T>, reads: usize) {
        let vitals = &self.shared.vitals;
        match answer {
            Ok(_) => vitals.reads.fetch_add(reads as u64, Relaxed),
            Err(_) => vitals.errors.fetch_add(1, Relaxed),
        };
    }

    /// Whether the snapshot is of the shard's epoch that the caller knows.
    fn check(&self, epoch: Option<u64>) -> Result<()> {
        match epoch {
            None => Ok(()),
            Some(epoch) => schema::check_epoch(self.connection, epoch),
        }
    }

    fn keys(&mut self, keys: &[Key], mut budget: Budget, seen: &Seen) -> Result<Vec<Read>> {
        keys.iter().map(|key| self.one(key, &mut budget, seen)).collect()
    }

    fn one(&mut self, key: &Key, budget: &mut Budget, seen: &Seen) -> Result<Read> {
        let mut rows = self.lookup.query([key.as_str()]).map_err(failure::of)?;
        let (record, version) = match rows.next().map_err(failure::of)? {
            None => (None, Version::NONE),
            Some(row) => {
                let found = decode(row, || Ok(key.clone()));
                found.map_err(|error| in_row(error, key.as_str()))?
            }
        };
        budget.spend(record.as_ref().map_or(0, |it: &Record| it.value.as_str().len()))?;
        let proof = seen.proof(version);
        Ok(Read {
            record,
            version,
            origin: Origin::PRIMARY,
            age: Duration::ZERO,
            token: proof.token(),
            proof: Some(proof),
        })
    }

    fn scan(&mut self, scan: &Scan, asked: Option<Position>, seen: &Seen) -> Result<Page> {
        self.require(asked, seen)?;
        self.page(SCAN, &[], scan, seen, |_| Ok(true))
    }

    /// One snapshot for questions that are not on the path of every request.
    pub(super) fn in_snapshot<T>(
        &mut self,
        asked: Option<Position>,
        work: impl FnOnce(&Self, &Seen) -> Result<T>,
    ) -> Result<T> {
        let standing = self.shared.histories.standing();
        self.begin.execute([]).map_err(failure::of)?;
        let answer = self.reached().and_then(|reached| {
            let seen = Seen { standing, reached };
            self.require(asked, &seen)?;
            work(self, &seen)
        });
        self.end();
        answer
    }

    /// The page of the rows that `question` finds between two keys, `?1` and `?2`, and that are
    /// accepted; further parameters follow.
    pub(super) fn page(
        &self,
        question: &str,
        parameters: &[&str],
        scan: &Scan,
        seen: &Seen,
        mut accepts: impl FnMut(&Record) -> Result<bool>,
    ) -> Result<Page> {
        // Keys hold no NUL, so the first text after a key is the key with a NUL behind it.
        let after = scan.after.as_ref().map(|key| format!("{key}\0")).unwrap_or_default();
        let from = after.as_str().max(&scan.prefix);
        let until = successor(&scan.prefix);
        let until =
            until.as_ref().map_or(ValueRef::Blob(b""), |end| ValueRef::Text(end.as_bytes()));
        let texts = parameters.iter().map(|text| ValueRef::Text(text.as_bytes()));
        let all = [ValueRef::Text(from.as_bytes()), until].into_iter().chain(texts);

        let limit = scan.limit.clamp(1, Scan::MAX_LIMIT);
        let mut statement = self.connection.prepare_cached(question).map_err(failure::of)?;
        let all = rusqlite::params_from_iter(all.map(ToSqlOutput::Borrowed));
        let mut rows = statement.query(all).map_err(failure::of)?;
        let mut records: Vec<Record> = Vec::new();
        let (mut bytes, mut more) = (0, false);
        while let Some(row) = rows.next().map_err(failure::of)? {
            let name = text(row, 5, "key")?;
            let key = || Key::new(name).map_err(|_| failure::corrupt("key"));
            let (record, _) = decode(row, key).map_err(|error| in_row(error, name))?;
            let Some(record) = record else { continue };
            if !accepts(&record)? {
                continue;
            }
            if records.len() == limit || bytes >= Page::MAX_BYTES {
                more = true;
                break;
            }
            bytes += record.key.as_str().len() + record.value.as_str().len();
            records.push(record);
        }
        let next = records.last().filter(|_| more).map(|record| record.key.clone());
        let (origin, age) = (Origin::PRIMARY, Duration::ZERO);
        let token = seen.proof(Version::NONE).token();
        Ok(Page { records, next, origin, age, token })
    }

    /// The changes after a version: at most so many, but all that have the same version.
    fn log(&self, after: u64, limit: usize) -> Result<LogPart> {
        let (head, floor) = (self.reached()?, self.number(FLOOR)?);
        let mut part = LogPart { head, floor, changes: Vec::new(), more: false };
        let from = i64::try_from(after).unwrap_or(i64::MAX);
        let mut statement = self.connection.prepare_cached(LOG).map_err(failure::of)?;
        let mut rows = statement.query([from]).map_err(failure::of)?;
        let (mut bytes, mut last) = (0, None);
        while let Some(row) = rows.next().map_err(failure::of)? {
            let name = text(row, 5, "key")?;
            let key = Key::new(name).map_err(|_| in_row(failure::corrupt("key"), name))?;
            let found = decode(row, || Ok(key.clone()));
            let (record, version) = found.map_err(|error| in_row(error, name))?;
            let full = part.changes.len() >= limit || bytes >= Page::MAX_BYTES;
            if full && last != Some(version) {
                part.more = true;
                break;
            }
            last = Some(version);
            bytes += record.as_ref().map_or(0, |record| record.value.as_str().len());
            let position = LogPosition { epoch: 0, offset: version.get() };
            part.changes.push(Logged { position, key, version, record, ancestry: None });
        }
        Ok(part)
    }

    /// How far the file has come.
    fn reached(&self) -> Result<u64> {
        self.number(if self.shared.is_replica() { COUNTER } else { LATEST })
    }

    pub(super) fn number(&self, question: &str) -> Result<u64> {
        let mut statement = self.connection.prepare_cached(question).map_err(failure::of)?;
        let number: i64 = statement.query_row([], |row| row.get(0)).map_err(failure::of)?;
        u64::try_from(number).map_err(|_| failure::corrupt("version"))
    }

    /// The snapshot must have come as far as a client has seen.
    fn require(&self, asked: Option<Position>, seen: &Seen) -> Result<()> {
        match asked {
            Some(asked) if asked.get() > seen.reached && self.shared.is_replica() => {
                Err(history::behind())
            }
            Some(asked) if asked.get() > seen.reached => Err(history::ahead()),
            _ => Ok(()),
        }
    }
}

/// What a snapshot proves.
pub(super) struct Seen {
    standing: Arc<Standing>,
    /// The latest version there is in it.
    reached: u64,
}

impl Seen {
    fn proof(&self, shown: Version) -> Proof {
        Proof {
            history: Arc::clone(&self.standing.history),
            generation: self.standing.generation,
            through: Position::new(self.reached),
            shown: Position::new(shown.get()),
        }
    }
}

fn refuse(shared: &Shared, jobs: &mut Vec<ReadJob>, error: &Error) {
    for job in jobs.drain(..) {
        shared.vitals.errors.fetch_add(1, Relaxed);
        job.refuse(error.clone());
    }
}

/// The record of a row, none for a tombstone, and its version.
pub(super) fn decode(
    row: &Row<'_>,
    key: impl FnOnce() -> Result<Key>,
) -> Result<(Option<Record>, Version)> {
    let version = Version::of_row(number(row, 1, "version")?);
    if number(row, 4, "deleted")? != 0 {
        return Ok((None, version.unwrap_or(Version::NONE)));
    }
    let version = version.ok_or_else(|| failure::corrupt("version"))?;
    let time = |index, column| {
        Timestamp::from_microsecond(number(row, index, column)?)
            .map_err(|_| failure::corrupt(column))
    };
    let record = Record {
        key: key()?,
        value: Value::new(text(row, 0, "value")?).map_err(|_| failure::corrupt("value"))?,
        version,
        created_at: time(2, "created_at")?,
        updated_at: time(3, "updated_at")?,
    };
    Ok((Some(record), version))
}

fn text<'r>(row: &'r Row<'_>, index: usize, column: &'static str) -> Result<&'r str> {
    let field = row.get_ref(index).map_err(failure::of)?;
    field.as_str().map_err(|_| failure::corrupt(column))
}

fn number(row: &Row<'_>, index: usize, column: &'static str) -> Result<i64> {
    let field = row.get_ref(index).map_err(failure::of)?;
    field.as_i64().map_err(|_| failure::corrupt(column))
}

//! Reads: one statement a batch, answers in the order asked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use terrace_core::{
    Error, ErrorKind, Key, Origin, Page, Position, Read, Record, Scan, Token, Value, Version,
};
use tokio_postgres::Row;

use super::connect::Connection;
use super::member::{self, Member, Place};
use super::statements::{Moment, Sql};
use super::work::{Failure, Progress, Work, corrupt, not_allowed};

/// Proof of having seen a version of this database.
pub(super) fn token(history: &Arc<str>, version: Version) -> Token {
    Token::of(Arc::clone(history), Position { epoch: 0, offset: version.get() })
}

/// Where a database's writes are logged: in its change log, by the transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct LoggedIn<'a> {
    pub(super) log: &'a Arc<str>,
    pub(super) transaction: u64,
}

/// Proof of a write: its version, and its place in the log.
pub(super) fn token_of_write(
    history: &Arc<str>,
    version: Version,
    logged: Option<LoggedIn<'_>>,
) -> Token {
    let mut token = token(history, version);
    if let Some(LoggedIn { log, transaction }) = logged {
        let position = Position { epoch: transaction, offset: version.get() };
        token.merge(&Token::of(Arc::clone(log), position));
    }
    token
}

/// Versions are drawn from a sequence that starts at 1.
pub(super) fn version(number: i64) -> Version {
    Version::new(u64::try_from(number).unwrap_or(0))
}

/// Records by their keys.
pub(super) struct ReadKeys<'a> {
    pub(super) keys: &'a [Key],
    pub(super) asked: Option<&'a Token>,
    pub(super) history: &'a Arc<str>,
    /// The epoch of the shard under which the keys are looked for.
    pub(super) epoch: Option<i64>,
    pub(super) member: Option<&'a Member>,
}

impl Work for ReadKeys<'_> {
    type Answer = Vec<Read>;

    const OPERATION: &'static str = "read";
    const ELSEWHERE: bool = true;

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<Vec<Read>, Failure> {
        // A key that is asked for many times is read once: its value may be large.
        let mut distinct = Vec::with_capacity(self.keys.len());
        let mut places = HashMap::with_capacity(self.keys.len());
        let place_of = |key| {
            *places.entry(key).or_insert_with(|| {
                distinct.push(key);
                distinct.len() - 1
            })
        };
        let asked = self.keys.iter().map(place_of).collect::<Vec<_>>();
        let keys = distinct.iter().map(|key| key.as_str()).collect::<Vec<_>>();
        let (rows, place) = self.ask(connection, &keys).await?;
        let mut found = distinct.iter().map(|_| self.missing()).collect::<Vec<_>>();
        for row in rows {
            let place = row.try_get::<_, i64>(0).map_err(corrupt)?;
            let place = usize::try_from(place).unwrap_or(0).wrapping_sub(1);
            if let (Some(key), Some(answer)) = (distinct.get(place), found.get_mut(place)) {
                *answer = self.answer(key, &row)?;
            }
        }
        let is_replica = place.is_some_and(|place| place.is_replica);
        self.prove(connection, is_replica, &mut found).await?;
        if let (Some(member), Some(place)) = (self.member, place) {
            let proof = member.token(place);
            found.iter_mut().for_each(|answer| answer.token.merge(&proof));
        }
        if found.len() == asked.len() {
            return Ok(found);
        }
        Ok(asked.into_iter().map(|place| found[place].clone()).collect())
    }
}

impl ReadKeys<'_> {
    /// The rows, and for a member how far it has come, asked after the rows were.
    async fn ask(
        &self,
        connection: &Connection,
        keys: &[&str],
    ) -> Result<(Vec<Row>, Option<Place>), Failure> {
        /// Where [`Sql::ReplicaRead`] says with the first key how far the replica has come.
        const PLACE: usize = 6;
        let replica = self.member.filter(|it| self.epoch.is_none() && !it.takes_writes());
        if let Some(replica) = replica {
            let rows = connection.run(Sql::ReplicaRead, &[&keys, &replica.there()]).await?;
            let mut firsts = rows.iter().filter(|row| matches!(row.try_get::<_, i64>(0), Ok(1)));
            let place = firsts.next().map_or(Ok(None), |first| Place::beside(first, PLACE));
            let place = match place.map_err(corrupt)? {
                Some(place) => place.settled(connection).await?,
                None => member::position(connection).await?,
            };
            return Ok((rows, Some(place)));
        }
        let by_epoch: [super::statements::Parameter<'_>; 2] =
            [&keys, &self.epoch.unwrap_or_default()];
        let rows = match self.epoch {
            None => connection.run(Sql::Read, &by_epoch[..1]),
            Some(_) => connection.run(Sql::EpochRead, &by_epoch),
        };
        if self.member.is_none() {
            return Ok((rows.await?, None));
        }
        let (rows, place) = join(rows, member::position(connection)).await;
        Ok((rows?, Some(place?)))
    }

    fn missing(&self) -> Read {
        Read {
            record: None,
            version: Version::NONE,
            origin: Origin::Primary,
            age: Duration::ZERO,
            token: token(self.history, Version::NONE),
        }
    }

    fn answer(&self, key: &Key, row: &Row) -> Result<Read, Failure> {
        let Some(version) = row.try_get::<_, Option<i64>>(1).map_err(corrupt)? else {
            return Ok(self.missing());
        };
        let version = self::version(version);
        let deleted = row.try_get::<_, bool>(2).map_err(corrupt)?;
        let record = if deleted { None } else { Some(record(key.clone(), version, row, 3)?) };
        Ok(Read { record, version, token: token(self.history, version), ..self.missing() })
    }

    /// A token may ask for more than the rows of these keys show. The database has come as far when
    /// its sequence has; a database that was restored from a backup has not, and must not answer.
    ///
    /// A replica proves nothing by its sequence, which comes to it ahead of the writes that draw from
    /// it; there the position in the log does, and whoever chose the replica has looked at it.
    async fn prove(
        &self,
        connection: &Connection,
        is_replica: bool,
        answers: &mut [Read],
    ) -> Result<(), Failure> {
        let Some(asked) = self.asked else { return Ok(()) };
        if answers.iter().all(|answer| answer.token.covers(asked)) {
            return Ok(());
        }
        let Some(floor) = asked.position(self.history) else { return Ok(()) };
        if is_replica {
            return Err(Failure::Refused(member::behind()));
        }
        let rows = connection.run(Sql::Latest, &[]).await?;
        let latest = rows.first().map_or(Ok(0), |row| row.try_get(0)).map_err(corrupt)?;
        if (Position { epoch: 0, offset: version(latest).get() }) < floor {
            let message = "the database is behind what the token has seen, as after a restore from \
                           a backup; drop the token to read what there is";
            return Err(Failure::Refused(Error::new(ErrorKind::Unavailable, message)));
        }
        for answer in answers {
            answer.token.merge(&Token::of(Arc::clone(self.history), floor));
        }
        Ok(())
    }
}

/// The most bytes of values in one page; a page that would be larger ends early.
const MAX_PAGE_BYTES: i64 = 16 * 1024 * 1024;

/// Records in the order of their keys.
pub(super) struct ScanPage<'a> {
    pub(super) scan: &'a Scan,
    /// The epoch of the shard under which the records are looked for.
    pub(super) epoch: Option<i64>,
}

impl Work for ScanPage<'_> {
    type Answer = Page;

    const OPERATION: &'static str = "scan";
    const ELSEWHERE: bool = true;

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<Page, Failure> {
        let scan = self.scan;
        let after = scan.after.as_ref().map_or("", Key::as_str);
        let end = end_of(&scan.prefix);
        let limit = i64::try_from(scan.limit.saturating_add(1)).unwrap_or(i64::MAX);
        let epoch = self.epoch.unwrap_or_default();
        let parameters: [super::statements::Parameter<'_>; 6] =
            [&after, &scan.prefix, &end, &limit, &MAX_PAGE_BYTES, &epoch];
        let rows = match self.epoch {
            None => connection.run(Sql::Scan, &parameters[..5]).await?,
            Some(_) => connection.run(Sql::EpochScan, &parameters).await?,
        };
        let records = rows.iter().map(|row| {
            let key = Key::new(row.try_get::<_, &str>(0).map_err(corrupt)?).map_err(not_allowed)?;
            let version = version(row.try_get(1).map_err(corrupt)?);
            record(key, version, row, 2)
        });
        let records = records.collect::<Result<Vec<_>, Failure>>()?;
        let mut left = usize::try_from(MAX_PAGE_BYTES).unwrap_or(usize::MAX);
        let fitting = records.iter().take_while(|record| {
            let fits = left > 0;
            left = left.saturating_sub(record.value.as_str().len());
            fits
        });
        let limit = scan.limit.min(fitting.count().max(1));
        Ok(Page::cut(records, limit, Origin::Primary))
    }
}

/// Whether the server answers.
pub(super) struct Ping;

impl Work for Ping {
    type Answer = ();

    const OPERATION: &'static str = "inspect";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<(), Failure> {
        Ok(connection.command("SELECT 1").await?)
    }
}

/// The record whose `created_at`, `updated_at` and `value` begin at `column`.
fn record(key: Key, version: Version, row: &Row, column: usize) -> Result<Record, Failure> {
    let Moment(created_at) = row.try_get(column).map_err(corrupt)?;
    let Moment(updated_at) = row.try_get(column + 1).map_err(corrupt)?;
    let value = row.try_get::<_, &str>(column + 2).map_err(corrupt)?;
    let value = Value::new(value).map_err(not_allowed)?;
    Ok(Record { key, value, version, created_at, updated_at })
}

/// The first text after all that begin with `prefix`: its last character that can be raised is, and
/// what follows is cut. Nothing is after a prefix of highest characters only, so all keys are below
/// a text of them that is longer than a key.
fn end_of(prefix: &str) -> String {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        // The range knows the gap of the surrogates.
        if let Some(next) = (last..=char::MAX).nth(1) {
            end.push(next);
            return end;
        }
    }
    char::MAX.to_string().repeat(Key::MAX_CHARS + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_after_all_that_begin_with_it() {
        assert_eq!(end_of("user:"), "user;");
        assert_eq!(end_of("a\u{d7ff}"), "a\u{e000}");
        assert_eq!(end_of("a\u{10ffff}"), "b");
        let highest = char::MAX.to_string().repeat(Key::MAX_CHARS);
        assert!(end_of("") > highest);
        assert!(end_of(&highest) > highest);
    }
}

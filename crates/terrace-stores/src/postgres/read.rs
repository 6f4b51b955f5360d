//! Reads: one statement a batch, answers in the order asked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join3};
use terrace_core::{
    Budget, Error, ErrorKind, Generation, Key, Origin, Page, Position, Proof, Read, Record, Scan,
    Token, Value, Version,
};
use tokio_postgres::Row;

use super::connection::Connection;
use super::history;
use super::snapshot::Snapshot;
use super::sqlstate::under_no_epoch;
use super::statements::{Moment, NO_EPOCH, Parameter, Sql};
use super::work::{Failure, Progress, Work, corrupt, not_allowed};

/// Versions are drawn from a sequence that starts at 1.
pub(super) fn version(number: i64) -> Version {
    Version::new(u64::try_from(number).unwrap_or(0))
}

/// What a snapshot showed beside the rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    snapshot: Snapshot,
    generation: Generation,
    is_replica: bool,
}

impl Seen {
    /// From three columns. Fails when the history is another one, or the server was promoted: then
    /// the session must be looked at anew.
    pub(super) fn of(row: &Row, column: usize, connection: &Connection) -> Result<Self, Failure> {
        let snapshot = row.try_get::<_, Option<Snapshot>>(column).map_err(corrupt)?;
        let generation = row.try_get::<_, Option<i64>>(column + 1).map_err(corrupt)?;
        let is_replica = row.try_get::<_, Option<bool>>(column + 2).map_err(corrupt)?;
        match (snapshot, generation, is_replica) {
            (Some(snapshot), Some(generation), Some(is_replica))
                if is_replica == connection.is_replica =>
            {
                let generation = history::generation(generation);
                Ok(Self { snapshot, generation, is_replica })
            }
            _ => Err(Failure::AnotherHistory),
        }
    }

    /// Refuses to answer whoever has seen more than this snapshot can prove. A primary has everything
    /// that was acknowledged, so it proves more than its horizon.
    pub(super) fn check(self, asked: Option<&Token>, history: &str) -> Result<(), Failure> {
        let Some(asked) = asked.and_then(|asked| asked.position(history)) else { return Ok(()) };
        if self.is_replica && asked > self.snapshot.through(self.generation) {
            return Err(Failure::Refused(terrace_core::history::behind()));
        }
        if !self.is_replica && !self.snapshot.has_heard_of(asked, self.generation) {
            return Err(Failure::Refused(terrace_core::history::ahead()));
        }
        Ok(())
    }

    /// The write that a row shows.
    pub(super) fn written_by(self, row: &Row, column: usize) -> Result<Position, Failure> {
        let writer = row.try_get(column).map_err(corrupt)?;
        Ok(self.snapshot.written_by(writer, self.generation))
    }

    pub(super) fn proof(self, history: &Arc<str>, shown: Position) -> Proof {
        Proof {
            history: Arc::clone(history),
            generation: self.generation,
            through: self.snapshot.through(self.generation),
            shown,
        }
    }
}

/// Records by their keys.
pub(super) struct ReadKeys<'a> {
    pub(super) keys: &'a [Key],
    pub(super) asked: Option<&'a Token>,
    /// The epoch under which the keys are looked for, on a shard.
    pub(super) epoch: i64,
    pub(super) budget: Budget,
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
        let history = &*connection.history;
        let rows = if self.budget.holds(keys.len()) {
            let parameters: [Parameter<'_>; 3] = [&keys, &history, &self.epoch];
            connection.run(Sql::Read, &parameters).await?
        } else {
            let left = i64::try_from(self.budget.left()).unwrap_or(i64::MAX);
            let parameters: [Parameter<'_>; 4] = [&keys, &history, &left, &self.epoch];
            let rows = connection.run(Sql::ReadWithin, &parameters).await?;
            within(self.budget, &rows, TOTAL)?;
            rows
        };
        let place = |row: &Row| -> Result<usize, Failure> {
            let place = row.try_get::<_, i64>(0).map_err(corrupt)?;
            Ok(usize::try_from(place).unwrap_or(0).wrapping_sub(1))
        };
        let mut seen = None;
        for row in &rows {
            if place(row)? == 0 {
                seen = Some(Seen::of(row, SEEN, connection)?);
            }
        }
        let seen = seen.ok_or(Failure::AnotherHistory)?;
        seen.check(self.asked, &connection.history)?;
        let mut found = vec![None; distinct.len()];
        // Each row goes when it is copied: values may be large.
        for row in rows {
            let place = place(&row)?;
            if let (Some(key), Some(answer)) = (distinct.get(place), found.get_mut(place)) {
                *answer = Some(self::answer(key, &row, seen, &connection.history)?);
            }
        }
        let found = found.into_iter().collect::<Option<Vec<_>>>().ok_or_else(incomplete)?;
        if found.len() == asked.len() {
            return Ok(found);
        }
        Ok(asked.into_iter().map(|place| found[place].clone()).collect())
    }
}

/// Where [`Sql::Read`] says with the first key what the snapshot proves.
const SEEN: usize = 7;
/// Where [`Sql::ReadWithin`] says how many bytes all values have.
const TOTAL: usize = 10;

/// Refuses rows whose values were left out because they are more than the budget together.
pub(super) fn within(budget: Budget, rows: &[Row], total: usize) -> Result<(), Failure> {
    let Some(row) = rows.first() else { return Ok(()) };
    let bytes = row.try_get::<_, Option<i64>>(total).map_err(corrupt)?.unwrap_or(0);
    match usize::try_from(bytes).is_ok_and(|bytes| bytes <= budget.left()) {
        true => Ok(()),
        false => Err(Failure::Refused(budget.exceeded())),
    }
}

fn incomplete() -> Failure {
    let message = "the database did not answer every key; try again";
    Failure::Refused(Error::new(ErrorKind::Internal, message))
}

fn answer(key: &Key, row: &Row, seen: Seen, history: &Arc<str>) -> Result<Read, Failure> {
    let (mut record, mut number, mut shown) = (None, Version::NONE, Position::NONE);
    // Only where there is no row, this is null.
    if let Some(deleted) = row.try_get::<_, Option<bool>>(2).map_err(corrupt)? {
        let version = row.try_get::<_, Option<i64>>(1).map_err(corrupt)?;
        number = self::version(version.unwrap_or(0));
        shown = seen.written_by(row, 6)?;
        if !deleted {
            let found = self::record(key.clone(), version, row, 3);
            record = Some(found.map_err(|failure| failure.in_row(key.as_str()))?);
        }
    }
    let proof = seen.proof(history, shown);
    Ok(Read {
        record,
        version: number,
        origin: Origin::PRIMARY,
        age: Duration::ZERO,
        token: proof.token(),
        proof: Some(proof),
    })
}

/// [`Page::MAX_BYTES`], as a parameter.
pub(super) const MAX_PAGE_BYTES: i64 = Page::MAX_BYTES.cast_signed() as i64;

/// Records in the order of their keys.
pub(super) struct ScanPage<'a> {
    pub(super) scan: &'a Scan,
    pub(super) asked: Option<&'a Token>,
    /// The epoch under which the records are looked for, on a shard.
    pub(super) epoch: i64,
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
        let parameters: [Parameter<'_>; 6] =
            [&after, &scan.prefix, &end, &limit, &MAX_PAGE_BYTES, &self.epoch];
        let rows = connection.run(Sql::Scan, &parameters);
        // What the snapshot before the page proves, that of the page proves, too; and no row of it was
        // written after the one behind it.
        let (before, rows, after) = join3(self.look(connection), rows, self.look(connection)).await;
        let (before, rows, after) = (before?, rows?, after?);
        let token = match before.zip(after) {
            Some((before, after)) => {
                before.check(self.asked, &connection.history)?;
                before.proof(&connection.history, newest(&rows, after)?).token()
            }
            None => Token::default(),
        };
        let records = rows.iter().map(|row| {
            let name = row.try_get::<_, &str>(0).map_err(corrupt)?;
            let key = Key::new(name).map_err(not_allowed);
            let version = row.try_get(1).map_err(corrupt)?;
            let record = key.and_then(|key| record(key, version, row, 2));
            record.map_err(|failure| failure.in_row(name))
        });
        let records = records.collect::<Result<Vec<_>, Failure>>()?;
        Ok(Page::cut(records, scan.limit, Origin::PRIMARY).proving(token))
    }
}

impl ScanPage<'_> {
    /// What the database proves; a read model has no history of its own.
    async fn look(&self, connection: &Connection) -> Result<Option<Seen>, Failure> {
        let history = &*connection.history;
        if history.is_empty() {
            return Ok(None);
        }
        let rows = connection.run(Sql::Seen, &[&history]).await?;
        let row = rows.first().ok_or(Failure::AnotherHistory)?;
        Seen::of(row, 0, connection).map(Some)
    }
}

/// The last write that these rows show; all of them ended before this snapshot.
fn newest(rows: &[Row], after: Seen) -> Result<Position, Failure> {
    let mut shown = Position::NONE;
    for row in rows {
        shown = shown.max(after.written_by(row, 5)?);
    }
    Ok(shown)
}

/// What reads need, of no key: the table and the right to read it, and the history in force.
pub(super) struct ReadNothing;

impl Work for ReadNothing {
    type Answer = ();

    const OPERATION: &'static str = "inspect";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<(), Failure> {
        let (none, history): ([&str; 0], _) = ([], &*connection.history);
        let parameters: [Parameter<'_>; 3] = [&none.as_slice(), &history, &NO_EPOCH];
        let of_history: [Parameter<'_>; 1] = [&history];
        let rows = connection.run(Sql::Read, &parameters);
        let (rows, seen) = join(rows, connection.run(Sql::Seen, &of_history)).await;
        under_no_epoch(rows)?;
        Seen::of(seen?.first().ok_or(Failure::AnotherHistory)?, 0, connection).map(drop)
    }
}

/// A version that no database draws, as only people write it.
fn made_up() -> Failure {
    let message = "its version is none that a database draws; set it to nextval('records_version'), \
                   or write the record anew";
    Failure::Refused(Error::new(ErrorKind::Corrupt, message))
}

/// The record whose `created_at`, `updated_at` and `value` begin at `column`.
pub(super) fn record(
    key: Key,
    version: Option<i64>,
    row: &Row,
    column: usize,
) -> Result<Record, Failure> {
    let version = version.and_then(Version::of_row).ok_or_else(made_up)?;
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

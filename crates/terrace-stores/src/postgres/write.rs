//! Writes: one statement where it can be, else one transaction of two round trips.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join5;
use terrace_core::{
    Current, Error, ErrorKind, Idempotency, Origin, Outcome, Position, Precondition, Receipt,
    RegionId, Sequence, Token, Version, Write,
};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::connection::Connection;
use super::idempotency::{self, Claim, DoneWrite, first_written};
use super::locked;
use super::made::make;
use super::plan::{Placed, Plan, Puts, Rows, plan};
use super::read::version;
use super::snapshot::{Transaction, event};
use super::sqlstate::{because, is_locked, outcome_unknown, under_no_epoch};
use super::statements::{Dialect, NO_EPOCH, Parameter, Sql, region};
use super::work::{Failure, Progress, Work, corrupt};

/// A batch of writes.
pub(super) struct WriteBatch<'a> {
    pub(super) batch: &'a [Write],
    pub(super) request: Option<&'a Idempotency>,
    /// The epoch under which they are made, on a shard.
    pub(super) epoch: i64,
    /// Whether they were tried again because nothing was seen to hold their row.
    pub(super) again: AtomicBool,
}

impl Work for WriteBatch<'_> {
    type Answer = Vec<Receipt>;

    const OPERATION: &'static str = "write";

    async fn run(
        &self,
        connection: &Connection,
        progress: &Progress,
    ) -> Result<Vec<Receipt>, Failure> {
        match self.apply(connection, progress).await {
            Err(Failure::Driver(error)) if is_locked(&error) && !progress.is_in_transaction() => {
                progress.nothing_applied();
                // Who waits for the first answer to a request, or once more, waits on.
                let waits = self.request.is_some() || !self.again.swap(true, Ordering::Relaxed);
                let keys = self.batch.iter().map(|write| write.key.as_str());
                Err(locked::look(connection, keys, waits, error).await)
            }
            done => done,
        }
    }
}

impl WriteBatch<'_> {
    async fn apply(
        &self,
        connection: &Connection,
        progress: &Progress,
    ) -> Result<Vec<Receipt>, Failure> {
        let promised = connection.durability();
        // Each change of a database with a log is in it, also one that the batch supersedes.
        let logged = connection.dialect.is_logged();
        let puts = Puts::of(self.batch).filter(|puts| !logged || puts.superseded == 0);
        // On a shard, and beside a log, writes of a journal are a transaction like others.
        let alone = connection.dialect == Dialect::Plain;
        let plain = self.request.is_none();
        let (answers, transaction) = if let Some(puts) = puts.filter(|_| plain) {
            put(connection, progress, &puts, self.epoch).await?
        } else if let Some(placed) = Placed::of(self.batch).filter(|_| plain && alone) {
            place(connection, progress, &placed).await?
        } else {
            // Boxed: it is large, and only some writes need it.
            match Box::pin(self.transact(connection, progress)).await? {
                Done::Now(answers, transaction) => (answers, transaction),
                Done::Before(done, transaction) => {
                    let token = idempotency::found(connection, transaction);
                    return Ok(done
                        .into_iter()
                        .map(|it| it.receipt(connection, token.clone()))
                        .collect());
                }
            }
        };
        let durability = connection.committed(promised).await;
        let position = transaction.map_or(Position::NONE, |it| connection.position(it));
        let token = Token::of(Arc::clone(&connection.history), position);
        let receipt = |(outcome, version): (Outcome, Version)| Receipt {
            outcome,
            version,
            durability,
            token: token.clone(),
            origin: Origin::PRIMARY,
            event: event(outcome, version, transaction.filter(|_| logged)),
            cached: false,
        };
        Ok(answers.into_iter().map(receipt).collect())
    }
}

/// What writes need, of no row: the tables, the right to change them, and a server that takes writes.
/// The triggers of statements run all the same; nothing is committed, so nothing waits for the disk.
pub(super) struct WriteNothing;

impl Work for WriteNothing {
    type Answer = ();

    const OPERATION: &'static str = "inspect";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<(), Failure> {
        let none: [&str; 0] = [];
        let columns: [Parameter<'_>; 4] =
            [&none.as_slice(), &none.as_slice(), &&*connection.history, &NO_EPOCH];
        Ok(under_no_epoch(connection.run(Sql::Put, &columns).await)?)
    }
}

type Answers = Vec<(Outcome, Version)>;

/// What a transaction came to.
enum Done {
    /// With the transaction's number.
    Now(Answers, Option<Transaction>),
    /// The request was done before, as this transaction found; nothing was done now.
    Before(Vec<DoneWrite>, Option<Transaction>),
}

/// Unconditional puts: one statement that commits by itself, so one round trip and one fsync. Puts
/// that a later one of the batch supersedes have versions, too: one transaction, sent at once, locks
/// the rows, draws these, and puts.
async fn put(
    connection: &Connection,
    progress: &Progress,
    puts: &Puts<'_>,
    epoch: i64,
) -> Result<(Answers, Option<Transaction>), Failure> {
    progress.commits();
    let columns: [Parameter<'_>; 4] = [&puts.keys, &puts.values, &&*connection.history, &epoch];
    let (rows, drawn) = if puts.superseded == 0 {
        (connection.run(Sql::Put, &columns).await?, Vec::new())
    } else {
        let count = i64::try_from(puts.superseded).unwrap_or(i64::MAX);
        progress.in_transaction(true);
        let (begun, reserved, drawn, rows, committed) = join5(
            begin(connection, epoch, false),
            connection.run(Sql::Reserve, &[&puts.keys]),
            connection.run(Sql::Draw, &[&count]),
            connection.run(Sql::Put, &columns),
            connection.command("COMMIT"),
        )
        .await;
        if committed.is_ok() {
            progress.in_transaction(false);
        }
        // After a failure COMMIT ends the transaction as a ROLLBACK, and the first failure is the
        // cause. Were BEGIN to fail alone, each statement would have committed by itself.
        match begun {
            Err(error) if rows.is_ok() => return Err(unreadable(error)),
            begun => begun?,
        }
        reserved?;
        let (drawn, rows) = (drawn?, rows?);
        committed?;
        (rows, drawn)
    };
    let transaction = transaction(connection, &rows, 3).await?;
    let written = written(&puts.keys, &rows).map_err(unreadable)?;
    let mut drawn = drawn.iter().map(|row| row.try_get::<_, i64>(0));
    let mut answers = Vec::with_capacity(puts.places.len());
    for place in &puts.places {
        // A trigger may keep a row from being written.
        let Some((created, newest)) = written[place.row] else {
            return Err(Failure::Refused(outcome_unknown()));
        };
        let outcome = if created && place.first { Outcome::Created } else { Outcome::Replaced };
        let number = if place.last { Some(Ok(newest)) } else { drawn.next() };
        answers.push((outcome, version(number.unwrap_or(Ok(0)).map_err(unreadable)?)));
    }
    Ok((answers, transaction))
}

/// The transaction that wrote these rows. Where it wrote none, one of just now: later than those that
/// stood in the way. A statement under a history that is not in force has written none.
pub(super) async fn transaction(
    connection: &Connection,
    rows: &[Row],
    column: usize,
) -> Result<Option<Transaction>, Failure> {
    if let Some(row) = rows.first() {
        return Ok(Some(row.try_get(column).map_err(unreadable)?));
    }
    let history = &*connection.history;
    let in_force = connection.run(Sql::Transaction, &[&history]).await.map_err(unreadable)?;
    let row = in_force.first().ok_or(Failure::AnotherHistory)?;
    Ok(Some(row.try_get(0).map_err(unreadable)?))
}

/// Begins a transaction; on a shard its first step waits out a change of what the shard has, or
/// makes one wait. First, or who waits here with rows locked and who has entered and waits for these
/// rows would wait for each other.
async fn begin(
    connection: &Connection,
    epoch: i64,
    waits_for_disk: bool,
) -> Result<(), tokio_postgres::Error> {
    let begun = connection.begin(waits_for_disk);
    if !connection.dialect.is_shard() {
        return begun.await;
    }
    let entering: [Parameter<'_>; 1] = [&epoch];
    let entered = connection.run(Sql::Enter, &entering);
    let (begun, entered) = futures_util::future::join(begun, entered).await;
    begun.and(entered.map(drop))
}

/// Writes of a journal: one statement, whatever they are. Rows that have come as far are not answered.
async fn place(
    connection: &Connection,
    progress: &Progress,
    placed: &Placed<'_>,
) -> Result<(Answers, Option<Transaction>), Failure> {
    progress.commits();
    let history = &*connection.history;
    let columns: [Parameter<'_>; 5] =
        [&placed.keys, &placed.values, &placed.sequences, &placed.deleted, &history];
    let rows = connection.run(Sql::Place, &columns).await?;
    let transaction = transaction(connection, &rows, 3).await?;
    let mut answers = vec![(Outcome::PreconditionFailed, Version::NONE); placed.keys.len()];
    let written = written(&placed.keys, &rows).map_err(unreadable)?;
    for (row, written) in written.into_iter().enumerate() {
        let Some((fresh, newest)) = written else { continue };
        answers[placed.writes[row]] = match (placed.deleted[row], fresh) {
            (true, true) => (Outcome::Absent, Version::NONE),
            (true, false) => (Outcome::Deleted, version(newest)),
            (false, true) => (Outcome::Created, version(newest)),
            (false, false) => (Outcome::Replaced, version(newest)),
        };
    }
    let refused: Vec<_> = (0..placed.keys.len())
        .filter(|&row| answers[placed.writes[row]].0 == Outcome::PreconditionFailed)
        .collect();
    if !refused.is_empty() {
        explain_refusals(connection, placed, &refused, &mut answers).await?;
    }
    Ok((answers, transaction))
}

/// Rows that were left alone must have come as far, else something in the database keeps them from
/// being written. The version answered is that of a moment later.
async fn explain_refusals(
    connection: &Connection,
    placed: &Placed<'_>,
    refused: &[usize],
    answers: &mut Answers,
) -> Result<(), Failure> {
    let keys: Vec<_> = refused.iter().map(|&row| placed.keys[row]).collect();
    let mut explained = 0;
    for row in connection.run(Sql::Placed, &[&keys]).await.map_err(unreadable)? {
        let index: i64 = row.try_get(0).map_err(unreadable)?;
        let index = usize::try_from(index).unwrap_or(0).wrapping_sub(1);
        let Some(&place) = refused.get(index) else { continue };
        let (deleted, sequence): (Option<bool>, i64) =
            (row.try_get(2).map_err(unreadable)?, row.try_get(3).map_err(unreadable)?);
        explained += usize::from(sequence >= placed.sequences[place]);
        if deleted == Some(false) {
            answers[placed.writes[place]].1 = version(row.try_get(1).map_err(unreadable)?);
        }
    }
    if explained == refused.len() {
        return Ok(());
    }
    let message = "a trigger or rule of the database keeps a row from being written; change it, or \
                   the request";
    Err(Failure::Refused(Error::new(ErrorKind::InvalidInput, message)))
}

/// What was committed, or may have been, answers something that says nothing of what was stored.
pub(super) fn unreadable(error: tokio_postgres::Error) -> Failure {
    Failure::Refused(because(outcome_unknown(), error))
}

/// For each key in its order whether it was created, and its version. The server answers in that
/// order, but does not promise to.
fn written(keys: &[&str], rows: &[Row]) -> Result<Vec<Option<(bool, i64)>>, tokio_postgres::Error> {
    let mut written = vec![None; keys.len()];
    for (index, row) in rows.iter().enumerate() {
        let key = row.try_get::<_, &str>(0)?;
        let place = match keys.get(index) {
            Some(&expected) if expected == key => Ok(index),
            _ => keys.binary_search(&key),
        };
        if let Ok(place) = place {
            written[place] = Some((row.try_get(2)?, row.try_get(1)?));
        }
    }
    Ok(written)
}

impl WriteBatch<'_> {
    /// Locks what exists, works out what to do, does it. Everything of a step is sent at once.
    async fn transact(
        &self,
        connection: &Connection,
        progress: &Progress,
    ) -> Result<Done, Failure> {
        let mut keys = self.batch.iter().map(|write| write.key.as_str()).collect::<Vec<_>>();
        keys.sort_unstable();
        keys.dedup();
        let count = i64::try_from(self.batch.len()).unwrap_or(i64::MAX);
        let claim = Claim::new(self.request);
        let history = &*connection.history;
        let of_history: [Parameter<'_>; 1] = [&history];
        // A journal forgets what is settled.
        let waits_for_disk =
            self.batch.iter().any(|it| matches!(it.precondition, Precondition::After(_)));
        let logged = connection.dialect.is_logged();
        progress.in_transaction(true);
        // Were BEGIN to fail alone, what is sent with it would change no record.
        let (begun, claimed, locked, drawn, number) = join5(
            begin(connection, self.epoch, waits_for_disk),
            claim.take::<DoneWrite>(connection),
            connection.run(Sql::Lock, &[&keys]),
            connection.run(Sql::Draw, &[&count]),
            connection.run(Sql::Transaction, &of_history),
        )
        .await;
        let step = begun.map_err(Failure::from).and_then(|()| {
            let (claimed, locked, drawn, number) = (claimed?, locked?, drawn?, number?);
            let number = number.first().ok_or(Failure::AnotherHistory)?;
            let settled = sequence(number, 1).map_err(corrupt)?;
            let number = number.try_get::<_, Transaction>(0).map_err(corrupt)?;
            let region = connection.dialect.region();
            Ok((claimed, state(&locked, &drawn, (self.batch, region), settled)?, Some(number)))
        });
        let (claimed, plan, number) = match step {
            Ok(step) => step,
            Err(failure) => return Err(roll_back(connection, progress, failure).await),
        };
        if let Some(remembered) = claimed {
            leave(connection, progress).await?;
            return Ok(Done::Before(remembered.matching(self.request)?, number));
        }
        if plan.insert.keys.is_empty() && plan.update.keys.is_empty() && self.request.is_none() {
            leave(connection, progress).await?;
            return Ok(Done::Now(plan.answers, number));
        }
        progress.commits();
        let number_of_log = number.filter(|_| logged);
        let stored = plan.answers.iter();
        let stored = stored.map(|&answer| DoneWrite::of(connection, answer, number_of_log));
        let first = first_written(&plan.answers);
        let holds = plan.insert.keys.len() < keys.len();
        let (logged, inserted, updated, remembered, committed) = join5(
            self.log_superseded(connection, &plan),
            make(connection, progress, holds, insert(connection, &plan)),
            update(connection, &plan),
            claim.keep(connection, stored, first),
            connection.command("COMMIT"),
        )
        .await;
        if committed.is_ok() {
            progress.in_transaction(false);
        }
        logged?;
        inserted?;
        updated?;
        remembered?;
        committed?;
        Ok(Done::Now(plan.answers, number))
    }

    /// Changes that the batch itself supersedes never reach the table of records, whose triggers log
    /// the others.
    async fn log_superseded(
        &self,
        connection: &Connection,
        plan: &Plan<'_>,
    ) -> Result<(), tokio_postgres::Error> {
        let all = &plan.superseded;
        if !connection.dialect.is_logged() || all.keys.is_empty() {
            return Ok(());
        }
        let columns: [(Parameter<'_>, Type); 6] = [
            (&all.keys, Type::TEXT_ARRAY),
            (&all.values, Type::TEXT_ARRAY),
            (&all.versions, Type::INT8_ARRAY),
            (&all.deleted, Type::BOOL_ARRAY),
            (&all.created, Type::BOOL_ARRAY),
            (&all.replaced, Type::INT8_ARRAY),
        ];
        match connection.dialect.region() {
            Some(_) => connection.ask(region::LOG_SUPERSEDED, &columns).await.map(drop),
            None => connection.ask(LOG_SUPERSEDED, &columns[..5]).await.map(drop),
        }
    }
}

/// The times are those of the transaction, and of the record for as long as the batch leaves it. Only a
/// new record has two equal ones, as elsewhere: followers tell it by them.
const LOG_SUPERSEDED: &str = "INSERT INTO commands (version, type, key, value, created_at, time) \
     SELECT u.n, CASE WHEN u.d THEN 'RecordDeleted' WHEN u.c THEN 'RecordCreated' \
         ELSE 'RecordUpdated' END, \
       u.k, CASE WHEN u.d THEN NULL ELSE u.v END, \
       CASE WHEN r.deleted IS NOT FALSE OR u.c THEN now() ELSE r.created_at END, \
       now() + CASE WHEN u.c OR u.d THEN 0 ELSE 1 END * interval '1 microsecond' \
     FROM unnest($1::text[], $2::text[], $3::bigint[], $4::boolean[], $5::boolean[]) \
       AS u(k, v, n, d, c) LEFT JOIN records r ON r.key = u.k";

fn sequence(row: &Row, column: usize) -> Result<Sequence, tokio_postgres::Error> {
    Ok(Sequence::new(u64::try_from(row.try_get::<_, i64>(column)?).unwrap_or(0)))
}

fn state<'a>(
    locked: &[Row],
    drawn: &[Row],
    (batch, region): (&'a [Write], Option<RegionId>),
    settled: Sequence,
) -> Result<Plan<'a>, Failure> {
    let row = |row: &'_ Row| -> Result<Current, tokio_postgres::Error> {
        Ok(Current {
            // Over a version that a person made up the next one of all is new.
            version: row
                .try_get::<_, Option<i64>>(1)?
                .and_then(Version::of_row)
                .unwrap_or_default(),
            live: !row.try_get::<_, bool>(2)?,
            applied: sequence(row, 3)?,
        })
    };
    let mut rows = HashMap::with_capacity(locked.len());
    for found in locked {
        let key = found.try_get::<_, &str>(0).map_err(corrupt)?;
        rows.insert(key, row(found).map_err(corrupt)?);
    }
    let versions = drawn.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>();
    Ok(plan(batch, &rows, &versions.map_err(corrupt)?, settled, region))
}

async fn insert(connection: &Connection, plan: &Plan<'_>) -> Result<(), tokio_postgres::Error> {
    let rows = &plan.insert;
    if rows.keys.is_empty() {
        return Ok(());
    }
    let Rows { keys, values, versions, replaced, deleted, applied, accepted, .. } = rows;
    let columns: [Parameter<'_>; 7] =
        [keys, values, versions, deleted, applied, accepted, replaced];
    connection.run(Sql::Insert, &columns).await.map(drop)
}

async fn update(connection: &Connection, plan: &Plan<'_>) -> Result<(), tokio_postgres::Error> {
    let rows = &plan.update;
    if rows.keys.is_empty() {
        return Ok(());
    }
    let Rows { keys, values, versions, replaced, deleted, applied, created, accepted } = rows;
    let columns: [Parameter<'_>; 8] =
        [keys, values, versions, deleted, applied, created, accepted, replaced];
    connection.run(Sql::Update, &columns).await.map(drop)
}

/// Ends a transaction that has changed nothing.
pub(super) async fn leave(connection: &Connection, progress: &Progress) -> Result<(), Failure> {
    connection.command("ROLLBACK").await?;
    progress.in_transaction(false);
    Ok(())
}

pub(super) async fn roll_back(
    connection: &Connection,
    progress: &Progress,
    failure: Failure,
) -> Failure {
    let _the_first_failure_counts = leave(connection, progress).await;
    failure
}

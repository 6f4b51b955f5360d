//! Group commit: what waits is applied in one transaction and paid for with one fsync.
//!
//! The longer a COMMIT takes, the more callers wait for the next one, so groups grow by themselves
//! and nobody waits for a group to fill (DeWitt et al., "Implementation Techniques for Main Memory
//! Database Systems", SIGMOD 1984, section 5.2, without its timer).

use rusqlite::Connection;
use terrace_core::{Error, Load, Origin, Outcome, Receipt, Result, Sequence, Version};

use super::apply::{Moment, Statements};
use super::idempotency::{self, Results};
use super::job::{Task, WriteJob};
use super::shared::Shared;
use super::vitals::ThreadRole;
use super::{connect, failure};

/// Expired rows removed for each new one, so that collecting keeps up and is never a long pause.
const COLLECT_FACTOR: usize = 2;

/// Writes on the kept connection until the line is closed and empty.
///
/// # Errors
/// When its statements cannot be prepared.
pub(super) fn run_shared(shared: &Shared, connection: &Connection) -> Result<()> {
    connect::end_transaction(connection)?;
    let mut writer = Writer::new(shared, connection).map_err(failure::of)?;
    while shared.writes.wait() {
        let most = shared.options.max_group;
        shared.vitals.measured(&shared.runtime, ThreadRole::Writer, || writer.commit_next(most));
    }
    checkpoint(connection);
    Ok(())
}

/// Writes each batch on a connection opened for it, until the line is closed and empty. `anchor`
/// stays open meanwhile, or each close would be the last one and would end the log with it.
///
/// # Errors
/// None: each batch is told its own.
pub(super) fn run_per_request(shared: &Shared, anchor: &Connection) -> Result<()> {
    while shared.writes.wait() {
        shared.vitals.measured(&shared.runtime, ThreadRole::Writer, || {
            let connection = match connect::another(&shared.options) {
                Ok(connection) => connection,
                Err(error) => return refuse_next(shared, 1, &error),
            };
            match Writer::new(shared, &connection) {
                Ok(mut writer) => writer.commit_next(1),
                Err(error) => refuse_next(shared, 1, &failure::of(error)),
            }
        });
    }
    checkpoint(anchor);
    Ok(())
}

struct Writer<'c> {
    shared: &'c Shared,
    connection: &'c Connection,
    statements: Statements<'c>,
}

impl<'c> Writer<'c> {
    fn new(shared: &'c Shared, connection: &'c Connection) -> rusqlite::Result<Self> {
        Ok(Self { shared, connection, statements: Statements::prepare(connection, shared)? })
    }

    /// Applies the jobs that wait in one transaction, with those that arrive meanwhile up to `most`,
    /// and answers them after its COMMIT.
    fn commit_next(&mut self, most: usize) {
        if let Err(gone) = self.shared.file.check("database") {
            return refuse_next(self.shared, most, &gone);
        }
        if let Err(error) = self.statements.begin() {
            return refuse_next(self.shared, most, &failure::of(error));
        }
        // Only now, past the wait for the file's lock, can a caller no longer give its job up.
        let mut jobs = Vec::new();
        self.shared.writes.take(&mut jobs, Load::parts(most));
        match jobs.is_empty() {
            true => self.roll_back_if_open(),
            false => self.commit(&mut jobs, most),
        }
    }

    /// Applies jobs in the transaction that has begun, and ends it.
    fn commit(&mut self, jobs: &mut Vec<WriteJob>, most: usize) {
        let mut results = Vec::with_capacity(jobs.len());
        match self.fill(jobs, most, &mut results) {
            Ok(latest) => {
                let failed = self.statements.commit().map_err(failure::of_commit).err();
                self.roll_back_if_open();
                self.answer(jobs, results, latest, failed);
            }
            // One job can take the whole transaction down; then each has one to itself.
            Err(_) if jobs.len() > 1 => {
                self.roll_back_if_open();
                for job in jobs.drain(..) {
                    match self.statements.begin() {
                        Ok(()) => self.commit(&mut vec![job], 1),
                        Err(error) => refuse(self.shared, &mut vec![job], &failure::of(error)),
                    }
                }
            }
            Err(error) => {
                self.roll_back_if_open();
                refuse(self.shared, jobs, &error);
            }
        }
    }

    /// Applies the jobs and notes the result of each; answers the version drawn last. An error stands for
    /// the whole transaction.
    fn fill(
        &mut self,
        jobs: &mut Vec<WriteJob>,
        most: usize,
        results: &mut Vec<Result<Results>>,
    ) -> Result<Version> {
        let before = self.statements.latest()?;
        let micros = self.shared.runtime.wall().as_microsecond();
        let is_replica = self.shared.is_replica();
        let mut moment = Moment { latest: before, micros, is_replica, settled: Sequence::NONE };
        let (mut repeatable, mut deleted) = (0, 0);
        while results.len() < jobs.len() {
            for job in &jobs[results.len()..] {
                let result = self.statements.apply(&job.task, &mut moment);
                match &result {
                    Ok(done) => match &job.task {
                        Task::Write { idempotency, .. } => {
                            repeatable += usize::from(idempotency.is_some());
                            deleted += done.iter().filter(|(it, _)| is_gone(*it)).count();
                        }
                        Task::Ledger(accounts) => {
                            repeatable += usize::from(accounts.is_repeatable());
                        }
                        Task::Follow(follow) => deleted += follow.deletions(),
                    },
                    Err(error) if self.connection.is_autocommit() => return Err(error.clone()),
                    Err(_) => {}
                }
                results.push(result);
            }
            self.join(jobs, most);
        }
        if moment.latest != before {
            self.statements.keep_latest(moment.latest)?;
        }
        self.collect(repeatable, deleted, &moment)?;
        Ok(Version::new(moment.latest))
    }

    /// Lets jobs that have arrived meanwhile join the group: they need not wait for the next fsync.
    fn join(&self, jobs: &mut Vec<WriteJob>, most: usize) {
        let room = most.saturating_sub(jobs.len());
        if room > 0 {
            self.shared.writes.take(jobs, Load::parts(room));
        }
    }

    /// Removes a few rows that are kept no longer: more than came, so the tables do not grow.
    fn collect(&mut self, repeatable: usize, deleted: usize, moment: &Moment) -> Result<()> {
        let micros = moment.micros;
        if repeatable > 0 {
            idempotency::collect(self.connection, COLLECT_FACTOR * repeatable, micros)
                .map_err(failure::of)?;
        }
        // A region keeps them for the others.
        if deleted > 0 && self.shared.options.region.is_none() {
            let kept = self.shared.options.tombstones_kept_for.as_micros();
            let before = micros.saturating_sub(i64::try_from(kept).unwrap_or(i64::MAX));
            self.statements
                .collect_tombstones(COLLECT_FACTOR * deleted, before, moment.settled)
                .map_err(failure::of)?;
        }
        Ok(())
    }

    fn answer(
        &self,
        jobs: &mut Vec<WriteJob>,
        results: Vec<Result<Results>>,
        latest: Version,
        failed: Option<Error>,
    ) {
        let vitals = &self.shared.vitals;
        match &failed {
            None => {
                self.shared.committed.send_modify(|number| *number += 1);
                vitals.committed(results.iter().flatten().map(|done| done.len() as u64).sum());
            }
            Some(error) => vitals.failed(error),
        }
        if failed.is_none() {
            self.shared.commits.send_replace(());
        }
        for (job, result) in jobs.drain(..).zip(results) {
            if let Err(error) = &result {
                vitals.failed(error);
            }
            let answer = result.and_then(|done| match &failed {
                None => Ok(self.receipts(done, latest)),
                Some(error) => Err(error.clone()),
            });
            let _ = job.reply.send(answer);
        }
    }

    /// What found nothing to change has seen all that came before it.
    fn receipts(&self, results: Results, latest: Version) -> Vec<Receipt> {
        let receipt = |(outcome, version)| Receipt {
            outcome,
            version,
            durability: self.shared.durability,
            token: self.shared.token(if version == Version::NONE { latest } else { version }),
            origin: Origin::PRIMARY,
            event: self.shared.event(outcome, version),
            cached: false,
        };
        results.into_iter().map(receipt).collect()
    }

    fn roll_back_if_open(&self) {
        if !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "a SQLite transaction could not be rolled back");
        }
    }
}

/// Whether a write left, or may have left, a tombstone.
fn is_gone(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Deleted | Outcome::Absent)
}

/// Refuses those that would be in the next group.
fn refuse_next(shared: &Shared, most: usize, error: &Error) {
    let mut jobs = Vec::new();
    shared.writes.take(&mut jobs, Load::parts(most));
    refuse(shared, &mut jobs, error);
}

fn refuse(shared: &Shared, jobs: &mut Vec<WriteJob>, error: &Error) {
    for job in jobs.drain(..) {
        shared.vitals.failed(error);
        let _ = job.reply.send(Err(error.clone()));
    }
}

/// Moves the log into the file, so that the file alone is the whole database.
fn checkpoint(connection: &Connection) {
    if let Err(error) = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
        tracing::warn!(%error, "the last checkpoint failed; the next open will make up for it");
    }
}

//! The thread: what waits becomes one transaction, and is answered after its COMMIT.

use rusqlite::Connection;
use terrace_core::{
    Appended, DeadLetter, Error, JournalEntry, Load, Progress, Result, Sequence, Settled,
};

use super::steps::Steps;
use super::{Reply, Shared};
use crate::journal::{Packed, outcome_unknown};
use crate::sqlite::connect::end_transaction;
use crate::sqlite::failure;

/// Jobs of one transaction.
const MOST: usize = 512;

/// Something to do.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) work: Work,
}

#[derive(Debug)]
pub(super) enum Work {
    Append { packed: Packed, reply: Reply<Appended> },
    Settle { done: Vec<Settled>, reply: Reply<Progress> },
    Claim { writes: usize, reply: Reply<Vec<JournalEntry>> },
    Peek { after: Sequence, writes: usize, reply: Reply<Vec<JournalEntry>> },
    Raise { floor: Sequence, reply: Reply<()> },
    Dead { after: Sequence, limit: usize, reply: Reply<Vec<DeadLetter>> },
    Retry { sequences: Vec<Sequence>, reply: Reply<u64> },
    Bury { sequences: Vec<Sequence>, reply: Reply<u64> },
}

/// An answer that waits for the COMMIT.
type Answer = Box<dyn FnOnce(Option<Error>) + Send>;

/// Works until the line is closed and empty.
///
/// # Errors
/// When a transaction that a defect has left open cannot be ended.
pub(super) fn run(shared: &Shared, connection: &Connection) -> Result<()> {
    end_transaction(connection)?;
    shared.jobs.serve(Load::parts(MOST), |jobs| {
        let (reads, writes): (Vec<_>, Vec<_>) = jobs.drain(..).partition(is_read);
        if !writes.is_empty() {
            transact(shared, connection, writes);
        }
        reads.into_iter().for_each(|job| look(shared, connection, job));
    });
    let _ = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    Ok(())
}

fn is_read(job: &Job) -> bool {
    match &job.work {
        Work::Claim { .. } | Work::Peek { .. } | Work::Dead { .. } => true,
        Work::Settle { done, .. } => done.is_empty(),
        _ => false,
    }
}

fn look(shared: &Shared, connection: &Connection, job: Job) {
    let steps = Steps { shared, connection };
    match job.work {
        Work::Claim { writes, reply } => drop(reply.send(steps.claim(writes))),
        Work::Peek { after, writes, reply } => drop(reply.send(steps.peek(after, writes))),
        Work::Dead { after, limit, reply } => drop(reply.send(steps.dead(after, limit))),
        Work::Settle { reply, .. } => {
            let progress = shared.file.check("journal's").and_then(|()| steps.progress());
            drop(reply.send(progress));
        }
        _ => {}
    }
}

fn transact(shared: &Shared, connection: &Connection, jobs: Vec<Job>) {
    let steps = Steps { shared, connection };
    // What is committed to a file without a name is gone with this process.
    let begun = shared.file.check("journal's").and_then(|()| steps.run("BEGIN IMMEDIATE"));
    if let Err(error) = begun {
        return jobs.into_iter().for_each(|job| refuse(job, error.clone()));
    }
    let arrives =
        jobs.iter().any(|job| matches!(job.work, Work::Append { .. } | Work::Retry { .. }));
    let answers: Vec<Answer> = jobs.into_iter().map(|job| step(&steps, job)).collect();
    let failed = match connection.execute_batch("COMMIT") {
        // It may have been moved meanwhile.
        Ok(()) => shared.file.check("journal's").err().map(|_| outcome_unknown()),
        Err(error) => {
            let failed = failure::of_commit(error);
            if !connection.is_autocommit() {
                let _ = connection.execute_batch("ROLLBACK");
            }
            Some(failed)
        }
    };
    if failed.is_none() && arrives {
        shared.arrived.notify_waiters();
    }
    answers.into_iter().for_each(|answer| answer(failed.clone()));
}

/// Does one job within the transaction, undone by itself when it fails.
fn step(steps: &Steps<'_>, job: Job) -> Answer {
    match job.work {
        Work::Append { packed, reply } => later(steps.whole(|| steps.append(&packed)), reply),
        Work::Settle { done, reply } => later(steps.whole(|| steps.settle(&done)), reply),
        Work::Raise { floor, reply } => later(steps.whole(|| steps.raise(floor)), reply),
        Work::Retry { sequences, reply } => later(steps.whole(|| steps.retry(&sequences)), reply),
        Work::Bury { sequences, reply } => later(steps.whole(|| steps.bury(&sequences)), reply),
        other => Box::new(|_| drop(other)),
    }
}

fn later<T: Send + 'static>(result: Result<T>, reply: Reply<T>) -> Answer {
    Box::new(move |failed| {
        let _ = reply.send(result.and_then(|done| failed.map_or(Ok(done), Err)));
    })
}

fn refuse(job: Job, error: Error) {
    match job.work {
        Work::Append { reply, .. } => drop(reply.send(Err(error))),
        Work::Settle { reply, .. } => drop(reply.send(Err(error))),
        Work::Raise { reply, .. } => drop(reply.send(Err(error))),
        Work::Retry { reply, .. } | Work::Bury { reply, .. } => drop(reply.send(Err(error))),
        Work::Claim { .. } | Work::Peek { .. } | Work::Dead { .. } => {}
    }
}

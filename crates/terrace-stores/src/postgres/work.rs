//! How a piece of work is done: a connection, a deadline, and what may be tried again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use terrace_core::{Deadline, Error, ErrorKind, Result, Runtime};

use super::apart::Apart;
use super::connection::Connection;
use super::doubts::Doubts;
use super::member::{self, Member};
use super::pool::{Lease, Pool};
use super::sqlstate::{
    Remedy, Stage, explain, is_unknown, outcome_unknown, outrun, remedy, survives,
};

/// One piece of work on one connection, which can be done again from its beginning.
pub(super) trait Work: Sync {
    /// What it answers.
    type Answer: Send;

    /// Its name in errors.
    const OPERATION: &'static str;

    /// Whether another server may do it as well; then what a replica ends for the sake of its
    /// primary's changes is not tried again here.
    const ELSEWHERE: bool = false;

    /// Does it. Leaves the session idle when it succeeds, and when it fails with a refusal of the
    /// server, unless `progress` says that a transaction is open.
    fn run(
        &self,
        connection: &Connection,
        progress: &Progress,
    ) -> impl Future<Output = Result<Self::Answer, Failure>> + Send;
}

/// How far a piece of work has come; read when its answer does not come.
#[derive(Debug, Default)]
pub(super) struct Progress {
    committing: AtomicBool,
    in_transaction: AtomicBool,
}

impl Progress {
    /// What is sent from now on commits by itself.
    pub(super) fn commits(&self) {
        self.committing.store(true, Ordering::Relaxed);
    }

    /// A transaction is open, or no longer.
    pub(super) fn in_transaction(&self, open: bool) {
        self.in_transaction.store(open, Ordering::Relaxed);
    }

    pub(super) fn stage(&self) -> Stage {
        if self.committing.load(Ordering::Relaxed) { Stage::Committing } else { Stage::Harmless }
    }
}

/// Why a piece of work was not done.
#[derive(Debug)]
pub(super) enum Failure {
    /// The driver or the server says so.
    Driver(tokio_postgres::Error),
    /// The work itself says so; the session is idle.
    Refused(Error),
    /// The session is of another history than the one in force, or of a server that was a replica
    /// when it began; nothing was done.
    AnotherHistory,
    /// Another writer made a row that was missing a moment ago; nothing was applied.
    Overtaken(tokio_postgres::Error),
}

impl Failure {
    /// Whether the work may have been done all the same, or may be still.
    fn leaves_doubt(&self, stage: Stage) -> bool {
        match self {
            Self::Refused(error) => error.kind() == ErrorKind::OutcomeUnknown,
            Self::Driver(error) => is_unknown(error, stage),
            Self::AnotherHistory | Self::Overtaken(_) => false,
        }
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Driver(error)
    }
}

/// A try that came to nothing.
struct Unfinished {
    /// Nothing when the time was over.
    failure: Option<Failure>,
    stage: Stage,
    /// Whether a transaction may be open.
    open: bool,
}

/// Does work on connections of a pool.
#[derive(Clone)]
pub(super) struct Worker {
    pub(super) pool: Arc<Pool>,
    pub(super) runtime: Runtime,
    /// The longest that an answer is waited for, whatever the deadline says: longer than the server
    /// works on the statements, so it acts only when the server does not answer at all.
    pub(super) patience: Duration,
    /// What is known of the server, when it is one of several.
    pub(super) member: Option<Arc<Member>>,
    /// The furthest [`terrace_core::Place::settled`] of a write.
    pub(super) settled: Arc<AtomicU64>,
    /// Writes of which nobody knows yet.
    pub(super) doubts: Arc<Doubts>,
    /// A session for what must not wait for requests.
    pub(super) apart: Arc<Apart>,
}

impl Worker {
    /// How often work is begun again because others were faster.
    const RACES: u32 = 10;

    /// Does work that nobody waits for.
    pub(super) async fn tend<W: Work>(&self, work: &W) -> Result<W::Answer> {
        self.perform(work, Deadline::at(self.runtime.now() + self.patience)).await
    }

    /// Whether the server takes writes, as far as is known.
    pub(super) fn takes_writes(&self) -> bool {
        self.member.as_ref().is_none_or(|member| member.takes_writes())
    }

    /// Does it, by the deadline.
    pub(super) async fn perform<W: Work>(&self, work: &W, deadline: Deadline) -> Result<W::Answer> {
        let done = self.attempts(work, deadline).await;
        done.map_err(|error| error.during(W::OPERATION).with("store", "postgres"))
    }

    async fn attempts<W: Work>(&self, work: &W, deadline: Deadline) -> Result<W::Answer> {
        deadline.check(self.runtime.now())?;
        let mut lease = self.acquire(deadline).await?;
        let (mut races, mut reconnects, mut preparations) = (0, 0, 0);
        loop {
            let Unfinished { failure, stage, open } =
                match self.attempt(work, &mut lease, deadline).await {
                    Ok(answer) => return Ok(answer),
                    Err(unfinished) => unfinished,
                };
            let failure = match failure {
                Some(failure) => failure,
                None if stage == Stage::Committing => return Err(outcome_unknown()),
                None => return Err(Deadline::exceeded()),
            };
            let overtaken = matches!(failure, Failure::Overtaken(_));
            let (error, remedy) = match failure {
                Failure::Refused(error) => {
                    lease.settle();
                    return Err(error);
                }
                // Another session finds the history that is in force.
                Failure::AnotherHistory if reconnects < 2 => {
                    reconnects += 1;
                    drop(lease);
                    self.pool.forget_idle();
                    lease = self.acquire(deadline).await?;
                    continue;
                }
                Failure::AnotherHistory => return Err(another_history()),
                Failure::Overtaken(error) => (error, Remedy::Again),
                Failure::Driver(error) => {
                    let remedy = remedy(&error, stage);
                    (error, remedy)
                }
            };
            if survives(&error) && !open {
                lease.settle();
            }
            match remedy {
                Remedy::Again if W::ELSEWHERE && self.member.is_some() => {
                    return Err(member::conflict(error));
                }
                Remedy::Again if races < Self::RACES => races += 1,
                Remedy::PrepareAgain if preparations == 0 => {
                    preparations += 1;
                    self.prepare_again(&mut lease, deadline).await?;
                }
                Remedy::Reconnect if reconnects < 2 => {
                    reconnects += 1;
                    drop(lease);
                    if reconnects == 2 {
                        // Two in a row: what else is idle has ended with them, as in a restart.
                        self.pool.forget_idle();
                    }
                    lease = self.acquire(deadline).await?;
                }
                Remedy::LookUpHosts => {
                    lease.unsettle();
                    self.pool.forget_idle();
                    return Err(explain(error, stage));
                }
                _ if overtaken => return Err(outrun(error)),
                _ => return Err(explain(error, stage)),
            }
            deadline.check(self.runtime.now())?;
        }
    }

    /// One try. Where nobody knows what became of it, that is noted, also when the caller goes away.
    async fn attempt<W: Work>(
        &self,
        work: &W,
        lease: &mut Lease,
        deadline: Deadline,
    ) -> Result<W::Answer, Unfinished> {
        lease.unsettle();
        let progress = Progress::default();
        let mut doubt = self.doubts.guard(lease.backend, &progress);
        let limit = deadline.min(Deadline::at(self.runtime.now() + self.patience));
        let done = self.runtime.within(limit, work.run(lease, &progress)).await;
        let stage = progress.stage();
        match done {
            Some(Ok(answer)) => {
                doubt.end();
                lease.settle();
                Ok(answer)
            }
            Some(Err(failure)) => {
                if !failure.leaves_doubt(stage) {
                    doubt.end();
                }
                let open = progress.in_transaction.load(Ordering::Relaxed);
                Err(Unfinished { failure: Some(failure), stage, open })
            }
            None => Err(Unfinished { failure: None, stage, open: true }),
        }
    }

    async fn acquire(&self, deadline: Deadline) -> Result<Lease> {
        let lease = self.pool.acquire(deadline).await?;
        match &self.member {
            Some(member) => member.check(lease.life).map(|()| lease),
            None => Ok(lease),
        }
    }

    async fn prepare_again(&self, lease: &mut Lease, deadline: Deadline) -> Result<()> {
        lease.unsettle();
        let limit = deadline.min(Deadline::at(self.runtime.now() + self.patience));
        match self.runtime.within(limit, lease.prepare_again()).await {
            Some(prepared) => prepared.map_err(|error| explain(error, Stage::Harmless)),
            None => Err(Deadline::exceeded()),
        }
    }
}

/// The error of work that commits nothing and is not tried again.
pub(super) fn unfinished(failure: Failure) -> Error {
    match failure {
        Failure::Refused(error) => error,
        Failure::AnotherHistory => another_history(),
        Failure::Driver(error) | Failure::Overtaken(error) => explain(error, Stage::Harmless),
    }
}

fn another_history() -> Error {
    let message = "the database is being restored or replaced by another; try again";
    Error::new(ErrorKind::Unavailable, message)
}

/// A row that no statement of this store can have written.
pub(super) fn corrupt(error: tokio_postgres::Error) -> Failure {
    let message = "a stored row cannot be read; check the columns of the table `records`";
    Failure::Refused(Error::new(ErrorKind::Corrupt, message).caused_by(error))
}

/// A key or value that the contract does not allow, as only people write it.
pub(super) fn not_allowed(error: Error) -> Failure {
    let message = "a stored key or value is longer than Terrace allows; correct or delete the row";
    Failure::Refused(Error::new(ErrorKind::Corrupt, message).caused_by(error))
}

//! How work is done: a connection, a deadline, and what may be tried again.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use terrace_core::{Deadline, Result, Runtime, Standing, Task};
use tokio::sync::oneshot;

use super::apart::Apart;
use super::doubts::{Doubts, Ended};
use super::history::{LookAgain, Raise};
use super::member::{self, Member};
use super::pool::{Lease, Pool, closed};
use super::sqlstate::{
    Remedy, Stage, explain, outcome_unknown, outrun, remedy, survives, takes_no_writes,
};
use super::work::{Failure, Progress, Work, another_history};

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
    /// The longest that a statement waits for a lock.
    pub(super) lock_timeout: Duration,
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
    /// Nothing is known of the server yet.
    pub(super) fn new(
        pool: Pool,
        runtime: Runtime,
        (statement_timeout, lock_timeout): (Duration, Duration),
        member: Option<Arc<Member>>,
    ) -> Self {
        let pool = Arc::new(pool);
        // Two statements at their limit, and what the network needs.
        let patience = statement_timeout * 2 + Duration::from_secs(1);
        let apart = Arc::new(Apart::new(Arc::clone(&pool), runtime.clone(), patience));
        let (settled, doubts) = (Arc::default(), Arc::default());
        Self { pool, runtime, patience, lock_timeout, member, settled, doubts, apart }
    }

    /// How often work is begun again because others were faster.
    const RACES: u32 = 10;

    /// How often work is begun again because another session holds a table.
    const WAITS: u32 = 30;

    /// Whether a further try can wait for a lock and answer in time: when the deadline passes meanwhile,
    /// nobody knows what came of it.
    fn may_wait(&self, waits: u32, deadline: Deadline) -> bool {
        waits < Self::WAITS && !deadline.passed(self.runtime.now() + self.lock_timeout * 2)
    }

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
        let (mut races, mut waits, mut reconnects, mut preparations) = (0, 0, 0, 0);
        loop {
            let Unfinished { failure, stage, open } =
                match self.attempt(work, &mut lease, races, deadline).await {
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
                Remedy::Wait if !open && self.may_wait(waits, deadline) => waits += 1,
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
                    return Err(takes_no_writes(error, lease.is_replica));
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
        races: u32,
        deadline: Deadline,
    ) -> Result<W::Answer, Unfinished> {
        lease.unsettle();
        let progress = Progress::after(races);
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
                let open = progress.is_in_transaction();
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

/// What is in force, and what became of writes that were not answered.
impl Worker {
    /// Looks at what is in force. Who goes away leaves the look to those who come later: on a slow network
    /// a new session takes longer than a look.
    pub(super) async fn look(&self) -> Result<()> {
        let (told, hears) = oneshot::channel();
        let own = self.clone();
        let work = async move {
            let _gone = told.send(own.look_now().await);
        };
        self.runtime.spawn("postgres look", work).detach();
        hears.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Members are looked at by their router.
    async fn look_now(&self) -> Result<()> {
        let connector = self.pool.connector();
        if self.member.is_none() {
            let came = self.runtime.now();
            let _alone = self.apart.looking.lock().await;
            if connector.histories().looked_at().is_none_or(|at| at < came) {
                let asked = self.runtime.now();
                let deadline = Deadline::at(asked + self.patience);
                let found = self.apart.perform(&LookAgain, deadline).await?;
                if let Some(standing) = found.standing() {
                    connector.heard(&found, standing, asked);
                }
            }
        }
        self.settle_doubts().await
    }

    /// Raises the generation, once for all who wait for it.
    pub(super) async fn raise(&self) -> Result<()> {
        let histories = self.pool.connector().histories();
        let raised = histories.raise(|| async {
            let (asked, standing) = (self.runtime.now(), histories.standing());
            let deadline = Deadline::at(asked + self.patience);
            let raise = Raise { history: &standing.history };
            let generation = self.apart.perform(&raise, deadline).await?;
            histories.heard(Standing { generation, ..(*standing).clone() }, asked);
            Ok(())
        });
        raised.await
    }

    /// Raises the generation if processes of which nobody knew have ended.
    pub(super) async fn settle_doubts(&self) -> Result<()> {
        let all = self.doubts.all();
        if all.is_empty() {
            return Ok(());
        }
        let deadline = Deadline::at(self.runtime.now() + self.patience);
        let ended = self.apart.perform(&Ended { backends: &all }, deadline).await?;
        if !ended.is_empty() {
            self.raise().await?;
            self.doubts.end(&ended);
        }
        Ok(())
    }
}

/// Looks at the history, its generation and the server's settings, without end. A task of its own:
/// what else is tended may take longer than caches may be believed.
pub(super) fn watch(worker: Worker) -> Task {
    const LOOK: Duration = Duration::from_millis(250);
    let runtime = worker.runtime.clone();
    runtime.keep("postgres history", move || {
        let worker = worker.clone();
        async move {
            while !worker.pool.is_closed() {
                worker.runtime.sleep(LOOK).await;
                if let Err(error) = worker.look().await {
                    tracing::debug!(%error, "PostgreSQL does not say which history is in force");
                }
            }
            Ok(())
        }
    })
}

//! A session beside the pool, for what must not wait for requests: looks at the history, raises of the
//! generation. When a cache is gone, every read wants a connection of the pool; just then the
//! generation counts.

use std::time::Duration;

use terrace_core::{Deadline, Result, Standing, Task};
use tokio::sync::{Mutex, oneshot};

use super::connection::Connection;
use super::history::{LookAgain, Raise};
use super::work::{Failure, Progress, Work, Worker, unfinished};

/// The session; opened at the start, and anew when it has ended.
#[derive(Default)]
pub(super) struct Apart {
    session: Mutex<Option<Connection>>,
    /// Held by who looks.
    looking: Mutex<()>,
}

/// Looks at the history, its generation and the server's settings, without end. A task of its own:
/// what else is tended may take longer than caches may be believed.
pub(super) fn watch(worker: Worker) -> Task {
    const LOOK: Duration = Duration::from_millis(250);
    let runtime = worker.runtime.clone();
    runtime.spawn("postgres history", async move {
        while !worker.pool.is_closed() {
            worker.runtime.sleep(LOOK).await;
            if let Err(error) = look(&worker).await {
                tracing::debug!(%error, "PostgreSQL does not say which history is in force");
            }
        }
    })
}

/// Looks at what is in force. Who goes away leaves the look to those who come later: on a slow network
/// a new session takes longer than a look.
pub(super) async fn look(worker: &Worker) -> Result<()> {
    let (told, hears) = oneshot::channel();
    let own = worker.clone();
    let work = async move {
        let _gone = told.send(look_now(&own).await);
    };
    worker.runtime.spawn("postgres look", work).detach();
    hears.await.unwrap_or_else(|_| Err(super::pool::closed()))
}

/// Members are looked at by their router.
async fn look_now(worker: &Worker) -> Result<()> {
    let connector = worker.pool.connector();
    if worker.member.is_none() {
        let came = worker.runtime.now();
        let _alone = worker.apart.looking.lock().await;
        if connector.histories().looked_at().is_none_or(|at| at < came) {
            let asked = worker.runtime.now();
            let deadline = Deadline::at(asked + worker.patience);
            let found = worker.apart.perform(worker, &LookAgain, deadline).await?;
            if let Some(standing) = found.standing() {
                connector.heard(&found, standing, asked);
            }
        }
    }
    worker.doubts.settle(worker).await
}

/// Raises the generation, once for all who wait for it.
pub(super) async fn raise(worker: &Worker) -> Result<()> {
    let histories = worker.pool.connector().histories();
    let raised = histories.raise(|| async {
        let (asked, standing) = (worker.runtime.now(), histories.standing());
        let deadline = Deadline::at(asked + worker.patience);
        let raise = Raise { history: &standing.history };
        let generation = worker.apart.perform(worker, &raise, deadline).await?;
        histories.heard(Standing { generation, ..(*standing).clone() }, asked);
        Ok(())
    });
    raised.await
}

impl Apart {
    /// Uses this session. On a slow network opening one takes longer than caches may be believed.
    pub(super) async fn keep(&self, session: Connection) {
        *self.session.lock().await = Some(session);
    }

    /// Says goodbye to the server.
    pub(super) async fn end(&self) {
        *self.session.lock().await = None;
    }

    /// Does a piece of work, by the deadline. Calls wait for each other.
    pub(super) async fn perform<W: Work>(
        &self,
        worker: &Worker,
        work: &W,
        deadline: Deadline,
    ) -> Result<W::Answer> {
        let limit = deadline.min(Deadline::at(worker.runtime.now() + worker.patience));
        let done = worker.runtime.within(limit, self.attempts(worker, work)).await;
        let done = done.unwrap_or_else(|| Err(Deadline::exceeded()));
        done.map_err(|error| error.during(W::OPERATION).with("store", "postgres"))
    }

    async fn attempts<W: Work>(&self, worker: &Worker, work: &W) -> Result<W::Answer> {
        let mut place = self.session.lock().await;
        // Taken out: what is dropped or fails leaves no session in doubt.
        let mut known = place.take().filter(|session| !session.is_closed());
        loop {
            let is_new = known.is_none();
            let session = match known.take() {
                Some(session) => session,
                None => worker.pool.connector().open_for_request().await?,
            };
            match work.run(&session, &Progress::default()).await {
                Ok(answer) => {
                    *place = Some(session);
                    return Ok(answer);
                }
                // It may have ended while nobody used it, or be of another history.
                Err(Failure::Driver(_) | Failure::AnotherHistory) if !is_new => {}
                Err(failure) => return Err(unfinished(failure)),
            }
        }
    }
}

//! A session beside the pool, for what must not wait for requests: looks at the history, raises of the
//! generation. When a cache is gone, every read wants a connection of the pool; just then the
//! generation counts.

use terrace_core::{Deadline, Result};
use tokio::sync::Mutex;

use super::connect::Connection;
use super::work::{Failure, Progress, Work, Worker, unfinished};

/// The session, opened when it is first needed.
#[derive(Default)]
pub(super) struct Apart(Mutex<Option<Connection>>);

impl Apart {
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
        let mut place = self.0.lock().await;
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

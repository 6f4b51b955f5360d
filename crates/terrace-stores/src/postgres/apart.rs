//! A session beside the pool, for what must not wait for requests: looks at the history, raises of the
//! generation. When a cache is gone, every read wants a connection of the pool; just then the
//! generation counts.

use std::sync::Arc;
use std::time::Duration;

use terrace_core::{Deadline, Result, Runtime};
use tokio::sync::Mutex;

use super::connection::Connection;
use super::pool::Pool;
use super::work::{Failure, Progress, Work, unfinished};

/// The session; opened at the start, and anew when it has ended.
pub(super) struct Apart {
    pool: Arc<Pool>,
    runtime: Runtime,
    patience: Duration,
    session: Mutex<Option<Connection>>,
    /// Held by who looks.
    pub(super) looking: Mutex<()>,
}

impl Apart {
    pub(super) fn new(pool: Arc<Pool>, runtime: Runtime, patience: Duration) -> Self {
        Self { pool, runtime, patience, session: Mutex::default(), looking: Mutex::default() }
    }

    /// Uses this session. On a slow network opening one takes longer than caches may be believed.
    pub(super) async fn keep(&self, session: Connection) {
        *self.session.lock().await = Some(session);
    }

    /// Says goodbye to the server.
    pub(super) async fn end(&self) {
        *self.session.lock().await = None;
    }

    /// Does a piece of work, by the deadline. Calls wait for each other.
    pub(super) async fn perform<W: Work>(&self, work: &W, deadline: Deadline) -> Result<W::Answer> {
        let limit = deadline.min(Deadline::at(self.runtime.now() + self.patience));
        let done = self.runtime.within(limit, self.attempts(work)).await;
        let done = done.unwrap_or_else(|| Err(Deadline::exceeded()));
        done.map_err(|error| error.during(W::OPERATION).with("store", "postgres"))
    }

    async fn attempts<W: Work>(&self, work: &W) -> Result<W::Answer> {
        let mut place = self.session.lock().await;
        // Taken out: what is dropped or fails leaves no session in doubt.
        let mut known = place.take().filter(|session| !session.is_closed());
        loop {
            let is_new = known.is_none();
            let session = match known.take() {
                Some(session) => session,
                None => self.pool.connector().open_for_request().await?,
            };
            match work.run(&session, &Progress::default()).await {
                Ok(answer) => {
                    // Who looked while the store was closed is the last.
                    *place = Some(session).filter(|_| !self.pool.is_closed());
                    return Ok(answer);
                }
                // It may have ended while nobody used it, or be of another history.
                Err(Failure::Driver(_) | Failure::AnotherHistory) if !is_new => {}
                Err(failure) => return Err(unfinished(failure)),
            }
        }
    }
}

//! One thread with one connection, for work that is not on the path of every request.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rusqlite::Connection;
use terrace_core::{Error, ErrorKind, Line, Load, Refused, Result, Runtime};
use tokio::sync::oneshot;

use super::connect;
use super::failure;
use super::options::SqliteOptions;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// Runs jobs in the order they came. Ends, after what was accepted, when it is closed or dropped.
pub(super) struct Lane {
    jobs: Arc<Line<Job>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    path: PathBuf,
}

impl Lane {
    /// Jobs that may wait; one more is refused as overloaded.
    const WAITING: usize = 1024;

    pub(super) fn start(
        options: &SqliteOptions,
        name: &'static str,
        runtime: Runtime,
    ) -> Result<Self> {
        let mut connection = connect::another(options)?;
        let jobs = Arc::new(Line::<Job>::new(Load::parts(Self::WAITING), 0));
        let line = Arc::clone(&jobs);
        let work = move || {
            runtime.keep_here(name, || {
                line.serve(Load::parts(1), |jobs| {
                    // A job that failed half way leaves no transaction to the next one.
                    let _the_next_one_says_so = connect::end_transaction(&connection);
                    jobs.drain(..).for_each(|job| job(&mut connection));
                });
                Ok(())
            });
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work).map_err(|error| {
            let message = "a thread could not be started; raise the limit on processes";
            Error::new(ErrorKind::Unavailable, message).caused_by(error)
        })?;
        Ok(Self { jobs, thread: Mutex::new(Some(thread)), path: options.path.clone() })
    }

    pub(super) fn path(&self) -> &PathBuf {
        &self.path
    }

    /// What the work answers. Once begun it is done also when nobody waits for it any more.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            let _nobody_waits = reply.send(work(connection));
        });
        let _ticket =
            self.jobs.enter(job, Load { parts: 1, bytes: 0 }).map_err(|why| match why {
                Refused::Full => Error::new(
                    ErrorKind::Overloaded,
                    "too much waits for this file; try again later",
                ),
                Refused::Closed => Error::new(ErrorKind::Unavailable, "the store is closed"),
            })?;
        answer.await.unwrap_or_else(|_| Err(failure::dropped()))
    }

    /// Takes no more and waits for what was accepted.
    pub(super) fn close(&self) {
        self.jobs.close();
        // Not under the lock: whoever is refused meanwhile looks there.
        let thread = self.thread().take();
        if let Some(thread) = thread {
            // It may rest after a failure.
            thread.thread().unpark();
            let _its_panic_was_told = thread.join();
        }
    }

    fn thread(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.close();
    }
}

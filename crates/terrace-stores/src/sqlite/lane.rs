//! One thread with one connection, for work that is not on the path of every request.

use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rusqlite::Connection;
use terrace_core::{Error, ErrorKind, Result};
use tokio::sync::oneshot;

use super::connect;
use super::failure;
use super::options::SqliteOptions;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// Runs jobs in the order they came. Ends, after what was accepted, when it is closed or dropped.
#[derive(Debug)]
pub(super) struct Lane {
    jobs: Mutex<Option<mpsc::SyncSender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    path: PathBuf,
}

impl Lane {
    /// Jobs that may wait; one more is refused as overloaded.
    const WAITING: usize = 1024;

    pub(super) fn start(options: &SqliteOptions, name: &str) -> Result<Self> {
        let mut connection = connect::another(options)?;
        let (jobs, queue) = mpsc::sync_channel::<Job>(Self::WAITING);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            for job in queue {
                job(&mut connection);
                // A job that failed half way leaves no transaction to the next one.
                if !connection.is_autocommit() {
                    let _nothing_more_can_be_done = connection.execute_batch("ROLLBACK");
                }
            }
        });
        let thread = thread.map_err(|error| {
            let message = "a thread could not be started; raise the limit on processes";
            Error::new(ErrorKind::Unavailable, message).caused_by(error)
        })?;
        let (jobs, thread) = (Mutex::new(Some(jobs)), Mutex::new(Some(thread)));
        Ok(Self { jobs, thread, path: options.path.clone() })
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
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let jobs = jobs.ok_or_else(|| Error::new(ErrorKind::Unavailable, "the store is closed"))?;
        jobs.try_send(job).map_err(|why| match why {
            mpsc::TrySendError::Full(_) => {
                Error::new(ErrorKind::Overloaded, "too much waits for this file; try again later")
            }
            mpsc::TrySendError::Disconnected(_) => failure::dead(),
        })?;
        answer.await.unwrap_or_else(|_| Err(failure::dead()))
    }

    /// Takes no more and waits for what was accepted.
    pub(super) fn close(&self) {
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _its_panic_was_told = thread.join();
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.close();
    }
}

//! Calls of the driver: each in a task of its own, few at a time, with the deadline on the wait.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mongodb::event::EventHandler;
use mongodb::event::cmap::CmapEvent;
use mongodb::options::{
    Acknowledgment, ClientOptions, DatabaseOptions, ReadConcern, ReadPreference, SelectionCriteria,
    WriteConcern,
};
use mongodb::{Client, Database};
use terrace_core::{
    Backoff, Breaker, Deadline, Error, ErrorKind, Inspection, Pass, Result, Runtime, Trip, Unit,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::MongoOptions;
use super::failure;

/// A call that has no end after this time is dropped, and its client with it.
pub(super) const LONGEST: Duration = Duration::from_secs(20);

/// How long a majority may take to confirm a write.
const CONFIRM_WITHIN: Duration = Duration::from_secs(10);

/// The way to a server.
#[derive(Debug)]
pub(super) struct Link {
    options: ClientOptions,
    database: String,
    /// The client, and how many there were before it.
    client: Mutex<(u64, Client)>,
    permits: Arc<Semaphore>,
    /// Of an eighth of the calls, for those that may look through many documents.
    questions: Arc<Semaphore>,
    max_waiting: usize,
    waiting: AtomicUsize,
    connections: Arc<AtomicUsize>,
    breaker: Breaker,
    /// Why the last call failed that found the server down.
    outage: Mutex<Error>,
    is_closed: AtomicBool,
    pub(super) runtime: Runtime,
}

/// What a task works with.
#[derive(Clone, Debug)]
pub(super) struct ServerSession {
    pub(super) database: Database,
    pub(super) runtime: Runtime,
    stage: Arc<Stage>,
}

/// How far a call has come; whoever waits for it can end it before it changes something.
#[derive(Debug, Default)]
struct Stage(AtomicU8);

impl Stage {
    const READING: u8 = 0;
    const WRITING: u8 = 1;
    const GIVEN_UP: u8 = 2;

    fn moves_to(&self, next: u8) -> bool {
        let moved =
            self.0.compare_exchange(Self::READING, next, Ordering::AcqRel, Ordering::Acquire);
        moved.is_ok() || moved == Err(next)
    }
}

impl ServerSession {
    /// Asked before each call that changes something.
    ///
    /// # Errors
    /// `DeadlineExceeded` when whoever waited was told that nothing was applied.
    pub(super) fn writes(&self) -> Result<()> {
        if self.stage.moves_to(Stage::WRITING) { Ok(()) } else { Err(Deadline::exceeded()) }
    }

    /// Whether a call that changes something may have been sent.
    pub(super) fn has_written(&self) -> bool {
        self.stage.0.load(Ordering::Acquire) == Stage::WRITING
    }
}

impl Link {
    /// To the server of these options; asks nothing of it yet.
    ///
    /// # Errors
    /// `InvalidInput` for a URL that cannot be used.
    pub(super) async fn open(options: &MongoOptions, runtime: Runtime) -> Result<Self> {
        // The driver's words may repeat the password.
        let unusable = || {
            Error::invalid(
                "the URL of the document server cannot be used; write mongodb://HOST:PORT/DATABASE, with \
                 hosts in place of mongodb+srv, and special characters of the password as %XX",
            )
        };
        let parsed = ClientOptions::parse(&options.url).await;
        let mut parsed = parsed.map_err(|_| unusable())?;
        let connections = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&connections);
        parsed.cmap_event_handler = Some(EventHandler::callback(move |event| match event {
            CmapEvent::ConnectionCreated(_) => drop(counted.fetch_add(1, Ordering::Relaxed)),
            CmapEvent::ConnectionClosed(_) => drop(counted.fetch_sub(1, Ordering::Relaxed)),
            _ => {}
        }));
        parsed.app_name.get_or_insert_with(|| "terrace".to_owned());
        parsed.max_pool_size = Some(options.max_connections.max(1));
        parsed.server_selection_timeout = Some(options.selection_timeout);
        parsed.connect_timeout = Some(options.selection_timeout);
        let confirmed = WriteConcern::builder().w(Acknowledgment::Majority).journal(true);
        parsed.write_concern = Some(confirmed.w_timeout(CONFIRM_WITHIN).build());
        parsed.read_concern = None;
        parsed.selection_criteria =
            Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
        let database = parsed.default_database.clone();
        let client = Client::with_options(parsed.clone()).map_err(|_| unusable())?;
        let pauses = Backoff::new(Duration::from_millis(250), Duration::from_secs(1));
        Ok(Self {
            options: parsed,
            database: database.unwrap_or_else(|| MongoOptions::DATABASE.to_owned()),
            client: Mutex::new((0, client)),
            permits: Arc::new(Semaphore::new(options.max_connections.max(1) as usize)),
            questions: Arc::new(Semaphore::new((options.max_connections / 8).max(1) as usize)),
            max_waiting: options.max_waiting,
            waiting: AtomicUsize::default(),
            connections,
            // In a row: a call that fails has waited for the driver, so there are never many of them.
            breaker: Breaker::new(Trip::InARow(3), pauses, runtime.clone()),
            outage: Mutex::new(failure::unreachable_server()),
            is_closed: AtomicBool::default(),
            runtime,
        })
    }

    /// What the work answers by this deadline. It goes on when nobody waits for it any more.
    ///
    /// # Errors
    /// Of the work. `DeadlineExceeded` when the deadline passes before it has changed something, and
    /// then it changes nothing; `OutcomeUnknown` later. `Unavailable` while the server does not answer,
    /// `Overloaded` when too many calls wait.
    pub(super) async fn run<T, F>(
        self: &Arc<Self>,
        has_majority: bool,
        deadline: Deadline,
        work: impl FnOnce(ServerSession) -> F + Send,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        deadline.check(self.runtime.now())?;
        if self.is_closed.load(Ordering::Acquire) {
            return Err(failure::closed());
        }
        let turn = self.turn(&self.permits, deadline).await?;
        let Some(pass) = self.breaker.admit() else { return Err(self.outage().clone()) };
        let (number, client) = self.client().clone();
        let options = DatabaseOptions::builder();
        let options = options.read_concern(has_majority.then(ReadConcern::majority)).build();
        let stage = Arc::<Stage>::default();
        let session = ServerSession {
            database: client.database_with_options(&self.database, options),
            runtime: self.runtime.clone(),
            stage: Arc::clone(&stage),
        };
        let (reply, answer) = oneshot::channel();
        let (work, link) = (work(session), Arc::clone(self));
        let task = async move {
            let limit = Deadline::at(link.runtime.now() + LONGEST);
            let done = link.runtime.within(limit, work).await;
            drop(turn);
            let _nobody_waits = reply.send(link.learn(done, number, pass));
        };
        self.runtime.spawn("mongodb-call", task).detach();
        let unfinished = |otherwise: Error| match stage.moves_to(Stage::GIVEN_UP) {
            true => otherwise,
            false => unknown(),
        };
        match self.runtime.within(deadline, answer).await {
            Some(Ok(Some(done))) => done,
            Some(Ok(None)) => Err(unfinished(failure::unreachable_server())),
            // The task is gone: the runtime ends.
            Some(Err(_)) => Err(unfinished(failure::closed())),
            None => Err(unfinished(Deadline::exceeded())),
        }
    }

    /// Notes how a call went, also one for which nobody waits.
    fn learn<T>(&self, done: Option<Result<T>>, number: u64, pass: Pass) -> Option<Result<T>> {
        match &done {
            None => {
                self.replace(number);
                pass.failed();
            }
            Some(Err(error)) if is_outage(error) => {
                *self.outage() = error.clone();
                pass.failed();
            }
            Some(_) => drop(pass.succeeded()),
        }
        done
    }

    /// Takes no more calls, and waits for those that run.
    pub(super) async fn close(&self) {
        if self.is_closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let all = self.options.max_pool_size.unwrap_or(1);
        let until = Deadline::at(self.runtime.now() + LONGEST);
        let _every_call = self.runtime.within(until, self.permits.acquire_many(all)).await;
        self.permits.close();
    }

    /// Adds what it has to show.
    pub(super) fn show(&self, tree: Inspection) -> Inspection {
        let most = self.options.max_pool_size.unwrap_or(1) as usize;
        let running = most.saturating_sub(self.permits.available_permits());
        let tree = tree
            .text("database", &self.database)
            .gauge("connections", self.connections.load(Ordering::Relaxed) as u64, Unit::Count)
            .gauge("calls_running", running as u64, Unit::Count)
            .gauge("calls_waiting", self.waiting.load(Ordering::Relaxed) as u64, Unit::Count);
        self.breaker.show(tree)
    }

    /// The turn of a question, which comes before the turn of its call.
    ///
    /// # Errors
    /// As [`Link::wait`].
    pub(super) async fn question(&self, deadline: Deadline) -> Result<OwnedSemaphorePermit> {
        self.turn(&self.questions, deadline).await
    }

    async fn turn(
        &self,
        permits: &Arc<Semaphore>,
        deadline: Deadline,
    ) -> Result<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
            return Ok(permit);
        }
        let acquired = self.wait(deadline, Arc::clone(permits).acquire_owned()).await?;
        acquired.map_err(|_| failure::closed())
    }

    /// What is waited for, as one of a bounded number of calls that wait.
    ///
    /// # Errors
    /// `Overloaded` when too many wait, `DeadlineExceeded` when it takes too long.
    pub(super) async fn wait<T>(
        &self,
        deadline: Deadline,
        what: impl Future<Output = T>,
    ) -> Result<T> {
        let _place = WaitingCall(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.max_waiting {
            let message =
                "too many calls are waiting for the document server; try again a little later";
            let error = Error::new(ErrorKind::Overloaded, message);
            return Err(error.retry_after(Duration::from_secs(1)));
        }
        self.runtime.within(deadline, what).await.ok_or_else(Deadline::exceeded)
    }

    /// A client of which a call was dropped may be broken: the next calls get another one.
    fn replace(&self, number: u64) {
        let mut client = self.client();
        if client.0 == number
            && let Ok(fresh) = Client::with_options(self.options.clone())
        {
            *client = (number + 1, fresh);
            tracing::warn!(
                "a call of the document server had no end; its connections are made anew"
            );
        }
    }

    fn outage(&self) -> MutexGuard<'_, Error> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self) -> MutexGuard<'_, (u64, Client)> {
        // It is replaced whole, so a panic leaves it whole.
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among those who wait, until it is dropped.
struct WaitingCall<'a>(&'a AtomicUsize);

impl Drop for WaitingCall<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn is_outage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::OutcomeUnknown)
}

fn unknown() -> Error {
    let message = "the document server did not confirm the write in time; read the document to see whether \
                   it was applied";
    Error::new(ErrorKind::OutcomeUnknown, message)
}

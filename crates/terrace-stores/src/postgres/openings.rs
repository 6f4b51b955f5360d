//! Connections that are being opened, which outlive the requests that asked for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use deadpool::managed::{self, RecycleError};
use terrace_core::{Error, ErrorKind, Result, Runtime};
use tokio::sync::{Mutex, mpsc};

use super::connect::Connector;
use super::connection::Connection;

/// Gives the pool its connections.
///
/// Opening one may take longer than a request has time. Were the attempt dropped with the request,
/// and begun anew by the next, there would never be a connection; so it goes on in the background,
/// and whoever wants one next takes the first that is ready. No more are being opened than were
/// wanted at once.
pub(super) struct Openings {
    connector: Arc<Connector>,
    runtime: Runtime,
    reuses: bool,
    wanted: AtomicUsize,
    opening: Arc<AtomicUsize>,
    ready: mpsc::UnboundedSender<Result<Connection>>,
    next: Mutex<mpsc::UnboundedReceiver<Result<Connection>>>,
}

impl Openings {
    pub(super) fn new(connector: Connector, runtime: Runtime, reuses: bool) -> Self {
        let (ready, next) = mpsc::unbounded_channel();
        Self {
            connector: Arc::new(connector),
            runtime,
            reuses,
            wanted: AtomicUsize::new(0),
            opening: Arc::default(),
            ready,
            next: Mutex::new(next),
        }
    }

    pub(super) fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Ends what was opened for requests that went away, when nobody wants it.
    pub(super) fn drop_unwanted(&self) {
        if self.wanted.load(Ordering::Acquire) == 0
            && let Ok(mut next) = self.next.try_lock()
        {
            while next.try_recv().is_ok() {}
        }
    }

    /// Ends what nobody will want, now and later. Waits for who is waiting for a connection just now.
    pub(super) async fn close(&self) {
        let mut next = self.next.lock().await;
        next.close();
        while next.try_recv().is_ok() {}
    }

    async fn first_ready(&self) -> Result<Connection> {
        let _counted = Counted::one(&self.wanted);
        self.open_missing();
        let mut next = self.next.lock().await;
        loop {
            match next.try_recv() {
                Ok(Ok(connection)) if connection.is_usable(self.runtime.now()) => {
                    return Ok(connection);
                }
                // It ended, or failed, before anybody wanted it.
                Ok(_) => {}
                Err(_) => break,
            }
        }
        self.open_missing();
        let gone = || Err(Error::new(ErrorKind::Internal, "no connection is being opened"));
        next.recv().await.unwrap_or_else(gone)
    }

    fn open_missing(&self) {
        while self.opening.load(Ordering::Acquire) < self.wanted.load(Ordering::Acquire) {
            self.open();
        }
    }

    fn open(&self) {
        self.opening.fetch_add(1, Ordering::AcqRel);
        let counted = Opening(Arc::clone(&self.opening));
        let (connector, ready) = (Arc::clone(&self.connector), self.ready.clone());
        let open = async move {
            let opened = connector.open_for_pool().await;
            drop(counted);
            let _the_store_is_gone = ready.send(opened);
        };
        self.runtime.spawn("postgres connect", open).detach();
    }
}

impl managed::Manager for Openings {
    type Type = Connection;
    type Error = Error;

    async fn create(&self) -> Result<Connection> {
        match self.reuses {
            true => self.first_ready().await,
            false => self.connector.open_for_request().await,
        }
    }

    async fn recycle(
        &self,
        connection: &mut Connection,
        _: &managed::Metrics,
    ) -> managed::RecycleResult<Error> {
        if connection.is_closed() {
            return Err(RecycleError::message("the server closed it"));
        }
        // Two servers may take writes beside each other; the later history is in force.
        if !connection.is_replica && !self.connector().histories().has(&connection.history) {
            return Err(RecycleError::message("another history is in force"));
        }
        Ok(())
    }
}

/// One of those who want, until dropped.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn one(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One attempt, until dropped.
struct Opening(Arc<AtomicUsize>);

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

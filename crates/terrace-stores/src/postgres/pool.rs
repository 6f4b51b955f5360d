//! Who may use a connection: a bounded pool whose connections are never handed out in doubt.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use deadpool::managed::{self, Object, PoolError, QueueMode};
use terrace_core::{Deadline, Error, ErrorKind, Inspection, PartKind, Result, Runtime, Unit};

use super::connect::Connector;
use super::connection::Connection;
use super::openings::Openings;
use super::options::{ConnectionSource, PoolOptions};

/// The connections of a store. With [`ConnectionSource::PerRequest`] each is used once.
pub(super) struct Pool {
    inner: managed::Pool<Openings>,
    runtime: Runtime,
    size: PoolOptions,
    reuses: bool,
    used_micros: AtomicU64,
}

impl Pool {
    pub(super) fn new(
        connector: Connector,
        source: &ConnectionSource,
        runtime: Runtime,
    ) -> Result<Self> {
        let (reuses, size) = match source {
            ConnectionSource::Pooled(size) => (true, size.clone()),
            ConnectionSource::PerRequest { limit } => {
                let acquire_timeout = ConnectionSource::PATIENCE;
                (false, PoolOptions { min: 0, max: *limit, acquire_timeout, ..Default::default() })
            }
        };
        let openings = Openings::new(connector, runtime.clone(), reuses);
        let inner = managed::Pool::builder(openings)
            .max_size(size.max)
            // The connection used last has the warmest caches, and those beyond need fall idle.
            .queue_mode(QueueMode::Lifo)
            .build()
            .map_err(|error| Error::new(ErrorKind::Internal, "no pool").caused_by(error))?;
        Ok(Self { inner, runtime, size, reuses, used_micros: AtomicU64::new(0) })
    }

    pub(super) fn connector(&self) -> &Connector {
        self.inner.manager().connector()
    }

    /// A connection, within the deadline and the pool's own limit; first come, first served.
    pub(super) async fn acquire(self: &Arc<Self>, deadline: Deadline) -> Result<Lease> {
        let limit = Deadline::at(self.runtime.now() + self.size.acquire_timeout);
        self.lease(deadline.min(limit)).await
    }

    async fn lease(self: &Arc<Self>, deadline: Deadline) -> Result<Lease> {
        match self.runtime.within(deadline, self.inner.get()).await {
            Some(Ok(object)) => Ok(Lease {
                object: Some(object),
                pool: Arc::clone(self),
                since: self.runtime.now(),
                settled: false,
            }),
            Some(Err(PoolError::Backend(error))) => Err(error),
            Some(Err(PoolError::Closed)) => Err(closed()),
            Some(Err(error)) => {
                Err(Error::new(ErrorKind::Internal, "the pool failed").caused_by(error))
            }
            None => Err(self.none_in_time()),
        }
    }

    /// Drops connections that are dead, old or beyond need, then opens those that are missing.
    pub(super) async fn tend(self: &Arc<Self>) -> Result<()> {
        let now = self.runtime.now();
        let mut spare = self.inner.status().size.saturating_sub(self.size.min);
        self.inner.retain(|connection, metrics| {
            let surplus = spare > 0 && metrics.last_used() > self.size.idle_timeout;
            spare -= usize::from(surplus);
            !surplus && connection.is_usable(now)
        });
        let mut held = Vec::new();
        // A lease that finds no idle connection opens one; each is held until there are enough.
        while self.inner.status().size < self.size.min && held.len() < self.size.min {
            // Opening has its own limit; if connections are not missing but in use, these are back
            // in the next round.
            let limit = Deadline::at(self.runtime.now() + self.connector().patience());
            let mut lease = self.lease(limit).await?;
            lease.settle();
            held.push(lease);
        }
        if self.reuses {
            self.inner.manager().drop_unwanted();
        }
        Ok(())
    }

    /// Closes what is idle, so that hosts are looked up anew.
    pub(super) fn forget_idle(&self) {
        drop(self.inner.retain(|_, _| false));
    }

    /// Ends all connections, also those that are still being opened.
    pub(super) async fn close(&self) {
        self.inner.close();
        self.inner.manager().close().await;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.inner.is_closed()
    }

    pub(super) fn inspect(&self) -> Inspection {
        let status = self.inner.status();
        let used = self.used_micros.load(Ordering::Relaxed) / 1000;
        Inspection::of(PartKind::Pool, "pool")
            .text("source", if self.reuses { "pooled" } else { "per request" })
            .fact("min", self.size.min)
            .fact("max", self.size.max)
            .fact("acquire_timeout", self.size.acquire_timeout)
            .gauge("pool_size", status.size as u64, Unit::Count)
            .gauge("pool_available", status.available as u64, Unit::Count)
            .gauge("requests_waiting", status.waiting as u64, Unit::Count)
            .counter("usage_ms", used)
    }

    fn none_in_time(&self) -> Error {
        if self.inner.status().size < self.size.max {
            let message = "the database did not accept a connection in time; try again";
            return Error::new(ErrorKind::Unavailable, message)
                .with("hosts", self.connector().hosts());
        }
        let message = "all connections to the database are in use; try again later, or raise the \
                       pool's max";
        Error::new(ErrorKind::Overloaded, message).retry_after(Duration::from_secs(1))
    }
}

pub(super) fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "the store is closed")
}

/// The use of one connection.
///
/// It is in doubt from the start: unless [`Lease::settle`] says that the server has answered
/// everything and is in no transaction, the connection ends with the lease. So a future that is
/// dropped at any point leaves no connection behind with an open transaction or an unread answer.
pub(super) struct Lease {
    /// Always there until the lease is dropped.
    object: Option<Object<Openings>>,
    pool: Arc<Pool>,
    since: Instant,
    settled: bool,
}

impl Lease {
    /// The server has answered everything and is idle.
    pub(super) fn settle(&mut self) {
        self.settled = true;
    }

    /// Work begins that must be settled anew.
    pub(super) fn unsettle(&mut self) {
        self.settled = false;
    }
}

impl Deref for Lease {
    type Target = Connection;

    #[expect(clippy::expect_used, reason = "the object is taken only when the lease is dropped")]
    fn deref(&self) -> &Connection {
        self.object.as_ref().expect("a lease holds its connection until it is dropped")
    }
}

impl DerefMut for Lease {
    #[expect(clippy::expect_used, reason = "the object is taken only when the lease is dropped")]
    fn deref_mut(&mut self) -> &mut Connection {
        self.object.as_mut().expect("a lease holds its connection until it is dropped")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(object) = self.object.take() else { return };
        let now = self.pool.runtime.now();
        let used = u64::try_from((now - self.since).as_micros()).unwrap_or(u64::MAX);
        self.pool.used_micros.fetch_add(used, Ordering::Relaxed);
        if self.settled && self.pool.reuses && object.is_usable(now) {
            return drop(object);
        }
        let connection = Object::take(object);
        if !self.settled {
            self.pool.connector().cancel(&connection);
            connection.abandon();
        }
    }
}

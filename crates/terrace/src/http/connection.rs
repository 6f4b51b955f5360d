//! Time limits of one connection: heads that trickle, connections that idle, answers nobody takes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use terrace_core::{BoxFuture, Runtime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Limits;

/// A stream that fails with [`io::ErrorKind::TimedOut`] when a limit of the connection is passed.
///
/// The HTTP library has a timer for heads, which it sets and drops for every request and which also
/// counts the idle time between them. Here both are told apart, and a timer is set at most once for
/// many requests: one that fires too early is set again to the moment that counts by then.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    stream: S,
    stage: Arc<Stage>,
    runtime: Runtime,
    limits: Arc<Limits>,
    /// When the current wait for a head, or the current idle time, began. `None` while a head may
    /// still come in one piece, which spares nearly every request a look at the clock.
    since: Option<Instant>,
    /// When the client stopped taking what is written; `None` while it takes it.
    stalled: Option<Instant>,
    reading: Alarm,
    writing: Alarm,
}

/// What a connection is doing; shared by its stream and its service. They run in one task, but for the
/// requests of HTTP/2, which have tasks of their own.
#[derive(Debug)]
pub(crate) struct Stage {
    now: AtomicU8,
    /// Requests of HTTP/2 that are being answered.
    open: AtomicUsize,
}

/// A request of HTTP/2 that is being answered, until it is dropped.
#[derive(Debug)]
pub(super) struct OpenRequest(Arc<Stage>);

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Stage {
    /// A head is coming.
    const HEAD: u8 = 0;
    /// A request is being answered; its own deadlines count.
    const BUSY: u8 = 1;
    /// There is an answer, not yet all written.
    const ANSWERED: u8 = 2;
    /// Nothing is going on.
    const IDLE: u8 = 3;
    /// It is of HTTP/2, and a first request has come.
    const MANY: u8 = 4;

    /// A request has come.
    pub(crate) fn busy(&self) {
        self.set(Self::BUSY);
    }

    /// Its answer is ready to be written.
    pub(crate) fn answered(&self) {
        self.set(Self::ANSWERED);
    }

    /// A request of HTTP/2 has come, which may be one of several.
    pub(super) fn opens(self: &Arc<Self>) -> OpenRequest {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.set(Self::MANY);
        OpenRequest(Arc::clone(self))
    }

    /// Whether a request is under way, its answer included.
    pub(crate) fn has_request(&self) -> bool {
        matches!(self.get(), Self::BUSY | Self::ANSWERED)
    }

    fn get(&self) -> u8 {
        self.now.load(Ordering::Relaxed)
    }

    fn set(&self, stage: u8) {
        self.now.store(stage, Ordering::Relaxed);
    }
}

impl<S> Watched<S> {
    /// Watches a new connection, whose first head is awaited from now on.
    pub(crate) fn new(stream: S, runtime: Runtime, limits: Arc<Limits>) -> Self {
        let stage = Arc::new(Stage { now: AtomicU8::new(Stage::HEAD), open: AtomicUsize::new(0) });
        let since = Some(runtime.now());
        let (reading, writing) = (Alarm::default(), Alarm::default());
        Self { stream, stage, runtime, limits, since, stalled: None, reading, writing }
    }

    /// Where the service tells what it does.
    pub(crate) fn stage(&self) -> Arc<Stage> {
        Arc::clone(&self.stage)
    }

    /// Nothing to read: is it time to give up?
    fn check_reading(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let limit = match self.stage.get() {
            Stage::HEAD => self.limits.header_time,
            Stage::IDLE => self.limits.idle_time,
            Stage::MANY => {
                // A client of HTTP/2 also sends what is no request, so reading alone means nothing. Every
                // look while a request is answered moves the moment on. What is no request any more and
                // was not taken ends with the connection.
                if self.stage.open.load(Ordering::Relaxed) > 0 {
                    self.since = Some(self.runtime.now());
                }
                self.limits.idle_time
            }
            _ => return Poll::Pending,
        };
        let since = *self.since.get_or_insert_with(|| self.runtime.now());
        self.reading.poll(since + limit, &self.runtime, context)
    }

    /// What came of a write: has the client taken nothing for too long?
    fn check_writing<T>(
        &mut self,
        outcome: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let since = *self.stalled.get_or_insert_with(|| self.runtime.now());
        let until = since + self.limits.write_stall_time;
        ready!(self.writing.poll(until, &self.runtime, context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

/// A timer that is moved often and fires seldom.
#[derive(Default)]
pub(super) struct Alarm(Option<(Instant, BoxFuture<'static, ()>)>);

impl Alarm {
    /// Ready when `until` has passed. A timer for an earlier moment is let run out and then set
    /// anew, so that moving the moment back costs nothing; one for a later moment is replaced.
    pub(super) fn poll(
        &mut self,
        until: Instant,
        runtime: &Runtime,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            if self.0.as_ref().is_some_and(|(when, _)| *when > until) {
                self.0 = None;
            }
            let (_, timer) = self.0.get_or_insert_with(|| (until, runtime.sleep_until(until)));
            ready!(timer.as_mut().poll(context));
            self.0 = None;
            if runtime.now() >= until {
                return Poll::Ready(());
            }
        }
    }
}

impl std::fmt::Debug for Alarm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Alarm(set)" } else { "Alarm" })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        if outcome.is_ready() {
            if self.stage.get() == Stage::IDLE && buffer.filled().len() > before {
                self.stage.set(Stage::HEAD);
                self.since = None;
            }
            return outcome;
        }
        ready!(self.check_reading(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.check_writing(outcome, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.check_writing(outcome, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        // Whoever flushes has written all it had.
        if outcome.is_ready() && self.stage.get() == Stage::ANSWERED {
            self.stage.set(Stage::IDLE);
            self.since = Some(self.runtime.now());
            // The last read came before the answer, so nothing else would wake an idle connection.
            if self.check_reading(context).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        self.check_writing(outcome, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(context);
        self.check_writing(outcome, context)
    }
}

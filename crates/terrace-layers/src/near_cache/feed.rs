//! What `NearCache` makes of each message, and of silence.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use terrace_core::{Deadline, Error, ErrorKind, Notice, Result, Runtime};

use super::Near;

/// The listener: the one place that decides whether the memory may answer.
#[derive(Debug)]
pub(super) struct Feed {
    near: Arc<Near>,
    runtime: Runtime,
    bound: Duration,
    connected: bool,
    /// When the latest message came; nothing since a silence.
    heard: Option<Instant>,
    /// The number of the latest message, if it is known.
    latest: Option<u64>,
}

impl Feed {
    pub(super) fn new(near: Arc<Near>, runtime: Runtime, bound: Duration) -> Self {
        Self { near, runtime, bound, connected: false, heard: None, latest: None }
    }

    /// # Errors
    /// When the feed has ended.
    pub(super) async fn listen(mut self, mut notices: BoxStream<'static, Notice>) -> Result<()> {
        loop {
            // Silence is noticed once; after that there is nothing left to lose by waiting.
            let silent = self.heard.map(|heard| Deadline::at(heard + self.bound));
            let deadline = silent.unwrap_or(Deadline::NEVER);
            match self.runtime.within(deadline, notices.next()).await {
                Some(Some(notice)) => self.hear(notice),
                Some(None) => {
                    let message = "the feed of invalidations has ended";
                    self.near.distrust(message);
                    return Err(Error::new(ErrorKind::Unavailable, message));
                }
                None => {
                    self.heard = None;
                    self.near.distrust("the feed of invalidations is silent");
                }
            }
        }
    }

    fn hear(&mut self, notice: Notice) {
        let now = self.runtime.now();
        let late = self.heard.is_none_or(|heard| now > heard + self.bound);
        self.heard = Some(now);
        match notice {
            Notice::Connected => {
                self.connected = true;
                self.begin();
            }
            Notice::Disconnected => {
                self.connected = false;
                self.near.distrust("the feed of invalidations is disconnected");
            }
            // After a silence, or when this task itself got no time, messages may be lost or old.
            _ if late => self.begin(),
            _ => {}
        }
        match notice {
            Notice::Connected | Notice::Disconnected => {}
            Notice::Heartbeat { number } => self.count(number, 0),
            Notice::Written { number, keys } => {
                self.near.memory.written(&keys);
                self.count(number, 1);
            }
            Notice::Cleared { number } => {
                self.count(number, 1);
                self.near.flush();
            }
        }
        if self.connected {
            self.near.trust(now + self.bound);
        }
    }

    /// Starts afresh: empty, and the next number is taken as it comes. Reads that trusted the
    /// memory just before it was distrusted may have filled it since.
    fn begin(&mut self) {
        self.latest = None;
        self.near.memory.forget_all();
    }

    /// Compares a number with the one that should come, `step` after the latest.
    fn count(&mut self, number: u64, step: u64) {
        let expected = self.latest.map(|latest| latest.wrapping_add(step));
        self.latest = Some(number);
        if expected.is_some_and(|expected| expected != number) {
            self.near.gaps.fetch_add(1, Ordering::Relaxed);
            self.near.flush();
        }
    }
}

impl Near {
    pub(super) fn flush(&self) {
        self.memory.forget_all();
        self.flushes.fetch_add(1, Ordering::Relaxed);
    }

    fn trust(&self, until: Instant) {
        if self.trusted_until.swap(self.nanos(until), Ordering::AcqRel) == 0 {
            // Reads notice a silence by the clock, before the listener has said so.
            self.set_trouble("the feed of invalidations is silent");
            tracing::debug!("the feed of invalidations is heard; the near cache answers");
        }
    }

    pub(super) fn distrust(&self, why: &'static str) {
        self.set_trouble(why);
        if self.trusted_until.swap(0, Ordering::AcqRel) != 0 {
            self.flush();
            tracing::debug!("{why}; the near cache is empty and reads pass through");
        }
    }
    fn set_trouble(&self, why: &'static str) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }
}

//! A journal in NATS JetStream: a work queue in files, for a team that runs NATS already.
//!
//! # What is kept
//! Three streams, in files:
//! - `{namespace}`: the entries that are not settled, a work queue with one consumer. The subject of
//!   an entry tells how many writes it has, so the server counts them; its payload begins with its
//!   sequence. An entry is published only if the last message is still the one that the publisher
//!   knows (`Nats-Expected-Last-Sequence`), so sequences grow with the stream, whoever appends.
//! - `{namespace}_kept`: the last sequence that was settled, and the dead letters;
//! - `{namespace}_requests`: places of settled requests with an idempotency key, for a day. Those of
//!   entries are found by their message id.
//!
//! # Durability
//! JetStream answers when its leader has written to the file, and flushes every two minutes: a
//! `kill -9` loses nothing, a power loss may. Appends say `journaled` only where the stream has three
//! replicas or more, else `accepted`.
//!
//! Every half second NATS is asked how the streams are set up. One that is gone is made again: another
//! life of the journal. While somebody has set one to lose what it keeps (an age, a limit that drops the
//! oldest), nothing is accepted.

mod calls;
mod link;
mod publish;
mod reads;
mod streams;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use terrace_core::{
    Append, Appended, BoxFuture, DeadLetter, Deadline, Inspection, Journal, JournalEntry,
    JournalLimits, PartKind, Progress, Result, Runtime, Sequence, Settled, Status,
};

use self::link::Link;

/// The options of a [`NatsJournal`]. `Debug` shows no password.
#[derive(Clone)]
pub struct NatsJournalOptions {
    /// `nats://[user:password@]host[:port]`, several servers separated by commas.
    pub url: String,
    /// The name of the journal's streams: 1 to 64 letters, digits, `-` or `_`. Instances that share a
    /// journal have the same. Default: `terrace-journal`.
    pub namespace: String,
    /// How much it may hold. With several instances it may hold a little more.
    pub limits: JournalLimits,
    /// Servers that keep a copy, when the streams are made. Default 1.
    pub replicas: usize,
    /// When entries are taken from a claimer that has not settled them, as it was when the streams
    /// were made. Default: 10 s.
    pub takeover: Duration,
    /// How long one call may take. Default: 3 s.
    pub command_timeout: Duration,
}

impl NatsJournalOptions {
    /// The defaults for servers at this address.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            namespace: "terrace-journal".into(),
            limits: JournalLimits::default(),
            replicas: 1,
            takeover: Duration::from_secs(10),
            command_timeout: Duration::from_secs(3),
        }
    }
}

/// A journal in NATS JetStream that all instances share. See the [module](self).
///
/// All futures may be dropped at any point; what was sent to the server happens all the same.
pub struct NatsJournal {
    link: Arc<Link>,
}

impl NatsJournal {
    /// Connects, and makes the streams. A server that is down is no reason not to start: calls fail
    /// until it can be reached.
    ///
    /// # Errors
    /// [`InvalidInput`](terrace_core::ErrorKind::InvalidInput) when an option cannot be right.
    pub async fn connect(options: NatsJournalOptions, runtime: Runtime) -> Result<Self> {
        let link = Arc::new(Link::connect(options, runtime).await?);
        if let Err(error) = link.streams().await {
            tracing::warn!(%error, "the journal in NATS cannot be reached yet");
        }
        Ok(Self { link })
    }
}

impl Journal for NatsJournal {
    fn append(&self, requests: Vec<Append>) -> BoxFuture<'_, Result<Appended>> {
        Box::pin(async move { self.link.append(&requests).await.map_err(|e| e.during("append")) })
    }

    fn claim(&self, writes: usize, wait: Deadline) -> BoxFuture<'_, Result<Vec<JournalEntry>>> {
        Box::pin(async move { self.link.claim(writes, wait).await.map_err(|e| e.during("claim")) })
    }

    fn settle(&self, done: Vec<Settled>) -> BoxFuture<'_, Result<Progress>> {
        Box::pin(async move { self.link.settle(&done).await.map_err(|e| e.during("settle")) })
    }

    fn peek(&self, after: Sequence, writes: usize) -> BoxFuture<'_, Result<Vec<JournalEntry>>> {
        Box::pin(async move { self.link.peek(after, writes).await.map_err(|e| e.during("peek")) })
    }

    fn progress(&self) -> BoxFuture<'_, Result<Progress>> {
        Box::pin(async move { self.link.progress().await.map_err(|e| e.during("progress")) })
    }

    fn raise(&self, floor: Sequence) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.link.raise(floor).await.map_err(|e| e.during("raise")) })
    }

    fn dead(&self, after: Sequence, limit: usize) -> BoxFuture<'_, Result<Vec<DeadLetter>>> {
        Box::pin(async move { self.link.dead(after, limit).await.map_err(|e| e.during("list")) })
    }

    fn retry(&self, sequences: Vec<Sequence>) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move { self.link.retry(&sequences).await.map_err(|e| e.during("retry")) })
    }

    fn bury(&self, sequences: Vec<Sequence>) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move { self.link.bury(&sequences).await.map_err(|e| e.during("drop")) })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            let tree = Inspection::of(PartKind::Journal, "nats-journal")
                .text("namespace", &self.link.options.namespace);
            let looked = self.link.look().await;
            match looked.and_then(|durability| self.link.check_settings().map(|()| durability)) {
                Ok(durability) => tree.text("durability", durability),
                Err(error) => tree.status(Status::Down, error.message().to_owned()),
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.link.close();
            Ok(())
        })
    }
}

impl fmt::Display for NatsJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nats")
    }
}

impl fmt::Debug for NatsJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsJournal").field("options", &self.link.options).finish_non_exhaustive()
    }
}

impl fmt::Debug for NatsJournalOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsJournalOptions")
            .field("namespace", &self.namespace)
            .field("limits", &self.limits)
            .field("replicas", &self.replicas)
            .field("takeover", &self.takeover)
            .finish_non_exhaustive()
    }
}

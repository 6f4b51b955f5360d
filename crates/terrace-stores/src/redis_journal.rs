//! A journal in Redis 7: one stream, one consumer group, every step one script.
//!
//! # What is kept
//! Five keys under `{namespace}:` (the braces keep them on one node of a cluster):
//! - `stream`: the entries that are not settled. An entry's id is the sequence of its first write,
//!   milliseconds and count, which the append script gives out: never lower than the last, whatever
//!   the clock does, and many writes to an entry;
//! - `meta`: the last sequence, the name of this journal, and how much is in it;
//! - `dead`, `order`: the dead letters and their order; `again`: which of them are tried again;
//! - `request:<key>`: places of requests with an idempotency key, for a day.
//!
//! An append is one `EVALSHA` for many callers: limits, repeats, sequences and entries in one atomic
//! step, and with `appendfsync always` one fsync. Entries are claimed by `XREADGROUP` on a
//! connection of its own, because it blocks; those of a claimer that died by `XAUTOCLAIM`. What is
//! settled is acknowledged and deleted, by its id: nothing is ever trimmed that is not settled.
//!
//! # Durability
//! Redis is asked how it is set up (`CONFIG GET`) at each connection, at each inspection, and beside
//! appends every half second; a look counts for a second. Appends
//! say `journaled` when the append-only file is flushed before each answer (`appendonly yes`,
//! `appendfsync always`, `no-appendfsync-on-rewrite no`) and nothing may be evicted; else, and where
//! Redis does not tell, they say `accepted`. Where it may evict, the journal is degraded: what was
//! accepted may go. A stream that is gone with what waited in it begins a new life of the journal. Give the journal a Redis of its own: with `always` each
//! flush stops its one thread, and a cache's `maxmemory-policy` would evict accepted writes.

mod calls;
mod link;
mod options;

use std::fmt;
use std::sync::Arc;

use terrace_core::{
    Append, Appended, BoxFuture, DeadLetter, Deadline, Inspection, Journal, JournalEntry, PartKind,
    Progress, Result, Runtime, Sequence, Settled, Status, Unit,
};

use link::Link;
pub use options::RedisJournalOptions;

/// A journal in Redis that all instances share. See the [module](self).
///
/// All futures may be dropped at any point; what was sent to the server happens all the same.
pub struct RedisJournal {
    link: Arc<Link>,
}

impl RedisJournal {
    /// Connects, and makes the group. A server that is down is no reason not to start: calls fail
    /// until it can be reached.
    ///
    /// # Errors
    /// [`InvalidInput`](terrace_core::ErrorKind::InvalidInput) when an option cannot be right.
    pub async fn connect(options: RedisJournalOptions, runtime: Runtime) -> Result<Self> {
        let link = Arc::new(Link::new(options, runtime)?);
        if let Err(error) = link.connection().await {
            tracing::warn!(%error, "the journal in Redis cannot be reached yet");
        }
        Ok(Self { link })
    }
}

impl Journal for RedisJournal {
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

    fn end_of(&self, epoch: u64) -> BoxFuture<'_, Result<Option<Sequence>>> {
        Box::pin(self.link.end_of(epoch))
    }

    fn raise(&self, floor: Sequence) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.link.raise(floor))
    }

    fn dead(&self, after: Sequence, limit: usize) -> BoxFuture<'_, Result<Vec<DeadLetter>>> {
        Box::pin(self.link.dead(after, limit))
    }

    fn retry(&self, sequences: Vec<Sequence>) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move { self.link.retry(&sequences).await })
    }

    fn bury(&self, sequences: Vec<Sequence>) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move { self.link.bury(&sequences).await })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            let tree = Inspection::of(PartKind::Journal, "redis-journal")
                .text("address", &self.link.address)
                .text("namespace", &self.link.options.namespace);
            let looked = self.link.look().await;
            let tree = self.link.breaker.show(tree);
            if let Err(error) = looked {
                return tree.status(Status::Down, error.message().to_owned());
            }
            let durability = self.link.durability();
            let tree = tree.text("durability", durability).gauge(
                "reconnects",
                self.link.reconnects(),
                Unit::Count,
            );
            match self.link.loses() {
                Some(loses) => tree.status(Status::Degraded, loses),
                None => tree,
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.link.close().await;
            Ok(())
        })
    }
}

impl fmt::Display for RedisJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("redis")
    }
}

impl fmt::Debug for RedisJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisJournal")
            .field("address", &self.link.address)
            .field("namespace", &self.link.options.namespace)
            .finish_non_exhaustive()
    }
}

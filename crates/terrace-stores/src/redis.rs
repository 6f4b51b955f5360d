//! A shared cache in Redis 7 that cannot be filled with something old.
//!
//! # What is kept, and why it is enough
//! Four kinds of keys, all under `{namespace}:` (the braces make Redis Cluster keep a namespace on
//! one node; spreading a cache over a cluster means several namespaces):
//!
//! - `entry:<key>`: a record, the knowledge that there is none, or a tombstone, with its version
//!   and the epoch that it was stored in;
//! - `epoch`: a random number, the name of the cache's current memory. An entry of another epoch
//!   does not exist. [`Lease`] is the epoch of the miss;
//! - `number`: how many messages there were for the channel `invalidations`;
//! - `beat`: what heartbeats write.
//!
//! A read is one `MGET` of the epoch and the entries, which is atomic. Fills, invalidations and
//! clears are one script call each. A fill stores nothing under another epoch than its lease's, and
//! nothing that is older than what is there; an invalidation leaves a tombstone with the new
//! version, never nothing, and publishes in the same step. So a reader who loaded version 1 before
//! a writer committed version 2 finds the tombstone, and a flush in between, which takes the
//! tombstone away, takes the epoch and with it the reader's lease.
//!
//! The protection lasts `tombstone_ttl` from the invalidation, whatever comes in between. An entry
//! that replaces a tombstone, or that an invalidation finds to be as new, stays for that time even
//! if its own is over and readers miss it. The tombstone of a write whose version is not known also
//! keeps the latest known version, for the whole time of that one. And a fill carries the latest
//! server time at which it may run, a sixth of `tombstone_ttl` after it was offered, because it may
//! lie in a buffer or before a server that stands still for longer than a tombstone is kept.
//!
//! # Why a connection is checked before it is used
//! A server that comes back may remember things that were invalidated since: after a restart from a
//! snapshot, after a failover to a replica that lagged, after an operator copied files. Its run id
//! (`INFO server`) names the process, and the epoch's value holds the run id under which it began.
//! Each new connection compares the two, in a script, before anybody may use it; where they differ
//! a new epoch begins, whichever instance comes first. An instance that comes from another process
//! begins one in any case: while it still told the old process of its writes, others may have
//! filled the new one. An instance also refuses to see an epoch again that it saw end. A client that reconnects by itself could not give that moment, so
//! the connection here is made, checked, swapped in and taken out by this module alone.
//!
//! Where sentinels or the nodes of a cluster name the server it is all the same: a replica that was promoted has another run id, and may
//! lack invalidations. The one that it replaced may go on where it is cut off, and its instances with it; so
//! each asks again at every heartbeat, and leaves with the others.
//!
//! # Why every instance writes, even to read
//! A server may refuse writes and go on answering reads: `MISCONF` after a failed snapshot,
//! `NOREPLICAS`, a primary that became a replica. Nobody could invalidate what it answers. So each
//! instance writes every `heartbeat`, and where that is refused it gives the connection up and gets
//! no other before a write succeeds; then a new epoch begins, for those who could not say what they
//! wrote may be gone.
//!
//! # What is not covered
//! - For up to `heartbeat` and `command_timeout` after a server began to refuse writes, instances
//!   other than the writer's may read what it failed to invalidate.
//! - The same holds for an instance that reaches the server while a writer does not, until the
//!   writer has repeated its invalidation.
//! - A server whose memory is replaced while it runs (it is made a replica of one that lagged and
//!   promoted again, or its databases are swapped) is believed for up to `heartbeat`; then its
//!   replication id, or the number of the latest message, tells. Where databases are swapped and other
//!   writes bring that number up within this time, it is believed for longer: clear the cache after.
//! - A server whose clock is set back while a fill is under way may run it later by as much; one
//!   whose clock is set forward loses tombstones early, which may let a late fill in.
//!
//! # What Redis must be given
//! Enough memory. Under `maxmemory` the policies `allkeys-lru` and `allkeys-lfu` are fine;
//! `volatile-ttl` and the random ones may evict a fresh tombstone, which lets one late fill in.
//! Invalidations run when memory is full (`allow-oom`); fills fail then, which costs speed only.
//! Ages are counted by the server's clock alone, as each instance knows it from the server's answers;
//! the clocks of Terrace's machines count for nothing.

mod batches;
mod changes;
mod clock;
mod entry;
mod failure;
mod health;
mod link;
mod lookups;
mod message;
#[cfg(feature = "mutants")]
#[doc(hidden)]
pub mod mutants;
mod names;
mod options;
mod permits;
pub(crate) mod refusal;
mod scripts;
pub(crate) mod servers;
mod stream;
mod subscription;

use std::fmt;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use terrace_core::{
    Budget, Cache, Inspection, Invalidations, Key, Lease, Lookup, Notice, Offer, Result, Runtime,
    Task, Version,
};

use batches::Batches;
use changes::Fill;
use entry::Histories;
use health::Counters;
use link::Link;
use names::Names;
pub use options::RedisCacheOptions;
pub use permits::{RedisPermits, RedisPermitsOptions};
use servers::Servers;
pub use stream::{RedisStream, RedisStreamOptions};
use subscription::Subscription;

/// A cache in Redis that all instances share. See the [module](self) for how it stays right.
///
/// While Redis cannot be reached every call fails at once with
/// [`Unavailable`](terrace_core::ErrorKind::Unavailable), and a connection is sought in the
/// background. All futures may be dropped at any point; what was sent to the server happens all the
/// same.
pub struct RedisCache {
    shared: Arc<Shared>,
    /// What keeps the connection.
    tasks: Mutex<Vec<Task>>,
}

/// What calls and background work have in common.
#[derive(Debug)]
struct Shared {
    options: RedisCacheOptions,
    /// Host and port, for people.
    address: String,
    names: Names,
    link: Link,
    reads: Batches<Key>,
    fills: Batches<Fill>,
    invalidations: Batches<(Key, Version)>,
    histories: Histories,
    counters: Counters,
    /// How many subscriptions there are in this instance; they need heartbeats.
    listeners: AtomicUsize,
}

impl Shared {
    fn runtime(&self) -> &Runtime {
        &self.link.runtime
    }

    /// Keeps the connection, and beats.
    fn start(self: &Arc<Self>) -> Vec<Task> {
        let (keeps, beats) = (Arc::clone(self), Arc::clone(self));
        vec![
            self.runtime().keep("redis-connection", move || {
                let keeps = Arc::clone(&keeps);
                async move { keeps.link.keep().await }
            }),
            self.runtime().keep("redis-heartbeat", move || {
                let beats = Arc::clone(&beats);
                async move { beats.beat_forever().await }
            }),
        ]
    }
}

impl RedisCache {
    /// Starts a cache, and returns when it is connected or the first attempt failed: a cache that
    /// is down is no reason not to start. It goes on trying.
    ///
    /// # Errors
    /// [`InvalidInput`](terrace_core::ErrorKind::InvalidInput) when an option cannot be right, such
    /// as a malformed URL.
    pub async fn connect(options: RedisCacheOptions, runtime: Runtime) -> Result<Self> {
        options.check()?;
        let names = Names::new(&options.namespace)?;
        let servers = Servers::of(&options.url, &names.epoch)?;
        let address = servers.shown().to_owned();
        let link = Link::new(servers, names.clone(), options.clone(), runtime.clone());
        let shared = Arc::new_cyclic(|this| Shared {
            options,
            address,
            names,
            link,
            reads: Shared::batches(this, &runtime),
            fills: Shared::batches(this, &runtime),
            invalidations: Shared::batches(this, &runtime),
            histories: Histories::default(),
            counters: Counters::default(),
            listeners: AtomicUsize::new(0),
        });
        let tasks = shared.start();
        shared.link.tried().await;
        Ok(Self { shared, tasks: Mutex::new(tasks) })
    }

    async fn counted<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        work.await.map_err(|error| {
            self.shared.counters.error();
            error.during(operation)
        })
    }
}

impl Cache for RedisCache {
    fn get<'a>(&'a self, keys: &'a [Key], budget: Budget) -> BoxFuture<'a, Result<Vec<Lookup>>> {
        Box::pin(self.counted("cache get", self.shared.lookup(keys, budget)))
    }

    fn lease(&self, _: &Key) -> Option<Lease> {
        self.shared.link.epoch().filter(|_| self.shared.link.down().is_none())
    }

    fn fill(&self, offers: Vec<Offer>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.counted("cache fill", self.shared.offer(&offers)).await })
    }

    fn invalidate<'a>(&'a self, written: &'a [(Key, Version)]) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.counted("cache invalidate", self.shared.bury(written)))
    }

    fn clear(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.counted("cache clear", self.shared.forget()))
    }

    fn interruptions(&self) -> u64 {
        self.shared.link.losses()
    }

    fn whole_for(&self) -> Duration {
        self.shared.whole_for()
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(self.shared.health())
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.shared.link.close();
            // What is under way has the time of one command left.
            self.shared.reads.close().await;
            self.shared.fills.close().await;
            self.shared.invalidations.close().await;
            let tasks = {
                let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
                std::mem::take(&mut *tasks)
            };
            for task in tasks {
                task.stop().await;
            }
            Ok(())
        })
    }
}

impl Invalidations for RedisCache {
    fn subscribe(&self) -> BoxStream<'static, Notice> {
        Subscription::start(&self.shared).boxed()
    }
}

impl fmt::Display for RedisCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("redis")
    }
}

impl fmt::Debug for RedisCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCache")
            .field("address", &self.shared.address)
            .field("namespace", &self.shared.options.namespace)
            .field("down", &self.shared.link.down())
            .finish_non_exhaustive()
    }
}

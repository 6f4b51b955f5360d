//! `ReplicaRouter`: writes to the primary, reads to replicas that are new enough.

mod freshness;
mod hedge;
mod inspect;
mod pick;
mod primary;
mod promotion;
mod question;
mod route;
mod table;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use terrace_core::{
    Backoff, BoxFuture, Breaker, Error, ErrorKind, Generations, Histories, Inspection, Key, Node,
    Page, Proof, Read, ReadOptions, Receipt, Result, Runtime, Scan, Standing, Store, Task, Token,
    Trip, Write, WriteOptions,
};
use tokio::sync::{Notify, Semaphore, watch as channel};

use crate::Following;
use freshness::PrimaryLog;
use hedge::Hedge;
use table::Table;

/// One server: how its records are reached, and what it says of itself.
#[derive(Clone, Debug)]
pub struct Member {
    /// The store over it, with whatever layers it needs.
    pub store: Arc<dyn Store>,
    /// The same server, asked directly.
    pub node: Arc<dyn Node>,
}

/// How fresh replicas must be, and what happens when none is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRouterOptions {
    /// How often each server is asked for its state. 100 ms.
    pub refresh: Duration,
    /// How long a server may take to answer that; two failures in a row put it out of service.
    /// 300 ms.
    pub refresh_timeout: Duration,
    /// How old the state of a replica may be that a read without other wishes is answered from.
    /// 5 s.
    pub max_lag: Duration,
    /// How long a read waits for a replica to come to what its token asks for, before it goes to
    /// the primary. 50 ms.
    pub token_wait: Duration,
    /// How long one replica may take to answer before the read goes elsewhere. 1 s.
    pub patience: Duration,
    /// Reads at once that go to the primary because no replica can answer them. 32.
    pub fallback_limit: usize,
    /// How long a read waits for its turn among those, or a write for a primary. 1 s.
    pub primary_wait: Duration,
    /// Whether a read may be answered from a replica beyond `max_lag`, with its age, when the
    /// primary cannot take it either. `true`; otherwise it is refused.
    pub stale_if_all_lag: bool,
}

impl Default for ReplicaRouterOptions {
    fn default() -> Self {
        Self {
            refresh: Duration::from_millis(100),
            refresh_timeout: Duration::from_millis(300),
            max_lag: Duration::from_secs(5),
            token_wait: Duration::from_millis(50),
            patience: Duration::from_secs(1),
            fallback_limit: 32,
            primary_wait: Duration::from_secs(1),
            stale_if_all_lag: true,
        }
    }
}

/// Spreads reads over the replicas of a primary.
///
/// **What it is.** A table of what each server said last (its role, how far it has come), swapped
/// whole and read without a lock; one task a server keeps it fresh. Which server is the primary is
/// not configured: it is the one that takes writes on the newest timeline.
///
/// *Lag* is not what a replica believes. The router remembers where the primary was, and when: a
/// replica that has come to where the primary was a second ago is at most a second old. So an idle
/// primary makes no lag, and neither a paused replay nor a cut connection hides any.
///
/// **On read.** A read goes to the less busy of two replicas drawn at random, of those that are
/// within `max_lag`, or within what the client allows, and have come to what its token asks for. A
/// read with a token waits `token_wait` for one, asking the servers anew, then goes to the primary.
/// So does a [`Strong`] read, at once. Answers carry the replica as origin, its lag as age, and a
/// token that holds all that they show. An answer counts only if the server still is in the same
/// life as when it was chosen: a restarted one may have gone back.
///
/// A read that takes longer than 99 in 100 of the last minute did, and than 1 ms, is asked of a second replica as
/// well (a *hedge*), for at most 5 % of the reads. The first answer counts, and the other read is dropped.
///
/// **On write, on delete.** To the primary. Without one, after `primary_wait`: refused.
///
/// **On failure.** A read that fails on a replica, or takes longer than `patience`, is tried once on
/// another, then on the primary. Reads go to the primary for want of a replica only within
/// `fallback_limit`; beyond it they are answered from a lagging replica with its age, if their
/// wishes allow that, or refused. A replica that fails half of at least five reads within 2 s rests for 1 to
/// 30 s (see [`Breaker`]), unless all do; one that comes back gets its full share within 10 s. Writes are
/// never tried again. Two servers that take writes on the same newest timeline stop all writes until one of them gives way. A server that takes writes on an older
/// timeline, or has another history, is ignored.
///
/// **Defaults.** See [`ReplicaRouterOptions`].
///
/// **Where it belongs.** Over one `Coalesce` a server, below caches:
///
/// ```text
/// right:  CacheAside(far) > ReplicaRouter(Coalesce(primary), Coalesce(replica) ...)
/// wrong:  CacheAside(far) > Coalesce > ReplicaRouter(...)    reads with tokens are not merged
/// wrong:  NearCache > ReplicaRouter(...)    a fill from a replica needs tombstones that outlive lag
/// ```
///
/// **What it gives up.** Reads without a token may be `max_lag` old. Records of one batch come from
/// one server, those of two reads may not, and no order between servers is promised. A promotion
/// loses what the promoted replica had not received, unless the primary waits for it
/// (`synchronous_standby_names`); until the router has seen the promotion, up to `refresh` and one
/// question, a former primary that still runs takes writes that are lost.
///
/// [`Strong`]: terrace_core::Consistency::Strong
pub struct ReplicaRouter {
    shared: Arc<Shared>,
    watches: Mutex<Vec<Task>>,
    replicators: Vec<Following>,
}

/// What requests and watches share.
struct Shared {
    members: Vec<Server>,
    table: ArcSwap<Table>,
    /// Taken by whoever changes the table.
    primary_log: Mutex<PrimaryLog>,
    /// What the newest primary said, for caches above.
    histories: Histories,
    /// Told when a table is swapped in.
    swapped: channel::Sender<u64>,
    fallback: Semaphore,
    hedge: Hedge,
    options: ReplicaRouterOptions,
    runtime: Runtime,
    counts: Counts,
}

struct Server {
    member: Member,
    /// Reads under way.
    outstanding: AtomicUsize,
    /// Whether it rests after failed reads.
    breaker: Breaker,
    /// Asks for its state to be asked for now.
    look: Notify,
}

#[derive(Debug, Default)]
struct Counts {
    replica_reads: AtomicU64,
    primary_reads: AtomicU64,
    fallbacks: AtomicU64,
    stale: AtomicU64,
    retried: AtomicU64,
    waits: AtomicU64,
    refused: AtomicU64,
}

fn count(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

/// Counts one read under way until it is dropped.
struct Busy<'a>(&'a AtomicUsize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Server {
    /// When it rests. Its reads go elsewhere meanwhile, so half of them may fail first. One probe: the
    /// others need not wait for it.
    const TRIP: Trip =
        Trip::Rate { percent: 50, calls: 5, within: Duration::from_secs(2), probes: 1 };

    fn new(member: Member, runtime: &Runtime) -> Self {
        let rests = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        let breaker = Breaker::new(Self::TRIP, rests, runtime.clone());
        Self { member, outstanding: AtomicUsize::new(0), breaker, look: Notify::new() }
    }

    fn busy(&self) -> Busy<'_> {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        Busy(&self.outstanding)
    }
}

impl ReplicaRouter {
    /// Over these servers, after each was asked. `history` is the name of their records' history at the
    /// start ([`NodeState::standing`](terrace_core::NodeState::standing)). The first is the one that is configured as
    /// the primary; the others are replicas number 1, 2, ...
    pub async fn start(
        history: Arc<str>,
        members: Vec<Member>,
        options: ReplicaRouterOptions,
        runtime: Runtime,
    ) -> Self {
        let count = members.len();
        let servers = members.into_iter().map(|member| Server::new(member, &runtime));
        let shared = Arc::new(Shared {
            members: servers.collect(),
            table: ArcSwap::from_pointee(Table::new(Arc::clone(&history), count)),
            primary_log: Mutex::default(),
            histories: Histories::new(Standing::of(history)),
            swapped: channel::Sender::new(0),
            fallback: Semaphore::new(options.fallback_limit.max(1)),
            hedge: Hedge::new(runtime.clone()),
            options,
            runtime,
            counts: Counts::default(),
        });
        // The primary's position first: replicas are measured by it.
        for _ in 0..2 {
            join_all((0..count).map(|number| shared.look(number))).await;
        }
        let watches = (0..count).map(|number| {
            let router = Arc::clone(&shared);
            shared.runtime.keep("replica watch", move || watch::run(Arc::clone(&router), number))
        });
        let watches = Mutex::new(watches.collect());
        Self { shared, watches, replicators: Vec::new() }
    }

    /// With what feeds its replicas, which ends with it.
    #[must_use]
    pub fn fed_by(mut self, replicators: Vec<Following>) -> Self {
        self.replicators = replicators;
        self
    }
}

impl Shared {
    fn without_primary(&self) -> Error {
        Error::new(ErrorKind::Unavailable, self.table.load().lead.why_no_primary())
    }

    fn outstanding(&self, number: usize) -> usize {
        self.members[number].outstanding.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for ReplicaRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplicaRouter")
            .field("table", &self.shared.table.load())
            .field("options", &self.shared.options)
            .finish_non_exhaustive()
    }
}

impl Generations for ReplicaRouter {
    fn admits(&self, proof: &Proof, asked: Option<&Token>) -> bool {
        self.shared.histories.admits(proof, asked)
    }

    fn looked_at(&self) -> Option<Instant> {
        self.shared.histories.looked_at()
    }

    fn changes(&self) -> channel::Receiver<u64> {
        self.shared.histories.changes()
    }

    fn look(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let number = self.shared.table.load().lead.primary;
            let number = number.ok_or_else(|| self.shared.without_primary())?;
            self.shared.look(number).await
        })
    }

    fn raise<'a>(&'a self, _: &'a [Key]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let asked = self.shared.runtime.now();
            let number = self.shared.table.load().lead.primary;
            let number = number.ok_or_else(|| self.shared.without_primary())?;
            let standing = self.shared.members[number].member.node.raise().await?;
            self.shared.histories.heard(standing, asked);
            Ok(())
        })
    }
}

impl fmt::Display for ReplicaRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplicaRouter(")?;
        for (number, server) in self.shared.members.iter().enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{}", server.member.store)?;
        }
        f.write_str(")")
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for ReplicaRouter {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(async move {
            let answer = self.shared.route(&question::Keys(keys), how).await;
            answer.map_err(|error| error.during("read"))
        })
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(self.shared.write(batch, how))
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            let answer = self.shared.route(&question::Records(scan), how).await;
            answer.map_err(|error| error.during("scan"))
        })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(self.shared.inspect())
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let watches =
                std::mem::take(&mut *self.watches.lock().unwrap_or_else(PoisonError::into_inner));
            for watch in watches {
                watch.stop().await;
            }
            for replicator in &self.replicators {
                replicator.stop().await;
            }
            let all = self.shared.members.iter().map(|server| server.member.store.close());
            join_all(all).await.into_iter().collect()
        })
    }
}

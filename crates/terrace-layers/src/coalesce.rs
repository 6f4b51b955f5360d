//! `Coalesce`: many small calls become few large ones.

mod merge;

use std::fmt;
use std::sync::Arc;

use terrace_core::{
    BatchLimits, Batcher, BoxFuture, Consistency, Inspection, Key, LineCounts, Load, LockedKeys,
    Merge as _, Page, Read, ReadOptions, Receipt, Result, Runtime, Scan, Store, Unit, Write,
    WriteOptions,
};

use self::merge::{Reads, Writes};

/// Merges concurrent reads into one batched read and concurrent writes into one batched write.
///
/// Batching is natural: what arrives while a batch is under way forms the next one. Nothing
/// lingers: a call that finds a lane free is sent at once, with what other tasks that are ready to
/// run bring by then. The busier the store, the larger the batches, so one fsync or one round trip
/// serves ever more callers.
///
/// **On read.** Reads without a token and with [`Consistency::Default`] or [`Consistency::Strong`]
/// are merged, each kind with its own; a key asked for by several callers is asked once. A read
/// joins only a batch that has not been sent. So what answers it was looked up after it began, and
/// merging keeps linearizability: joining a batch under way would not, because that may have been
/// answered from before a write that the caller has seen acknowledged. Every other read, a read of
/// more than [`max_read_keys`](CoalesceOptions::max_read_keys) or than its budget holds in any case, and every
/// scan go straight through.
///
/// **On write.** Writes are merged in the order of arrival, each caller's own batch whole, and all
/// are acknowledged after the inner store has acknowledged the merged batch. Two batches under way
/// may write the same key; they are concurrent, so both orders are right, and the database's row
/// lock picks one. Writes with an idempotency key or a durability go straight through, because they
/// need a transaction of their own; so do batches of more than
/// [`max_writes`](CoalesceOptions::max_writes) or
/// [`max_write_bytes`](CoalesceOptions::max_write_bytes).
///
/// **On delete.** As on write.
///
/// **On failure.** A merged batch that is refused for what it holds (an error that is not
/// retryable) is tried again in halves, so that one bad write fails alone. One that met rows which
/// another session [locks](terrace_core::Error::locked) is tried again at once without them; further
/// writes of these keys go in a lane of their own until one succeeds. Other `Unavailable`,
/// `Overloaded`, `DeadlineExceeded` and `OutcomeUnknown` go to all its callers. A merged call has
/// the latest deadline of its callers; each caller waits until its own. If that passes before its
/// call was taken into a batch, the call is withdrawn and the answer is `DeadlineExceeded`; later a
/// read answers `DeadlineExceeded` and a write `OutcomeUnknown`. A caller that goes away withdraws
/// its call likewise; once taken, the batch goes on. More than the queue holds is turned away with
/// `Overloaded` and a wait of 1 s. A panic of the inner store answers `Internal` for reads and
/// `OutcomeUnknown` for writes.
///
/// **Defaults.** See [`CoalesceOptions`].
///
/// **Where it belongs.** Directly on a store that is good at batches, below every cache:
///
/// ```text
/// right:  SingleFlight > CacheAside(far) > Coalesce > postgres
/// wrong:  Coalesce > CacheAside(far) > postgres     a hit waits for the misses of its batch
/// wrong:  Coalesce > Retry > postgres               a retry repeats everybody's calls
/// ```
///
/// **What it gives up.** At low load, the hop to a task and back: a few microseconds. Under load,
/// the lowest latency of a single call: it waits for the batch under way, and is answered with its
/// neighbours, whose large values travel with its small one.
///
/// ```
/// use std::sync::Arc;
/// use terrace_core::{Key, MemoryStore, Runtime, StoreExt};
/// use terrace_layers::{Coalesce, CoalesceOptions};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> terrace_core::Result<()> {
/// let runtime = Runtime::system();
/// let inner = Arc::new(MemoryStore::new(runtime.clone()));
/// let store = Coalesce::new(inner, CoalesceOptions::default(), runtime);
/// assert_eq!(store.to_string(), "Coalesce(memory)");
/// assert_eq!(store.get(&Key::new("nobody")?).await?, None);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Coalesce {
    inner: Arc<dyn Store>,
    options: CoalesceOptions,
    reads: Arc<Batcher<Reads>>,
    strong_reads: Arc<Batcher<Reads>>,
    writes: Arc<Batcher<Writes>>,
    /// Of keys whose rows another session holds.
    locked_writes: Arc<Batcher<Writes>>,
    locked: Arc<LockedKeys>,
}

/// How much is merged, and how much may wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoalesceOptions {
    /// Batched reads under way at once, for default and for strong reads each. Default 2: while the
    /// answer of one travels, the database works on the other. At least 1.
    pub read_lanes: usize,
    /// Batched writes under way at once. Default 2: one is executed while the other waits for its
    /// fsync, and databases with group commit serve both with one. At least 1.
    pub write_lanes: usize,
    /// Keys of one merged read. Default 128. A single call with more is not merged.
    pub max_read_keys: usize,
    /// Writes of one merged batch. Default 512. A single call with more is not merged.
    pub max_writes: usize,
    /// Keys and values of one merged batch of writes, in bytes. Default 4 MiB. A single call with
    /// more is not merged.
    pub max_write_bytes: usize,
    /// Keys that may wait for a batch, for default and for strong reads each. Default 16 384.
    /// Beyond, reads answer `Overloaded`.
    pub max_waiting_keys: usize,
    /// Writes that may wait for a batch. Default 16 384. Beyond, writes answer `Overloaded`.
    pub max_waiting_writes: usize,
    /// Keys and values of writes that may wait for a batch, in bytes. Default 64 MiB; no less than
    /// `max_write_bytes`. Beyond, writes answer `Overloaded`.
    pub max_waiting_bytes: usize,
}

impl Default for CoalesceOptions {
    fn default() -> Self {
        Self {
            read_lanes: 2,
            write_lanes: 2,
            max_read_keys: 128,
            max_writes: 512,
            max_write_bytes: 4 * 1024 * 1024,
            max_waiting_keys: 16_384,
            max_waiting_writes: 16_384,
            max_waiting_bytes: 64 * 1024 * 1024,
        }
    }
}

impl Coalesce {
    /// Around this store; its lanes run on this runtime.
    pub fn new(inner: Arc<dyn Store>, options: CoalesceOptions, runtime: Runtime) -> Self {
        let reading = BatchLimits {
            lanes: options.read_lanes,
            batch: Load::parts(options.max_read_keys),
            waiting: Load::parts(options.max_waiting_keys),
        };
        let writing = BatchLimits {
            lanes: options.write_lanes,
            batch: Load { parts: options.max_writes, bytes: options.max_write_bytes },
            waiting: Load {
                parts: options.max_waiting_writes,
                bytes: options.max_waiting_bytes.max(options.max_write_bytes),
            },
        };
        let reads = |consistency| {
            let merge = Reads { inner: Arc::clone(&inner), consistency };
            Batcher::new(merge, reading, runtime.clone())
        };
        let locked = Arc::<LockedKeys>::default();
        let writes = |lanes| {
            let merge = Writes { inner: Arc::clone(&inner), locked: Arc::clone(&locked) };
            Batcher::new(merge, BatchLimits { lanes, ..writing }, runtime.clone())
        };
        Self {
            reads: reads(Consistency::Default),
            strong_reads: reads(Consistency::Strong),
            writes: writes(options.write_lanes),
            locked_writes: writes(1),
            locked,
            inner,
            options,
        }
    }

    /// The queue of reads like this one, if they are merged.
    fn queue(&self, keys: &[Key], how: &ReadOptions) -> Option<&Arc<Batcher<Reads>>> {
        // A batch has no budget, so it takes in what every budget of its calls holds anyway.
        let fits = keys.len() <= self.options.max_read_keys && how.budget.holds(keys.len());
        if how.token.is_some() || keys.is_empty() || !fits {
            return None;
        }
        match how.consistency {
            Consistency::Default => Some(&self.reads),
            Consistency::Strong => Some(&self.strong_reads),
            Consistency::MaxStale(_) => None,
        }
    }

    fn merges(&self, batch: &[Write], how: &WriteOptions) -> bool {
        how.idempotency.is_none()
            && how.durability.is_none()
            && !batch.is_empty()
            && batch.len() <= self.options.max_writes
            && Writes::bytes(batch) <= self.options.max_write_bytes
    }
}

impl fmt::Display for Coalesce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Coalesce({})", self.inner)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for Coalesce {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        match self.queue(keys, how) {
            Some(queue) => Box::pin(queue.call(keys.to_vec(), how.deadline)),
            None => self.inner.read(keys, how),
        }
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        if !self.merges(&batch, how) {
            return self.inner.write(batch, how);
        }
        let free = self.locked.among(batch.iter().map(|write| &write.key)).is_empty();
        let queue = if free { &self.writes } else { &self.locked_writes };
        Box::pin(queue.call(batch, how.deadline))
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        self.inner.scan(scan, how)
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            let tree = Inspection::new("coalesce")
                .fact("read_lanes", self.options.read_lanes)
                .fact("write_lanes", self.options.write_lanes)
                .fact("max_read_keys", self.options.max_read_keys)
                .fact("max_writes", self.options.max_writes)
                .fact("max_write_bytes", self.options.max_write_bytes)
                .fact("max_waiting_keys", self.options.max_waiting_keys)
                .fact("max_waiting_writes", self.options.max_waiting_writes)
                .fact("max_waiting_bytes", self.options.max_waiting_bytes);
            let (plain, strong) = (self.reads.counts(), self.strong_reads.counts());
            let (writes, locked) = (self.writes.counts(), self.locked_writes.counts());
            let lines = [plain.line, strong.line, writes.line, locked.line];
            let sum = |figure: fn(&LineCounts) -> u64| lines.iter().map(figure).sum();
            let count = |count: usize| count as u64;
            let reading = plain.line.waiting.parts + strong.line.waiting.parts;
            let (waiting, beside) = (writes.line.waiting, locked.line.waiting);
            tree.counter("reads", plain.line.accepted + strong.line.accepted)
                .counter("read_batches", plain.batches + strong.batches)
                .counter("writes", writes.line.accepted + locked.line.accepted)
                .counter("write_batches", writes.batches + locked.batches)
                .counter("splits", plain.splits + strong.splits + writes.splits + locked.splits)
                .counter("withdrawn", sum(|line| line.withdrawn))
                .counter("rejected", sum(|line| line.rejected))
                .gauge("waiting_keys", count(reading), Unit::Count)
                .gauge("waiting_writes", count(waiting.parts + beside.parts), Unit::Count)
                .gauge("waiting_bytes", count(waiting.bytes + beside.bytes), Unit::Bytes)
                .gauge("reads_in_flight", count(plain.line.lanes + strong.line.lanes), Unit::Count)
                .gauge(
                    "writes_in_flight",
                    count(writes.line.lanes + locked.line.lanes),
                    Unit::Count,
                )
                .needs(self.inner.inspect().await)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.reads.close().await;
            self.strong_reads.close().await;
            self.writes.close().await;
            self.locked_writes.close().await;
            self.inner.close().await
        })
    }
}

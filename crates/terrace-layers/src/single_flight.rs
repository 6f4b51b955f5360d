//! `SingleFlight`: a crowd of readers of one key costs two loads.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::panic::AssertUnwindSafe;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::{Shared, WeakShared};
use terrace_core::{
    BoxFuture, Deadline, Error, ErrorKind, Inspection, Key, Page, Read, ReadOptions, Receipt,
    Result, Runtime, Scan, Store, Unit, Write, WriteOptions, one,
};
use tokio::sync::oneshot;

/// Has at most one read of a key under way, and one next that everybody shares who comes meanwhile.
///
/// **On read.** The first reader of a key reads at once. All who ask for that key while this read
/// is under way share one read more, which starts when the first has ended. So any number of
/// concurrent readers costs two reads of the inner store at most, and above a cache the second one
/// hits: a thousand readers of one cold key are one read of the database. Only reads of one key
/// without a token and with the default consistency are shared; all others, and scans, go straight
/// through.
///
/// *The trap* is to join the read under way, as most single-flight libraries do. Reader 1 loads
/// version 1 and is held up; version 2 is written and acknowledged; reader 2 begins only now,
/// joins, and is answered with version 1: older than a write acknowledged before it began. Here no
/// reader is answered by a read that began before it did.
///
/// **On write, on delete.** Straight through.
///
/// **On failure.** The error of a shared read goes to all who share it, and is not kept: the next
/// reader reads again. Each reader waits until its own deadline and then answers
/// `DeadlineExceeded`; a shared read has the latest deadline of its readers. A reader that goes
/// away strands nobody: a shared read goes on as long as one of its readers is there, and ends with
/// the last.
///
/// **Defaults.** No options. What it keeps is bounded by the readers under way: the entry of a key
/// goes with its last reader.
///
/// **Where it belongs.** Above a cache, below what answers without waiting:
///
/// ```text
/// right:  NearCache > SingleFlight > CacheAside(far) > Coalesce > postgres
/// wrong:  CacheAside(far) > SingleFlight > postgres     a crowd asks the far cache one by one
/// wrong:  SingleFlight > NearCache > ...                near hits take turns for nothing
/// ```
///
/// **What it gives up.** A reader in a crowd may wait for two reads instead of one. A first reader
/// whose future is neither polled nor dropped holds up the others of its key until their deadlines.
#[derive(Debug)]
pub struct SingleFlight {
    inner: Arc<dyn Store>,
    flights: Arc<Flights>,
    runtime: Runtime,
}

/// What reads of single keys are under way or next.
#[derive(Debug)]
struct Flights {
    shards: [Mutex<Shard>; Flights::SHARDS],
    hasher: RandomState,
    reads: AtomicU64,
    shared: AtomicU64,
}

type Shard = HashMap<Hashed, Runway, BuildHasherDefault<Ready>>;

/// A key and its hash, which is worked out once a read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hashed {
    hash: u64,
    key: Key,
}

/// Takes the hash that a [`Hashed`] brings.
#[derive(Debug, Default)]
struct Ready(u64);

/// A key of which a read is under way.
#[derive(Debug, Default)]
struct Runway {
    next: Option<Next>,
}

/// The read that starts when the one under way has ended, unless all its readers have gone.
#[derive(Debug)]
struct Next {
    clear: oneshot::Sender<(Turn, Deadline)>,
    flight: Option<WeakShared<Flight>>,
    deadline: Deadline,
}

type Flight = BoxFuture<'static, Result<Read>>;

/// What a reader of a key has to do.
enum Role {
    /// Read at once.
    Lead(Turn),
    /// Wait for a read that has not begun.
    Join(Shared<Flight>),
}

/// The right to read a key now. Whatever ends it, the next read gets its turn.
struct Turn {
    flights: Arc<Flights>,
    key: Hashed,
}

impl SingleFlight {
    /// Around this store.
    pub fn new(inner: Arc<dyn Store>, runtime: Runtime) -> Self {
        Self { inner, flights: Arc::new(Flights::new()), runtime }
    }

    async fn read_shared(&self, key: &Key, how: &ReadOptions) -> Result<Vec<Read>> {
        how.deadline.check(self.runtime.now()).map_err(|error| error.during("read"))?;
        self.flights.reads.fetch_add(1, Ordering::Relaxed);
        let flight = match self.role(key, how.deadline) {
            Role::Lead(turn) => {
                let answer = self.inner.read(slice::from_ref(key), how).await;
                drop(turn);
                return answer;
            }
            Role::Join(flight) => flight,
        };
        self.flights.shared.fetch_add(1, Ordering::Relaxed);
        match self.runtime.within(how.deadline, flight).await {
            Some(answer) => Ok(vec![answer?]),
            None => Err(Deadline::exceeded().during("read")),
        }
    }

    fn role(&self, key: &Key, deadline: Deadline) -> Role {
        let key = self.flights.hashed(key);
        let mut shard = self.flights.shard(&key);
        let runway = match shard.entry(key.clone()) {
            Entry::Vacant(place) => {
                place.insert(Runway::default());
                return Role::Lead(Turn { flights: Arc::clone(&self.flights), key });
            }
            Entry::Occupied(place) => place.into_mut(),
        };
        if let Some(next) = &mut runway.next
            && let Some(flight) = next.flight.as_ref().and_then(WeakShared::upgrade)
        {
            next.deadline = next.deadline.max(deadline);
            return Role::Join(flight);
        }
        let (next, flight) = self.next(deadline);
        runway.next = Some(next);
        Role::Join(flight)
    }

    /// A read that begins with its turn.
    fn next(&self, deadline: Deadline) -> (Next, Shared<Flight>) {
        let (clear, cleared) = oneshot::channel::<(Turn, Deadline)>();
        let inner = Arc::clone(&self.inner);
        let flight: Flight = Box::pin(async move {
            let (turn, deadline) = cleared.await.map_err(|_| broken())?;
            let how = ReadOptions { deadline, ..ReadOptions::default() };
            let read = AssertUnwindSafe(inner.read(slice::from_ref(&turn.key.key), &how));
            // A panic would be raised again in every reader; they get an error instead.
            one(read.catch_unwind().await.unwrap_or_else(|_| Err(broken()))?)
        });
        let flight = flight.shared();
        (Next { clear, flight: flight.downgrade(), deadline }, flight)
    }
}

impl Flights {
    /// So many that readers of different keys seldom meet at one lock.
    const SHARDS: usize = 64;

    fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
            reads: AtomicU64::new(0),
            shared: AtomicU64::new(0),
        }
    }

    fn hashed(&self, key: &Key) -> Hashed {
        Hashed { hash: self.hasher.hash_one(key), key: key.clone() }
    }

    fn shard(&self, key: &Hashed) -> MutexGuard<'_, Shard> {
        // Bits from the middle: the map uses those at both ends.
        let shard = (key.hash >> 32) as usize % Self::SHARDS;
        // Every change of a map is complete when a panic could happen, so poison means nothing.
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hash for Hashed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Hasher for Ready {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut shard = self.flights.shard(&self.key);
        let Some(next) = shard.remove(&self.key).and_then(|runway| runway.next) else { return };
        shard.insert(self.key.clone(), Runway::default());
        drop(shard);
        let turn = Self { flights: Arc::clone(&self.flights), key: self.key.clone() };
        // Readers that have gone give the turn back: dropping it passes it on again.
        drop(next.clear.send((turn, next.deadline)));
    }
}

fn broken() -> Error {
    let message = "a defect ended this read; try again and report it";
    Error::new(ErrorKind::Internal, message).during("read")
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Turn").field(&self.key).finish()
    }
}

impl fmt::Display for SingleFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SingleFlight({})", self.inner)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for SingleFlight {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        match keys {
            [key] if how.is_default() => Box::pin(self.read_shared(key, how)),
            _ => self.inner.read(keys, how),
        }
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        self.inner.write(batch, how)
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        self.inner.scan(scan, how)
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            let keys = self
                .flights
                .shards
                .iter()
                .map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len() as u64);
            Inspection::new("single-flight")
                .counter("reads", self.flights.reads.load(Ordering::Relaxed))
                .counter("shared", self.flights.shared.load(Ordering::Relaxed))
                .gauge("keys_in_flight", keys.sum(), Unit::Count)
                .needs(self.inner.inspect().await)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.close()
    }
}

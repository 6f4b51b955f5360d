//! Sends each key to the shard that has it.

mod directory;
mod generations;
mod hot;
mod inspect;
mod map;
mod partitioner;
mod reads;
mod scans;
mod writes;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use terrace_core::{
    BoxFuture, Deadline, Error, ErrorKind, Inspection, Key, Page, Read, ReadOptions, Receipt,
    Result, Runtime, Scan, Shard, Store, Task, Write, WriteOptions,
};
use tokio::sync::{Mutex, watch};

pub use directory::{Around, ShardOpener};
pub use partitioner::{
    GeoPartitioner, HashPartitioner, Partitioner, RangePartitioner, partitioner,
};

use directory::Directory;
use hot::HotKeys;
use map::ShardMap;

/// How [`ShardRouter`] keeps its map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardRouterOptions {
    /// How often all shards are asked what they have, besides after every refusal. 1 s.
    pub refresh: Duration,
    /// How long a key that is on its way to another shard is waited for, whatever the deadline.
    /// 3 s.
    pub patience: Duration,
    /// How long to wait between two looks for such a key, ± 20 %. 4 ms.
    pub look_again: Duration,
}

impl Default for ShardRouterOptions {
    fn default() -> Self {
        Self {
            refresh: Duration::from_secs(1),
            patience: Duration::from_secs(3),
            look_again: Duration::from_millis(4),
        }
    }
}

/// A layer over several databases, each of which has some of the [`SLOTS`](terrace_core::SLOTS) that
/// keys fall into.
///
/// **What it is.** A map from slots to shards, kept in this process, atomically swapped, and right by
/// the shards' word alone: every call names the epoch of its shard, and a shard whose slots have
/// changed since answers `Moved` (see [`terrace_core::shard`]). Then the map is drawn anew and the
/// call goes where its keys are now, until its deadline. A key whose slot is just changing hands is
/// waited for.
///
/// **On read.** Keys of one shard go there as they came, without an allocation for the routing. Keys
/// of several are asked for at once, each shard with the deadline of the request; the first failure
/// is the answer for all.
///
/// **On write.** As on read, but a batch whose keys live on several shards is several transactions:
/// when some shards fail, their writes are answered [`Outcome::Unavailable`] or
/// [`Outcome::Unknown`](terrace_core::Outcome::Unknown); when all fail, the batch fails. With an
/// idempotency key each slot of a batch is a transaction of its own and keeps its own result, which
/// moves with it. Before them the key itself is taken for this request, in a transaction on the shard
/// that has the slot of the key: another request under it is refused on every shard. A request whose
/// key belongs to a shard that is down is `Unavailable`, wherever its records live.
///
/// **On delete.** As on write.
///
/// **On scan.** Every shard is asked for the page, what it does not own is left out, and the pages
/// are merged up to where the shortest ends. A shard that is down makes every page fail.
///
/// **On failure.** A shard that is down takes its own keys with it and no others. Put
/// a `ConcurrencyLimit` around each shard and not around the router, or those who wait for a dead
/// one keep the others' callers out.
///
/// **Defaults.** See [`ShardRouterOptions`]: a look at all shards every second.
///
/// **Where it belongs.** Below caches, above what belongs to one database:
/// `CacheAside(redis, ShardRouter(3 x ConcurrencyLimit(Coalesce(postgres))))`. Wrong:
/// `Coalesce(ShardRouter(..))` makes the keys of one shard wait for another.
///
/// **What it gives up.** Transactions and snapshots over keys of several shards. Lists cost a call a
/// shard.
///
/// [`Outcome::Unavailable`]: terrace_core::Outcome::Unavailable
#[derive(Debug)]
pub struct ShardRouter {
    shared: Arc<Shared>,
    /// What keeps the map fresh, and what passes generations on.
    _tasks: [Task; 2],
}

#[derive(Debug)]
struct Shared {
    map: ArcSwap<ShardMap>,
    directory: Mutex<Directory>,
    options: ShardRouterOptions,
    runtime: Runtime,
    hot: HotKeys,
    /// Calls that a shard refused, and went on with a new map.
    moved: AtomicU64,
    closed: AtomicBool,
    /// What the generations of all shards have changed to.
    generations: watch::Sender<u64>,
}

impl ShardRouter {
    /// A router over the shards at these addresses, and those that they know. New databases are made
    /// shards.
    ///
    /// # Errors
    /// When no shard can be reached, or a new set cannot be founded because one cannot; for databases
    /// of another set; for another partitioner than the shards have.
    pub async fn open(
        addresses: &[String],
        partitioner: Arc<dyn Partitioner>,
        opener: Arc<dyn ShardOpener>,
        around: Around,
        options: ShardRouterOptions,
        runtime: Runtime,
    ) -> Result<Self> {
        let mut directory = Directory::new(addresses, partitioner, opener, around, runtime.clone());
        directory.found().await?;
        let map = directory.look(None).await?;
        directory.note_founded().await;
        let shared = Arc::new(Shared {
            map: ArcSwap::from_pointee(map),
            directory: Mutex::new(directory),
            options,
            runtime: runtime.clone(),
            hot: HotKeys::default(),
            moved: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            generations: watch::Sender::new(0),
        });
        shared.tell_generations(shared.map.load().views());
        let (maps, raised) = (Arc::downgrade(&shared), Arc::downgrade(&shared));
        let tasks = [
            runtime.keep("shard map", move || keep_fresh(maps.clone())),
            runtime.keep("shard generations", move || generations::pass_on(raised.clone())),
        ];
        Ok(Self { shared, _tasks: tasks })
    }

    /// The number of the shard that has a key; of one on its way, the shard that had it.
    pub fn shard_of(&self, key: &Key) -> Option<u16> {
        self.shared.map.load().home(key)
    }

    /// All shards by number; `None` for one that this instance has not reached yet.
    pub async fn shards(&self) -> BTreeMap<u16, Option<Arc<dyn Shard>>> {
        self.shared.directory.lock().await.shards()
    }

    /// The name of the set of shards.
    pub async fn cluster(&self) -> Arc<str> {
        let directory = self.shared.directory.lock().await;
        let states = directory.nodes().iter().filter_map(|node| node.state.as_ref());
        states
            .max_by_key(|state| state.epoch)
            .map_or("".into(), |state| state.cluster.as_str().into())
    }
}

/// Learns of new shards and of the end of failures, also when nobody asks for anything.
async fn keep_fresh(shared: std::sync::Weak<Shared>) -> Result<()> {
    loop {
        let Some((runtime, pause)) =
            shared.upgrade().map(|shared| (shared.runtime.clone(), shared.options.refresh))
        else {
            return Ok(());
        };
        runtime.sleep(runtime.jitter(pause, 0.2)).await;
        let Some(shared) = shared.upgrade() else { return Ok(()) };
        let opener = Arc::clone(&shared.directory.lock().await.opener);
        opener.tend().await;
        let before = shared.map.load_full();
        if let Err(error) = shared.refresh(&before).await {
            tracing::warn!(%error, "the map of the shards cannot be drawn anew");
        }
    }
}

impl Shared {
    /// Draws the map anew, unless somebody has since `seen` was loaded.
    async fn refresh(&self, seen: &ShardMap) -> Result<()> {
        let mut directory = self.directory.lock().await;
        let before = self.map.load_full();
        if before.generation == seen.generation {
            self.map.store(Arc::new(directory.look(Some(&before)).await?));
        }
        Ok(())
    }

    /// What to do about keys that a map could not place, or whose shard refused them: a new map and
    /// another try, unless there is no time or no hope.
    async fn look_again(&self, seen: &ShardMap, waits: &mut Waits) -> Result<()> {
        let deadline = waits.deadline;
        if waits.looks > 0 {
            // The slot is changing hands: that takes a few milliseconds.
            let pause = self.runtime.jitter(self.options.look_again, 0.2);
            self.runtime.within(deadline, self.runtime.sleep(pause)).await;
        }
        waits.looks += 1;
        let looked = self.runtime.within(deadline, self.refresh(seen)).await;
        looked.unwrap_or(Ok(()))?;
        if deadline.passed(self.runtime.now()) { Err(on_its_way()) } else { Ok(()) }
    }

    fn waits(&self, deadline: Deadline) -> Waits {
        let own = Deadline::at(self.runtime.now() + self.options.patience);
        Waits { looks: 0, deadline: own.min(deadline) }
    }

    fn open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Unavailable, "the store is closed"));
        }
        Ok(())
    }
}

/// How often a call has looked for its keys, and until when it does.
struct Waits {
    looks: u32,
    deadline: Deadline,
}

fn on_its_way() -> Error {
    let message = "the key is on its way to another shard, and nothing was changed; try again";
    Error::new(ErrorKind::Unavailable, message).retry_after(Duration::from_secs(1))
}

fn unreached() -> Error {
    let message = "the shard of this key cannot be reached, and nothing was changed; try again";
    Error::new(ErrorKind::Unavailable, message)
}

impl fmt::Display for ShardRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let map = self.shared.map.load();
        let count = map.views().count();
        match map.views().next() {
            Some(view) => write!(f, "ShardRouter({count} x {})", view.store),
            None => f.write_str("ShardRouter()"),
        }
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for ShardRouter {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(self.shared.read(keys, how))
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(self.shared.write(batch, how))
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(self.shared.scan(scan, how))
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(self.shared.inspect())
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if self.shared.closed.swap(true, Ordering::AcqRel) {
                return Ok(());
            }
            let map = self.shared.map.load_full();
            let mut outcome = Ok(());
            for view in map.views() {
                outcome = outcome.and(view.store.close().await);
            }
            for node in self.shared.directory.lock().await.nodes() {
                if let Some(shard) = &node.shard {
                    outcome = outcome.and(shard.close().await);
                }
            }
            outcome
        })
    }
}

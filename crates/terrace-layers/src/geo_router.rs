//! Reads and writes in several regions, each of which has all records.

mod absent;
mod confirm;
mod follower;
mod freshness;
mod inspect;
mod link;
mod reads;
mod upkeep;
mod writes;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use terrace_core::{
    BoxFuture, Deadline, Error, ErrorKind, Inspection, Key, Page, Read, ReadOptions, Receipt,
    RegionId, RegionName, Result, Runtime, Scan, Store, Task, Write, WriteOptions,
};

use crate::cache_aside::CacheAside;
use crate::follow::Following;
use crate::heads::Heads;

use absent::AbsentKeys;
pub use link::RegionLink;

/// How [`GeoRouter`] reads, writes and replicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeoRouterOptions {
    /// How long one region may take before another one is asked in its place. 1.5 s.
    pub attempt: Duration,
    /// How long a read with a token waits for what its region has yet to hear. 300 ms.
    pub token_wait: Duration,
    /// How long it is remembered that no region has a key. 1 s.
    pub absent_for: Duration,
    /// How many such keys are remembered. 10 000.
    pub absent_keys: usize,
    /// How often every region is looked at. 1 s.
    pub look: Duration,
    /// How long the trace of a deleted record is kept at the least. 24 h.
    pub tombstones_for: Duration,
    /// Whether regions follow each other. `true`.
    pub replicates: bool,
}

impl Default for GeoRouterOptions {
    fn default() -> Self {
        Self {
            attempt: Duration::from_millis(1500),
            token_wait: Duration::from_millis(300),
            absent_for: Duration::from_secs(1),
            absent_keys: 10_000,
            look: Duration::from_secs(1),
            tombstones_for: Duration::from_secs(24 * 60 * 60),
            replicates: true,
        }
    }
}

/// A region, and how it reaches all of them.
#[derive(Debug)]
pub struct RegionParts {
    /// Its name.
    pub name: RegionName,
    /// Its number.
    pub id: RegionId,
    /// Every region as it is reached from this one, itself included, in the order of the regions.
    pub links: Vec<Arc<RegionLink>>,
    /// The cache of this region, which is told of what other regions have written.
    pub cache: Option<Arc<CacheAside>>,
    /// Whether this process follows the other regions into this one.
    pub follows: bool,
}

/// Keys that are written in one region alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// What the keys begin with. Of several prefixes of a key the first home counts.
    pub prefix: String,
    /// Where they are written.
    pub region: RegionName,
    /// Whether no other region keeps them.
    pub resides: bool,
}

/// A layer over several databases, each of which has all records and takes reads and writes.
///
/// **What it is.** A request goes to one region: the one that it names, else the region of this process.
/// Each region follows the change log of each other one ([`Follow`](crate::Follow)); conflicts are decided
/// by [`terrace_core::region`], in every region alike.
///
/// **On read.** The region answers what it has; where it knows of a deletion, that there is no record. A
/// key that it has never heard of is asked of the other regions once, at the same time and within the
/// deadline, and that none has it is remembered for `absent_for`. With a token of other regions the read
/// waits up to `token_wait` until its region has followed them far enough; then those which are still
/// missing are asked, too, and the newest answer counts. [`Strong`] asks every region; a key with a home
/// only there. What may be stale for a bounded time comes from the region when it has heard all others
/// within the bound, else it is read as strong.
///
/// **On write.** The region commits and answers; [`Replicated`] waits until most of all regions have it, or
/// all. Keys with a home are written there. A batch for several homes is a transaction each, and when some
/// fail, their writes are answered [`Unavailable`] or [`Unknown`].
///
/// **On delete.** As on write; regions keep the trace until each has applied it.
///
/// **On failure.** A region that does not answer is left alone until it does, as looks in the background
/// tell: its reads and writes go to the next region, whose name the answer has. Keys with a home wait for
/// their home. A write whose outcome is unknown is not sent elsewhere.
///
/// **Defaults.** See [`GeoRouterOptions`].
///
/// **Where it belongs.** At the top, above a whole stack for each region:
/// `GeoRouter(3 x SingleFlight(CacheAside(redis, ConcurrencyLimit(Coalesce(postgres)))))`. Wrong: a cache
/// above it would answer for regions that have not followed yet.
///
/// **What it gives up.** A read without a token may be behind other regions. Two regions may write a key at
/// the same time; one update is then lost, and listed. Lists are of one region: they lack keys that reside
/// elsewhere, and a strong one waits until its region has followed all others.
///
/// [`Strong`]: terrace_core::Consistency::Strong
/// [`Replicated`]: terrace_core::Durability::Replicated
/// [`Unavailable`]: terrace_core::Outcome::Unavailable
/// [`Unknown`]: terrace_core::Outcome::Unknown
#[derive(Debug)]
pub struct GeoRouter {
    routes: Arc<Routes>,
    /// Looks at the regions; collects traces of deleted records.
    tasks: std::sync::Mutex<Vec<Task>>,
}

/// What requests and work in the background share.
#[derive(Debug)]
struct Routes {
    regions: Vec<Region>,
    /// The region of this process, by its place.
    here: usize,
    homes: Vec<Home>,
    absent: AbsentKeys,
    options: GeoRouterOptions,
    runtime: Runtime,
    fallbacks: AtomicU64,
    closed: AtomicBool,
}

/// A region with all that concerns it.
#[derive(Debug)]
struct Region {
    name: RegionName,
    id: RegionId,
    links: Vec<Arc<RegionLink>>,
    /// Who follows into this region, by the place of the origin; nothing where somebody else does.
    following: Vec<Option<Following>>,
    /// Where its own log has ended, as looks found it.
    heads: Heads,
}

impl GeoRouter {
    /// Routes between these regions, of which `here` is this process's own, and follows as they say.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for regions that do not fit together.
    pub fn start(
        parts: Vec<RegionParts>,
        here: RegionName,
        homes: Vec<Home>,
        options: GeoRouterOptions,
        runtime: Runtime,
    ) -> Result<Self> {
        let names = parts.iter().map(|part| part.name).collect::<Vec<_>>();
        let known = |name: RegionName| names.iter().position(|it| *it == name).ok_or_else(unknown);
        homes.iter().try_for_each(|home| known(home.region).map(drop))?;
        let whole = parts.iter().all(|part| part.links.len() == parts.len());
        if !whole {
            return Err(Error::invalid("every region must be reached from every other one"));
        }
        let routes = Arc::new(Routes {
            here: known(here)?,
            homes,
            absent: AbsentKeys::new(options.absent_for, options.absent_keys),
            regions: follower::regions(parts, &options, &runtime),
            options,
            runtime: runtime.clone(),
            fallbacks: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        });
        let (looked, collected) = (Arc::downgrade(&routes), Arc::downgrade(&routes));
        let tasks = vec![
            runtime.keep("region watch", move || upkeep::look(looked.clone())),
            runtime.keep("region tombstones", move || upkeep::collect(collected.clone())),
        ];
        Ok(Self { routes, tasks: std::sync::Mutex::new(tasks) })
    }

    /// The regions beside the one that answered which have what a write has written to a key, as soon as
    /// all have it or by the deadline. None of a key that resides in its home.
    pub async fn confirmed(&self, key: &Key, receipt: &Receipt, by: Deadline) -> Vec<RegionName> {
        self.routes.confirmed(key, receipt, by).await
    }

    /// Updates that were lost, as a region lists them. See
    /// [`RegionStore::conflicts`](terrace_core::RegionStore::conflicts).
    ///
    /// # Errors
    /// As there, when no region can answer.
    pub async fn conflicts(
        &self,
        region: Option<RegionName>,
        after: Option<(Key, terrace_core::Version)>,
        limit: usize,
    ) -> Result<Vec<terrace_core::Conflict>> {
        self.routes.conflicts(region, after.as_ref(), limit).await
    }

    /// All regions, in their order.
    pub fn names(&self) -> Vec<RegionName> {
        self.routes.regions.iter().map(|region| region.name).collect()
    }
}

impl Routes {
    /// The place of a region that was asked for.
    fn place(&self, name: Option<RegionName>) -> Result<usize> {
        let Some(name) = name else { return Ok(self.here) };
        self.regions.iter().position(|region| region.name == name).ok_or_else(unknown)
    }

    /// The place of the region in which a key has its home.
    fn home(&self, key: &Key) -> Option<(usize, &Home)> {
        let home = self.homes.iter().find(|home| key.as_str().starts_with(&home.prefix))?;
        let place = self.regions.iter().position(|region| region.name == home.region)?;
        Some((place, home))
    }

    /// A region as another one reaches it.
    fn link(&self, from: usize, to: usize) -> &RegionLink {
        &self.regions[from].links[to]
    }

    /// The regions that may answer for this one, in the order in which they are asked: those that answer,
    /// from itself onwards; where none does, itself.
    fn in_its_place(&self, asked: usize) -> Vec<usize> {
        let count = self.regions.len();
        let all = (0..count).map(|step| (asked + step) % count);
        let well = all.filter(|place| self.link(asked, *place).is_well()).collect::<Vec<_>>();
        if well.is_empty() { vec![asked] } else { well }
    }

    /// The end of one try.
    fn attempt(&self, deadline: Deadline) -> Deadline {
        Deadline::at(self.runtime.now() + self.options.attempt).min(deadline)
    }

    fn open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Unavailable, "the store is closed"));
        }
        Ok(())
    }

    /// Asks the regions that may answer for this one, one after the other.
    async fn conflicts(
        &self,
        region: Option<RegionName>,
        after: Option<&(Key, terrace_core::Version)>,
        limit: usize,
    ) -> Result<Vec<terrace_core::Conflict>> {
        let asked = self.place(region)?;
        let mut failure = None;
        for at in self.in_its_place(asked) {
            let link = self.link(asked, at);
            let by = self.attempt(Deadline::NEVER);
            match link.call(by, &self.runtime, Box::pin(link.conflicts(after, limit))).await {
                Err(error) if may_ask_another(&error) => failure = Some(error),
                answer => return answer,
            }
        }
        Err(failure.unwrap_or_else(unknown))
    }

    async fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        for region in &self.regions {
            for following in region.following.iter().flatten() {
                following.stop().await;
            }
        }
        let mut outcome = Ok(());
        for link in self.links() {
            outcome = outcome.and(link.store().close().await);
            outcome = outcome.and(link.region().close().await);
        }
        outcome
    }

    /// Every link once.
    fn links(&self) -> Vec<Arc<RegionLink>> {
        let mut links = Vec::<Arc<RegionLink>>::new();
        for region in &self.regions {
            for link in &region.links {
                if !links.iter().any(|known| Arc::ptr_eq(known, link)) {
                    links.push(Arc::clone(link));
                }
            }
        }
        links
    }
}

/// Whether another region may answer in the place of one that answered this: nothing was applied.
fn may_ask_another(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::DeadlineExceeded)
}

fn unknown() -> Error {
    Error::invalid("there is no region of this name; the settings (regions.names) have all of them")
}

impl fmt::Display for GeoRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let regions = &self.routes.regions;
        let first = self.routes.link(0, 0).store();
        write!(f, "GeoRouter({} x {first})", regions.len())
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for GeoRouter {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(self.routes.read(keys, how))
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(self.routes.write(batch, how))
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(self.routes.scan(scan, how))
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(self.routes.inspect())
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let tasks = std::mem::take(
                &mut *self.tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
            );
            for task in tasks {
                task.stop().await;
            }
            self.routes.close().await
        })
    }
}

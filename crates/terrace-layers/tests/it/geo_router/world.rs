//! Three regions in memory, and lines between them that a test cuts.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use terrace_core::testkit::MemoryRegion;
use terrace_core::{
    BoxFuture, ChangeLog, Changes, Checkpoints, Conflict, Deadline, Error, ErrorKind, Follower,
    Generations, Inspection, Key, KeyRange, LeaderLease, LogPosition, Logged, MemoryCache,
    MemoryCacheOptions, Page, Position, Proof, RangeDigest, Read, ReadOptions, Receipt, RegionId,
    RegionName, RegionOptions, RegionStore, Result, Runtime, Scan, Store, Token, Version, Write,
    WriteOptions,
};
use terrace_layers::{
    CacheAside, CacheAsideOptions, GeoRouter, GeoRouterOptions, Home, RegionLink, RegionParts,
};
use tokio::sync::watch;

pub(super) const NAMES: [&str; 3] = ["us-east", "eu-west", "asia-pac"];

pub(super) fn name(place: usize) -> RegionName {
    NAMES[place].parse().expect("a name")
}

/// Three regions, the lines from each to each other one, and the router.
pub(super) struct World {
    pub(super) regions: Vec<Arc<MemoryRegion>>,
    lines: Vec<Vec<Arc<AtomicBool>>>,
    pub(super) router: GeoRouter,
    pub(super) runtime: Runtime,
}

/// What a test may want to be different.
#[derive(Default)]
pub(super) struct Wanted {
    pub(super) homes: Vec<Home>,
    pub(super) options: GeoRouterOptions,
    pub(super) cached: bool,
}

impl World {
    pub(super) fn new(seed: u64, wanted: Wanted) -> Self {
        let runtime = Runtime::seeded(seed);
        let Wanted { homes, options, cached } = wanted;
        let regions = (0..3_u8).map(|place| {
            let id = RegionId::new(place + 1).expect("a number");
            let name = name(place.into());
            let resident = homes.iter().filter(|home| home.resides && home.region == name);
            let resident = resident.map(|home| home.prefix.clone()).collect();
            let options = RegionOptions { resident, ..RegionOptions::new(id, name) };
            Arc::new(MemoryRegion::new(options, runtime.clone()))
        });
        let regions = regions.collect::<Vec<_>>();
        let lines =
            (0..3).map(|_| (0..3).map(|_| Arc::default()).collect()).collect::<Vec<Vec<_>>>();
        let parts = (0..3).map(|from| part(&regions, &lines, from, cached, &runtime));
        let parts = parts.collect();
        let router = GeoRouter::start(parts, name(0), homes, options, runtime.clone());
        Self { regions, lines, router: router.expect("a router"), runtime }
    }

    /// Cuts the line between two regions, in both directions, or mends it.
    pub(super) fn cut(&self, one: usize, other: usize, cut: bool) {
        self.lines[one][other].store(cut, Ordering::SeqCst);
        self.lines[other][one].store(cut, Ordering::SeqCst);
    }

    /// Waits until every region has all that any other one has written.
    pub(super) async fn settle(&self) {
        let until = self.runtime.now() + Duration::from_secs(600);
        for origin in &self.regions {
            let log = origin.own_log();
            let head = log.head().await.expect("a head");
            for region in self.regions.iter().filter(|it| !Arc::ptr_eq(it, origin)) {
                loop {
                    let known = region.checkpoints().await.expect("checkpoints");
                    let known = known.of(origin.region().id).cloned().unwrap_or_default();
                    if known.complete && known.is_in(&log.name()) && known.position >= head {
                        break;
                    }
                    assert!(self.runtime.now() < until, "{region} of {origin}: {known:?}, {head}");
                    self.runtime.sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}

/// A region whose lines to the others may be cut.
fn part(
    regions: &[Arc<MemoryRegion>],
    lines: &[Vec<Arc<AtomicBool>>],
    from: usize,
    cached: bool,
    runtime: &Runtime,
) -> RegionParts {
    let reached =
        |to: usize| Line { to: Arc::clone(&regions[to]), cut: Arc::clone(&lines[from][to]) };
    let cache = cached.then(|| {
        let cache = MemoryCache::new(MemoryCacheOptions::default(), runtime.clone());
        let (store, generations) = (Arc::clone(&regions[from]), Arc::clone(&regions[from]));
        let options = CacheAsideOptions::default();
        let cache = CacheAside::new(store, Arc::new(cache), generations, options, runtime.clone());
        Arc::new(cache)
    });
    let links = (0..regions.len()).map(|to| {
        let region = Arc::new(reached(to));
        let store: Arc<dyn Store> = match &cache {
            Some(cache) if to == from => Arc::clone(cache) as _,
            _ => Arc::clone(&region) as _,
        };
        Arc::new(RegionLink::new(store, region, runtime.clone()))
    });
    let id = regions[from].region().id;
    RegionParts {
        name: name(from),
        id,
        links: links.collect(),
        cache: cache.clone(),
        follows: true,
    }
}

/// A region at the end of a line.
#[derive(Debug)]
struct Line {
    to: Arc<MemoryRegion>,
    cut: Arc<AtomicBool>,
}

impl Line {
    fn over<'a, T: Send + 'a>(&self, work: BoxFuture<'a, Result<T>>) -> BoxFuture<'a, Result<T>> {
        over(&self.cut, work)
    }
}

fn over<'a, T: Send + 'a>(
    cut: &Arc<AtomicBool>,
    work: BoxFuture<'a, Result<T>>,
) -> BoxFuture<'a, Result<T>> {
    let cut = Arc::clone(cut);
    Box::pin(async move {
        match cut.load(Ordering::SeqCst) {
            true => Err(Error::new(ErrorKind::Unavailable, "the line is cut")),
            false => work.await,
        }
    })
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to.fmt(f)
    }
}

impl Store for Line {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        self.over(self.to.read(keys, how))
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        self.over(self.to.write(batch, how))
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        self.over(self.to.scan(scan, how))
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        self.to.inspect()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.to.close()
    }
}

impl Generations for Line {
    fn admits(&self, proof: &Proof, asked: Option<&Token>) -> bool {
        self.to.admits(proof, asked)
    }

    fn looked_at(&self) -> Option<Instant> {
        self.to.looked_at()
    }

    fn history(&self) -> Option<Arc<str>> {
        self.to.history()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.to.changes()
    }

    fn look(&self) -> BoxFuture<'_, Result<()>> {
        self.over(self.to.look())
    }

    fn raise<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<()>> {
        self.over(Generations::raise(&*self.to, keys))
    }
}

impl RegionStore for Line {
    fn region(&self) -> &RegionOptions {
        self.to.region()
    }

    fn own_log(&self) -> Arc<dyn ChangeLog> {
        Arc::new(LineLog { log: self.to.own_log(), cut: Arc::clone(&self.cut) })
    }

    fn follower_of(&self, origin: RegionId) -> Arc<dyn Follower> {
        self.to.follower_of(origin)
    }

    fn lease(&self, origin: RegionId) -> Option<Arc<dyn LeaderLease>> {
        self.to.lease(origin)
    }

    fn checkpoints(&self) -> BoxFuture<'_, Result<Checkpoints>> {
        self.over(self.to.checkpoints())
    }

    fn has_news(&self, after: LogPosition, until: Position) -> BoxFuture<'_, Result<bool>> {
        self.over(self.to.has_news(after, until))
    }

    fn forget_origin(&self, origin: RegionId) -> BoxFuture<'_, Result<()>> {
        self.over(self.to.forget_origin(origin))
    }

    fn conflicts<'a>(
        &'a self,
        after: Option<&'a (Key, Version)>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Conflict>>> {
        self.over(self.to.conflicts(after, limit))
    }

    fn digest<'a>(&'a self, range: &'a KeyRange) -> BoxFuture<'a, Result<RangeDigest>> {
        self.over(self.to.digest(range))
    }

    fn rows<'a>(&'a self, range: &'a KeyRange, limit: usize) -> BoxFuture<'a, Result<Vec<Logged>>> {
        self.over(self.to.rows(range, limit))
    }

    fn merge_rows(&self, rows: Vec<Logged>) -> BoxFuture<'_, Result<()>> {
        self.over(self.to.merge_rows(rows))
    }

    fn collect(&self, horizon: Version) -> BoxFuture<'_, Result<u64>> {
        self.over(self.to.collect(horizon))
    }
}

#[derive(Debug)]
struct LineLog {
    log: Arc<dyn ChangeLog>,
    cut: Arc<AtomicBool>,
}

impl fmt::Display for LineLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.log.fmt(f)
    }
}

impl ChangeLog for LineLog {
    fn name(&self) -> Arc<str> {
        self.log.name()
    }

    fn after(&self, position: LogPosition, limit: usize) -> BoxFuture<'_, Result<Changes>> {
        over(&self.cut, self.log.after(position, limit))
    }

    fn wait(&self, position: LogPosition, deadline: Deadline) -> BoxFuture<'_, Result<()>> {
        over(&self.cut, self.log.wait(position, deadline))
    }

    fn head(&self) -> BoxFuture<'_, Result<LogPosition>> {
        over(&self.cut, self.log.head())
    }

    fn place_of(&self, position: Position) -> LogPosition {
        self.log.place_of(position)
    }

    fn position_of(&self, place: LogPosition) -> Position {
        self.log.position_of(place)
    }
}

//! Requests to a level that the page asks for: at a stated rate, for ten minutes at most, and only while
//! somebody looks.
//!
//! They go to the store of the level, where its endpoints would send them, so they pass all of its layers
//! and none of what stands before its endpoints: keys and limits of clients have nothing to do with them.
//! Each run has keys of its own, which it removes at its end.

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use terrace_bench::value::{Named, WriteId};
use terrace_core::{
    Deadline, ErrorKind, Inspection, Key, Read, ReadOptions, Result, Runtime, Store, StoreExt as _,
    Task, Times, Unit, Value, Write, WriteOptions, one,
};
use tokio::sync::{Semaphore, broadcast};

use super::Frame;
use super::oracle::{Operation, Oracle, Violation};
use crate::http::{Values, origin_words};
use crate::levels::Level;

/// How long traffic lasts at most.
const LONGEST: Duration = Duration::from_secs(600);
/// The most requests a second.
const FASTEST: u32 = 500;
/// The most requests at a time; what would be more is left out, and counted.
const AT_A_TIME: u32 = 32;
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many keys.
const KEYS: u32 = 64;
/// The most dots of a frame: 60 a second.
const DOTS: usize = 30;

/// What kind of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Profile {
    /// 95 reads in 100 requests.
    Reads,
    /// 50 reads in 100.
    Mixed,
    /// 95 reads in 100, nine in ten requests for one key.
    OneKey,
}

impl Profile {
    fn writes_in_100(self) -> u64 {
        if self == Self::Mixed { 50 } else { 5 }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reads => "mostly reads",
            Self::Mixed => "half writes",
            Self::OneKey => "one hot key",
        })
    }
}

/// What traffic is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) profile: Profile,
    /// Requests a second, from 1 on.
    pub(crate) rate: u32,
}

/// Why an order is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// This process serves no such level.
    NoSuchLevel,
    /// The level keeps no records.
    NoRecords,
}

/// The traffic to one level, as long as there is any.
#[derive(Debug)]
pub(super) struct Traffic {
    level: &'static Level,
    store: Arc<dyn Store>,
    values: Values,
    runtime: Runtime,
    run: Mutex<Option<(Arc<Run>, Option<Task>)>>,
}

/// One run: from an order to its end.
#[derive(Debug)]
pub(super) struct Run {
    order: Order,
    began: Instant,
    number: u64,
    store: Arc<dyn Store>,
    values: Values,
    runtime: Runtime,
    oracle: Oracle,
    ended: AtomicBool,
    sequence: AtomicU64,
    written: [AtomicBool; KEYS as usize],
    reads: AtomicU64,
    writes: AtomicU64,
    failed: AtomicU64,
    left_out: AtomicU64,
    /// By the bounds of [`Times`]; the last took longer.
    took: [AtomicU64; TOOK.len()],
    dots: Mutex<Sampled>,
}

/// Names of the counters of how long requests took.
const TOOK: [&str; Times::BOUNDS.len() + 1] = [
    "to_50us",
    "to_100us",
    "to_250us",
    "to_500us",
    "to_1ms",
    "to_2500us",
    "to_5ms",
    "to_10ms",
    "to_25ms",
    "to_50ms",
    "to_100ms",
    "to_250ms",
    "to_500ms",
    "to_1s",
    "to_5s",
    "longer",
];

/// Requests of the time of one frame: a few of them, and how many there were.
#[derive(Debug, Default)]
struct Sampled {
    requests: u64,
    kept: Vec<Dot>,
}

/// One request: whether it is a write, where it was answered (none where it failed), and whether the answer
/// was what the level claims.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Dot(bool, Option<Cow<'static, str>>, bool);

/// The dots of one frame: for each level its number, how many requests one dot stands for, and the dots.
#[derive(Debug, Default, Serialize)]
pub(super) struct Dots(Vec<(u8, u64, Vec<Dot>)>);

impl Dots {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A few requests of each level, as many as a frame may have.
pub(super) fn sample(runs: impl Iterator<Item = (u8, Arc<Run>)>) -> Dots {
    let runs = runs.collect::<Vec<_>>();
    let each = DOTS / runs.len().max(1);
    let sampled = runs.into_iter().filter_map(|(level, run)| {
        let Sampled { requests, mut kept } = std::mem::take(&mut *run.sampled());
        kept.truncate(each);
        (!kept.is_empty()).then(|| (level, requests.div_ceil(kept.len() as u64), kept))
    });
    Dots(sampled.collect())
}

impl Traffic {
    pub(super) fn new(
        level: &'static Level,
        store: Arc<dyn Store>,
        values: Values,
        runtime: Runtime,
    ) -> Self {
        Self { level, store, values, runtime, run: Mutex::default() }
    }

    pub(super) fn level(&self) -> u8 {
        self.level.number
    }

    /// Whether values must be JSON documents.
    pub(super) fn is_of_documents(&self) -> bool {
        self.values == Values::Documents
    }

    /// The run that is under way.
    pub(super) fn requests(&self) -> Option<Arc<Run>> {
        let run = self.run();
        run.as_ref().map(|(run, _)| run).filter(|run| !run.ended.load(Relaxed)).cloned()
    }

    /// Begins anew. Ends by itself when nobody hears `news` any more.
    pub(super) fn begin(
        &self,
        order: Order,
        tree: &Inspection,
        news: broadcast::Sender<Arc<Frame>>,
    ) {
        self.end();
        let number = self.runtime.random();
        let order = Order { rate: order.rate.clamp(1, FASTEST), ..order };
        let run = Arc::new(Run {
            order,
            began: self.runtime.now(),
            number,
            store: Arc::clone(&self.store),
            values: self.values,
            runtime: self.runtime.clone(),
            oracle: Oracle::new(KEYS, number, self.level.staleness, tree),
            ended: AtomicBool::new(false),
            sequence: AtomicU64::new(0),
            written: std::array::from_fn(|_| AtomicBool::new(false)),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
            took: std::array::from_fn(|_| AtomicU64::new(0)),
            dots: Mutex::default(),
        });
        let task = self.runtime.spawn("live traffic", Arc::clone(&run).drive(news));
        *self.run() = Some((run, Some(task)));
    }

    /// Asks the run to end; it does within a moment, and removes its keys.
    pub(super) fn end(&self) {
        if let Some((run, task)) = &mut *self.run() {
            run.ended.store(true, Relaxed);
            if let Some(task) = task.take() {
                task.detach();
            }
        }
    }

    /// Ends the run and waits for that.
    pub(super) async fn stop(&self) {
        let task = {
            let mut run = self.run();
            let Some((run, task)) = &mut *run else { return };
            run.ended.store(true, Relaxed);
            task.take()
        };
        if let Some(task) = task {
            task.await;
        }
    }

    pub(super) fn violation(&self) -> Option<Violation> {
        let run = self.run();
        let (why, history) = run.as_ref()?.0.oracle.first()?;
        let (level, claim) = (self.level.number, self.level.guarantee);
        Some(Violation { level, claim, why, history })
    }

    /// What it says of itself, beside the level's own tree: with how stale a read may be, where there is a
    /// bound.
    pub(super) fn inspect(&self, level: &Inspection) -> Inspection {
        let run = self.run();
        let tree = Inspection::new("traffic");
        let tree = match self.level.staleness.bound(level) {
            Some(bound) => {
                let bound = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
                tree.gauge("allowed", bound, Unit::Micros)
            }
            None => tree,
        };
        match &*run {
            Some((run, _)) => run.inspect(tree),
            None => tree.gauge("running", 0, Unit::Count),
        }
    }

    fn run(&self) -> MutexGuard<'_, Option<(Arc<Run>, Option<Task>)>> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Run {
    /// Sends requests until somebody ends it, nobody looks, or its time is over.
    async fn drive(self: Arc<Self>, news: broadcast::Sender<Arc<Frame>>) {
        let pause = Duration::from_secs(1) / self.order.rate;
        let gate = Arc::new(Semaphore::new(AT_A_TIME as usize));
        let mut next = self.began;
        while !self.ended.load(Relaxed) && news.receiver_count() > 0 && next < self.began + LONGEST
        {
            match Arc::clone(&gate).try_acquire_owned() {
                Ok(turn) => {
                    let run = Arc::clone(&self);
                    let request = async move {
                        run.request().await;
                        drop(turn);
                    };
                    self.runtime.spawn("live request", request).detach();
                }
                Err(_) => {
                    self.left_out.fetch_add(1, Relaxed);
                }
            }
            next += pause;
            // After a machine that slept there is nothing to make up for.
            next = next.max(self.runtime.now().checked_sub(PATIENCE).unwrap_or(next));
            self.runtime.sleep_until(next).await;
        }
        self.ended.store(true, Relaxed);
        let _all_are_answered = gate.acquire_many(AT_A_TIME).await;
        let keys = (0..KEYS).filter(|key| self.written[*key as usize].load(Relaxed));
        let removed = keys.filter_map(|key| self.key(key).ok()).map(Write::delete).collect();
        let how = WriteOptions { deadline: self.deadline(), ..WriteOptions::default() };
        if let Err(error) = self.store.write(removed, &how).await {
            tracing::info!(%error, "keys of the live page's traffic are left behind");
        }
    }

    async fn request(&self) {
        let dice = self.runtime.random();
        let hot = self.order.profile == Profile::OneKey && !dice.is_multiple_of(10);
        let key = if hot { 0 } else { u32::try_from(dice >> 32).unwrap_or(0) % KEYS };
        let writes = (dice >> 8) % 100 < self.order.profile.writes_in_100();
        // A read before the first write would find nothing, which says nothing.
        let first = !self.written[key as usize].swap(true, Relaxed);
        let begun = self.runtime.now();
        let (is_write, came) = match writes || first {
            true => (true, self.write(key).await),
            false => (false, self.read(key).await),
        };
        let took = self.runtime.now().saturating_duration_since(begun);
        let place = Times::BOUNDS.partition_point(|bound| *bound < took);
        self.took[place].fetch_add(1, Relaxed);
        let counter = if is_write { &self.writes } else { &self.reads };
        counter.fetch_add(1, Relaxed);
        let dot = match came {
            Ok((place, right)) => Dot(is_write, Some(place), right),
            Err(_) => {
                self.failed.fetch_add(1, Relaxed);
                Dot(is_write, None, true)
            }
        };
        let mut sampled = self.sampled();
        sampled.requests += 1;
        // Each request of the frame has the same chance to be a dot.
        match usize::try_from(dice % sampled.requests) {
            _ if sampled.kept.len() < DOTS => sampled.kept.push(dot),
            Ok(at) if at < DOTS => sampled.kept[at] = dot,
            _ => {}
        }
    }

    /// Writes a key; where it was answered.
    async fn write(&self, key: u32) -> Result<(Cow<'static, str>, bool)> {
        let sequence = self.sequence.fetch_add(1, Relaxed);
        let named = Named { key, write: WriteId::new(0, sequence) };
        let write = Write::put(self.key(key)?, Value::new(self.value(named))?);
        let how = WriteOptions { deadline: self.deadline(), ..WriteOptions::default() };
        let sent = self.moment();
        self.oracle.ledger.sent(named, sent);
        let outcome = self.store.write(vec![write], &how).await.and_then(one);
        let answered = self.moment();
        let how = match &outcome {
            Ok(receipt) => {
                self.oracle.ledger.acknowledged(named, answered);
                format!("acknowledged: {}", receipt.durability.as_str())
            }
            Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
                self.oracle.ledger.in_doubt(named);
                "nobody knows".to_owned()
            }
            Err(error) => {
                self.oracle.ledger.refused(named);
                error.message().to_owned()
            }
        };
        let write = Some(sequence);
        self.oracle.note(Operation { key, what: "write", sent, answered, write, how });
        Ok((origin_words(outcome?.origin), true))
    }

    /// Reads a key; where it was answered, and whether the level may answer so.
    async fn read(&self, key: u32) -> Result<(Cow<'static, str>, bool)> {
        let name = self.key(key)?;
        let how = ReadOptions { deadline: self.deadline(), ..ReadOptions::default() };
        let sent = self.moment();
        let outcome = self.store.get_read(&name, &how).await;
        let (what, answered) = ("read", self.moment());
        match outcome {
            Ok(Read { record, origin, .. }) => {
                let value = record.as_ref().map(|it| self.inside(it.value.as_str()));
                let write = value.and_then(|value| self.oracle.write_of(value));
                let place = origin_words(origin);
                let how = place.clone().into_owned();
                let operation = Operation { key, what, sent, answered, write, how };
                Ok((place, self.oracle.judge(operation, value)))
            }
            Err(error) => {
                let how = error.message().to_owned();
                self.oracle.note(Operation { key, what, sent, answered, write: None, how });
                Err(error)
            }
        }
    }

    fn inspect(&self, tree: Inspection) -> Inspection {
        let running = !self.ended.load(Relaxed);
        let left = LONGEST.saturating_sub(self.runtime.now().saturating_duration_since(self.began));
        let tree = tree
            .gauge("running", running.into(), Unit::Count)
            .gauge("seconds_left", if running { left.as_secs() } else { 0 }, Unit::Count)
            .gauge("rate", self.order.rate.into(), Unit::Count)
            .counter("reads", self.reads.load(Relaxed))
            .counter("writes", self.writes.load(Relaxed))
            .counter("failed", self.failed.load(Relaxed))
            .counter("left_out", self.left_out.load(Relaxed));
        let tree = self.oracle.add_to(tree);
        let took = TOOK.iter().zip(&self.took);
        took.fold(tree, |tree, (name, count)| tree.counter(name, count.load(Relaxed)))
    }

    fn key(&self, key: u32) -> Result<Key> {
        Key::new(format!("live:{:x}:{key}", self.number))
    }

    fn value(&self, named: Named) -> String {
        let mut text = Vec::new();
        self.oracle.ledger.values().write(&mut text, named, 20);
        let text = String::from_utf8_lossy(&text).into_owned();
        match self.values {
            Values::Documents => format!("{BEFORE}{text}{AFTER}"),
            Values::Texts => text,
        }
    }

    /// The value within a document, which comes back as it was written.
    fn inside<'v>(&self, value: &'v str) -> &'v str {
        let within = value.strip_prefix(BEFORE).and_then(|rest| rest.strip_suffix(AFTER));
        within.unwrap_or(value)
    }

    /// Microseconds since it began.
    fn moment(&self) -> u64 {
        let since = self.runtime.now().saturating_duration_since(self.began);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    fn deadline(&self) -> Deadline {
        Deadline::at(self.runtime.now() + PATIENCE)
    }

    fn sampled(&self) -> MutexGuard<'_, Sampled> {
        self.dots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const BEFORE: &str = "{\"write\":\"";
const AFTER: &str = "\"}";

//! A worker: one thread, its connections, its schedule.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::{join, select};
use futures_util::stream::FuturesUnordered;
use rand::SeedableRng as _;
use rand::rngs::Xoshiro256PlusPlus;
use terrace_core::Runtime;

use crate::api::Api;
use crate::client::{Client, Connect, Manners, Shared};
use crate::feed::{Draw, Feed, Loop};
use crate::keys::Picker;
use crate::ledger::Ledger;
use crate::tally::{Tally, Tick, micros};
use crate::workload::Workload;
use terrace_lab::Alarm;

/// How often a worker tells how far it is.
pub const TICK: Duration = Duration::from_millis(200);

/// What one worker does in one phase.
#[derive(Debug)]
pub struct Worker<'a, C> {
    /// Makes connections.
    pub connect: &'a C,
    /// Makes requests.
    pub api: &'a Api,
    /// Judges answers.
    pub ledger: &'a Ledger,
    /// The ledger's zero.
    pub epoch: Instant,
    /// The mix.
    pub workload: &'a Workload,
    /// The keys.
    pub picker: Picker,
    /// How clients behave.
    pub manners: Manners,
    /// How requests are offered; the rate is this worker's part.
    pub offered: Loop,
    /// How many connections.
    pub connections: usize,
    /// For how long.
    pub time: Duration,
    /// Decides every draw.
    pub seed: u64,
    /// Who writes.
    pub writer: u16,
    /// The writer's writes before this phase.
    pub sequence: u64,
    /// Ends the phase before its time.
    pub stop: &'a AtomicBool,
    /// The clock.
    pub runtime: Runtime,
    /// Starts requests on time.
    pub alarm: Alarm,
}

/// Returns within a tick of a stop.
pub(crate) async fn stopped(stop: &AtomicBool, runtime: &Runtime) {
    while !stop.load(Ordering::Relaxed) {
        runtime.sleep(TICK).await;
    }
}

impl<C: Connect> Worker<'_, C> {
    /// Runs the phase; `tell` hears of every tick. Answers what was counted, and the writes so far.
    pub async fn run(self, mut tell: impl FnMut(Tick)) -> (Tally, u64) {
        let rng = Xoshiro256PlusPlus::seed_from_u64(self.seed);
        let draw = Draw::new(rng, self.workload, self.picker.clone(), self.ledger);
        let feed = Feed::new(draw, self.offered == Loop::Closed);
        let tally = RefCell::new(Tally::default());
        let sequence = Cell::new(self.sequence);
        let shared = Shared {
            connect: self.connect,
            api: self.api,
            ledger: self.ledger,
            epoch: self.epoch,
            feed: &feed,
            tally: &tally,
            runtime: &self.runtime,
            manners: self.manners,
            writer: self.writer,
            sequence: &sequence,
        };
        let mut clients: Vec<_> = (0..self.connections).map(|_| Client::new(&shared)).collect();
        {
            let connect: FuturesUnordered<_> = clients.iter_mut().map(Client::connect).collect();
            let stopped = stopped(self.stop, &self.runtime);
            select(pin!(stopped), pin!(connect.collect::<()>())).await;
        }
        let started = self.runtime.now();
        let work: FuturesUnordered<_> = clients.iter_mut().map(Client::run).collect();
        let schedule = self.offer(&feed, &tally, started);
        let work = async { join(work.collect::<()>(), schedule).await.0 };
        let ticks = async {
            while !self.stop.load(Ordering::Relaxed) {
                self.runtime.sleep(TICK).await;
                let mut tick = std::mem::take(&mut tally.borrow_mut().tick);
                tick.waiting = feed.waiting();
                tell(tick);
            }
        };
        // What is in flight at a stop is dropped; its writes stay open in the ledger, for ever.
        let _ = select(pin!(ticks), pin!(work)).await;
        let elapsed = self.runtime.now() - started;
        drop(clients);
        let mut tally = tally.take();
        tally.elapsed = elapsed;
        tally.most_waiting = feed.most_waiting();
        tell(std::mem::take(&mut tally.tick));
        (tally, sequence.get())
    }

    /// Ends a closed loop after its time; in an open one lets requests arrive by their schedule.
    async fn offer(&self, feed: &Feed<'_>, tally: &RefCell<Tally>, started: Instant) {
        let end = started + self.time;
        if let Loop::Open(rate, arrivals) = self.offered {
            let mut next = started + feed.draw(|draw| draw.gap(rate, arrivals));
            while next < end {
                self.alarm.at(next).await;
                let now = self.runtime.now();
                while next <= now && next < end {
                    tally.borrow_mut().lag.saturating_record(micros(now - next));
                    feed.arrive(next);
                    next += feed.draw(|draw| draw.gap(rate, arrivals));
                }
            }
        }
        self.runtime.sleep_until(end).await;
        feed.end();
    }
}

//! One target with its ledger, and phases of load on it, by worker threads.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use hdrhistogram::Histogram;
use rand::SeedableRng as _;
use rand::rngs::Xoshiro256PlusPlus;
use terrace_core::Runtime;

use crate::api::Api;
use crate::client::{Manners, Tcp};
use crate::feed::Loop;
use crate::figures::{Check, Generator, Kind, Latency, Moment, PhaseFigures, Settings, Wrong, ms};
use crate::keys::Picker;
use crate::ledger::Ledger;
use crate::machine::{Cores, CpuTimes, cpu_times, own_cpu, since, thread_cpu};
use crate::prepare::{Abilities, Preparation};
use crate::run::{Target, Watch};
use crate::tally::{Findings, Tally, Tick};
use crate::worker::{TICK, Worker, stopped};
use crate::workload::Operation;
use terrace_lab::Alarm;

/// The hit ratio of warm-up windows counts as flat within this.
const FLAT: f64 = 0.01;
/// A window of warm-up.
const WINDOW: Duration = Duration::from_secs(1);

/// One target, ready for load.
pub(crate) struct Session<'a> {
    target: &'a Target,
    settings: &'a Settings,
    stop: &'a AtomicBool,
    address: SocketAddr,
    api: Api,
    ledger: Ledger,
    epoch: Instant,
    abilities: Abilities,
    /// Writes so far, by worker.
    sequences: Vec<u64>,
    phases: u64,
}

impl<'a> Session<'a> {
    /// Looks whether the target can be measured.
    pub(crate) fn open(
        target: &'a Target,
        settings: &'a Settings,
        stop: &'a AtomicBool,
    ) -> Result<Self, String> {
        let unknown = |why: &str| format!("{} cannot be reached: {why}", target.authority);
        let mut addresses =
            target.authority.to_socket_addrs().map_err(|error| unknown(&error.to_string()))?;
        let address = addresses.next().ok_or_else(|| unknown("the name has no address"))?;
        let runtime = Runtime::system();
        // The time of day tells this run's values from those of a run with the same seed.
        let run = settings.seed ^ u64::try_from(runtime.wall().as_microsecond()).unwrap_or(1);
        let mut session = Self {
            target,
            settings,
            stop,
            address,
            api: Api::new(&target.authority, &target.headers),
            ledger: Ledger::new(settings.keys, run),
            epoch: in_runtime(async { runtime.now() })?,
            abilities: Abilities::UNKNOWN,
            sequences: vec![0; settings.threads],
            phases: 0,
        };
        session.abilities = session.prepare(async |preparation| preparation.probe().await)?;
        session.api.speak(session.abilities.dialect);
        session.abilities.suffice(&settings.workload)?;
        Ok(session)
    }

    /// Writes every key once.
    pub(crate) fn load(&mut self, watch: &dyn Watch) -> Result<(), String> {
        let rng = Xoshiro256PlusPlus::seed_from_u64(self.settings.seed);
        let (keys, bytes) = (self.settings.keys, self.settings.value_bytes);
        let tell = |done| watch.tick(&Tick { done, ..Tick::default() }, Duration::ZERO);
        let abilities = self.abilities;
        self.prepare(async |preparation| {
            preparation.load(keys, bytes, abilities, rng.clone(), tell).await
        })
    }

    /// Reads everything once more.
    pub(crate) fn check(&self) -> Result<Check, String> {
        self.prepare(async |preparation| preparation.check(self.abilities).await)
    }

    fn prepare<T>(
        &self,
        work: impl AsyncFn(&Preparation<'_, Tcp>) -> Result<T, String>,
    ) -> Result<T, String> {
        let preparation = Preparation {
            connect: &Tcp(self.address),
            api: &self.api,
            ledger: &self.ledger,
            epoch: self.epoch,
            runtime: &Runtime::system(),
            timeout: Duration::from_millis(self.settings.timeout_ms),
            stop: self.stop,
        };
        in_runtime(async {
            let stopped = pin!(stopped(self.stop, preparation.runtime));
            match select(stopped, pin!(work(&preparation))).await {
                Either::Left(_) => Err("it was cut short".to_owned()),
                Either::Right((done, _)) => done,
            }
        })?
    }

    /// Puts load on until two windows in a row had the same hit ratio, or for the time allowed.
    pub(crate) fn warm_up(&mut self, watch: &dyn Watch) {
        let allowed = Duration::from_secs_f64(self.settings.warmup_s);
        let windows = allowed.as_secs();
        if windows == 0 {
            return;
        }
        let connections = self.settings.connections.unwrap_or(self.settings.open_connections);
        let offered = match (self.settings.connections, self.settings.rate) {
            (None, Some(rate)) => Loop::Open(rate, self.settings.arrivals),
            _ => Loop::Closed,
        };
        watch.begin(&format!("{}: warming up", self.target.name), Some(allowed));
        let mut last = None;
        let mut flat = 0;
        let mut result = format!("not flat after {windows} s");
        for window in 1..=windows {
            let measured = self.measure(offered, connections, WINDOW, watch);
            let ratio = measured.hit_ratio().unwrap_or_default();
            flat = if last.is_some_and(|last: f64| (last - ratio).abs() < FLAT) {
                flat + 1
            } else {
                0
            };
            last = Some(ratio);
            if flat == 2 || self.stop.load(Ordering::Relaxed) {
                result = format!("hit ratio {:.0} %, flat after {window} s", ratio * 100.0);
                break;
            }
        }
        watch.end(&result);
    }

    /// One phase.
    pub(crate) fn measure(
        &mut self,
        offered: Loop,
        connections: usize,
        time: Duration,
        watch: &dyn Watch,
    ) -> PhaseFigures {
        self.phases += 1;
        let before = Meter::read(&self.target.pids);
        let mut timeline = Timeline::default();
        let mut tally = Tally::default();
        let workers = self.settings.threads;
        let this: &Session<'_> = self;
        let ended: Vec<Option<(Tally, u64)>> = thread::scope(|scope| {
            let (sender, ticks) = mpsc::channel();
            let threads: Vec<_> = (0..workers)
                .map(|number| {
                    let sender = sender.clone();
                    scope.spawn(move || this.work(number, offered, connections, time, &sender))
                })
                .collect();
            drop(sender);
            for tick in ticks {
                watch.tick(&tick, TICK);
                timeline.add(&tick, workers);
            }
            threads.into_iter().map(|thread| thread.join().ok().flatten()).collect()
        });
        for (worker, ended) in ended.into_iter().enumerate() {
            if let Some((counted, sequence)) = ended {
                tally.merge(counted);
                self.sequences[worker] = sequence;
            }
        }
        let spent = before.spent(&self.target.pids);
        figures(offered, connections, workers, &tally, timeline, &spent, self.target.may_lag)
    }

    /// One worker's thread.
    fn work(
        &self,
        number: usize,
        offered: Loop,
        connections: usize,
        time: Duration,
        ticks: &mpsc::Sender<Tick>,
    ) -> Option<(Tally, u64)> {
        let workers = self.settings.threads;
        let offered = match offered {
            Loop::Closed => Loop::Closed,
            #[expect(clippy::cast_precision_loss, reason = "few workers")]
            Loop::Open(rate, arrivals) => Loop::Open(rate / workers as f64, arrivals),
        };
        // What does not divide goes to the first ones.
        let connections = connections / workers + usize::from(number < connections % workers);
        let writer = u16::try_from(number + 1).ok()?;
        let seed = self.settings.seed ^ (self.phases << 16) ^ u64::from(writer);
        let answer = in_runtime(async {
            let runtime = Runtime::system();
            let worker = Worker {
                connect: &Tcp(self.address),
                api: &self.api,
                ledger: &self.ledger,
                epoch: self.epoch,
                workload: &self.settings.workload,
                picker: Picker::new(self.settings.workload.distribution, self.settings.keys),
                manners: Manners {
                    timeout: Duration::from_millis(self.settings.timeout_ms),
                    value_bytes: self.settings.value_bytes,
                    sends_tokens: self.settings.tokens,
                },
                offered,
                connections: connections.max(1),
                time,
                seed,
                writer,
                sequence: self.sequences[number],
                stop: self.stop,
                alarm: Alarm::fine(runtime.clone()),
                runtime,
            };
            worker
                .run(|tick| {
                    // Nobody listens any more when the run ends.
                    let _ = ticks.send(tick);
                })
                .await
        });
        let (mut tally, sequence) = answer.ok()?;
        tally.cpu = thread_cpu();
        Some((tally, sequence))
    }
}

/// Runs on this thread alone. Without tokio's budget of a task: all connections of a worker are one task,
/// and thousands of them would use it up before the clock or a stop is looked at.
fn in_runtime<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("no runtime can be started: {error}"))?;
    Ok(runtime.block_on(tokio::task::unconstrained(work)))
}

/// Counters at the beginning of a phase.
struct Meter {
    targets: CpuTimes,
    own: Duration,
    cores: Cores,
    at: Instant,
}

/// What was spent in a phase.
struct Spent {
    targets: CpuTimes,
    /// As shares of all cores.
    others: f64,
    stolen: f64,
}

impl Meter {
    fn read(pids: &[u32]) -> Self {
        let (targets, own, cores) = (cpu_times(pids), own_cpu(), Cores::now());
        Self { targets, own, cores, at: Runtime::system().now() }
    }

    fn spent(self, pids: &[u32]) -> Spent {
        let now = Self::read(pids);
        let targets = since(&self.targets, &now.targets);
        let of_targets: Duration = targets.values().sum();
        let busy = now.cores.busy.saturating_sub(self.cores.busy);
        let ours = of_targets + now.own.saturating_sub(self.own);
        let stolen = now.cores.stolen.saturating_sub(self.cores.stolen);
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let all = (now.at - self.at).as_secs_f64().max(1e-3)
            * f64::from(u16::try_from(cores).unwrap_or(1));
        // Without knowing the target's processes, nobody can tell them from others.
        let others = if pids.is_empty() { Duration::ZERO } else { busy.saturating_sub(ours) };
        Spent { targets, others: others.as_secs_f64() / all, stolen: stolen.as_secs_f64() / all }
    }
}

/// Ticks put together to seconds.
#[derive(Default)]
struct Timeline {
    moments: Vec<Moment>,
    current: Tick,
    ticks: u32,
}

impl Timeline {
    const TICKS: u32 = 5;

    fn add(&mut self, tick: &Tick, workers: usize) {
        self.current.merge(tick);
        self.ticks += 1;
        if self.ticks as usize == Self::TICKS as usize * workers {
            self.close();
        }
    }

    fn close(&mut self) {
        let tick = std::mem::take(&mut self.current);
        self.ticks = 0;
        let seconds = (TICK * Self::TICKS).as_secs_f64();
        let at = |quantile| ms(tick.latencies.value_at_quantile(quantile));
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        self.moments.push(Moment {
            at_s: (self.moments.len() + 1) as f64 * seconds,
            per_second: tick.done as f64 / seconds,
            p50: at(0.5),
            p99: at(0.99),
            failed: tick.failed,
        });
    }

    /// The last part of a second is told only when something failed in it.
    fn finish(mut self) -> Vec<Moment> {
        if self.current.failed > 0 {
            self.close();
        }
        self.moments
    }
}

fn figures(
    offered: Loop,
    connections: usize,
    workers: usize,
    tally: &Tally,
    timeline: Timeline,
    spent: &Spent,
    may_lag: bool,
) -> PhaseFigures {
    let mut all = Histogram::<u64>::new_with_bounds(1, 3_600_000_000, 3)
        .unwrap_or_else(|_| tally.lag.clone());
    for histogram in &tally.latencies {
        let _ = all.add(histogram);
    }
    let seconds = tally.elapsed.as_secs_f64().max(1e-6);
    let requests = tally.done + tally.failures.total();
    #[expect(clippy::cast_precision_loss, reason = "counts are below 2^52")]
    let a_request = |time: Duration| time.as_secs_f64() * 1e6 / requests.max(1) as f64;
    #[expect(clippy::cast_precision_loss, reason = "few workers")]
    let busy = tally.cpu.as_secs_f64() / seconds / workers as f64;
    let generator = Generator {
        busy,
        us_a_request: a_request(tally.cpu),
        lag_p99_ms: ms(tally.lag.value_at_quantile(0.99)),
        most_waiting: tally.most_waiting,
        others: spent.others,
        stolen: spent.stolen,
    };
    let name = |bytes: &[u8]| match bytes {
        b"" => "not said".to_owned(),
        some => String::from_utf8_lossy(some).into_owned(),
    };
    let latency = Latency::of(&all);
    let offered = match offered {
        Loop::Closed => None,
        Loop::Open(rate, _) => Some(rate),
    };
    PhaseFigures {
        kind: Kind::Closed,
        repeat: 0,
        offered,
        connections,
        seconds,
        #[expect(clippy::cast_precision_loss, reason = "counts are below 2^52")]
        per_second: tally.done as f64 / seconds,
        done: tally.done,
        failures: tally.failures.iter().map(|(kind, count)| (kind.name(), *count)).collect(),
        doubts: doubts(offered, &generator, latency.p99),
        latency,
        operations: Operation::ALL
            .iter()
            .zip(&tally.latencies)
            .filter(|(_, histogram)| !histogram.is_empty())
            .map(|(operation, histogram)| (operation.as_str().to_owned(), Latency::of(histogram)))
            .collect(),
        origins: tally.origins.iter().map(|(origin, count)| (name(origin), *count)).collect(),
        durabilities: tally.durabilities.iter().map(|(word, count)| (name(word), *count)).collect(),
        findings: wrong(&tally.findings, may_lag),
        cpu_us: spent
            .targets
            .iter()
            .map(|(name, time)| (name.clone(), a_request(*time)))
            .collect::<BTreeMap<_, _>>(),
        generator,
        timeline: timeline.finish(),
    }
}

/// Where reads may lag, a record that does not show yet is one more stale read.
fn wrong(findings: &Findings, may_lag: bool) -> Wrong {
    let mut ages = findings.ages.clone();
    ages.sort_unstable();
    let age = |at: usize| ages.get(at).copied().map(ms);
    let missing = if may_lag { 0 } else { findings.missing };
    Wrong {
        judged: findings.judged,
        stale: findings.stale + findings.missing - missing,
        stale_age_ms: age(ages.len() / 2).zip(age(ages.len().wrapping_sub(1))),
        missing,
        swapped: findings.swapped,
        made_up: findings.made_up,
        examples: findings.examples.clone(),
    }
}

/// Why these figures are not those of the target alone.
fn doubts(offered: Option<f64>, generator: &Generator, p99: f64) -> Vec<String> {
    let mut doubts = Vec::new();
    if generator.busy > 0.9 {
        doubts.push(format!(
            "the generator was the bottleneck: its threads were busy {:.0} % of the time (--threads)",
            generator.busy * 100.0
        ));
    }
    if offered.is_some() && generator.lag_p99_ms > (p99 * 0.2).max(1.0) {
        doubts.push(format!(
            "the generator was late: 1 in 100 requests left {:.1} ms or more after its time",
            generator.lag_p99_ms
        ));
    }
    if generator.others > 0.05 {
        doubts
            .push(format!("other programs used {:.0} % of the machine", generator.others * 100.0));
    }
    if generator.stolen > 0.02 {
        doubts.push(format!("the host took {:.0} % of the machine", generator.stolen * 100.0));
    }
    doubts
}

impl Settings {
    /// Enough to ask a server what it can.
    pub(crate) fn for_probe(timeout: Duration) -> Self {
        use crate::feed::Arrivals;
        use crate::keys::Distribution;
        use crate::workload::{ValueBytes, Workload};

        let distribution = Distribution::Uniform;
        Self {
            workload: Workload {
                name: String::new(),
                percent: [100.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                distribution,
            },
            keys: 1,
            value_bytes: ValueBytes { from: 20, to: 20 },
            connections: None,
            rate: None,
            open_connections: 1,
            arrivals: Arrivals::Poisson,
            ladder: false,
            duration_s: 0.0,
            warmup_s: 0.0,
            repeat: 1,
            seed: 0,
            threads: 1,
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(1000),
            tokens: false,
            database_rtt_ms: 0.0,
            cache_rtt_ms: 0.0,
        }
    }
}

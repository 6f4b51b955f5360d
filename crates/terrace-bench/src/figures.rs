//! The report as data: what `--json` writes and `--compare` reads. The format is described in
//! `docs/benchmarking.md`; [`FORMAT`] grows when a field changes its meaning or goes away.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::feed::Arrivals;
use crate::machine::Machine;
use crate::workload::{ValueBytes, Workload};

/// The version of the JSON format.
pub const FORMAT: u32 = 1;

/// A whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// When it began, RFC 3339, UTC.
    pub made_at: String,
    /// Whether somebody ended it before its time.
    pub cut_short: bool,
    /// Where.
    pub machine: Machine,
    /// How.
    pub settings: Settings,
    /// What was measured.
    pub targets: Vec<TargetFigures>,
    /// Rows of `scripts/ratios`, if they were asked for.
    #[serde(default)]
    pub references: Vec<Reference>,
}

/// How a run is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The mix and the distribution of keys.
    pub workload: Workload,
    /// Keys loaded before the run.
    pub keys: u32,
    /// Lengths of values.
    pub value_bytes: ValueBytes,
    /// Connections of the closed loop; none when it is left out.
    pub connections: Option<usize>,
    /// Requests a second of the open loop; none means half of what the closed loop reached.
    pub rate: Option<f64>,
    /// Connections of the open loop.
    pub open_connections: usize,
    /// How the open loop's requests are spaced.
    pub arrivals: Arrivals,
    /// Whether rates up to saturation were tried.
    pub ladder: bool,
    /// Seconds a phase.
    pub duration_s: f64,
    /// Seconds of warm-up at most.
    pub warmup_s: f64,
    /// How often each target had its turn.
    pub repeat: u32,
    /// What decides all draws.
    pub seed: u64,
    /// Threads of the generator.
    pub threads: usize,
    /// Milliseconds after which a request has failed.
    pub timeout_ms: u64,
    /// Whether connections send the last token they got.
    pub tokens: bool,
    /// The round trip to databases of the local mode, in milliseconds; none when nothing was put
    /// between them and the levels.
    #[serde(default)]
    pub database_rtt_ms: f64,
    /// The same to caches and brokers.
    #[serde(default)]
    pub cache_rtt_ms: f64,
}

/// One target's figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TargetFigures {
    /// Short: `L1`, `L1 local`, or what the user said.
    pub name: String,
    /// For people: `Connection pooling`.
    pub title: String,
    /// The level, where it is one.
    pub level: Option<u8>,
    /// `embedded` or `local`, where it is a level that was started for the run.
    pub stores: Option<String>,
    /// Whether a read may show a little less than was acknowledged.
    pub may_lag: bool,
    /// Why it was not measured, or not to its end.
    pub trouble: Option<String>,
    /// In the order of time.
    pub phases: Vec<PhaseFigures>,
    /// All keys read once more in the end.
    pub check: Option<Check>,
}

/// What a phase is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// As much as the connections get through.
    Closed,
    /// A rate that was fixed in advance.
    Open,
    /// A step of the ladder.
    Ladder,
}

/// One phase on one target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PhaseFigures {
    /// What it was for.
    pub kind: Kind,
    /// Which turn, from 1.
    pub repeat: u32,
    /// Requests a second that were offered, in an open loop.
    pub offered: Option<f64>,
    /// Connections.
    pub connections: usize,
    /// How long it took.
    pub seconds: f64,
    /// Good answers a second.
    pub per_second: f64,
    /// Good answers.
    pub done: u64,
    /// Requests without one, by kind.
    pub failures: BTreeMap<String, u64>,
    /// All latencies.
    pub latency: Latency,
    /// Latencies by operation.
    pub operations: BTreeMap<String, Latency>,
    /// Reads by `Terrace-Origin`.
    pub origins: BTreeMap<String, u64>,
    /// Writes by `Terrace-Durability`.
    pub durabilities: BTreeMap<String, u64>,
    /// Wrong answers.
    pub findings: Wrong,
    /// CPU time of the target a request in microseconds, by program.
    pub cpu_us: BTreeMap<String, f64>,
    /// The generator itself.
    pub generator: Generator,
    /// Why the figures are not good, if they are not.
    pub doubts: Vec<String>,
    /// Second by second.
    pub timeline: Vec<Moment>,
}

impl PhaseFigures {
    /// CPU time of the target a request in microseconds.
    pub fn cpu(&self) -> Option<f64> {
        (!self.cpu_us.is_empty()).then(|| self.cpu_us.values().sum())
    }

    /// Requests without a good answer.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// The share of reads that a cache answered.
    pub fn hit_ratio(&self) -> Option<f64> {
        let reads: u64 = self.origins.values().sum();
        let hits: u64 = ["near", "far"].iter().filter_map(|at| self.origins.get(*at)).sum();
        (reads > 0).then(|| share(hits, reads))
    }
}

/// Latencies in milliseconds; failed requests count with the whole time that they were given.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// How many.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// One in ten is slower.
    pub p90: f64,
    /// One in twenty is slower.
    pub p95: f64,
    /// One in a hundred is slower.
    pub p99: f64,
    /// One in a thousand is slower.
    pub p999: f64,
    /// The slowest.
    pub max: f64,
    /// Upper bound in microseconds and count of each bucket, so that runs can be drawn again.
    pub buckets: Vec<(u64, u64)>,
}

impl Latency {
    /// What a histogram of microseconds says.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| ms(histogram.value_at_quantile(quantile));
        let mut coarse = Histogram::<u64>::new_with_bounds(1, 3_600_000_000, 2).ok();
        if let Some(coarse) = &mut coarse {
            let _ = coarse.add(histogram);
        }
        let buckets = coarse.iter().flat_map(Histogram::iter_recorded);
        Self {
            count: histogram.len(),
            mean: histogram.mean() / 1000.0,
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: ms(histogram.max()),
            buckets: buckets.map(|one| (one.value_iterated_to(), one.count_at_value())).collect(),
        }
    }

    /// Milliseconds at this quantile, from the buckets.
    pub fn at(&self, quantile: f64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "counts are below 2^52")]
        let wanted = quantile * self.count as f64;
        let mut seen = 0;
        for (bound, count) in &self.buckets {
            seen += count;
            #[expect(clippy::cast_precision_loss, reason = "counts are below 2^52")]
            if seen as f64 >= wanted {
                return ms(*bound);
            }
        }
        self.max
    }
}

/// Wrong answers of a phase.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Wrong {
    /// Answers that were judged.
    pub judged: u64,
    /// Older than a write that had been acknowledged.
    pub stale: u64,
    /// The median age of those in milliseconds, and the oldest.
    pub stale_age_ms: Option<(f64, f64)>,
    /// No record where one had been acknowledged, or a statement with too few transactions.
    pub missing: u64,
    /// Another key's value.
    pub swapped: u64,
    /// A value that nobody wrote, or a statement with too many transactions.
    pub made_up: u64,
    /// The first few in words.
    pub examples: Vec<String>,
}

impl Wrong {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.stale + self.missing + self.swapped + self.made_up
    }
}

/// The load generator's own state in a phase.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Generator {
    /// How busy its threads were, 1 when all the time.
    pub busy: f64,
    /// Its CPU time a request in microseconds.
    pub us_a_request: f64,
    /// 99 in 100 requests left within so many milliseconds of their intended start, or joined the queue.
    pub lag_p99_ms: f64,
    /// The most requests that waited for a free connection at once.
    pub most_waiting: u64,
    /// CPU time of programs that have nothing to do with the run, as a share of all cores.
    pub others: f64,
    /// Time that the host took away, as a share of all cores.
    pub stolen: f64,
}

/// About a second of a phase.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Moment {
    /// Seconds since the phase began, at its end.
    pub at_s: f64,
    /// Good answers a second.
    pub per_second: f64,
    /// Milliseconds.
    pub p50: f64,
    /// Milliseconds.
    pub p99: f64,
    /// Requests without a good answer, in this second.
    pub failed: u64,
}

/// The last read of every key, and of every statement of a user that was posted to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Check {
    /// Keys and statements that were read.
    pub read: u64,
    /// Keys and statements that exist.
    pub of: u64,
    /// Acknowledged and gone.
    pub lost: u64,
    /// Swapped or made up.
    pub wrong: u64,
    /// The first few in words.
    pub examples: Vec<String>,
}

/// A row of `scripts/ratios`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reference {
    /// What is compared.
    pub what: String,
    /// Terrace's figure, and the reference's, a second.
    pub figures: Option<(f64, f64)>,
    /// The reference's name.
    pub reference: String,
    /// Why there is no figure.
    pub trouble: Option<String>,
}

/// Microseconds as milliseconds.
pub fn ms(micros: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "times are below 2^52 microseconds")]
    let ms = micros as f64 / 1000.0;
    ms
}

/// A part of a whole; zero of nothing.
pub fn share(part: u64, whole: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts are below 2^52")]
    let share = if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    share
}

/// The middle value; zero of none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[odd / 2],
        even => f64::midpoint(values[even / 2 - 1], values[even / 2]),
    }
}

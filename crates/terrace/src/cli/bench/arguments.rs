//! What `terrace bench` can be told, and what contradicts itself.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use terrace_bench::feed::Arrivals;
use terrace_bench::figures::Settings;
use terrace_bench::keys::Distribution;
use terrace_bench::workload::{ValueBytes, Workload, hint};

use super::super::{Failure, time};
use crate::config::Mode;

/// Connections of an open loop: enough that a server's stall and not their number is what waits.
const OPEN_CONNECTIONS: usize = 256;

/// Measure levels, or any server with the same API, and write a report.
#[derive(Args, Debug)]
pub(in crate::cli) struct Arguments {
    /// Levels by number; all that exist when neither a level nor a URL is given.
    pub(super) levels: Vec<u8>,
    /// Where the levels keep their data; several for one row each.
    #[arg(long, value_enum, value_name = "MODE", value_delimiter = ',', conflicts_with = "url")]
    pub(super) stores: Vec<Mode>,
    /// A running server instead, as http://host:port or name=http://host:port; may be repeated.
    #[arg(long, value_name = "URL", conflicts_with = "levels")]
    pub(super) url: Vec<String>,
    /// The server's process, for its CPU time; one for each --url.
    #[arg(long, value_name = "PID", requires = "url")]
    pub(super) pid: Vec<u32>,
    /// A header on every request, such as 'X-API-Key: secret'; may be repeated.
    #[arg(long, value_name = "NAME: VALUE")]
    pub(super) header: Vec<String>,
    /// The server at --url may show a little less than it acknowledged.
    #[arg(long, requires = "url")]
    pub(super) may_lag: bool,
    /// seed (70 % reads, 30 % writes), ycsb-a to ycsb-f, polyglot (documents and transactions, level 8),
    /// or a TOML file [default: polyglot for level 8 alone, else seed].
    #[arg(long, value_name = "NAME|FILE")]
    pub(super) workload: Option<String>,
    /// Local mode: how far databases are [default: 1ms; 0 for none].
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "url")]
    pub(super) database_rtt: Option<Duration>,
    /// Local mode: how far caches and brokers are [default: 0.3ms, or none without the other].
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "url")]
    pub(super) cache_rtt: Option<Duration>,
    /// Keys that are loaded before.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=50_000_000))]
    pub(super) keys: u32,
    /// Length of values: a number, or a range such as 20-1000.
    #[arg(long, value_name = "N|FROM-TO", default_value = "20", value_parser = value_bytes)]
    pub(super) value_bytes: ValueBytes,
    /// zipfian, uniform or latest [default: the workload's].
    #[arg(long, value_parser = distribution)]
    pub(super) distribution: Option<Distribution>,
    /// Only an open loop, at so many requests a second.
    #[arg(long, value_name = "PER SECOND", conflicts_with_all = ["connections", "ladder"])]
    pub(super) rate: Option<f64>,
    /// How an open loop's requests are spaced: poisson or constant.
    #[arg(long, value_parser = arrivals, default_value = "poisson")]
    pub(super) arrivals: Arrivals,
    /// Connections of the closed loop [default: 64].
    #[arg(long, value_name = "N")]
    pub(super) connections: Option<usize>,
    /// Also try rates up to beyond saturation, and find the knee.
    #[arg(long)]
    pub(super) ladder: bool,
    /// How long a phase is, such as 10s or 2m.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time)]
    pub(super) duration: Duration,
    /// Warm up until the hit ratio is flat, for so long at most.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time)]
    pub(super) warmup: Duration,
    /// How often each level has its turn.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) repeat: u32,
    /// Decides all draws.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) seed: u64,
    /// Threads of the generator.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) threads: usize,
    /// A request without an answer by then has failed.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = time)]
    pub(super) timeout: Duration,
    /// Connections send the last Terrace-Token they got: they read their own writes.
    #[arg(long)]
    pub(super) tokens: bool,
    /// Also write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Where the page goes.
    #[arg(long, value_name = "FILE", default_value = "terrace-bench.html")]
    pub(super) report: PathBuf,
    /// Compare with the JSON of an earlier run.
    #[arg(long, value_name = "OLD.json")]
    pub(super) compare: Option<PathBuf>,
    /// Add rows of scripts/ratios: pgbench, webdis, nginx and others on this machine.
    #[arg(long)]
    pub(super) references: bool,
    /// The levels' data lies in a folder of its own below this one, and is removed in the end.
    #[arg(long, value_name = "DIR", default_value = ".terrace", conflicts_with = "url")]
    pub(super) data_dir: PathBuf,
    /// Level N listens on this port + N [default: free ports].
    #[arg(long, value_name = "PORT", conflicts_with = "url")]
    pub(super) port_base: Option<u16>,
}

impl Arguments {
    /// The run that is asked for.
    pub(super) fn settings(&self) -> Result<Settings, Failure> {
        let usual = if self.levels == [8] { "polyglot" } else { "seed" };
        let mut workload = workload(self.workload.as_deref().unwrap_or(usual))?;
        if let Some(distribution) = self.distribution {
            workload.distribution = distribution;
        }
        if self.rate.is_some_and(|rate| !(0.1..=10_000_000.0).contains(&rate)) {
            return Err(Failure::usage("--rate must be between 0.1 and 10000000 a second"));
        }
        let connections = self.connections.unwrap_or(64);
        if !(1..=100_000).contains(&connections) || !(1..=256).contains(&self.threads) {
            return Err(Failure::usage(
                "--connections goes from 1 to 100000, --threads from 1 to 256",
            ));
        }
        let is_far = self.database_rtt.or(self.cache_rtt).is_some_and(|time| !time.is_zero());
        if is_far && !self.stores.contains(&Mode::Local) {
            return Err(Failure::usage(
                "only private servers are kept at a distance; add --stores local",
            ));
        }
        if self.duration.is_zero() || self.timeout.is_zero() {
            return Err(Failure::usage("--duration and --timeout must be longer than nothing"));
        }
        Ok(Settings {
            workload,
            keys: self.keys,
            value_bytes: self.value_bytes,
            connections: self.rate.is_none().then_some(connections),
            rate: self.rate,
            open_connections: OPEN_CONNECTIONS,
            arrivals: self.arrivals,
            ladder: self.ladder,
            duration_s: self.duration.as_secs_f64(),
            warmup_s: self.warmup.as_secs_f64(),
            repeat: self.repeat,
            seed: self.seed,
            threads: self.threads,
            timeout_ms: u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX),
            tokens: self.tokens,
            database_rtt_ms: self.distance().0.as_secs_f64() * 1e3,
            cache_rtt_ms: self.distance().1.as_secs_f64() * 1e3,
        })
    }

    /// How far databases and caches of the local mode are: what is usual between machines of one
    /// place, unless somebody says otherwise.
    pub(super) fn distance(&self) -> (Duration, Duration) {
        const USUAL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_micros(300));
        if !self.stores.contains(&Mode::Local) {
            return (Duration::ZERO, Duration::ZERO);
        }
        let database = self.database_rtt.unwrap_or(USUAL.0);
        let near = self.cache_rtt.is_none() && database.is_zero();
        (database, if near { database } else { self.cache_rtt.unwrap_or(USUAL.1) })
    }

    /// The same for a level of this mode.
    pub(super) fn distance_of(&self, mode: Mode) -> Vec<String> {
        let (database, cache) = match mode {
            Mode::Local => self.distance(),
            Mode::Embedded | Mode::Servers => return Vec::new(),
        };
        let far = |flag: &str, time: Duration| [flag.to_owned(), format!("{}us", time.as_micros())];
        [far("--database-rtt", database), far("--cache-rtt", cache)].concat()
    }

    /// `--header`, taken apart.
    pub(super) fn headers(&self) -> Result<Vec<(String, String)>, Failure> {
        let apart = |header: &String| {
            let (name, value) = header.split_once(':')?;
            let plain = |text: &str| {
                !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() || c == ' ')
            };
            let (name, value) = (name.trim(), value.trim());
            (plain(name) && !name.contains(' ') && plain(value))
                .then(|| (name.to_owned(), value.to_owned()))
        };
        let parsed = self.header.iter().map(|header| {
            apart(header).ok_or_else(|| {
                Failure::usage("--header must be 'Name: value', in printable ASCII".to_owned())
            })
        });
        parsed.collect()
    }
}

fn workload(name: &str) -> Result<Workload, Failure> {
    if let Some(preset) = Workload::named(name) {
        return Ok(preset);
    }
    let text = std::fs::read_to_string(name).map_err(|error| {
        Failure::usage(format!(
            "there is no workload `{name}`{}; as a file it cannot be read: {error}",
            hint(name, Workload::names().collect::<Vec<_>>().into_iter())
        ))
    })?;
    Workload::from_toml(&text).map_err(|error| Failure::usage(format!("{name}: {error}")))
}

fn value_bytes(text: &str) -> Result<ValueBytes, String> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let number = |part: &str| part.trim().parse::<usize>().map_err(|error| error.to_string());
    let (from, to) = (number(from)?, number(to)?);
    match from <= to && to <= 1024 * 1024 {
        true => Ok(ValueBytes { from, to }),
        false => Err("give a number up to 1048576, or a range from the smaller".into()),
    }
}

fn distribution(text: &str) -> Result<Distribution, String> {
    let unknown = || format!("unknown{}", hint(text, Distribution::NAMES.into_iter()));
    Distribution::named(text).ok_or_else(unknown)
}

fn arrivals(text: &str) -> Result<Arrivals, String> {
    match text {
        "poisson" => Ok(Arrivals::Poisson),
        "constant" => Ok(Arrivals::Constant),
        _ => Err(format!("unknown{}", hint(text, ["poisson", "constant"].into_iter()))),
    }
}

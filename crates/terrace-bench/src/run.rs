//! A run: targets in turn, phases on each, figures of all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use terrace_core::Runtime;

use crate::feed::Loop;
use crate::figures::{FORMAT, Kind, PhaseFigures, Report, Settings, TargetFigures, median};
use crate::machine::Machine;
use crate::phase::Session;
use crate::tally::Tick;

/// The ladder's rates, as parts of what the closed loop reached.
const LADDER: [f64; 9] = [0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.15, 1.3];

/// A server to measure.
#[derive(Clone, Debug)]
pub struct Target {
    /// Short: `L1`.
    pub name: String,
    /// For people.
    pub title: String,
    /// The level, where it is one.
    pub level: Option<u8>,
    /// The mode of its stores, where it is a level.
    pub stores: Option<String>,
    /// `host:port`.
    pub authority: String,
    /// Headers on every request.
    pub headers: Vec<(String, String)>,
    /// The processes under test; their descendants belong to them.
    pub pids: Vec<u32>,
    /// Whether a read may lag behind what was acknowledged.
    pub may_lag: bool,
}

/// Hears how a run goes on.
pub trait Watch: Sync {
    /// Something begins that takes about so long; none when nobody knows.
    fn begin(&self, what: &str, about: Option<Duration>);
    /// So far.
    fn tick(&self, tick: &Tick, every: Duration);
    /// It ended, with this result.
    fn end(&self, result: &str);
}

/// Whether the server can be measured: reached, and with the documents' API.
///
/// # Errors
/// What is wrong with it, for people.
pub fn probe(target: &Target, timeout: Duration, stop: &AtomicBool) -> Result<(), String> {
    Session::open(target, &Settings::for_probe(timeout), stop).map(|_| ())
}

/// Measures all targets. A target that fails keeps what was measured of it; `stop` ends the run.
pub fn run(
    settings: &Settings,
    targets: &[Target],
    watch: &dyn Watch,
    stop: &AtomicBool,
) -> Report {
    let mut turns: Vec<Turn<'_>> =
        targets.iter().map(|target| Turn::begin(target, settings, watch, stop)).collect();
    for repeat in 1..=settings.repeat {
        for turn in &mut turns {
            turn.take(repeat, watch);
        }
    }
    if settings.ladder {
        for turn in &mut turns {
            turn.climb(watch);
        }
    }
    let mut finished = Vec::new();
    for turn in turns {
        finished.push(turn.finish(watch));
    }
    Report {
        format: FORMAT,
        made_at: Runtime::system().wall().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        cut_short: stop.load(Ordering::Relaxed),
        machine: Machine::here(),
        settings: settings.clone(),
        targets: finished,
        references: Vec::new(),
    }
}

/// One target through the run.
struct Turn<'a> {
    settings: &'a Settings,
    stop: &'a AtomicBool,
    session: Option<Session<'a>>,
    figures: TargetFigures,
    half: Option<f64>,
}

impl<'a> Turn<'a> {
    fn begin(
        target: &'a Target,
        settings: &'a Settings,
        watch: &dyn Watch,
        stop: &'a AtomicBool,
    ) -> Self {
        let figures = TargetFigures {
            name: target.name.clone(),
            title: target.title.clone(),
            level: target.level,
            stores: target.stores.clone(),
            may_lag: target.may_lag,
            trouble: None,
            phases: Vec::new(),
            check: None,
        };
        let mut turn = Self { settings, stop, session: None, figures, half: None };
        if stop.load(Ordering::Relaxed) {
            return turn;
        }
        watch.begin(&format!("{}: loading {} keys", target.name, settings.keys), None);
        let opened = Session::open(target, settings, stop)
            .and_then(|mut session| session.load(watch).map(|()| session));
        match opened {
            Ok(session) => turn.session = Some(session),
            Err(why) => turn.figures.trouble = Some(why),
        }
        watch.end(turn.figures.trouble.as_deref().unwrap_or("loaded"));
        turn
    }

    fn stopped(&self) -> bool {
        self.session.is_none() || self.stop.load(Ordering::Relaxed)
    }

    fn take(&mut self, repeat: u32, watch: &dyn Watch) {
        if self.stopped() {
            return;
        }
        if let Some(session) = &mut self.session {
            session.warm_up(watch);
        }
        if let Some(connections) = self.settings.connections {
            self.phase(Kind::Closed, repeat, None, connections, watch);
        }
        // The same rate at every turn, so that turns can be compared.
        let half = match self.settings.rate {
            Some(rate) => Some(rate),
            None => self.half.or_else(|| self.capacity().map(|capacity| capacity / 2.0)),
        };
        self.half = half;
        if let Some(rate) = half {
            self.phase(Kind::Open, repeat, Some(rate), self.settings.open_connections, watch);
        }
    }

    fn climb(&mut self, watch: &dyn Watch) {
        let Some(capacity) = self.capacity() else { return };
        for part in LADDER {
            let connections = self.settings.open_connections;
            self.phase(Kind::Ladder, 1, Some(capacity * part), connections, watch);
        }
    }

    /// What the closed loop reached.
    fn capacity(&self) -> Option<f64> {
        let closed = self.figures.phases.iter().filter(|phase| phase.kind == Kind::Closed);
        let reached = median(closed.map(|phase| phase.per_second));
        (reached >= 1.0).then_some(reached)
    }

    fn phase(
        &mut self,
        kind: Kind,
        repeat: u32,
        rate: Option<f64>,
        connections: usize,
        watch: &dyn Watch,
    ) {
        if self.stopped() {
            return;
        }
        let Some(session) = &mut self.session else { return };
        let name = &self.figures.name;
        let what = match rate {
            None => format!("{name}: closed loop, {connections} connections"),
            Some(rate) => format!("{name}: open loop, {rate:.0}/s"),
        };
        let time = Duration::from_secs_f64(self.settings.duration_s);
        watch.begin(&what, Some(time));
        let offered = rate.map_or(Loop::Closed, |rate| Loop::Open(rate, self.settings.arrivals));
        let mut measured = session.measure(offered, connections, time, watch);
        (measured.kind, measured.repeat) = (kind, repeat);
        watch.end(&in_a_line(&measured));
        self.figures.phases.push(measured);
    }

    fn finish(mut self, watch: &dyn Watch) -> TargetFigures {
        if !self.stopped()
            && let Some(session) = &self.session
        {
            watch.begin(&format!("{}: reading everything once more", self.figures.name), None);
            match session.check() {
                Ok(check) => {
                    let result =
                        format!("{} of {} read, {} lost", check.read, check.of, check.lost);
                    watch.end(&result);
                    self.figures.check = Some(check);
                }
                Err(why) => {
                    watch.end(&why);
                    self.figures.trouble = Some(why);
                }
            }
        }
        self.figures
    }
}

fn in_a_line(phase: &PhaseFigures) -> String {
    let mut line = format!(
        "{:.0}/s, p50 {:.2} ms, p99 {:.2} ms",
        phase.per_second, phase.latency.p50, phase.latency.p99
    );
    if phase.failed() > 0 {
        line += &format!(", {} failed", phase.failed());
    }
    if phase.findings.total() > 0 {
        line += &format!(", {} wrong", phase.findings.total());
    }
    line
}

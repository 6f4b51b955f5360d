//! A target's phases in a few figures, and what a level bought in a sentence.

use std::collections::BTreeMap;

use crate::figures::{Kind, PhaseFigures, Report, TargetFigures, median, share};

/// A figure over the turns of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Band {
    /// The middle one.
    pub median: f64,
    /// The lowest.
    pub low: f64,
    /// The highest.
    pub high: f64,
    /// How many.
    pub turns: usize,
}

impl Band {
    /// Of these values, if there are any.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().collect();
        let low = values.iter().copied().min_by(f64::total_cmp)?;
        let high = values.iter().copied().max_by(f64::total_cmp)?;
        Some(Self { median: median(values.iter().copied()), low, high, turns: values.len() })
    }

    /// Half the way from the lowest to the highest, in percent of the median.
    pub fn percent(self) -> f64 {
        match self.median > 0.0 {
            true => 100.0 * (self.high - self.low) / 2.0 / self.median,
            false => 0.0,
        }
    }

    /// Whether the turns of the two do not overlap, so that noise does not explain the difference.
    pub fn differs(self, other: Self) -> bool {
        self.low > other.high || self.high < other.low
    }
}

/// A target in a few figures; those of phases that were not run are none.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Good answers a second in the closed loop.
    pub most: Option<Band>,
    /// Requests a second that the open loop offered.
    pub rate: Option<f64>,
    /// Milliseconds in the open loop.
    pub p50: Option<Band>,
    /// Milliseconds in the open loop.
    pub p99: Option<Band>,
    /// Microseconds of the target's CPU a request, closed loop before open.
    pub cpu_us: Option<Band>,
    /// The share of reads that a cache answered.
    pub hit_ratio: Option<f64>,
    /// Reads by origin.
    pub origins: BTreeMap<String, u64>,
    /// Writes by durability.
    pub durabilities: BTreeMap<String, u64>,
    /// Requests without a good answer, by kind, but for those of the ladder.
    pub failures: BTreeMap<String, u64>,
    /// Good answers, but for those of the ladder.
    pub done: u64,
    /// Answers that were judged.
    pub judged: u64,
    /// Wrong answers, lost writes among them.
    pub wrong: u64,
    /// Reads that were behind a write, of a target that says that they may be.
    pub lagged: u64,
    /// Reasons not to trust the figures, each once.
    pub doubts: Vec<String>,
}

impl Summary {
    /// Of this target.
    pub fn of(target: &TargetFigures) -> Self {
        let of_kind = |kind| target.phases.iter().filter(move |phase| phase.kind == kind);
        let closed = || of_kind(Kind::Closed);
        let open = || of_kind(Kind::Open);
        let mut summary = Self {
            most: Band::of(closed().map(|phase| phase.per_second)),
            rate: open().find_map(|phase| phase.offered),
            p50: Band::of(open().map(|phase| phase.latency.p50)),
            p99: Band::of(open().map(|phase| phase.latency.p99)),
            cpu_us: Band::of(closed().filter_map(PhaseFigures::cpu))
                .or_else(|| Band::of(open().filter_map(PhaseFigures::cpu))),
            ..Self::default()
        };
        for phase in &target.phases {
            summary.judged += phase.findings.judged;
            summary.wrong += phase.findings.total();
            if target.may_lag {
                summary.wrong -= phase.findings.stale;
                summary.lagged += phase.findings.stale;
            }
            if phase.kind == Kind::Ladder {
                continue;
            }
            summary.done += phase.done;
            add(&mut summary.origins, &phase.origins);
            add(&mut summary.durabilities, &phase.durabilities);
            add(&mut summary.failures, &phase.failures);
            summary.doubt(phase);
        }
        if let Some(check) = &target.check {
            summary.judged += check.read;
            summary.wrong += check.lost + check.wrong;
        }
        let reads: u64 = summary.origins.values().sum();
        let hits = ["near", "far"].iter().filter_map(|at| summary.origins.get(*at)).sum();
        summary.hit_ratio = (reads > 0).then(|| share(hits, reads));
        summary
    }

    fn doubt(&mut self, phase: &PhaseFigures) {
        let kind = if phase.kind == Kind::Closed { "closed loop" } else { "open loop" };
        for doubt in &phase.doubts {
            let text = format!("{kind}, turn {}: {doubt}", phase.repeat);
            // One of a sort is enough to know.
            let sort = doubt.split(':').next().unwrap_or_default().split(" used").next();
            let sort = sort.unwrap_or_default();
            if !self.doubts.iter().any(|known| known.contains(sort) && known.starts_with(kind)) {
                self.doubts.push(text);
            }
        }
    }

    /// Requests without a good answer.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// What a reader of the figures must know.
    pub fn notes(&self, target: &TargetFigures) -> Vec<String> {
        let mut notes: Vec<String> = target.trouble.iter().cloned().collect();
        for (kind, count) in &self.failures {
            notes.push(format!("{count} requests failed: {kind}"));
        }
        if self.lagged > 0 {
            let lagged = thousands_of(self.lagged);
            notes.push(format!("{lagged} reads lagged behind a write, as it says they may"));
        }
        if self.wrong > 0 {
            let examples = target.phases.iter().flat_map(|phase| &phase.findings.examples);
            let last = target.check.iter().flat_map(|check| &check.examples);
            let examples = examples.chain(last).take(3);
            notes.extend(examples.map(|example| format!("wrong answer: {example}")));
        }
        notes.extend(self.doubts.iter().map(|doubt| format!("not a good figure: {doubt}")));
        notes
    }
}

fn add(into: &mut BTreeMap<String, u64>, from: &BTreeMap<String, u64>) {
    for (name, count) in from {
        *into.entry(name.clone()).or_default() += count;
    }
}

/// "What each level bought you": a sentence a target, beside the one below it with the same stores.
pub fn headlines(report: &Report) -> Vec<String> {
    let summaries: Vec<Summary> = report.targets.iter().map(Summary::of).collect();
    (0..report.targets.len())
        .map(|at| {
            let target = &report.targets[at];
            let below = (0..at).rev().find(|other| report.targets[*other].stores == target.stores);
            sentence(target, &summaries[at], below.map(|at| (&report.targets[at], &summaries[at])))
        })
        .collect()
}

fn sentence(
    target: &TargetFigures,
    summary: &Summary,
    below: Option<(&TargetFigures, &Summary)>,
) -> String {
    if let (true, Some(why)) = (target.phases.is_empty(), &target.trouble) {
        return format!("Not measured: {why}.");
    }
    let mut parts = Vec::new();
    if let Some(most) = summary.most {
        let own = format!("{} requests a second at most", thousands(most.median));
        let beside = below.and_then(|(below, other)| Some((below, other.most?)));
        parts.push(match beside {
            Some((below, other)) => format!("{own}, {}", against(most, other, &below.name)),
            None => own,
        });
    }
    if let (Some(p99), Some(rate)) = (summary.p99, summary.rate) {
        parts.push(format!(
            "99 of 100 answers within {} at {} a second",
            millis(p99.median),
            thousands(rate)
        ));
    }
    parts.extend(halves(target));
    if let Some(ratio) = summary.hit_ratio.filter(|ratio| *ratio > 0.0) {
        parts.push(format!("{:.0} % of reads from a cache", ratio * 100.0));
    }
    if summary.lagged > 0 {
        let lagged = thousands_of(summary.lagged);
        parts.push(format!("{lagged} reads lagged behind a write, as it says they may"));
    }
    parts.push(match summary.wrong {
        0 => "no wrong answer".to_owned(),
        wrong => format!("{wrong} wrong answers"),
    });
    if summary.failed() > 0 {
        parts.push(format!("{} failed requests", thousands_of(summary.failed())));
    }
    format!("{}.", parts.join("; "))
}

/// "25 times as many as L0", "12 % more than L1", "no difference to L1 beyond noise".
fn against(own: Band, other: Band, name: &str) -> String {
    let ratio = own.median / other.median.max(1e-9);
    let clear = own.differs(other) && (own.turns > 1 || (ratio - 1.0).abs() > 0.2);
    match ratio {
        _ if !clear => format!("no difference to {name} beyond noise"),
        ratio if ratio >= 10.0 => format!("{ratio:.0} times as many as {name}"),
        ratio if ratio >= 2.0 => format!("{ratio:.1} times as many as {name}"),
        ratio if ratio >= 1.0 => format!("{:.0} % more than {name}", (ratio - 1.0) * 100.0),
        ratio => format!("{:.0} % fewer than {name}", (1.0 - ratio) * 100.0),
    }
}

/// The highest offered rate that a ladder kept up with: nearly all answered, and the 99th percentile
/// within five times that of the lowest rate or within 20 ms.
pub fn knee(target: &TargetFigures) -> Option<&PhaseFigures> {
    let steps: Vec<_> = target.phases.iter().filter(|phase| phase.kind == Kind::Ladder).collect();
    let bound = (steps.first()?.latency.p99 * 5.0).max(20.0);
    let kept = |phase: &&&PhaseFigures| {
        let offered = phase.offered.unwrap_or_default();
        phase.latency.p99 <= bound && phase.per_second >= 0.95 * offered && phase.failed() == 0
    };
    steps.iter().take_while(kept).last().copied()
}

/// `12 345`.
pub fn thousands(number: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count, rounded")]
    thousands_of(number.max(0.0).round() as u64)
}

/// `12 345`.
pub fn thousands_of(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// `0.35 ms`, `12 ms`, `1.2 s`.
pub fn millis(ms: f64) -> String {
    match ms {
        ms if ms >= 1000.0 => format!("{:.1} s", ms / 1000.0),
        ms if ms >= 100.0 => format!("{ms:.0} ms"),
        ms if ms >= 10.0 => format!("{ms:.1} ms"),
        ms => format!("{ms:.2} ms"),
    }
}

/// The medians of reads and writes, which a cache moves apart.
fn halves(target: &TargetFigures) -> Option<String> {
    let half = |(operation, word): (&str, &str)| {
        let open = target.phases.iter().filter(|phase| phase.kind == Kind::Open);
        let all: Vec<_> = open.filter_map(|phase| phase.operations.get(operation)).collect();
        let p50 = median(all.iter().map(|latency| latency.p50));
        (!all.is_empty()).then(|| format!("of the {word} within {}", millis(p50)))
    };
    let all: Vec<_> =
        [("read", "reads"), ("update", "writes"), ("post", "posts"), ("statement", "statements")]
            .into_iter()
            .filter_map(half)
            .collect();
    (!all.is_empty()).then(|| format!("half {}", all.join(", ")))
}

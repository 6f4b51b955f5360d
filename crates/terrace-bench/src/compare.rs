//! A run beside an earlier one: what changed, and what is only noise.

use serde::Serialize;

use crate::figures::Report;
use crate::summary::{Band, Summary};

/// Differences below this are never called one, however quiet the turns were.
const FLOOR_PERCENT: f64 = 3.0;

/// What changed since an earlier run.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// When the earlier one was made.
    pub since: String,
    /// What was not the same, beside the program.
    pub unlike: Vec<String>,
    /// A row a figure and target.
    pub rows: Vec<Row>,
}

/// One figure, then and now.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Which target.
    pub target: String,
    /// Which figure.
    pub figure: &'static str,
    /// Then.
    pub old: f64,
    /// Now.
    pub new: f64,
    /// In percent of the old one.
    pub change: f64,
    /// The noise of both runs, in percent; none when one has a single turn.
    pub noise: Option<f64>,
    /// In words.
    pub verdict: &'static str,
}

/// What changed from `old` to `new`.
pub fn compare(old: &Report, new: &Report) -> Comparison {
    let mut unlike = Vec::new();
    let settings = |report: &Report| serde_json::to_value(&report.settings).unwrap_or_default();
    if let (Some(then), Some(now)) = (settings(old).as_object(), settings(new).as_object()) {
        for (name, value) in now {
            // More turns measure the same, only better.
            if name != "repeat" && name != "ladder" && then.get(name) != Some(value) {
                let before = then.get(name).cloned().unwrap_or_default();
                unlike.push(format!("{name} was {before}, is {value}"));
            }
        }
    }
    if old.machine != new.machine {
        unlike.push("the machine is another, or has another system".into());
    }
    let mut rows = Vec::new();
    for target in &new.targets {
        let same = old
            .targets
            .iter()
            .find(|other| other.name == target.name && other.stores == target.stores);
        let Some(same) = same else { continue };
        let (then, now) = (Summary::of(same), Summary::of(target));
        for (figure, more_is_better, then, now) in [
            ("most requests a second", true, then.most, now.most),
            ("median latency", false, then.p50, now.p50),
            ("99th percentile", false, then.p99, now.p99),
            ("CPU a request", false, then.cpu_us, now.cpu_us),
        ] {
            if let (Some(then), Some(now)) = (then, now) {
                rows.push(row(&target.name, figure, more_is_better, then, now));
            }
        }
    }
    Comparison { since: old.made_at.clone(), unlike, rows }
}

fn row(target: &str, figure: &'static str, more_is_better: bool, old: Band, new: Band) -> Row {
    let change = 100.0 * (new.median / old.median.max(1e-9) - 1.0);
    let repeated = old.turns > 1 && new.turns > 1;
    let noise = repeated.then(|| (old.percent() + new.percent()).max(FLOOR_PERCENT));
    let verdict = match noise {
        None => "not judged: one turn only",
        Some(noise) if change.abs() <= noise || !old.differs(new) => "no difference",
        Some(_) if (change > 0.0) == more_is_better => "better",
        Some(_) => "worse",
    };
    Row {
        target: target.to_owned(),
        figure,
        old: old.median,
        new: new.median,
        change,
        noise,
        verdict,
    }
}

impl Comparison {
    /// For a terminal.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("Compared with {}:", self.since)];
        lines.extend(self.unlike.iter().map(|unlike| format!("  not alike: {unlike}")));
        lines.extend(self.rows.iter().map(|row| {
            let noise = row.noise.map_or(String::new(), |noise| format!(" (noise {noise:.1} %)"));
            let Row { target, figure, change, verdict, .. } = row;
            format!("  {target:<12} {figure:<22} {change:>+7.1} %{noise}: {verdict}")
        }));
        if self.rows.is_empty() {
            lines.push("  nothing that both measured".into());
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn band(low: f64, median: f64, high: f64) -> Band {
        Band { median, low, high, turns: 3 }
    }

    #[test]
    fn noise_is_no_difference_and_a_difference_is_said() {
        let verdict = |old, new| row("L1", "x", true, old, new).verdict;
        let old = band(95.0, 100.0, 105.0);
        assert_eq!(verdict(old, band(97.0, 108.0, 110.0)), "no difference");
        assert_eq!(verdict(old, band(118.0, 120.0, 122.0)), "better");
        assert_eq!(verdict(old, band(78.0, 80.0, 82.0)), "worse");
        let quiet = band(100.0, 100.0, 100.0);
        assert_eq!(verdict(quiet, band(102.0, 102.0, 102.0)), "no difference");
        assert_eq!(row("L1", "x", false, old, band(78.0, 80.0, 82.0)).verdict, "better");
        let once = Band { turns: 1, ..old };
        assert_eq!(verdict(once, band(200.0, 200.0, 200.0)), "not judged: one turn only");
    }
}

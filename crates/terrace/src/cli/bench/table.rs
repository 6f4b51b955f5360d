//! The result on the terminal, at most 80 columns wide.

use terrace_bench::compare::Comparison;
use terrace_bench::figures::{Report, TargetFigures};
use terrace_bench::summary::Summary;

use super::super::screen;

/// Prints the levels side by side, what was found, and what changed.
pub(super) fn print(report: &Report, comparison: Option<&Comparison>) {
    screen::line("");
    if report.cut_short {
        screen::line(&screen::bold("Cut short: these are the figures up to then."));
        screen::line("");
    }
    let headings = ["", "MOST/s", "±%", "RATE/s", "p50 ms", "p99 ms", "CPU µs", "HIT %", "WRONG"];
    screen::table(headings, report.targets.iter().map(row));
    screen::line("");
    screen::line("MOST: closed loop. p50, p99: open loop at RATE, from each intended start.");
    let notes = report.targets.iter().flat_map(|target| {
        let notes = Summary::of(target).notes(target);
        notes.into_iter().map(|note| [target.name.clone(), note])
    });
    screen::facts(notes);
    if let Some(comparison) = comparison {
        screen::line("");
        for line in comparison.lines() {
            screen::line(&line);
        }
    }
}

fn row(target: &TargetFigures) -> [String; 9] {
    let summary = Summary::of(target);
    let whole = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.0}"));
    let fine = |value: Option<f64>| {
        value.map_or("-".into(), |value| format!("{value:.*}", if value < 100.0 { 2 } else { 0 }))
    };
    [
        target.name.clone(),
        whole(summary.most.map(|band| band.median)),
        whole(summary.most.map(|band| band.percent())),
        whole(summary.rate),
        fine(summary.p50.map(|band| band.median)),
        fine(summary.p99.map(|band| band.median)),
        fine(summary.cpu_us.map(|band| band.median)),
        whole(summary.hit_ratio.map(|ratio| ratio * 100.0)),
        summary.wrong.to_string(),
    ]
}

//! The sections of the page, figures first as a picture and then as a table.

use maud::{Markup, html};

use super::chart::{Scale, Series, bar, cell, chart};
use crate::figures::{Kind, Latency, PhaseFigures, Report, TargetFigures, median};
use crate::summary::{Band, Summary, knee, millis, thousands, thousands_of};
use crate::workload::Operation;

/// The quantiles of the percentile table.
const QUANTILES: [(f64, &str); 7] = [
    (0.5, "50 %"),
    (0.9, "90 %"),
    (0.95, "95 %"),
    (0.99, "99 %"),
    (0.999, "99.9 %"),
    (0.9999, "99.99 %"),
    (1.0, "slowest"),
];

pub(super) fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Markup {
    html! {
        div.wide tabindex="0" role="region" aria-label=(headings.join(", ")) {
            table {
                thead { tr { @for heading in headings { th scope="col" { (heading) } } } }
                tbody { @for row in rows { tr { @for text in row { td { (text) } } } } }
            }
        }
    }
}

fn as_table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Markup {
    html! { details { summary { "The same as a table" } (table(headings, rows)) } }
}

fn banded(band: Option<Band>, unit: impl Fn(f64) -> String) -> String {
    let Some(band) = band else { return "–".into() };
    match band.turns {
        1 => unit(band.median),
        _ => format!("{} ({} to {})", unit(band.median), unit(band.low), unit(band.high)),
    }
}

pub(super) fn of_kind(target: &TargetFigures, kind: Kind) -> impl Iterator<Item = &PhaseFigures> {
    target.phases.iter().filter(move |phase| phase.kind == kind)
}

/// Bars for the most requests a second, the median and the 99th percentile.
pub(super) fn side_by_side(report: &Report, summaries: &[Summary]) -> Markup {
    let bars = |title: &str,
                pick: &dyn Fn(&Summary) -> Option<f64>,
                unit: &dyn Fn(f64) -> String| {
        let longest = summaries.iter().filter_map(pick).fold(0.0, f64::max);
        html! {
            div.card {
                h3 { (title) }
                div.bars {
                    @for (at, (target, summary)) in report.targets.iter().zip(summaries).enumerate() {
                        @match pick(summary) {
                            Some(value) => (bar(&target.name, at, value / longest.max(1e-9), &unit(value))),
                            None => (bar(&target.name, at, 0.0, "–")),
                        }
                    }
                }
            }
        }
    };
    let rows = report.targets.iter().zip(summaries).map(|(target, summary)| {
        vec![
            target.name.clone(),
            banded(summary.most, thousands),
            summary.rate.map_or("–".into(), thousands),
            banded(summary.p50, millis),
            banded(summary.p99, millis),
            summary.cpu_us.map_or("–".into(), |cpu| format!("{:.1} µs", cpu.median)),
            thousands_of(summary.failed()),
        ]
    });
    html! {
        p { "The most is what a closed loop got through. Latencies are of an open loop at the rate in the table: each counts from the moment its request was due, so a stall shows." }
        div.grid {
            (bars("Requests a second at most", &|one| one.most.map(|band| band.median), &thousands))
            (bars("Median latency", &|one| one.p50.map(|band| band.median), &millis))
            (bars("99 of 100 answers within", &|one| one.p99.map(|band| band.median), &millis))
        }
        (as_table(&["", "most a second", "offered a second", "median", "99 %", "CPU a request", "failed"], rows))
        (operations(report))
    }
}

fn operations(report: &Report) -> Markup {
    let rows = report.targets.iter().flat_map(|target| {
        Operation::ALL.iter().filter_map(move |operation| {
            let of = |phase: &&PhaseFigures| phase.operations.contains_key(operation.as_str());
            let phases: Vec<_> = of_kind(target, Kind::Open).filter(of).collect();
            let at = |pick: fn(&Latency) -> f64| {
                millis(median(
                    phases.iter().map(|phase| pick(&phase.operations[operation.as_str()])),
                ))
            };
            (!phases.is_empty()).then(|| {
                let name = format!("{} {}", target.name, operation.as_str());
                vec![
                    name,
                    at(|one| one.p50),
                    at(|one| one.p90),
                    at(|one| one.p99),
                    at(|one| one.p999),
                ]
            })
        })
    });
    let cpu = report.targets.iter().flat_map(|target| {
        let phase = of_kind(target, Kind::Closed).last().or(of_kind(target, Kind::Open).last());
        phase.into_iter().flat_map(|phase| &phase.cpu_us).map(|(program, micros)| {
            vec![format!("{} {program}", target.name), format!("{micros:.1} µs")]
        })
    });
    html! {
        details { summary { "By operation (open loop)" } (table(&["", "50 %", "90 %", "99 %", "99.9 %"], rows)) }
        details { summary { "CPU time a request, by program" } (table(&["", "CPU"], cpu)) }
    }
}

/// Latency by percentile of the open loop, all turns together.
pub(super) fn percentiles(report: &Report) -> Markup {
    let whole: Vec<Option<Latency>> = report.targets.iter().map(all_turns).collect();
    let series: Vec<Series> = report
        .targets
        .iter()
        .zip(&whole)
        .enumerate()
        .filter_map(|(colour, (target, latency))| {
            let latency = latency.as_ref()?;
            let points = (0..=40)
                .map(|step| f64::from(step) / 10.0)
                // Beyond what was counted there is nothing to draw.
                .filter(|nines| {
                    10f64.powf(*nines)
                        <= f64::from(u32::try_from(latency.count).unwrap_or(u32::MAX))
                })
                .map(|nines| (nines, latency.at(1.0 - 10f64.powf(-nines))))
                .collect();
            Some(Series { name: target.name.clone(), colour, points, marks: Vec::new() })
        })
        .collect();
    if series.is_empty() {
        return html! { p { "No open loop was run." } };
    }
    let mut headings = vec![""];
    headings.extend(QUANTILES.map(|(_, name)| name));
    let rows = report.targets.iter().zip(&whole).map(|(target, latency)| {
        let at = |(quantile, _): (f64, &str)| latency.as_ref().map(|one| one.at(quantile));
        let cells = QUANTILES.map(|quantile| cell(at(quantile)));
        [target.name.clone()].into_iter().chain(cells).collect()
    });
    html! {
        p { "Read it from the right: the far end is what the unluckiest requests waited. Failed requests count with the whole time they were given." }
        div.grid {
            div.card { (chart("Latency by percentile, a line a level", (Scale::Nines, "share of requests that were faster"), Scale::Millis, &series)) }
        }
        (as_table(&headings, rows))
    }
}

/// All open turns of a target as one distribution.
fn all_turns(target: &TargetFigures) -> Option<Latency> {
    let mut whole: Option<Latency> = None;
    for phase in of_kind(target, Kind::Open) {
        let latency = &phase.latency;
        match &mut whole {
            None => whole = Some(latency.clone()),
            Some(whole) => {
                whole.count += latency.count;
                whole.max = whole.max.max(latency.max);
                whole.buckets.extend(&latency.buckets);
            }
        }
    }
    if let Some(whole) = &mut whole {
        whole.buckets.sort_unstable();
    }
    whole
}

/// The ladder: offered rates against the 99th percentile.
pub(super) fn ladder(report: &Report) -> Markup {
    let has = |target: &&TargetFigures| of_kind(target, Kind::Ladder).next().is_some();
    if !report.targets.iter().any(|target| has(&target)) {
        return html! { p { "Not measured in this run; " code { "--ladder" } " tries rates up to beyond saturation." } };
    }
    let point = |phase: &PhaseFigures| (phase.per_second, phase.latency.p99);
    let series: Vec<Series> = report
        .targets
        .iter()
        .enumerate()
        .filter(|(_, target)| has(target))
        .map(|(colour, target)| Series {
            name: target.name.clone(),
            colour,
            points: of_kind(target, Kind::Ladder).map(point).collect(),
            marks: Vec::new(),
        })
        .collect();
    let rows = report.targets.iter().flat_map(|target| {
        let knee = knee(target).and_then(|phase| phase.offered);
        of_kind(target, Kind::Ladder).map(move |phase| {
            vec![
                target.name.clone(),
                thousands(phase.offered.unwrap_or_default()),
                thousands(phase.per_second),
                millis(phase.latency.p50),
                millis(phase.latency.p99),
                thousands_of(phase.failed()),
                if phase.offered == knee { "knee".into() } else { String::new() },
            ]
        })
    });
    html! {
        p { "Each line is a level under a rising rate. Where it turns upwards is the knee: beyond it requests only wait." }
        ul { @for target in &report.targets { @if let Some(phase) = knee(target) {
            li { b { (target.name) } " keeps up to about " (thousands(phase.offered.unwrap_or_default())) " a second, with 99 of 100 answers within " (millis(phase.latency.p99)) "." }
        } } }
        div.grid { div.card { (chart("99th percentile against throughput, a line a level", (Scale::Rate, "answers a second"), Scale::Millis, &series)) } }
        (as_table(&["", "offered", "answered", "50 %", "99 %", "failed", ""], rows))
    }
}

/// Second by second, a chart a target, all turns one after the other.
pub(super) fn timeline(report: &Report) -> Markup {
    html! {
        p { "The 99th percentile of each second of the open loop, all turns one after the other. A red dot is a second in which requests failed." }
        div.grid.plots {
            @for (colour, target) in report.targets.iter().enumerate() {
                @let kind = if of_kind(target, Kind::Open).next().is_some() { Kind::Open } else { Kind::Closed };
                @let (points, marks) = seconds(target, kind);
                @if !points.is_empty() {
                    div.card {
                        h3 { (target.name) }
                        (chart(&format!("99th percentile of {}, second by second", target.name), (Scale::Seconds, "seconds"), Scale::Millis,
                            &[Series { name: format!("{} 99 %", target.name), colour, points, marks }]))
                        (as_table(&["turn", "second", "answers", "50 %", "99 %", "failed"], moments(target, kind)))
                    }
                }
            }
        }
    }
}

type Points = Vec<(f64, f64)>;

fn seconds(target: &TargetFigures, kind: Kind) -> (Points, Points) {
    let (mut points, mut marks) = (Vec::new(), Vec::new());
    let mut before = 0.0;
    for phase in of_kind(target, kind) {
        for moment in &phase.timeline {
            let point = (before + moment.at_s, moment.p99);
            points.push(point);
            if moment.failed > 0 {
                marks.push(point);
            }
        }
        before += phase.timeline.last().map_or(0.0, |last| last.at_s);
    }
    (points, marks)
}

fn moments(target: &TargetFigures, kind: Kind) -> impl Iterator<Item = Vec<String>> {
    of_kind(target, kind).flat_map(|phase| {
        phase.timeline.iter().map(|moment| {
            vec![
                phase.repeat.to_string(),
                format!("{:.0}", moment.at_s),
                thousands(moment.per_second),
                millis(moment.p50),
                millis(moment.p99),
                moment.failed.to_string(),
            ]
        })
    })
}

/// Where reads came from.
pub(super) fn origins(report: &Report, summaries: &[Summary]) -> Markup {
    let mut names: Vec<&String> = summaries.iter().flat_map(|one| one.origins.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let mut headings = vec![""];
    headings.extend(names.iter().map(|name| name.as_str()));
    let percent = |summary: &Summary, name: &String| {
        let reads: u64 = summary.origins.values().sum();
        crate::figures::share(summary.origins.get(name).copied().unwrap_or_default(), reads) * 100.0
    };
    let rows = report.targets.iter().zip(summaries).map(|(target, summary)| {
        let cells = names.iter().map(|name| format!("{:.1} %", percent(summary, name)));
        [target.name.clone()].into_iter().chain(cells).collect()
    });
    html! {
        p { "As each answer's " code { "Terrace-Origin" } " says: " b { "near" } " is a cache in the level's own process, " b { "far" } " a shared one, the rest are databases." }
        div.grid {
            @for (target, summary) in report.targets.iter().zip(summaries) {
                @if !summary.origins.is_empty() {
                    div.card {
                        h3 { (target.name) }
                        div.bars { @for (name, _) in &summary.origins {
                            @let at = names.iter().position(|known| *known == name).unwrap_or_default();
                            (bar(name, at, percent(summary, name) / 100.0, &format!("{:.1} %", percent(summary, name))))
                        } }
                    }
                }
            }
        }
        (as_table(&headings, rows))
    }
}

/// What the verifier found.
pub(super) fn verification(report: &Report, summaries: &[Summary]) -> Markup {
    let sum = |target: &TargetFigures, pick: fn(&PhaseFigures) -> u64| {
        thousands_of(target.phases.iter().map(pick).sum())
    };
    let rows = report.targets.iter().zip(summaries).map(|(target, summary)| {
        let ages = target.phases.iter().filter_map(|phase| phase.findings.stale_age_ms);
        let oldest = ages.map(|(_, oldest)| oldest).max_by(f64::total_cmp);
        let lost = target.check.as_ref().map_or("not checked".into(), |check| {
            format!("{} (of {} read)", check.lost, thousands_of(check.read))
        });
        vec![
            target.name.clone(),
            thousands_of(summary.judged),
            sum(target, |phase| phase.findings.stale),
            cell(oldest),
            sum(target, |phase| phase.findings.missing),
            sum(target, |phase| phase.findings.swapped),
            sum(target, |phase| phase.findings.made_up),
            lost,
            if target.may_lag { "may lag".into() } else { "fresh".into() },
        ]
    });
    let examples = report.targets.iter().flat_map(|target| {
        let during = target.phases.iter().flat_map(|phase| &phase.findings.examples);
        let last = target.check.iter().flat_map(|check| &check.examples);
        during.chain(last).take(5).map(move |example| (&target.name, example))
    });
    html! {
        p { "Every value names the write that made it, and every answer is judged: " b { "stale" } " is older than a write that was acknowledged before the read left, " b { "lost" } " is acknowledged and gone when everything is read once more in the end. A statement of transactions is judged by the posts: without one that was acknowledged it counts as " b { "missing" } ", with one too many as " b { "made up" } ". Writes whose outcome nobody knows count for nothing." }
        (table(&["", "judged", "stale", "oldest", "missing", "swapped", "made up", "lost", "promises"], rows))
        ul { @for (name, example) in examples { li.bad { (name) ": " (example) } } }
    }
}

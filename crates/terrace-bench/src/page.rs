//! The report as one HTML file that needs nothing else: no script, no font, no network.

mod chart;
mod context;
mod sections;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::compare::Comparison;
use crate::figures::Report;
use crate::summary::{Summary, headlines};

/// The parts of the page, as the names of their anchors and for people; a test looks for each.
pub const SECTIONS: [(&str, &str); 9] = [
    ("bought", "What each level bought you"),
    ("side-by-side", "Side by side"),
    ("percentiles", "Latency by percentile"),
    ("knee", "Throughput against latency"),
    ("timeline", "Timeline"),
    ("origins", "Where reads came from"),
    ("verification", "Verification"),
    ("claims", "Claims beside measurements"),
    ("settings", "Settings, durability, machine"),
];

/// The page.
pub fn page(report: &Report, comparison: Option<&Comparison>) -> String {
    let summaries: Vec<Summary> = report.targets.iter().map(Summary::of).collect();
    let [_, side, percentiles, knee, timeline, origins, verification, claims, settings] =
        SECTIONS.map(|(id, title)| move |body: Markup| section(id, title, &body));
    let whole = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Terrace: which level do I need?" }
                link rel="icon" href="data:,";
                style { (PreEscaped(include_str!("page/style.css"))) }
            }
            body {
                a.skip href="#bought" { "Skip to the result" }
                (head(report))
                main {
                    (bought(report, &summaries))
                    @if let Some(comparison) = comparison { (context::compared(comparison)) }
                    (side(sections::side_by_side(report, &summaries)))
                    (percentiles(sections::percentiles(report)))
                    (knee(sections::ladder(report)))
                    (timeline(sections::timeline(report)))
                    (origins(sections::origins(report, &summaries)))
                    (verification(sections::verification(report, &summaries)))
                    (claims(context::claims(report, &summaries)))
                    (settings(context::settings(report, &summaries)))
                }
                footer { "Made by terrace bench on " (report.made_at) ". The page loads nothing from anywhere." }
            }
        }
    };
    whole.into_string()
}

fn section(id: &str, title: &str, body: &Markup) -> Markup {
    html! { section aria-labelledby=(format!("{id}-title")) id=(id) { h2 id=(format!("{id}-title")) { (title) } (body) } }
}

fn head(report: &Report) -> Markup {
    let settings = &report.settings;
    html! {
        header {
            h1 { "Which level do I need?" }
            p.soft {
                (settings.workload.describe()) " over " (settings.keys) " keys ("
                (settings.workload.distribution.as_str()) "), values of " (settings.value_bytes.to_string())
                " bytes, on " (report.machine.cores) " cores that generator, levels and engines share. "
                (report.made_at)
            }
            @if report.cut_short {
                p.warn role="note" { strong { "Cut short. " } "Somebody ended the run before its time; these are the figures up to then." }
            }
            nav aria-label="Sections" {
                @for (id, title) in SECTIONS { a href=(format!("#{id}")) { (title) } }
            }
        }
    }
}

fn bought(report: &Report, summaries: &[Summary]) -> Markup {
    let (id, title) = SECTIONS[0];
    let list = html! {
        p.soft { "Take the lowest one that serves you: each step up costs another engine, or another thing to run." }
        @if summaries.iter().any(|one| !one.doubts.is_empty()) {
            p.warn {
                "Some figures are not good ones, because the generator or the machine was in the way: "
                a href="#settings" { "which, and why" } "."
            }
        }
        ul.bought {
            @for (at, (target, sentence)) in report.targets.iter().zip(headlines(report)).enumerate() {
                li class=(format!("c{}", at % 8)) { b { (target.name) " · " (target.title) } (sentence) }
            }
        }
    };
    section(id, title, &list)
}

#[cfg(test)]
mod tests;

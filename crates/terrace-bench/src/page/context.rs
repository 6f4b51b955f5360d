//! The sections around the figures: claims, settings, an earlier run.

use maud::{Markup, html};

use super::sections::{of_kind, table};
use crate::claims::CLAIMS;
use crate::compare::Comparison;
use crate::figures::{Kind, Report, median, share};
use crate::summary::{Summary, millis, thousands, thousands_of};

/// The described system's table beside what was measured.
pub(super) fn claims(report: &Report, summaries: &[Summary]) -> Markup {
    let rows = CLAIMS.iter().flat_map(|claim| {
        let measured = report.targets.iter().zip(summaries);
        let own = measured.filter(|(target, _)| target.level == Some(claim.level));
        own.flat_map(move |(target, summary)| {
            let at = |operation: &str| {
                let of =
                    of_kind(target, Kind::Open).filter_map(|phase| phase.operations.get(operation));
                let both: Vec<_> = of.map(|one| (one.p50, one.p99)).collect();
                let part = |pick: fn(&(f64, f64)) -> f64| millis(median(both.iter().map(pick)));
                if both.is_empty() {
                    "–".into()
                } else {
                    format!("{} / {}", part(|one| one.0), part(|one| one.1))
                }
            };
            let answered = share(summary.done, summary.done + summary.failed());
            let most =
                summary.most.map_or("–".into(), |most| format!("{}/s", thousands(most.median)));
            vec![
                vec![format!("{} read, 50 % / 99 %", target.name), claim.read.into(), at("read")],
                vec![
                    format!("{} write, 50 % / 99 %", target.name),
                    claim.write.into(),
                    at("update"),
                ],
                vec![format!("{} throughput", target.name), claim.throughput.into(), most],
                vec![
                    format!("{} availability", target.name),
                    claim.availability.into(),
                    format!("{:.3} % answered", answered * 100.0),
                ],
            ]
        })
    });
    let rows: Vec<_> = rows.collect();
    let references = report.references.iter().map(|row| {
        let (own, other, ratio) = match (row.figures, &row.trouble) {
            (Some((own, other)), _) => {
                (thousands(own), thousands(other), format!("{:.2}×", own / other.max(1e-9)))
            }
            (None, trouble) => (trouble.clone().unwrap_or_default(), "–".into(), "–".into()),
        };
        vec![row.what.clone(), own, row.reference.clone(), other, ratio]
    });
    html! {
        @if rows.is_empty() { p { "The described system makes claims for levels 0, 2, 5, 9 and 10 only; none of them was measured here." } }
        @else {
            p { "What the system that Terrace follows claims for its levels, and what this machine measured. A run of minutes says little of availability: the share of answered requests stands in its place." }
            (table(&["", "claimed", "measured"], rows))
        }
        @if !report.references.is_empty() {
            h3 { "Beside other software on this machine" }
            p { "Measured by " code { "scripts/ratios" } " in turns, answers a second." }
            (table(&["", "Terrace", "reference", "its figure", "ratio"], references))
        }
    }
}

/// How the run was made, and what makes figures doubtful.
pub(super) fn settings(report: &Report, summaries: &[Summary]) -> Markup {
    let facts = facts(report);
    let durability = report.targets.iter().zip(summaries).map(|(target, summary)| {
        let words: Vec<_> = summary
            .durabilities
            .iter()
            .map(|(word, count)| format!("{word} ({})", thousands_of(*count)))
            .collect();
        let stores = target.stores.clone().unwrap_or_else(|| target.title.clone());
        vec![
            target.name.clone(),
            stores,
            if words.is_empty() { "no writes".into() } else { words.join(", ") },
        ]
    });
    let generator = report.targets.iter().flat_map(|target| {
        target.phases.iter().map(move |phase| {
            let one = &phase.generator;
            let percent = |part: f64| format!("{:.0} %", part * 100.0);
            vec![
                format!("{} {:?} {}", target.name, phase.kind, phase.repeat).to_lowercase(),
                percent(one.busy),
                format!("{:.1} µs", one.us_a_request),
                millis(one.lag_p99_ms),
                one.most_waiting.to_string(),
                percent(one.others),
                percent(one.stolen),
            ]
        })
    });
    html! {
        @for (target, summary) in report.targets.iter().zip(summaries) {
            @for note in summary.notes(target) { p.warn { b { (target.name) ": " } (note) } }
        }
        div.wide tabindex="0" role="region" aria-label="Settings and machine" {
            table { tbody { @for (name, value) in facts { tr { th.left scope="row" { (name) } td.text { (value) } } } } }
        }
        h3 { "Durability, as the answers to writes say it" }
        p { b { "committed" } ": in the database's log on disk. " b { "journaled" } ": in a durable journal. " b { "accepted" } ": in memory." }
        (table(&["", "stores", "Terrace-Durability"], durability))
        details { summary { "The load generator's own state, phase by phase" }
            (table(&["", "busy", "CPU a request", "late, 99 %", "most waiting", "other programs", "taken by host"], generator)) }
    }
}

fn facts(report: &Report) -> [(&'static str, String); 14] {
    let settings = &report.settings;
    let machine = &report.machine;
    let seconds = |seconds: f64| format!("{seconds} s");
    let far = |what: &str, millis: f64| match millis {
        0.0 => format!("{what} on this machine"),
        millis => format!("{what} {millis} ms away"),
    };
    let open = settings.rate.map_or("half of what the closed loop reached".into(), |rate| {
        format!("{}/s", thousands(rate))
    });
    [
        ("Workload", format!("{}: {}", settings.workload.name, settings.workload.describe())),
        (
            "Keys",
            format!(
                "{}, {}",
                thousands_of(settings.keys.into()),
                settings.workload.distribution.as_str()
            ),
        ),
        ("Value bytes", settings.value_bytes.to_string()),
        (
            "Closed loop",
            settings.connections.map_or("none".into(), |number| format!("{number} connections")),
        ),
        (
            "Open loop",
            format!(
                "{open}, {:?} arrivals, {} connections",
                settings.arrivals, settings.open_connections
            ),
        ),
        ("Each phase", seconds(settings.duration_s)),
        ("Turns", format!("{}, interleaved", settings.repeat)),
        ("Warm-up", format!("until the hit ratio is flat, at most {}", seconds(settings.warmup_s))),
        ("Timeout", format!("{} ms", settings.timeout_ms)),
        ("Tokens sent back", if settings.tokens { "yes".into() } else { "no".into() }),
        (
            "Round trips",
            format!(
                "{}, {}",
                far("databases", settings.database_rtt_ms),
                far("caches", settings.cache_rtt_ms)
            ),
        ),
        ("Generator", format!("{} thread(s), seed {}", settings.threads, settings.seed)),
        (
            "Machine",
            format!(
                "{} cores, {} MiB, {}",
                machine.cores,
                thousands_of(machine.memory_mib),
                machine.processor
            ),
        ),
        ("System", format!("{}, Linux {}", machine.system, machine.kernel)),
    ]
}

/// What changed since an earlier run.
pub(super) fn compared(comparison: &Comparison) -> Markup {
    let rows = comparison.rows.iter().map(|row| {
        let figure =
            |value: f64| if value < 100.0 { format!("{value:.2}") } else { thousands(value) };
        vec![
            row.target.clone(),
            row.figure.into(),
            figure(row.old),
            figure(row.new),
            format!("{:+.1} %", row.change),
            row.noise.map_or("–".into(), |noise| format!("± {noise:.1} %")),
            row.verdict.into(),
        ]
    });
    html! {
        section id="compared" aria-labelledby="compared-title" {
            h2 id="compared-title" { "Compared with the run of " (comparison.since) }
            @for unlike in &comparison.unlike { p.warn { "Not alike: " (unlike) } }
            (table(&["", "figure", "then", "now", "change", "noise", "verdict"], rows))
        }
    }
}

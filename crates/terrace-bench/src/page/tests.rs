use std::path::Path;
use std::process::Command;

use super::*;
use crate::compare::compare;
use crate::feed::Arrivals;
use crate::figures::{
    Check, FORMAT, Generator, Kind, Latency, Moment, PhaseFigures, Reference, Settings,
    TargetFigures, Wrong,
};
use crate::machine::Machine;
use crate::workload::{ValueBytes, Workload};

fn phase(kind: Kind, repeat: u32, per_second: f64) -> PhaseFigures {
    let mut latencies = hdrhistogram::Histogram::new_with_bounds(1, 3_600_000_000, 3).unwrap();
    for micros in 1..=2_000 {
        latencies.record(micros * 10).unwrap();
    }
    let latency = Latency::of(&latencies);
    let count = |name: &str, number| [(name.to_owned(), number)].into();
    PhaseFigures {
        kind,
        repeat,
        offered: (kind != Kind::Closed).then_some(per_second),
        connections: 64,
        seconds: 10.0,
        per_second,
        done: 2_000,
        failures: count("timeout", 3),
        operations: [("read".to_owned(), latency.clone()), ("update".to_owned(), latency.clone())]
            .into(),
        latency,
        origins: [("near".to_owned(), 900), ("primary".to_owned(), 100)].into(),
        durabilities: count("committed", 600),
        findings: Wrong {
            judged: 1_400,
            stale: 1,
            stale_age_ms: Some((2.0, 2.0)),
            examples: vec!["bench-7 showed <b>1.2</b>, superseded".into()],
            ..Wrong::default()
        },
        cpu_us: [("terrace".to_owned(), 12.5)].into(),
        generator: Generator { busy: 0.95, ..Generator::default() },
        doubts: vec!["the generator was the bottleneck: busy 95 %".into()],
        timeline: (1..=10u8)
            .map(|at| Moment {
                at_s: f64::from(at),
                per_second,
                p50: 1.0,
                p99: f64::from(at),
                failed: u64::from(at == 5),
            })
            .collect(),
    }
}

fn target(level: u8, most: f64) -> TargetFigures {
    let mut phases: Vec<_> = (1..=3)
        .flat_map(|turn| [phase(Kind::Closed, turn, most), phase(Kind::Open, turn, most / 2.0)])
        .collect();
    phases.extend([0.1, 0.5, 1.2].map(|part| phase(Kind::Ladder, 1, most * part)));
    TargetFigures {
        name: format!("L{level}"),
        title: "A level".into(),
        level: Some(level),
        stores: Some("embedded".into()),
        may_lag: false,
        trouble: None,
        phases,
        check: Some(Check { read: 100, of: 100, ..Check::default() }),
    }
}

fn report() -> Report {
    Report {
        format: FORMAT,
        made_at: "2026-11-25T00:00:00Z".into(),
        cut_short: true,
        machine: Machine { cores: 2, ..Machine::default() },
        settings: Settings {
            workload: Workload::named("seed").unwrap(),
            keys: 10_000,
            value_bytes: ValueBytes { from: 20, to: 20 },
            connections: Some(64),
            rate: None,
            open_connections: 256,
            arrivals: Arrivals::Poisson,
            ladder: true,
            duration_s: 10.0,
            warmup_s: 10.0,
            repeat: 3,
            seed: 1,
            threads: 1,
            timeout_ms: 5_000,
            database_rtt_ms: 2.0,
            cache_rtt_ms: 0.0,
            tokens: false,
        },
        targets: vec![target(0, 500.0), target(2, 25_000.0)],
        references: vec![Reference {
            what: "L2 hit".into(),
            figures: Some((50_000.0, 40_000.0)),
            reference: "webdis".into(),
            trouble: None,
        }],
    }
}

/// The page as a browser has it after loading, and what its console said.
fn in_a_browser(file: &Path) -> (String, Vec<String>) {
    let profile = tempfile::tempdir().unwrap();
    let candidates = ["chromium", "chromium-browser", "google-chrome"];
    let output = candidates.iter().find_map(|program| {
        let mut command = Command::new(program);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]);
        command.args(["--no-first-run", "--disable-background-networking", "--disable-sync"]);
        command.args(["--disable-component-update", "--enable-logging=stderr", "--dump-dom"]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.arg(format!("file://{}", file.display())).output().ok()
    });
    let output = output.expect(
        "a browser is needed to look at the report: apt-get install chromium, or run ./verify, \
         which installs it",
    );
    let said = String::from_utf8_lossy(&output.stderr);
    let console = said.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned);
    (String::from_utf8_lossy(&output.stdout).into_owned(), console.collect())
}

fn opened(html: &str) -> (String, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.html");
    std::fs::write(&file, html).unwrap();
    in_a_browser(&file)
}

#[test]
fn a_browser_shows_every_section_and_has_nothing_to_complain_of() {
    let report = report();
    let (dom, console) = opened(&page(&report, Some(&compare(&report, &report))));
    for (id, title) in SECTIONS {
        assert!(dom.contains(&format!("<section aria-labelledby=\"{id}-title\" id=\"{id}\">")));
        assert!(dom.contains(&format!(">{title}</h2>")), "{title}");
    }
    assert!(dom.contains("id=\"compared\"") && dom.contains("no difference"));
    assert!(dom.contains("Cut short."));
    assert_eq!(console, Vec::<String>::new());
}

#[test]
fn the_look_at_the_console_would_see_an_error() {
    let (_, console) = opened("<script>throw new Error('seen red')</script>");
    assert!(console.iter().any(|line| line.contains("seen red")), "{console:?}");
}

#[test]
fn the_page_needs_no_network_and_lets_no_answer_in_as_markup() {
    let html = page(&report(), None);
    for loads in ["<script", "<img", "<iframe", "@import", "url(", "href=\"http", "src="] {
        assert!(!html.contains(loads), "{loads}");
    }
    assert!(html.contains("&lt;b&gt;1.2") && !html.contains("<b>1.2"));
    // Each chart has a table beside it.
    assert!(html.matches("<svg").count() <= html.matches("<details").count());
}

#[test]
fn a_read_that_may_lag_is_not_called_wrong() {
    let mut report = report();
    let stale = |report: &mut Report, count| {
        for phase in &mut report.targets[1].phases {
            phase.findings = Wrong { stale: count, ..Wrong::default() };
        }
        report.targets[1].check = None;
    };
    stale(&mut report, 7);
    assert!(headlines(&report)[1].contains("wrong answers"));
    report.targets[1].may_lag = true;
    let second = &headlines(&report)[1];
    assert!(second.contains("lagged behind a write") && second.contains("no wrong answer"));
}

#[test]
fn sentences_say_what_a_level_bought() {
    let [first, second] = <[String; 2]>::try_from(headlines(&report())).unwrap();
    assert!(first.starts_with("500 requests a second at most; 99 of 100 answers"), "{first}");
    assert!(second.contains("50 times as many as L0"), "{second}");
    assert!(second.contains("90 % of reads from a cache"), "{second}");
    assert!(second.contains("wrong answers") && second.contains("failed requests"), "{second}");
    let mut alike = report();
    alike.targets[1] = target(2, 505.0);
    for target in &mut alike.targets {
        for (turn, phase) in target.phases.iter_mut().enumerate() {
            phase.per_second += f64::from(u32::try_from(turn).unwrap()) * 10.0;
        }
    }
    assert!(headlines(&alike)[1].contains("no difference to L0"), "{}", headlines(&alike)[1]);
}

#[test]
fn a_report_survives_its_file() {
    let text = serde_json::to_string(&report()).unwrap();
    let again: Report = serde_json::from_str(&text).unwrap();
    assert_eq!(page(&again, None), page(&report(), None));
}

//! `terrace bench`: which level do I need?

mod arguments;
mod limits;
mod progress;
mod references;
mod started;
mod table;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use terrace_bench::compare::compare;
use terrace_bench::figures::{FORMAT, Report};
use terrace_bench::page::page;
use terrace_bench::run::{Target, probe, run};

pub(super) use arguments::Arguments;

use super::{Failure, known, screen, signals};
use crate::config::Mode;
use crate::levels::{LEVELS, Level};

/// Measures, prints a table, writes the report.
pub(super) fn bench(arguments: &Arguments) -> Result<(), Failure> {
    let settings = arguments.settings()?;
    let headers = arguments.headers()?;
    let old = arguments.compare.as_deref().map(read).transpose()?;
    let script = if arguments.references { Some(references::script()?) } else { None };
    for file in [Some(&arguments.report), arguments.json.as_ref()].into_iter().flatten() {
        writable(file)?;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    // What a second one ends takes with it what it has started.
    signals::listen(130, move |_| asked.store(true, Ordering::Relaxed))?;
    limits::check(&settings)?;
    let mut levels = Vec::new();
    let mut targets = urls(arguments)?;
    if targets.is_empty() {
        levels = start(arguments, &stop)?;
        targets = levels.iter().map(|level| level.target.clone()).collect();
    }
    for target in &mut targets {
        target.headers.extend(headers.iter().cloned());
    }
    // A server that is not there is a mistake of whoever named it.
    if !arguments.url.is_empty() {
        for target in &targets {
            probe(target, arguments.timeout, &stop)
                .map_err(|why| Failure::usage(format!("{}: {why}", target.name)))?;
        }
    }
    let bars = progress::Bars::new(&settings, targets.len());
    let mut report = run(&settings, &targets, &bars, &stop);
    drop(bars);
    drop(levels);
    if let Some(script) = script.filter(|_| !stop.load(Ordering::Relaxed)) {
        report.references = references::rows(&script, &stop)?;
    }
    report.cut_short = stop.load(Ordering::Relaxed);
    let comparison = old.as_ref().map(|old| compare(old, &report));
    write(&arguments.report, page(&report, comparison.as_ref()).as_bytes())?;
    if let Some(file) = &arguments.json {
        let mut text = serde_json::to_vec(&report)
            .map_err(|error| Failure::failed(format!("the figures are no JSON: {error}")))?;
        text.push(b'\n');
        write(file, &text)?;
    }
    table::print(&report, comparison.as_ref());
    screen::line(&format!("Report: {}", arguments.report.display()));
    let troubles = report
        .targets
        .iter()
        .filter_map(|target| target.trouble.as_ref().map(|why| format!("{}: {why}", target.name)));
    match troubles.collect::<Vec<_>>() {
        some if !some.is_empty() && !report.cut_short => {
            Err(Failure::failed(format!("not all could be measured: {}", some.join("; "))))
        }
        _ => Ok(()),
    }
}

/// Targets of `--url`.
fn urls(arguments: &Arguments) -> Result<Vec<Target>, Failure> {
    if !arguments.pid.is_empty() && arguments.pid.len() != arguments.url.len() {
        return Err(Failure::usage("give one --pid for each --url, or none"));
    }
    let mut targets = Vec::new();
    for (at, text) in arguments.url.iter().enumerate() {
        let (name, url) = match text.split_once("=http") {
            Some((name, rest)) => (name.to_owned(), format!("http{rest}")),
            None => (String::new(), text.clone()),
        };
        let authority = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        let authority =
            authority.filter(|rest| !rest.is_empty() && !rest.contains(['/', '@', ' ']));
        let authority = authority.ok_or_else(|| {
            Failure::usage(format!("--url {text}: give http://host:port, without a path"))
        })?;
        let port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let authority = if port { authority.to_owned() } else { format!("{authority}:80") };
        targets.push(Target {
            name: if name.is_empty() { authority.clone() } else { name },
            title: url,
            level: None,
            stores: None,
            authority,
            headers: Vec::new(),
            pids: arguments.pid.get(at).copied().into_iter().collect(),
            may_lag: arguments.may_lag,
        });
    }
    Ok(targets)
}

/// Starts the levels, all of them before the first is measured, so that turns can be interleaved.
fn start(arguments: &Arguments, stop: &AtomicBool) -> Result<Vec<started::Started>, Failure> {
    let mut levels: Vec<&'static Level> = match arguments.levels.as_slice() {
        [] => LEVELS.to_vec(),
        some => some.iter().map(|number| known(*number)).collect::<Result<_, _>>()?,
    };
    levels.sort_by_key(|level| level.number);
    levels.dedup_by_key(|level| level.number);
    let mut modes = arguments.stores.clone();
    if modes.is_empty() {
        modes.push(Mode::Embedded);
    }
    modes.dedup();
    if modes.contains(&Mode::Servers) {
        return Err(Failure::usage(
            "--stores servers: start the level on your servers yourself and give its --url; bench \
             fills the stores it measures with keys of its own",
        ));
    }
    let mut wanted = Vec::new();
    for (place, mode) in modes.iter().enumerate() {
        for level in &levels {
            let port = started::port(arguments.port_base, level.number, place)?;
            let name = match modes.len() {
                1 => format!("L{}", level.number),
                _ => format!("L{} {}", level.number, mode.as_str()),
            };
            wanted.push((*level, *mode, name, port));
        }
    }
    let mut running = Vec::new();
    for (level, mode, name, port) in wanted {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        running.extend(started::start(level, mode, name, arguments, port, stop)?);
    }
    Ok(running)
}

/// An earlier run.
fn read(file: &Path) -> Result<Report, Failure> {
    let wrong = |why: String| Failure::usage(format!("--compare {}: {why}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    let format = serde_json::from_str::<serde_json::Value>(&text)
        .map_err(|error| wrong(format!("it is no JSON: {error}")))?;
    let format = format.get("format").and_then(serde_json::Value::as_u64);
    if format != Some(u64::from(FORMAT)) {
        return Err(wrong(format!("it has format {format:?}, this Terrace reads {FORMAT}")));
    }
    serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))
}

/// A mistake in a file's name shows before minutes of load.
fn writable(file: &Path) -> Result<(), Failure> {
    let there = file.exists();
    let opened = std::fs::File::options().append(true).create(true).open(file);
    opened.map(drop).map_err(|error| {
        Failure::usage(format!("{} cannot be written: {error}", file.display()))
    })?;
    if !there {
        // An empty file would look like a result.
        let _ = std::fs::remove_file(file);
    }
    Ok(())
}

fn write(file: &Path, bytes: &[u8]) -> Result<(), Failure> {
    std::fs::write(file, bytes)
        .map_err(|error| Failure::failed(format!("{} cannot be written: {error}", file.display())))
}

//! `--references`: rows of the checkout's `scripts/ratios`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use terrace_bench::figures::Reference;

use super::super::Failure;

/// How soon a stop is heard while the script runs.
const LOOK: Duration = Duration::from_millis(200);

/// The script, in the checkout around the working directory or around this program.
pub(super) fn script() -> Result<PathBuf, Failure> {
    let places = [std::env::current_dir().ok(), std::env::current_exe().ok()];
    let folders = places.iter().flatten().flat_map(|place| place.ancestors());
    folders
        .map(|folder: &Path| folder.join("scripts").join("ratios"))
        .find(|script| script.is_file())
        .ok_or_else(|| {
            Failure::usage(
                "--references needs scripts/ratios: run it inside a checkout of Terrace's sources",
            )
        })
}

/// Runs it with this program as the Terrace that is measured.
pub(super) fn rows(script: &Path, stop: &AtomicBool) -> Result<Vec<Reference>, Failure> {
    let failed = |why: String| Failure::failed(format!("scripts/ratios: {why}"));
    let figures = tempfile::NamedTempFile::new().map_err(|error| failed(error.to_string()))?;
    let own = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
    let mut script = Command::new(script)
        .arg("--json")
        .arg(figures.path())
        .arg("--terrace")
        .arg(own)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let ended = loop {
        if let Some(ended) = script.try_wait().map_err(|error| failed(error.to_string()))? {
            break ended;
        }
        if stop.load(Ordering::Relaxed) {
            // Asked, and not killed: it ends what it has started.
            let _ = Command::new("kill").arg(script.id().to_string()).status();
            let _ = script.wait();
            return Ok(Vec::new());
        }
        std::thread::park_timeout(LOOK);
    };
    if stop.load(Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    // 1 says that a row is short of what is wanted of it, which is a result.
    if !matches!(ended.code(), Some(0 | 1)) {
        return Err(failed(format!("it ended with {ended}")));
    }
    let text = std::fs::read(figures.path()).map_err(|error| failed(error.to_string()))?;
    let report: Value = serde_json::from_slice(&text)
        .map_err(|error| failed(format!("what it wrote is no JSON: {error}")))?;
    let rows = report["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(rows.iter().filter_map(row).collect())
}

fn row(row: &Value) -> Option<Reference> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let figure = |side: &str| row[side]["per_second"].as_f64();
    // Rows about start and memory compare with a limit, not with a reference.
    if row["at_most"].is_number() {
        return None;
    }
    Some(Reference {
        what: text(&row["what"]),
        figures: figure("terrace").zip(figure("reference")),
        reference: text(&row["reference"]["name"]),
        trouble: row["why"].as_str().map(str::to_owned),
    })
}

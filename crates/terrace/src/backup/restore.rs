//! Brings a backup's files back, where nothing is.

use std::fs;
use std::path::{Path, PathBuf};

use terrace_core::{Error, Result};

use super::{Backup, files};

/// Where SQLite files come, so that the directory is a `--data-dir`.
const FILES: &str = "embedded";

/// How a restored server comes to the marker: its log is beside its data, wherever those are moved.
const FETCH: &str = r#"cp "../wal/%f" "%p""#;

/// What was restored.
#[derive(Clone, Debug)]
pub struct Restored {
    /// A data directory for each server.
    pub servers: Vec<PathBuf>,
    /// The files.
    pub files: Vec<PathBuf>,
}

/// Makes the data directories and files of a backup in a directory of their own, and compares all bytes on the way.
///
/// # Errors
/// `InvalidInput` when the directory is not empty; `Corrupt` when a file is missing or is not as it was made.
/// Nothing is left then.
pub fn restore(backup: &Backup, to: &Path) -> Result<Restored> {
    let in_use = fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some());
    if in_use || to.is_file() {
        let message = "the directory to restore to is not empty; name another one";
        return Err(Error::invalid(message).with("to", to.display().to_string()));
    }
    files::make(to)?;
    let to = to.canonicalize().map_err(files::failed("open", to))?;
    let restored = bring_back(backup, &to);
    if restored.is_err() {
        let _what_is_left_does_not_start = fs::remove_dir_all(&to);
    }
    restored
}

fn bring_back(backup: &Backup, to: &Path) -> Result<Restored> {
    let mut restored = Restored { servers: Vec::new(), files: Vec::new() };
    for number in 0..backup.catalogue.servers.len() {
        let home = to.join(&backup.catalogue.servers[number].directory);
        files::make_new(&home)?;
        server(backup, number, &home)?;
        restored.servers.push(home.join("data"));
    }
    for file in backup.catalogue.files.iter().filter(|file| !file.path.contains('/')) {
        let target = to.join(FILES).join(&file.path);
        files::make(&to.join(FILES))?;
        files::copy(&backup.place.join(&file.path), &target, file)?;
        restored.files.push(target);
    }
    Ok(restored)
}

/// Makes `data` and `wal` of a server; started, it recovers to the marker and is a server of its own.
pub(super) fn server(backup: &Backup, number: usize, home: &Path) -> Result<()> {
    let prefix = format!("{}/", backup.catalogue.servers[number].directory);
    let place = |path: &str| {
        let path = path.strip_prefix(&prefix)?;
        let path = path.replacen("base", "data", usize::from(path.starts_with("base")));
        Some(home.join(path))
    };
    for directory in backup.catalogue.directories.iter().filter_map(|path| place(path)) {
        files::make_new(&directory)?;
    }
    for file in &backup.catalogue.files {
        if let Some(target) = place(&file.path) {
            files::copy(&backup.place.join(&file.path), &target, file)?;
        }
    }
    let data = home.join("data");
    let own = data.join("postgresql.auto.conf");
    let copied = fs::read_to_string(&own).map_err(files::failed("read", &own))?;
    let mut text = without_recovery(&copied);
    for (name, value) in recovery(backup) {
        text.push_str(&format!("{name} = '{value}'\n"));
    }
    files::write(&own, &text)?;
    files::write(&data.join("recovery.signal"), "")
}

/// Settings without those of a recovery of the original: a server that has two targets does not start.
fn without_recovery(settings: &str) -> String {
    let of_recovery = |line: &str| {
        let name = line.trim_start().to_ascii_lowercase();
        ["recovery_target", "primary_", "restore_command"].iter().any(|it| name.starts_with(it))
    };
    let kept = settings.lines().filter(|line| !of_recovery(line));
    kept.map(|line| format!("{line}\n")).collect()
}

/// The settings of a recovery to the marker, and no further.
pub(super) fn recovery(backup: &Backup) -> [(&'static str, String); 4] {
    [
        ("restore_command", FETCH.to_owned()),
        ("recovery_target_name", backup.catalogue.marker.clone()),
        ("recovery_target_timeline", "current".to_owned()),
        ("recovery_target_action", "promote".to_owned()),
    ]
}

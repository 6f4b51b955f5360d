//! Brings a backup's files back, where nothing is.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use terrace_core::{Error, Result};

use super::{Backup, files};

/// Where SQLite files come, so that the directory is a `--data-dir`.
const FILES: &str = "embedded";

/// Is in a directory for as long as a restore to it is at work.
const CLAIM: &str = ".restoring";

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
    let in_use = || {
        let message = "the directory to restore to is not empty; name another one";
        Error::invalid(message).with("to", to.display().to_string())
    };
    if to.is_file() {
        return Err(in_use());
    }
    files::make(to)?;
    let place = to.canonicalize().map_err(files::failed("open", to))?;
    let claim = place.join(CLAIM);
    if !claimed(&place, &claim).map_err(files::failed("write", &claim))? {
        return Err(in_use());
    }
    let restored = bring_back(backup, &place);
    match restored.is_ok() {
        true => fs::remove_file(&claim).map_err(files::failed("remove", &claim))?,
        false => {
            let _what_is_left_does_not_start = fs::remove_dir_all(&place);
        }
    }
    restored
}

/// Makes an empty directory this run's own: what is in it from now on this run has made, and may remove.
fn claimed(place: &Path, claim: &Path) -> io::Result<bool> {
    match OpenOptions::new().write(true).create_new(true).open(claim) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(error),
    }
    let is_alone = fs::read_dir(place)?.take(2).count() == 1;
    if !is_alone {
        fs::remove_file(claim)?;
    }
    Ok(is_alone)
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
        backup.copy(file, &target)?;
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
            backup.copy(file, &target)?;
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

#[cfg(test)]
mod tests {
    use terrace_core::Runtime;

    use super::super::{Catalogue, FileCopy};
    use super::*;

    #[test]
    fn a_restore_that_fails_leaves_what_another_one_makes() {
        let directory = tempfile::tempdir().expect("a directory");
        let catalogue = Catalogue::begin("one".to_owned(), 0, Runtime::system().wall());
        let mut backup = Backup::plain(directory.path().join("one"), catalogue);
        let missing = FileCopy { path: "gone".to_owned(), bytes: 0, sha256: String::new() };
        backup.catalogue.files.push(missing);
        let to = directory.path().join("to");
        // The other one has come so far.
        fs::create_dir(&to).expect("a directory");
        assert!(claimed(&to, &to.join(CLAIM)).expect("an answer"));
        let refused = restore(&backup, &to).expect_err("the other one is at work");
        assert!(refused.message().contains("is not empty"), "{refused}");
        assert!(to.join(CLAIM).exists());
        fs::remove_file(to.join(CLAIM)).expect("it ends");
        fs::write(to.join("restored"), "").expect("and leaves what it made");
        restore(&backup, &to).expect_err("it is not empty");
        let left = fs::read_dir(&to).expect("a directory").flatten();
        assert_eq!(left.map(|it| it.file_name()).collect::<Vec<_>>(), ["restored"]);
        fs::remove_file(to.join("restored")).expect("it is removed");
        restore(&backup, &to).expect_err("a file is missing");
        assert!(!to.exists(), "nothing is left of what it made itself");
    }
}

//! `terrace backup`: makes backups of a level, and shows that they can be restored.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use serde_json::json;
use terrace_core::{Error, Runtime};

use super::run::{block_on, fatal, stop_signal};
use super::{Failure, known, screen};
use crate::backup::{Backup, BackupKey, Catalogue, Listed, Making, adopt, drill, restore};
use crate::config::{Loaded, Mode};
use crate::levels::{Engines, Servers};

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Copy all databases of a level to one logical point, while it is served.
    Create {
        /// The level's number.
        level: u8,
        /// Encrypt it with the key in this file, of at least 32 random bytes (openssl rand -hex 32).
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
    },
    /// Show the backups that are whole.
    List,
    /// Read every byte of a backup, and compare it with what was written.
    Verify {
        /// Its name.
        name: String,
        /// The file with the key of an encrypted backup.
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
    },
    /// Make data directories and files of a backup, beside whatever runs.
    Restore {
        /// The level's number.
        level: u8,
        /// The name of the backup.
        #[arg(long)]
        backup: String,
        /// An empty directory for them.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// The file with the key of an encrypted backup.
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
    },
    /// Make restored databases, which the settings name, a level of their own, before they are served.
    Adopt {
        /// The level's number.
        level: u8,
        /// The name of the backup.
        #[arg(long)]
        backup: String,
        /// The file with the key of an encrypted backup.
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
    },
    /// Make a backup of a level that is served, restore it beside the level, and compare: with records that
    /// it writes meanwhile and deletes.
    Drill {
        /// The level's number.
        level: u8,
        /// Try this backup out instead of a new one.
        #[arg(long)]
        backup: Option<String>,
        /// The file with the key of an encrypted backup.
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
    },
}

impl Action {
    /// What is in the file with the key, if one is named.
    fn key(&self) -> Result<Option<BackupKey>, Failure> {
        let (Self::Create { key_file, .. }
        | Self::Verify { key_file, .. }
        | Self::Restore { key_file, .. }
        | Self::Adopt { key_file, .. }
        | Self::Drill { key_file, .. }) = self
        else {
            return Ok(None);
        };
        let key = key_file.as_deref().map(BackupKey::read).transpose();
        key.map_err(|error| fatal(&error))
    }
}

/// Runs the command.
pub(super) fn backup(
    action: &Action,
    directory: &Path,
    as_json: bool,
    loaded: Loaded,
) -> Result<(), Failure> {
    let key = action.key()?;
    match action {
        Action::List => list(directory, as_json),
        Action::Verify { name, .. } => verify(directory, name, key.as_ref(), as_json),
        Action::Restore { level, backup, to, .. } => {
            bring_back(&open(directory, backup, *level, key.as_ref())?, to, as_json)
        }
        Action::Create { level, .. }
        | Action::Adopt { level, .. }
        | Action::Drill { level, .. } => {
            known(*level)?;
            let mode = loaded.config.mode()?;
            block_on(async {
                let (mut stop, _) = stop_signal()?;
                let config = Arc::new(loaded.config);
                let servers =
                    Servers::beside(&config, mode).await.map_err(|error| fatal(&error))?;
                let (runtime, shared) = (Runtime::system(), mode == Mode::Local);
                let engines = Engines::new(*level, shared, config, &servers, runtime.clone());
                // What is dropped ends its programs and removes what it has begun.
                let done = tokio::select! {
                    done = with_databases(action, (directory, key), (&engines, &runtime), as_json) => done,
                    _ = stop.changed() => Err(Failure::failed("stopped before it was done".to_owned())),
                };
                servers.stop().await;
                done
            })
        }
    }
}

async fn with_databases(
    action: &Action,
    (directory, key): (&Path, Option<BackupKey>),
    (engines, runtime): (&Engines, &Runtime),
    as_json: bool,
) -> Result<(), Failure> {
    let failed = |error: Error| fatal(&error);
    match action {
        Action::Create { level, .. } => {
            let originals = engines.originals().await.map_err(failed)?;
            let making =
                Making::begin(&originals, (*level, directory), runtime).await.map_err(failed)?;
            making.copy_servers().await.map_err(failed)?;
            let made = making.finish(key, screen::progress).await.map_err(failed)?;
            for original in originals {
                original.close().await.map_err(failed)?;
            }
            let Backup { catalogue, .. } = &made;
            let text = format!(
                "Backup {} has all that level {level} had acknowledged by {}; writers waited {} ms at most. \
                 terrace backup drill {level} --backup {} shows that it can be restored.",
                catalogue.name, catalogue.marker_at, catalogue.held_ms, catalogue.name
            );
            say(&text, &described(&made), as_json);
            Ok(())
        }
        Action::Adopt { level, backup, .. } => {
            let backup = open(directory, backup, *level, key.as_ref())?;
            let count = adopt(&backup, engines, runtime).await.map_err(failed)?;
            let text = format!(
                "{count} databases have begun histories of their own. Serve level {level} now."
            );
            say(&text, &json!({"adopted": count}), as_json);
            Ok(())
        }
        Action::Drill { level, backup, .. } => {
            let given = backup.as_ref().map(|name| open(directory, name, *level, key.as_ref()));
            let (given, to) = (given.transpose()?, (*level, directory));
            let found = drill(engines, to, given, key, (runtime, screen::progress));
            let found = found.await.map_err(failed)?;
            let (point, time) = (found.recovery_point.as_millis(), found.recovery_time.as_millis());
            if as_json {
                let data = json!({"backup": found.backup, "rows": found.rows, "rounds": found.rounds,
                    "recovery_point_ms": point, "recovery_time_ms": time});
                screen::line(&format!("{data:#}"));
                return Ok(());
            }
            let order = match found.rounds {
                Some(rounds) => format!("held over {rounds} rounds of writes"),
                None => "not looked at: no records were written for this backup".to_owned(),
            };
            screen::facts([
                ["Records".to_owned(), format!("{} rows, as they were at the marker", found.rows)],
                ["Order".to_owned(), order],
                ["Recovery point".to_owned(), format!("{point} ms before the restore began")],
                ["Recovery time".to_owned(), format!("{time} ms until all databases answered")],
            ]);
            Ok(())
        }
        Action::List | Action::Verify { .. } | Action::Restore { .. } => Ok(()),
    }
}

fn open(
    directory: &Path,
    name: &str,
    level: u8,
    key: Option<&BackupKey>,
) -> Result<Backup, Failure> {
    let backup = Backup::open(directory, name, key).map_err(|error| fatal(&error))?;
    match backup.catalogue.level == level {
        true => Ok(backup),
        false => Err(Failure::usage(format!(
            "{name} is a backup of level {}, not of level {level}",
            backup.catalogue.level
        ))),
    }
}

fn described(Backup { catalogue, .. }: &Backup) -> serde_json::Value {
    json!({"name": catalogue.name, "level": catalogue.level, "marker_at": catalogue.marker_at,
        "held_ms": catalogue.held_ms, "bytes": catalogue.bytes(),
        "databases": catalogue.databases.len(), "servers": catalogue.servers.len()})
}

fn list(directory: &Path, as_json: bool) -> Result<(), Failure> {
    let all = Backup::list(directory).map_err(|error| fatal(&error))?;
    if as_json {
        let (mut backups, mut encrypted, mut unusable) = (Vec::new(), Vec::new(), Vec::new());
        for listed in &all {
            match listed {
                Listed::Plain(backup) => backups.push(described(backup)),
                Listed::Sealed(name, level) => {
                    encrypted.push(json!({"name": name, "level": level}));
                }
                Listed::Unusable(name, error) => {
                    unusable.push(json!({"name": name, "error": error.message()}));
                }
            }
        }
        let data = json!({"backups": backups, "encrypted": encrypted, "unusable": unusable});
        screen::line(&format!("{data:#}"));
        return Ok(());
    }
    let rows = all.iter().filter_map(|listed| match listed {
        Listed::Plain(backup) => Some(row(&backup.catalogue)),
        Listed::Sealed(name, level) => {
            let [at, databases, size] = ["encrypted", "", ""].map(str::to_owned);
            Some([name.clone(), format!("L{level}"), at, databases, size])
        }
        Listed::Unusable(..) => None,
    });
    screen::table(["NAME", "LEVEL", "RESTORES TO", "DATABASES", "SIZE"], rows);
    for listed in &all {
        if let Listed::Unusable(name, error) = listed {
            screen::progress(&format!("{name} is not to be used: {}", error.message()));
        }
    }
    Ok(())
}

fn row(catalogue: &Catalogue) -> [String; 5] {
    [
        catalogue.name.clone(),
        format!("L{}", catalogue.level),
        catalogue.marker_at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        catalogue.databases.len().to_string(),
        format!("{} MiB", catalogue.bytes().div_ceil(1024 * 1024)),
    ]
}

fn verify(
    directory: &Path,
    name: &str,
    key: Option<&BackupKey>,
    as_json: bool,
) -> Result<(), Failure> {
    let backup = Backup::open(directory, name, key).map_err(|error| fatal(&error))?;
    let faults = backup.faults().map_err(|error| fatal(&error))?;
    let count = backup.catalogue.files.len();
    if faults.is_empty() {
        let text = format!(
            "All {count} files are as they were made. A drill shows that they can be restored."
        );
        say(&text, &json!({"files": count, "faults": []}), as_json);
        return Ok(());
    }
    match as_json {
        true => screen::line(&format!("{:#}", json!({"files": count, "faults": faults}))),
        false => faults.iter().for_each(|fault| screen::line(fault)),
    }
    Err(Failure::failed(format!("{} faults; restore another backup", faults.len())))
}

fn bring_back(backup: &Backup, to: &Path, as_json: bool) -> Result<(), Failure> {
    let restored = restore(backup, to).map_err(|error| fatal(&error))?;
    let level = backup.catalogue.level;
    if as_json {
        let data = json!({"servers": restored.servers, "files": restored.files,
            "restores_to": backup.catalogue.marker_at});
        screen::line(&format!("{data:#}"));
        return Ok(());
    }
    screen::line(&format!("Restored as of {}.", backup.catalogue.marker_at));
    let places = restored.servers.iter().chain(&restored.files);
    places.for_each(|place| screen::line(&format!("  {}", place.display())));
    screen::line("");
    if restored.servers.is_empty() {
        screen::line(&format!("Serve them: terrace serve {level} --data-dir {}", to.display()));
        return Ok(());
    }
    for text in [
        "1. Let PostgreSQL's user own the directories, and look at the settings in them: port, archive_command.".to_owned(),
        "2. Start each (pg_ctl -D DIR start). It recovers from the wal directory beside it; keep that until then.".to_owned(),
        format!("3. With their URLs in the settings: terrace backup adopt {level} --backup {} --dir ...", backup.catalogue.name),
        format!("4. terrace serve {level}"),
    ] {
        screen::line(&text);
    }
    Ok(())
}

fn say(text: &str, data: &serde_json::Value, as_json: bool) {
    if as_json {
        screen::line(&format!("{data:#}"));
    } else {
        screen::line(text);
    }
}

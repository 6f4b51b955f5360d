//! What a backup says of itself, and what is really there.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use terrace_core::{Error, ErrorKind, Result, Runtime, Timestamp};

use super::sealed::{self, BackupKey, Sealer};
use super::{files, hex};

/// The file that makes a directory a backup.
const FILE: &str = "backup.json";

/// All that a backup says of itself; stored as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    /// The version of this form.
    pub format: u32,
    /// Its name, which is that of its directory.
    pub name: String,
    /// The level.
    pub level: u8,
    /// The version of Terrace that made it.
    pub terrace: String,
    /// When it was begun.
    pub began_at: Timestamp,
    /// The logical point to which it restores.
    pub marker_at: Timestamp,
    /// The name of the marker in each server's log. No other one has it: a server recovers to the first of a name.
    pub marker: String,
    /// For how long writers waited at most, in milliseconds.
    pub held_ms: u64,
    /// The PostgreSQL servers; none where databases are files.
    pub servers: Vec<ServerCopy>,
    /// The databases, in the order of their numbers.
    pub databases: Vec<DatabaseCopy>,
    /// All directories, so that empty ones are made again.
    pub directories: Vec<String>,
    /// All files but this one.
    pub files: Vec<FileCopy>,
}

/// A copy of a PostgreSQL server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerCopy {
    /// The directory in the backup, with `base` and `wal`.
    pub directory: String,
    /// The server's version.
    pub version: String,
    /// Where its log has the marker.
    pub marker_at: String,
}

/// A database as it was at the marker.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseCopy {
    /// Which of the level's shards; 0 where there is one database.
    pub number: u16,
    /// The address by which its level names it, without a password; empty where there is one database.
    pub address: String,
    /// Its file, or the directory of its server.
    pub at: String,
    /// The schema of its tables; empty for a file.
    pub schema: String,
    /// The history that it was of.
    pub history: String,
    /// How many rows of records it had.
    pub rows: u64,
    /// Their digest.
    pub sha256: String,
}

/// A file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileCopy {
    /// Its path in the backup.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256, in hexadecimal digits.
    pub sha256: String,
}

impl Catalogue {
    const FORMAT: u32 = 1;

    pub(super) fn begin(name: String, level: u8, began_at: Timestamp) -> Self {
        Self {
            format: Self::FORMAT,
            name,
            level,
            terrace: env!("CARGO_PKG_VERSION").to_owned(),
            began_at,
            marker_at: began_at,
            marker: String::new(),
            held_ms: 0,
            servers: Vec::new(),
            databases: Vec::new(),
            directories: Vec::new(),
            files: Vec::new(),
        }
    }

    /// A name for a marker that nothing else has, also no earlier try of this backup.
    pub(super) fn new_marker(&self, runtime: &Runtime) -> String {
        format!("terrace-{}-{:016x}", self.name, runtime.random())
    }

    /// A path in it that leads elsewhere, if there is one: whoever restores may do more than whoever wrote it.
    fn outside(&self) -> Option<&str> {
        let directories =
            self.directories.iter().chain(self.servers.iter().map(|it| &it.directory));
        let paths = directories.chain(self.files.iter().map(|it| &it.path));
        let mut paths = paths.chain(self.databases.iter().map(|it| &it.at));
        let is_inside = |path: &str| {
            let mut parts = Path::new(path).components();
            !path.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)))
        };
        paths.find(|path| !is_inside(path)).map(String::as_str)
    }

    /// Whether the marker can stand in a server's settings.
    fn has_plain_marker(&self) -> bool {
        self.marker.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    }

    /// The size of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// What is shown of a backup whose files are sealed: no more than the name of its directory says, too.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SealedCatalogue {
    /// The version of this form.
    format: u32,
    name: String,
    level: u8,
    /// How it is sealed, for people.
    sealed_by: String,
    /// Of this backup alone, in hexadecimal digits.
    salt: String,
    /// The [`Catalogue`], sealed, in hexadecimal digits.
    catalogue: String,
}

impl SealedCatalogue {
    const FORMAT: u32 = 2;
    const SEALED_BY: &str = "HKDF-SHA256, ChaCha20-Poly1305, STREAM of 64 KiB";
}

/// Which form of a catalogue it is.
#[derive(Deserialize)]
struct Form {
    format: u32,
}

/// A directory with a catalogue.
#[derive(Debug)]
pub enum Listed {
    /// A backup that anybody can read.
    Plain(Box<Backup>),
    /// One whose key is needed: its name and level.
    Sealed(String, u8),
    /// One whose catalogue is not to be used: its name, and why.
    Unusable(String, Error),
}

/// A backup that is whole.
#[derive(Clone, Debug)]
pub struct Backup {
    /// Its directory.
    pub place: PathBuf,
    /// What it says of itself.
    pub catalogue: Catalogue,
    /// What opens its files, where they are sealed.
    sealer: Option<Sealer>,
}

impl Backup {
    #[cfg(test)]
    pub(super) fn plain(place: PathBuf, catalogue: Catalogue) -> Self {
        Self { place, catalogue, sealer: None }
    }

    /// Takes all files into the catalogue, seals all of it where there is a key, and makes a backup of the
    /// directory, on disk and in one step.
    pub(super) fn seal(
        place: PathBuf,
        mut catalogue: Catalogue,
        key: Option<&BackupKey>,
    ) -> Result<Self> {
        let salt = sealed::salt()?;
        let sealer = key.map(|key| key.of_backup(&salt));
        let (directories, found) = files::tree(&place)?;
        for path in found {
            let (bytes, sha256) = files::digest(&place.join(&path))?;
            if let Some(sealer) = &sealer {
                sealed::seal_file(sealer, &place, &path)?;
            }
            catalogue.files.push(FileCopy { path, bytes, sha256 });
        }
        for directory in &directories {
            files::sync(&place.join(directory))?;
        }
        catalogue.directories = directories;
        let text = match &sealer {
            None => json(&catalogue)?,
            Some(sealer) => json(&SealedCatalogue {
                format: SealedCatalogue::FORMAT,
                name: catalogue.name.clone(),
                level: catalogue.level,
                sealed_by: SealedCatalogue::SEALED_BY.to_owned(),
                salt: hex::of(&salt),
                catalogue: hex::of(&sealer.seal_text(FILE, &json(&catalogue)?)?),
            })?,
        };
        files::write(&place.join(FILE), &text)?;
        if let Some(parent) = place.parent() {
            files::sync(parent)?;
        }
        Ok(Self { place, catalogue, sealer })
    }

    /// A backup by its name, and by its key where it is sealed.
    ///
    /// # Errors
    /// `InvalidInput` when there is none of this name, it is of a newer Terrace, or the key is not its own.
    pub fn open(directory: &Path, name: &str, key: Option<&BackupKey>) -> Result<Self> {
        let place = directory.join(name);
        let text = fs::read_to_string(place.join(FILE)).map_err(|error| {
            let message = "there is no such backup; terrace backup list shows those that are whole";
            Error::invalid(message).with("name", name.to_owned()).caused_by(error)
        })?;
        let form: Form = parsed(&text, name)?;
        let wrong = |message| Err(Error::invalid(message).with("name", name.to_owned()));
        let (text, sealer) = match (form.format, key) {
            (SealedCatalogue::FORMAT, None) => {
                return wrong("the backup is encrypted; name the file with its key (--key-file)");
            }
            (SealedCatalogue::FORMAT, Some(key)) => {
                let sealed: SealedCatalogue = parsed(&text, name)?;
                let (salt, text) = (hex::bytes(&sealed.salt), hex::bytes(&sealed.catalogue));
                let sealer = salt.map(|salt| key.of_backup(&salt));
                let opened = sealer.zip(text).and_then(|(sealer, text)| {
                    Some((sealer.open_text(FILE, &text)?, Some(sealer)))
                });
                let Some(opened) = opened else {
                    return wrong(
                        "the backup does not open: the key is another one, or its catalogue was \
                         changed; nothing was written",
                    );
                };
                opened
            }
            // It may have been put in the place of a sealed one.
            (_, Some(_)) => {
                return wrong("the backup is not encrypted; leave --key-file out if that is right");
            }
            (_, None) => (text, None),
        };
        let catalogue: Catalogue = parsed(&text, name)?;
        let fits = catalogue.format == Catalogue::FORMAT && catalogue.name == name;
        let fits = fits && catalogue.has_plain_marker();
        if !fits {
            let message = "the catalogue is of another backup, or of a newer Terrace";
            return Err(Error::new(ErrorKind::Corrupt, message).with("name", name.to_owned()));
        }
        if let Some(path) = catalogue.outside() {
            let message = "the catalogue names a path outside of the backup; use one that you know the origin of";
            let error = Error::new(ErrorKind::Corrupt, message).with("name", name.to_owned());
            return Err(error.with("path", path.to_owned()));
        }
        Ok(Self { place, catalogue, sealer })
    }

    /// All whole backups in a directory, the oldest first; by their names those of which no more is known.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(directory: &Path) -> Result<Vec<Listed>> {
        let entries = fs::read_dir(directory).map_err(files::failed("read", directory))?;
        let names = entries.flatten().filter(|entry| entry.path().join(FILE).exists());
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let listed = names.map(|name| {
            let sealed = fs::read_to_string(directory.join(&name).join(FILE)).ok();
            let sealed =
                sealed.and_then(|text| serde_json::from_str::<SealedCatalogue>(&text).ok());
            match sealed.filter(|it| it.format == SealedCatalogue::FORMAT && it.name == name) {
                Some(sealed) => Listed::Sealed(name, sealed.level),
                None => match Self::open(directory, &name, None) {
                    Ok(backup) => Listed::Plain(Box::new(backup)),
                    Err(error) => Listed::Unusable(name, error),
                },
            }
        });
        let mut all = listed.collect::<Vec<_>>();
        all.sort_by_cached_key(|it| match it {
            Listed::Plain(backup) => (Some(backup.catalogue.began_at), String::new()),
            Listed::Sealed(name, _) | Listed::Unusable(name, _) => (None, name.clone()),
        });
        Ok(all)
    }

    /// Copies a file of it, opened where it is sealed, and compares what was copied.
    pub(super) fn copy(&self, file: &FileCopy, to: &Path) -> Result<()> {
        let path = self.place.join(&file.path);
        let from = self.read(&file.path).map_err(files::failed("read", &path))?;
        files::copy(from, to, file)
    }

    /// What a file of it is, or was before it was sealed.
    fn read(&self, path: &str) -> io::Result<Box<dyn Read>> {
        let file = fs::File::open(self.place.join(path))?;
        Ok(match &self.sealer {
            None => Box::new(file),
            Some(sealer) => Box::new(sealer.open(path, file)?),
        })
    }

    /// Reads every file, and tells what is not as it was made. Empty when all is.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn faults(&self) -> Result<Vec<String>> {
        let (_, found) = files::tree(&self.place)?;
        let mut known =
            self.catalogue.files.iter().map(|it| (&*it.path, it)).collect::<BTreeMap<_, _>>();
        let mut faults = Vec::new();
        for path in found.iter().filter(|path| *path != FILE) {
            match known.remove(&**path) {
                None => faults.push(format!("{path} is no part of the backup")),
                Some(file) => {
                    let found = match self.read(path).and_then(files::digest_of) {
                        Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
                        found => {
                            Some(found.map_err(files::failed("read", &self.place.join(path)))?)
                        }
                    };
                    if found != Some((file.bytes, file.sha256.clone())) {
                        faults.push(format!("{path} is not as it was made"));
                    }
                }
            }
        }
        faults.extend(known.keys().map(|path| format!("{path} is missing")));
        Ok(faults)
    }
}

fn json(catalogue: &impl Serialize) -> Result<String> {
    serde_json::to_string_pretty(catalogue).map_err(|error| {
        Error::new(ErrorKind::Internal, "the catalogue cannot be written").caused_by(error)
    })
}

fn parsed<T: DeserializeOwned>(text: &str, name: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| {
        let message =
            "the catalogue of the backup cannot be read; it is damaged, or of a newer Terrace";
        Error::new(ErrorKind::Corrupt, message).with("name", name.to_owned()).caused_by(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A backup in a directory, after somebody else has had the catalogue.
    fn opened(change: impl FnOnce(&mut Catalogue)) -> Result<Backup> {
        let directory = tempfile::tempdir().expect("a directory");
        let began_at = Runtime::system().wall();
        let mut catalogue = Catalogue::begin("one".to_owned(), 4, began_at);
        catalogue.marker = catalogue.new_marker(&Runtime::system());
        change(&mut catalogue);
        let place = directory.path().join("one");
        fs::create_dir(&place).expect("a directory");
        let text = serde_json::to_string(&catalogue).expect("JSON");
        fs::write(place.join(FILE), text).expect("a file");
        Backup::open(directory.path(), "one", None)
    }

    #[test]
    fn a_catalogue_that_leads_outside_is_refused() {
        let file = |path: &str| FileCopy { path: path.to_owned(), bytes: 0, sha256: String::new() };
        let at = |path: &str| DatabaseCopy { at: path.to_owned(), ..DatabaseCopy::default() };
        let server = |path: &str| {
            let directory = path.to_owned();
            ServerCopy { directory, version: String::new(), marker_at: String::new() }
        };
        opened(|it| {
            it.directories.push("server-0/base".to_owned());
            it.files.push(file("server-0/base/..2"));
            it.databases.push(at("server-0"));
            it.servers.push(server("server-0"));
        })
        .expect("nothing leads outside");
        for path in ["../a", "server-0/../../a", "/etc/a", ".", ""] {
            let outside: [Result<Backup>; 4] = [
                opened(|it| it.directories.push(path.to_owned())),
                opened(|it| it.files.push(file(path))),
                opened(|it| it.databases.push(at(path))),
                opened(|it| it.servers.push(server(path))),
            ];
            for refused in outside {
                let refused = refused.expect_err(path);
                assert!(refused.message().contains("a path outside"), "{refused}");
            }
        }
        let settings = opened(|it| it.marker = "a'\nport = '1".to_owned());
        settings.expect_err("a marker is no setting");
    }

    #[test]
    fn links_are_no_part_of_a_backup() {
        let directory = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink("/etc", directory.path().join("a")).expect("a link");
        let refused = files::tree(directory.path()).expect_err("it is a link");
        assert!(refused.particulars().contains("link"), "{refused:?}");
    }
}

//! Files of backups: made for their owner alone, read to the last byte, and on disk before they count.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use terrace_core::{Error, ErrorKind, Result};

use super::FileCopy;

/// Runs work with files on a thread that may wait.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        Err(Error::new(ErrorKind::Internal, "work with files did not end").caused_by(error))
    })
}

/// For `map_err`: what could not be done with which file.
pub(super) fn failed<'a>(action: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |error| {
        let message =
            format!("cannot {action} {}; check the path, its owner and its disk", path.display());
        Error::new(ErrorKind::Unavailable, message)
            .with("error", error.to_string())
            .caused_by(error)
    }
}

/// Makes a directory where there is none.
pub(super) fn make(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make", path))
}

/// Makes a directory that must not be there, for nobody else.
pub(super) fn make_new(path: &Path) -> Result<()> {
    DirBuilder::new().mode(0o700).create(path).map_err(failed("make", path))
}

/// The files in a directory, without what is below.
pub(super) fn list(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).map_err(failed("read", directory))?;
    Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect())
}

/// All directories and all files below one, as paths in it, in order.
pub(super) fn tree(root: &Path) -> Result<(Vec<String>, Vec<String>)> {
    let (mut directories, mut files) = (Vec::new(), Vec::new());
    let mut open = vec![String::new()];
    while let Some(below) = open.pop() {
        let place = root.join(&below);
        for entry in fs::read_dir(&place).map_err(failed("read", &place))? {
            let entry = entry.map_err(failed("read", &place))?;
            let name = entry.file_name().into_string().map_err(|name| {
                let message = "a file of the backup has a name that is no text; remove it";
                Error::new(ErrorKind::Corrupt, message)
                    .with("name", name.to_string_lossy().into_owned())
            })?;
            let path = if below.is_empty() { name } else { format!("{below}/{name}") };
            let kind = entry.file_type().map_err(failed("read", &place))?;
            if kind.is_symlink() {
                let message = "a backup has a link, and what it leads to is no part of it; use one that you \
                               know the origin of";
                return Err(Error::new(ErrorKind::Corrupt, message).with("link", path));
            }
            match kind.is_dir() {
                true => {
                    directories.push(path.clone());
                    open.push(path);
                }
                false => files.push(path),
            }
        }
    }
    directories.sort();
    files.sort();
    Ok((directories, files))
}

/// Size and digest of a file, which is on disk afterwards.
pub(super) fn digest(path: &Path) -> Result<(u64, String)> {
    let file = File::open(path).map_err(failed("read", path))?;
    let found = digest_of(&file).map_err(failed("read", path))?;
    file.sync_all().map_err(failed("write", path))?;
    Ok(found)
}

/// Size and digest of all that comes.
pub(super) fn digest_of(from: impl Read) -> io::Result<(u64, String)> {
    pass(from, |_| Ok(()))
}

/// Copies a file of a backup and compares the bytes that it copied.
pub(super) fn copy(from: impl Read, to: &Path, as_made: &FileCopy) -> Result<()> {
    let mut options = OpenOptions::new();
    let new = options.write(true).create_new(true).mode(0o600).open(to);
    let mut copy = new.map_err(failed("write", to))?;
    let found = match pass(from, |bytes| copy.write_all(bytes)) {
        // What was sealed does not open.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
        found => Some(found.map_err(failed("copy", to))?),
    };
    copy.sync_all().map_err(failed("write", to))?;
    if found == Some((as_made.bytes, as_made.sha256.clone())) {
        return Ok(());
    }
    let message = "a file of the backup is not as it was made; restore another backup";
    Err(Error::new(ErrorKind::Corrupt, message).with("file", as_made.path.clone()))
}

fn pass(
    mut from: impl Read,
    mut each: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<(u64, String)> {
    let (mut digest, mut bytes) = (Sha256::new(), 0);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            let digest = digest.finalize();
            return Ok((bytes, digest.iter().map(|byte| format!("{byte:02x}")).collect()));
        }
        digest.update(&buffer[..count]);
        each(&buffer[..count])?;
        bytes += count as u64;
    }
}

/// Writes a file whole or not at all, and onto the disk.
pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    let written = || {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    written().map_err(failed("write", path))?;
    path.parent().map_or(Ok(()), sync)
}

/// Brings the names in a directory onto the disk.
pub(super) fn sync(directory: &Path) -> Result<()> {
    let synced = File::open(directory).and_then(|it| it.sync_all());
    synced.map_err(failed("write", directory))
}

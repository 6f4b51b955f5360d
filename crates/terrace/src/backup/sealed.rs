//! Files that only who has a key file can read, or change unseen.
//!
//! A key of its own for each file is made of the key file, of a salt that no other backup has, and of the path
//! (HKDF-SHA256, RFC 5869). With it the file is sealed in pieces of 64 KiB by ChaCha20-Poly1305 (RFC 8439), whose
//! nonces are the numbers of the pieces and whether one is the last: STREAM (Hoang, Reyhanitabar, Rogaway and
//! Vizár, "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", CRYPTO 2015). So a piece that is
//! changed, moved, missing or of another file does not open, and neither does a file that was cut.

use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use terrace_core::{Error, ErrorKind, Result};

use super::files;

/// What is sealed at once.
const PIECE: usize = 64 * 1024;
/// What a piece grows by.
const TAG: usize = 16;
/// The fewest bytes of a key file: fewer can be guessed.
const SHORTEST: usize = 32;
/// Larger than any key.
const LONGEST: u64 = 4096;

/// The secret of a key file.
#[derive(Clone)]
pub struct BackupKey(Vec<u8>);

impl fmt::Debug for BackupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BackupKey")
    }
}

impl BackupKey {
    /// That of a file, without the line end behind it.
    ///
    /// # Errors
    /// `InvalidInput` when there is no such file, or what it has is no key.
    pub fn read(path: &Path) -> Result<Self> {
        let read = || {
            let mut bytes = Vec::new();
            fs::File::open(path)?.take(LONGEST + 1).read_to_end(&mut bytes)?;
            io::Result::Ok(bytes)
        };
        let mut bytes = read().map_err(|error| {
            let message = format!("cannot read the key file {}; check the path", path.display());
            Error::invalid(message).caused_by(error)
        })?;
        while bytes.last().is_some_and(|byte| b"\r\n".contains(byte)) {
            bytes.pop();
        }
        if bytes.len() < SHORTEST || bytes.len() as u64 > LONGEST {
            return Err(Error::invalid(format!(
                "the key file {} has {} bytes; it must have {SHORTEST} to {LONGEST}, at random: \
                 openssl rand -hex 32",
                path.display(),
                bytes.len()
            )));
        }
        Ok(Self(bytes))
    }

    /// What seals the files of one backup.
    pub(super) fn of_backup(&self, salt: &[u8]) -> Sealer {
        Sealer(Salt::new(HKDF_SHA256, salt).extract(&self.0))
    }
}

/// Bytes that no other backup has.
///
/// # Errors
/// `Internal` when the system has no random numbers.
pub(super) fn salt() -> Result<[u8; 32]> {
    let mut salt = [0; 32];
    getrandom::fill(&mut salt).map_err(|error| {
        Error::new(ErrorKind::Internal, format!("the system has no random numbers: {error}"))
    })?;
    Ok(salt)
}

/// Seals and opens the files of one backup.
#[derive(Clone)]
pub(super) struct Sealer(ring::hkdf::Prk);

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer")
    }
}

/// A piece does not open. Nothing is said of why: it may have been changed by somebody who would like to know.
fn not_whole() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is not as it was sealed")
}

impl Sealer {
    /// The key of a file. Its name is that of the path, which no two files have.
    fn key(&self, path: &str) -> io::Result<LessSafeKey> {
        const OF: &[u8] = b"terrace backup, format 2: ";
        let info = [OF, path.as_bytes()];
        let key = self.0.expand(&info, &CHACHA20_POLY1305).map_err(|_| not_whole())?;
        Ok(LessSafeKey::new(UnboundKey::from(key)))
    }

    /// Seals all that comes.
    pub(super) fn seal(
        &self,
        path: &str,
        mut from: impl Read,
        mut to: impl Write,
    ) -> io::Result<()> {
        let key = self.key(path)?;
        let mut piece = Vec::with_capacity(PIECE + TAG);
        let mut next = Vec::with_capacity(PIECE + TAG);
        read_piece(&mut from, &mut piece, PIECE)?;
        for number in 0.. {
            // A last piece that is empty is there only when the whole is.
            let is_last = piece.len() < PIECE || {
                read_piece(&mut from, &mut next, PIECE)?;
                next.is_empty()
            };
            key.seal_in_place_append_tag(nonce(number, is_last), Aad::empty(), &mut piece)
                .map_err(|_| not_whole())?;
            to.write_all(&piece)?;
            if is_last {
                break;
            }
            std::mem::swap(&mut piece, &mut next);
        }
        Ok(())
    }

    /// A short text, sealed.
    ///
    /// # Errors
    /// `Internal`, which does not happen: all of it is in memory.
    pub(super) fn seal_text(&self, path: &str, text: &str) -> Result<Vec<u8>> {
        let mut to = Vec::new();
        let sealed = self.seal(path, text.as_bytes(), &mut to);
        let internal = |error| {
            Error::new(ErrorKind::Internal, "the catalogue cannot be sealed").caused_by(error)
        };
        sealed.map(|()| to).map_err(internal)
    }

    /// A text that was sealed under this path; none when it does not open.
    pub(super) fn open_text(&self, path: &str, sealed: &[u8]) -> Option<String> {
        let mut text = String::new();
        self.open(path, sealed).ok()?.read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// Opens what was sealed under this path, a piece at a time.
    pub(super) fn open<R: Read>(&self, path: &str, from: R) -> io::Result<Opened<R>> {
        let (sealed, next) = (Vec::new(), Vec::new());
        let mut opened =
            Opened { key: self.key(path)?, from, sealed, next, number: 0, at: 0, is_over: false };
        read_piece(&mut opened.from, &mut opened.next, PIECE + TAG)?;
        Ok(opened)
    }
}

/// A file that is opened while it is read. An error may come after bytes that were right, as where a file was cut.
pub(super) struct Opened<R> {
    key: LessSafeKey,
    from: R,
    /// The piece that is being read, without its tag.
    sealed: Vec<u8>,
    next: Vec<u8>,
    number: u64,
    at: usize,
    is_over: bool,
}

impl<R: Read> Opened<R> {
    fn next_piece(&mut self) -> io::Result<()> {
        std::mem::swap(&mut self.sealed, &mut self.next);
        self.next.clear();
        if self.sealed.len() == PIECE + TAG {
            read_piece(&mut self.from, &mut self.next, PIECE + TAG)?;
        }
        self.is_over = self.next.is_empty();
        let nonce = nonce(self.number, self.is_over);
        let opened = self.key.open_in_place(nonce, Aad::empty(), &mut self.sealed);
        let length = opened.map_err(|_| not_whole())?.len();
        self.sealed.truncate(length);
        (self.number, self.at) = (self.number + 1, 0);
        Ok(())
    }
}

impl<R: Read> Read for Opened<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.at == self.sealed.len() && !self.is_over {
            self.next_piece()?;
        }
        let count = to.len().min(self.sealed.len() - self.at);
        to[..count].copy_from_slice(&self.sealed[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// Fills a piece, less only where it ends.
fn read_piece(from: &mut impl Read, piece: &mut Vec<u8>, most: usize) -> io::Result<()> {
    piece.clear();
    from.by_ref().take(most as u64).read_to_end(piece).map(drop)
}

/// Eleven bytes of the number, and one that says whether it is the last.
fn nonce(number: u64, is_last: bool) -> Nonce {
    let mut bytes = [0; 12];
    bytes[3..11].copy_from_slice(&number.to_be_bytes());
    bytes[11] = u8::from(is_last);
    Nonce::assume_unique_for_key(bytes)
}

/// Replaces a file by itself, sealed.
pub(super) fn seal_file(sealer: &Sealer, place: &Path, path: &str) -> Result<()> {
    let plain = place.join(path);
    let sealed = place.join(format!("{path}.sealed"));
    let work = || {
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut options = fs::OpenOptions::new();
        let mut to = options.write(true).create_new(true).mode(0o600).open(&sealed)?;
        sealer.seal(path, fs::File::open(&plain)?, &mut to)?;
        to.sync_all()?;
        fs::rename(&sealed, &plain)
    };
    work().map_err(files::failed("seal", &plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(secret: u8, salt: u8) -> Sealer {
        BackupKey(vec![secret; 32]).of_backup(&[salt; 32])
    }

    fn sealed(of: &Sealer, path: &str, text: &[u8]) -> Vec<u8> {
        let mut to = Vec::new();
        of.seal(path, text, &mut to).unwrap();
        to
    }

    fn opened(of: &Sealer, path: &str, sealed: &[u8]) -> io::Result<Vec<u8>> {
        let mut to = Vec::new();
        of.open(path, sealed)?.read_to_end(&mut to)?;
        Ok(to)
    }

    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect()
    }

    #[test]
    fn what_was_sealed_opens_whatever_its_length() {
        let it = sealer(1, 1);
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 7] {
            let text = text(length);
            let sealed = sealed(&it, "a", &text);
            assert_eq!(sealed.len(), length + TAG * length.div_ceil(PIECE).max(1));
            assert_eq!(opened(&it, "a", &sealed).unwrap(), text, "{length}");
        }
    }

    #[test]
    fn what_is_changed_cut_moved_or_longer_does_not_open() {
        let it = sealer(1, 1);
        let whole = sealed(&it, "a", &text(2 * PIECE + 7));
        for at in [0, PIECE + TAG - 1, PIECE + TAG, whole.len() - 1] {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            opened(&it, "a", &changed).unwrap_err();
        }
        for cut in [0, 1, PIECE + TAG - 1, PIECE + TAG, 2 * (PIECE + TAG), whole.len() - 1] {
            opened(&it, "a", &whole[..cut]).unwrap_err();
        }
        let (first, rest) = whole.split_at(PIECE + TAG);
        let (second, last) = rest.split_at(PIECE + TAG);
        let orders: [&[&[u8]]; 5] = [
            &[second, first, last],
            &[first, last],
            &[first, second, second, last],
            &[first, second, last, last],
            &[last],
        ];
        for order in orders {
            opened(&it, "a", &order.concat()).unwrap_err();
        }
        assert_eq!(opened(&it, "a", &[first, second, last].concat()).unwrap().len(), 2 * PIECE + 7);
    }

    #[test]
    fn another_key_backup_or_path_does_not_open_it() {
        let whole = sealed(&sealer(1, 1), "a", b"text");
        for (other, path) in [(sealer(2, 1), "a"), (sealer(1, 2), "a"), (sealer(1, 1), "b")] {
            opened(&other, path, &whole).unwrap_err();
        }
        assert!(!whole.windows(4).any(|bytes| bytes == b"text"));
    }

    #[test]
    fn a_key_is_long_and_its_line_end_does_not_count() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            BackupKey::read(&path)
        };
        let long = "x".repeat(SHORTEST);
        assert_eq!(read(&long).unwrap().0, read(&format!("{long}\r\n")).unwrap().0);
        let short = read(&format!("{}\n", "x".repeat(SHORTEST - 1))).unwrap_err();
        assert!(short.message().contains("openssl rand"), "{short}");
        read(&"x".repeat(5000)).unwrap_err();
        assert_eq!(format!("{:?}", read(&long).unwrap()), "BackupKey");
        BackupKey::read(&directory.path().join("none")).unwrap_err();
    }
}

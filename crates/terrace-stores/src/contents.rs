//! What all records of a database come to, so that a copy can be compared with its original.

use sha2::{Digest as _, Sha256};

/// All rows of records, tombstones included, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// How many.
    pub rows: u64,
    /// SHA-256 of keys, versions and values in the order of the keys, in hexadecimal digits.
    pub sha256: String,
    /// The value of the key that was asked for, if it has one.
    pub asked: Option<String>,
}

/// Adds rows up, in the order of their keys.
pub(crate) struct Summing<'a> {
    digest: Sha256,
    contents: Contents,
    ask: &'a str,
}

impl<'a> Summing<'a> {
    pub(crate) fn new(ask: &'a str) -> Self {
        Self { digest: Sha256::new(), contents: Contents::default(), ask }
    }

    pub(crate) fn add(&mut self, key: &str, version: i64, deleted: bool, value: &str) {
        // With their lengths, so that no two lists of rows have the same bytes.
        for text in [key, value] {
            self.digest.update((text.len() as u64).to_le_bytes());
            self.digest.update(text);
        }
        self.digest.update(version.to_le_bytes());
        self.digest.update([u8::from(deleted)]);
        self.contents.rows += 1;
        if key == self.ask && !deleted {
            self.contents.asked = Some(value.to_owned());
        }
    }

    pub(crate) fn end(self) -> Contents {
        let digest = self.digest.finalize();
        let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Contents { sha256, ..self.contents }
    }
}

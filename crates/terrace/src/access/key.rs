//! The form of a key.

use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use terrace_core::{Error, ErrorKind, Result};

/// What every key begins with, for scanners that look for secrets in public places.
const START: &str = "trc_";
const ID_CHARS: usize = 10;
/// 238 random bits.
const SECRET_CHARS: usize = 40;
const CHECK_CHARS: usize = 6;
/// Letters and digits, so that a key is one word wherever it is pasted.
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The public part of a key: names it in lists, in the audit log and in commands.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(String);

impl KeyId {
    /// The id in this text.
    ///
    /// # Errors
    /// `InvalidInput` unless it has ten letters and digits.
    pub fn new(text: &str) -> Result<Self> {
        if text.len() == ID_CHARS && text.bytes().all(|byte| ALPHABET.contains(&byte)) {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::invalid(
            "the id of a key has ten letters and digits; `terrace keys list` has them",
        ))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A whole key, `trc_<id>_<secret><check>`. It is shown once and kept nowhere.
///
/// The last six characters are a checksum of what stands before them, so a key that was cut or mistyped is
/// told from one that is unknown without asking anybody.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    id: KeyId,
    text: String,
}

impl ApiKey {
    /// A new one.
    ///
    /// # Errors
    /// `Internal` when the system has no random numbers.
    pub fn generate() -> Result<Self> {
        let id = KeyId(random_text(ID_CHARS)?);
        let start = format!("{START}{id}_{}", random_text(SECRET_CHARS)?);
        let text = format!("{start}{}", check(&start));
        Ok(Self { id, text })
    }

    /// The key in this text; `None` where it is no key of this form, or its checksum does not fit.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, rest) = text.strip_prefix(START)?.split_once('_')?;
        let id = KeyId::new(id).ok()?;
        let is_whole = rest.len() == SECRET_CHARS + CHECK_CHARS && rest.is_ascii();
        let (start, found) = text.split_at_checked(text.len() - CHECK_CHARS)?;
        (is_whole && check(start) == found).then(|| Self { id, text: text.to_owned() })
    }

    /// Its public part.
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// What is kept of it.
    pub fn digest(&self) -> KeyDigest {
        KeyDigest::of(&self.text)
    }

    /// The secret itself, to show it once.
    pub fn reveal(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ApiKey").field(&self.id).finish()
    }
}

/// SHA-256 of a key. A key has too many random bits to be guessed, so nothing slower is needed.
#[derive(Clone)]
pub struct KeyDigest([u8; 32]);

impl KeyDigest {
    /// Of this text.
    pub(crate) fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }

    /// As it is kept.
    pub(super) fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub(super) fn from_hex(text: &str) -> Option<Self> {
        let mut digest = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        for (byte, place) in digest.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[place..place + 2], 16).ok()?;
        }
        Some(Self(digest))
    }

    /// Whether both are the same, in a time that does not tell where they differ.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyDigest")
    }
}

/// Characters of the alphabet, each with the same chance.
fn random_text(length: usize) -> Result<String> {
    let mut text = String::with_capacity(length);
    let mut bytes = [0; 64];
    while text.len() < length {
        getrandom::fill(&mut bytes).map_err(|error| {
            Error::new(ErrorKind::Internal, format!("the system has no random numbers: {error}"))
        })?;
        // 248 is the highest multiple of 62 in a byte: what lies above would favour the first letters.
        let fair = bytes.iter().filter(|byte| **byte < 248);
        let letters = fair.map(|byte| char::from(ALPHABET[usize::from(byte % 62)]));
        text.extend(letters.take(length - text.len()));
    }
    Ok(text)
}

/// The checksum of a key's start.
fn check(start: &str) -> String {
    let digest = Sha256::digest(start.as_bytes());
    let letters = digest.iter().take(CHECK_CHARS);
    letters.map(|byte| char::from(ALPHABET[usize::from(byte % 62)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_and_one_wrong_letter_is_found() {
        let key = ApiKey::generate().expect("random numbers");
        let text = key.reveal();
        assert_eq!(text.len(), 4 + 10 + 1 + 40 + 6);
        assert_eq!(ApiKey::parse(text).as_ref(), Some(&key));
        for place in 0..text.len() {
            let mut wrong = text.as_bytes().to_vec();
            wrong[place] = if wrong[place] == b'x' { b'y' } else { b'x' };
            let wrong = String::from_utf8(wrong).expect("text");
            assert_eq!(ApiKey::parse(&wrong), None, "{wrong}");
            assert_eq!(ApiKey::parse(&text[..place]), None);
        }
        for text in ["", "trc_", "trc__", "trc_a_b", "trc_\u{e9}", "Bearer x"] {
            assert_eq!(ApiKey::parse(text), None, "{text:?}");
        }
        assert_ne!(ApiKey::generate().expect("random numbers"), key);
    }

    #[test]
    fn a_digest_is_kept_as_text_and_compared() {
        let (one, other) = (KeyDigest::of("one"), KeyDigest::of("other"));
        let kept = KeyDigest::from_hex(&one.to_hex()).expect("a digest");
        assert!(kept.is(&one) && !kept.is(&other));
        for text in ["", "00", &"g".repeat(64), &"\u{e9}".repeat(32)] {
            assert!(KeyDigest::from_hex(text).is_none(), "{text}");
        }
    }

    #[test]
    fn nothing_that_is_logged_has_the_secret() {
        let key = ApiKey::generate().expect("random numbers");
        let shown = format!("{key:?} {:?}", key.digest());
        assert!(shown.contains(key.id().as_str()) && !shown.contains(key.reveal()));
    }
}

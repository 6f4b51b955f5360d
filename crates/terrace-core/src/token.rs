//! Proof of what a client has seen.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::{Error, Position, Result};

/// Proof of what a client has seen: for each history a position that a later read must have reached.
///
/// Clients get it as opaque text in `Terrace-Token` and send it back. A token of a history that this
/// database never had asks nothing here; one of a history that it once had is lost (see
/// [`Histories`](crate::Histories)). Two tokens merge by taking the later position of each history;
/// the empty token asks nothing.
///
/// ```
/// # use terrace_core::{Position, Token};
/// let token = Token::of("db-7f3a", Position::new(42));
/// let sent = token.to_string();
/// assert_eq!(sent.parse::<Token>()?, token);
/// assert_eq!(token.position("db-7f3a"), Some(Position::new(42)));
/// assert!(token.position("another").is_none());
/// assert!("garbage".parse::<Token>().is_err());
/// # Ok::<(), terrace_core::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Token {
    // Nearly every token has one mark or two; the first is kept in place, and all share their names.
    first: Option<(Arc<str>, Position)>,
    /// In the order of the names.
    rest: Vec<(Arc<str>, Position)>,
}

impl Token {
    /// The format's version, the first byte of the text form.
    const FORMAT: u8 = 2;
    /// A client can send any text; more histories than this are refused. A batch over as many shards
    /// as one cluster can have answers fewer.
    const MAX_MARKS: usize = 1024;

    /// A token that asks for this position of this history. A name has 1 to 255 bytes.
    pub fn of(history: impl Into<Arc<str>>, position: Position) -> Self {
        Self { first: Some((history.into(), position)), rest: Vec::new() }
    }

    /// Whether it asks nothing.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// What it asks of this history.
    pub fn position(&self, history: &str) -> Option<Position> {
        self.marks().find(|(name, _)| &***name == history).map(|(_, position)| position)
    }

    /// What it asks, by history.
    pub fn marks(&self) -> impl Iterator<Item = (&Arc<str>, Position)> {
        let first = self.first.iter().map(|(name, position)| (name, *position));
        first.chain(self.rest.iter().map(|(name, position)| (name, *position)))
    }

    /// What it asks of all histories but this one.
    #[must_use]
    pub fn without(&self, history: &str) -> Self {
        let mut rest = Self::default();
        for (name, position) in self.marks().filter(|(name, _)| &***name != history) {
            rest.merge(&Self::of(Arc::clone(name), position));
        }
        rest
    }

    /// Asks from now on what `other` asks, too.
    pub fn merge(&mut self, other: &Self) {
        for (name, position) in other.marks() {
            match &mut self.first {
                None => self.first = Some((Arc::clone(name), position)),
                Some((first, mine)) if first == name => *mine = position.max(*mine),
                Some(_) => match self.rest.binary_search_by(|(known, _)| known.cmp(name)) {
                    Ok(place) => self.rest[place].1 = position.max(self.rest[place].1),
                    Err(place) => {
                        // Marks are few; room for four would be carried by every read.
                        self.rest.reserve_exact(1);
                        self.rest.insert(place, (Arc::clone(name), position));
                    }
                },
            }
        }
    }

    /// The bytes of a token: a version byte and, for each history, its name and position.
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        bytes.push(Self::FORMAT);
        for (name, position) in self.marks() {
            let name = &name.as_bytes()[..name.len().min(255)];
            #[expect(clippy::cast_possible_truncation, reason = "cut to 255 bytes above")]
            bytes.push(name.len() as u8);
            bytes.extend_from_slice(name);
            put_varint(&mut bytes, position.get());
        }
        bytes
    }

    /// Reads what [`Token::to_bytes`] gave.
    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let (&format, mut rest) = bytes.split_first().ok_or_else(wrong)?;
        if format != Self::FORMAT {
            return Err(wrong());
        }
        let mut token = Self::default();
        for _ in 0..=Self::MAX_MARKS {
            let Some((&length, tail)) = rest.split_first() else { return Ok(token) };
            let (name, tail) = tail.split_at_checked(usize::from(length)).ok_or_else(wrong)?;
            let name = std::str::from_utf8(name).map_err(|_| wrong())?;
            let (position, tail) = take_varint(tail).ok_or_else(wrong)?;
            token.merge(&Self::of(name, Position::new(position)));
            rest = tail;
        }
        Err(wrong())
    }

    /// Base64url, as clients get it.
    pub fn to_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.to_bytes())
    }
}

impl fmt::Display for Token {
    /// [`Token::to_text`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}

impl FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| wrong())?;
        Self::from_bytes(&bytes)
    }
}

fn wrong() -> Error {
    Error::invalid("token is not one that Terrace gave; send it back unchanged")
}

/// LEB128, as in DWARF and protobuf: seven bits a byte, low bits first.
fn put_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push((number & 0x7f) as u8);
}

fn take_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0u64;
    for (index, &byte) in bytes.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7f);
        number |= bits.checked_shl(7 * u32::try_from(index).ok()?)?;
        if byte < 0x80 {
            return Some((number, &bytes[index + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn tokens() -> impl Strategy<Value = Token> {
        proptest::collection::vec(("[a-z:0-9-]{1,12}", any::<u64>()), 0..6).prop_map(|marks| {
            let mut token = Token::default();
            for (name, position) in marks {
                token.merge(&Token::of(name, Position::new(position)));
            }
            token
        })
    }

    fn asks(token: &Token) -> BTreeMap<Arc<str>, Position> {
        token.marks().map(|(name, position)| (Arc::clone(name), position)).collect()
    }

    proptest! {
        #[test]
        fn text_keeps_what_is_asked(token in tokens()) {
            prop_assert_eq!(asks(&token.to_string().parse().unwrap()), asks(&token));
        }

        #[test]
        fn merging_is_commutative_associative_and_idempotent(a in tokens(), b in tokens(), c in tokens()) {
            let merged = |parts: &[&Token]| {
                let mut all = Token::default();
                parts.iter().for_each(|part| all.merge(part));
                asks(&all)
            };
            prop_assert_eq!(merged(&[&a, &b]), merged(&[&b, &a]));
            prop_assert_eq!(merged(&[&a, &b, &c]), merged(&[&c, &b, &a]));
            prop_assert_eq!(merged(&[&a, &a]), asks(&a));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "[A-Za-z0-9_-]{0,80}") {
            let _ = text.parse::<Token>();
        }
    }
}

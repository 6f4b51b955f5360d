//! Proof of what a client has seen.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::{Error, Position, Result, opaque};

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
    /// The format's version, with which the text form begins.
    const FORMAT: &str = "t3";
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

    /// The text form, as clients get it: the format's version, and for each history its escaped name and
    /// position; [`Token::pattern`] describes it.
    pub fn to_text(&self) -> String {
        let mut text = String::with_capacity(64);
        text.push_str(Self::FORMAT);
        for (name, position) in self.marks() {
            text.push('~');
            opaque::escape(name, &mut text);
            text.push('~');
            text.push_str(&position.get().to_string());
        }
        text
    }

    /// The text forms that are taken, as a regular expression.
    pub fn pattern() -> String {
        format!("^{}(~{}+~[0-9]{{1,20}}){{0,{}}}$", Self::FORMAT, opaque::PATTERN, Self::MAX_MARKS)
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
        let marks = text.strip_prefix(Self::FORMAT).ok_or_else(wrong)?;
        let mut token = Self::default();
        let mut parts = marks.split('~');
        // What is before the first mark: nothing.
        if parts.next() != Some("") {
            return Err(wrong());
        }
        for _ in 0..Self::MAX_MARKS {
            let Some(name) = parts.next() else { return Ok(token) };
            let name = opaque::unescape(name).filter(|name| !name.is_empty()).ok_or_else(wrong)?;
            let position = parts.next().and_then(position).ok_or_else(wrong)?;
            token.merge(&Self::of(name, position));
        }
        if parts.next().is_none() { Ok(token) } else { Err(wrong()) }
    }
}

/// Up to twenty digits. A number beyond all positions is the last of them: nobody has come so far.
fn position(text: &str) -> Option<Position> {
    let digits = (1..=20).contains(&text.len()) && text.bytes().all(|it| it.is_ascii_digit());
    digits.then(|| Position::new(text.parse().unwrap_or(u64::MAX)))
}

fn wrong() -> Error {
    Error::invalid("token is not one that Terrace gave; send it back unchanged")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn tokens() -> impl Strategy<Value = Token> {
        proptest::collection::vec(("[a-z:0-9/é_~-]{1,12}", any::<u64>()), 0..6).prop_map(|marks| {
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

    #[test]
    fn fuzzed_tokens_are_read_or_refused() {
        const LIKE: &[&str] =
            &["t3", "t3~sqlite-b3ad6bc433d2.1~12", "t3~a_2f__e9_~18446744073709551615~b~0"];
        let inputs = crate::testkit::bytes_like(LIKE);
        let tried = crate::testkit::fuzzed(&inputs, |input| {
            let Ok(text) = String::from_utf8(input) else { return };
            let Ok(token) = text.parse::<Token>() else { return };
            assert_eq!(token.to_string().parse::<Token>().unwrap(), token);
            let mut twice = token.clone();
            twice.merge(&token);
            assert_eq!(twice, token);
        });
        println!("{tried} inputs were tried");
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
        fn what_the_pattern_describes_is_taken(
            text in proptest::string::string_regex(
                Token::pattern().replace("1024", "4").trim_matches(['^', '$'])
            ).unwrap()
        ) {
            prop_assert!(text.parse::<Token>().is_ok());
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "t3[~A-Za-z0-9_-]{0,80}") {
            let _ = text.parse::<Token>();
        }
    }
}

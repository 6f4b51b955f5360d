//! The port of document stores.

use futures_util::future::BoxFuture;

use crate::json::{self, Json};
use crate::{Error, Page, ReadOptions, Result, Scan, Store};

/// A [`Store`] whose values are documents, and the questions that only their content answers.
///
/// A value is an object of JSON as [`json::document`](crate::json::document) makes it, and comes back
/// with the same names in the same order and the same kinds of numbers. Writing anything else is
/// refused. A batch of writes is not atomic where the engine has no transactions: each receipt then
/// says what came of its own write.
pub trait Documents: Store {
    /// A page of the documents that this selects, in byte order of their keys; the scan's prefix and
    /// cursor hold, too.
    ///
    /// # Errors
    /// As [`Store::scan`].
    fn select<'a>(
        &'a self,
        what: &'a Selection,
        scan: &'a Scan,
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Page>>;

    /// How many documents there are, exactly.
    ///
    /// # Errors
    /// As [`Store::scan`].
    fn count(&self) -> BoxFuture<'_, Result<u64>>;
}

/// Which documents to answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Selection {
    /// Those of which a field at the top has this value, or is a list that holds it. Numbers are
    /// compared by what they are worth, whatever their kind.
    Field(String, Json),
    /// Those that have all these [words](Json::words).
    Words(Vec<String>),
}

impl Selection {
    /// The most words of one search.
    pub const MAX_WORDS: usize = 32;

    /// Documents of which this field has this value.
    ///
    /// # Errors
    /// `InvalidInput` for a name that is empty, begins with `$`, or has a dot in it, which MongoDB
    /// cannot ask for, and for a list or an object as the value.
    pub fn field(name: impl Into<String>, value: Json) -> Result<Self> {
        let name = name.into();
        if name.is_empty() || name.starts_with('$') || name.contains(['.', '\0']) {
            return Err(Error::invalid(
                "the name of a field to find by must not be empty, begin with $, or hold a dot or a NUL \
                 character",
            ));
        }
        if matches!(value, Json::List(_) | Json::Object(_)) {
            let message = "the value to find must be a string, a number, true, false or null";
            return Err(Error::invalid(message));
        }
        Ok(Self::Field(name, value))
    }

    /// Documents that have all words of this text.
    ///
    /// # Errors
    /// `InvalidInput` for a text without a word, or with more than [`Selection::MAX_WORDS`].
    pub fn words(text: &str) -> Result<Self> {
        let mut words = json::words_of(text).collect::<Vec<_>>();
        words.sort_unstable();
        words.dedup();
        if words.is_empty() || words.len() > Self::MAX_WORDS {
            let message = "a search needs 1 to 32 words, which are runs of letters and digits";
            return Err(Error::invalid(message));
        }
        Ok(Self::Words(words))
    }

    /// Whether it selects this document: what every engine must answer.
    pub fn selects(&self, document: &Json) -> bool {
        match self {
            Self::Field(name, wanted) => {
                let Json::Object(fields) = document else { return false };
                let field = fields.iter().find(|(known, _)| known == name);
                field.is_some_and(|(_, found)| match found {
                    Json::List(items) => items.iter().any(|item| is_worth(item, wanted)),
                    found => is_worth(found, wanted),
                })
            }
            Self::Words(wanted) => {
                let words = document.words();
                wanted.iter().all(|word| words.binary_search(word).is_ok())
            }
        }
    }
}

fn is_worth(found: &Json, wanted: &Json) -> bool {
    match (found, wanted) {
        (Json::Integer(whole), Json::Float(other)) | (Json::Float(other), Json::Integer(whole)) => {
            // Exactly: beyond 2^53 a float stands for one integer of many.
            other.fract() == 0.0 && format!("{other:.0}").parse() == Ok(*whole)
        }
        _ => found == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_compared_by_what_they_are_worth() {
        let document =
            Json::parse(r#"{"n":1.0,"big":9007199254740993,"t":true,"l":[[2],null,-0.0]}"#);
        let document = document.unwrap();
        let found =
            |name: &str, value: Json| Selection::field(name, value).unwrap().selects(&document);
        assert!(found("n", Json::Integer(1)) && found("n", Json::Float(1.0)));
        assert!(found("big", Json::Integer(9_007_199_254_740_993)));
        assert!(!found("big", Json::Float(9_007_199_254_740_992.0)));
        assert!(!found("t", Json::Integer(1)) && found("t", Json::Bool(true)));
        assert!(found("l", Json::Null) && found("l", Json::Integer(0)));
        assert!(!found("l", Json::Integer(2)) && !found("none", Json::Null));
    }
}

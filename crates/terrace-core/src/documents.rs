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
}

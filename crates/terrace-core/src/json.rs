//! JSON that comes back as it was written.
//!
//! Names keep their order, and numbers their kind: `1.0` stays a float, and 2^53 + 1 an integer. What
//! some engine could not keep is refused on every engine, so that a document can move between them.

mod read;

use std::fmt;

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use crate::{Error, Result, Value};

/// A value of JSON.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number without a fraction and an exponent.
    Integer(i64),
    /// Any other number. Finite.
    Float(f64),
    /// A string. It may hold NUL characters.
    Text(String),
    /// A list.
    List(Vec<Self>),
    /// Names and their values, in the order in which they were written; no name twice.
    Object(Vec<(String, Self)>),
}

impl Json {
    /// How many lists and objects may lie within each other; MongoDB takes no more.
    pub const MAX_DEPTH: usize = 100;

    /// Reads a text. Of a name that is written twice the last value counts, at the first's place.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for what is no JSON, and for what no
    /// engine need keep: integers that have more than 64 bits, names with a NUL character, more than
    /// [`Json::MAX_DEPTH`] levels. The message says what to change.
    pub fn parse(text: &str) -> Result<Self> {
        read::parse(text)
    }

    /// The words of all strings and numbers in it, in lower case, each once, in order: what a search
    /// finds it by. A word is a run of letters and digits.
    pub fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        self.add_words(&mut words);
        words.sort_unstable();
        words.dedup();
        words
    }

    fn add_words(&self, words: &mut Vec<String>) {
        match self {
            Self::Null | Self::Bool(_) => {}
            Self::Integer(_) | Self::Float(_) => words.extend(words_of(&self.to_string())),
            Self::Text(text) => words.extend(words_of(text)),
            Self::List(items) => items.iter().for_each(|item| item.add_words(words)),
            Self::Object(fields) => fields.iter().for_each(|(_, field)| field.add_words(words)),
        }
    }
}

/// The words of a text, in lower case, in their order.
pub fn words_of(text: &str) -> impl Iterator<Item = String> + '_ {
    let words = text.split(|letter: char| !letter.is_alphanumeric());
    words.filter(|word| !word.is_empty()).map(str::to_lowercase)
}

impl fmt::Display for Json {
    /// The text without spaces.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Strings, finite numbers and string names are all that is in it.
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => to.serialize_unit(),
            Self::Bool(value) => to.serialize_bool(*value),
            Self::Integer(number) => to.serialize_i64(*number),
            Self::Float(number) => to.serialize_f64(*number),
            Self::Text(text) => to.serialize_str(text),
            Self::List(items) => {
                let mut list = to.serialize_seq(Some(items.len()))?;
                items.iter().try_for_each(|item| list.serialize_element(item))?;
                list.end()
            }
            Self::Object(fields) => {
                let mut object = to.serialize_map(Some(fields.len()))?;
                fields.iter().try_for_each(|(name, field)| object.serialize_entry(name, field))?;
                object.end()
            }
        }
    }
}

/// The value of a record that is a document: an object, as text without spaces.
///
/// # Errors
/// As [`Json::parse`]; also for what is no object, and for a document of more than
/// [`Value::MAX_BYTES`].
pub fn document(text: &str) -> Result<Value> {
    match Json::parse(text)? {
        object @ Json::Object(_) => Value::new(object.to_string()),
        _ => Err(no_object()),
    }
}

/// The object that a value is, for a store of documents.
///
/// # Errors
/// As [`document`]; also for a text that it would write in another way, as with spaces: one engine keeps
/// the text and another the object, and both must answer the same.
pub fn object(value: &Value) -> Result<Json> {
    match Json::parse(value.as_str())? {
        object @ Json::Object(_) if object.to_string() == value.as_str() => Ok(object),
        Json::Object(_) => Err(Error::invalid("a document must be written without spaces")),
        _ => Err(no_object()),
    }
}

fn no_object() -> Error {
    Error::invalid("a document must be a JSON object; send {...}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(super) fn any_json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::Bool),
            any::<i64>().prop_map(Json::Integer),
            any::<f64>().prop_filter("finite", |it| it.is_finite()).prop_map(Json::Float),
            ".{0,8}".prop_map(Json::Text),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            let fields = proptest::collection::vec(("[^\\u{0}]{0,4}", inner.clone()), 0..6);
            let object = fields.prop_map(|mut fields| {
                let mut seen = std::collections::HashSet::new();
                fields.retain(|(name, _)| seen.insert(name.clone()));
                Json::Object(fields)
            });
            prop_oneof![proptest::collection::vec(inner, 0..6).prop_map(Json::List), object]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(json in any_json()) {
            prop_assert_eq!(Json::parse(&json.to_string()).unwrap(), json);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[\\[\\]{}:,0-9eE.\"\\\\a-u+ -]{0,40}") {
            if let Ok(json) = Json::parse(&text) {
                prop_assert_eq!(Json::parse(&json.to_string()).unwrap(), json);
            }
        }
    }

    #[test]
    fn order_and_kinds_of_numbers_are_kept() {
        for text in [
            r#"{"b":1,"a":1.0,"":{"$oid":"x"},"a.b":[9007199254740993,-9223372036854775808]}"#,
            r#"{"f":[1e+300,0.1,5e-324,-0.0],"t":"\u0000\n\"é"}"#,
        ] {
            assert_eq!(Json::parse(text).unwrap().to_string(), text);
        }
        let twice = Json::parse(r#"{"a":1,"b":2,"a":3}"#).unwrap();
        assert_eq!(twice.to_string(), r#"{"a":3,"b":2}"#);
    }

    #[test]
    fn what_an_engine_cannot_keep_is_refused() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(Json::parse(&deep(Json::MAX_DEPTH)).is_ok());
        for (text, what) in [
            (r#"{"a":9223372036854775808}"#, "integer"),
            (r#"{"a":-9223372036854775809}"#, "integer"),
            (r#"{"a":184467440737095516160}"#, "integer"),
            (r#"{"a":1e400}"#, "out of range"),
            (r#"{"a\u0000":1}"#, "NUL"),
            (r#"{"a":1"#, "JSON"),
            (deep(Json::MAX_DEPTH + 1).as_str(), "100"),
            (deep(200).as_str(), "100"),
        ] {
            let error = Json::parse(text).unwrap_err();
            assert!(error.message().contains(what), "{text}: {error}");
        }
        assert!(Json::parse(r#"{"a":"9223372036854775808","b":"\"9223372036854775808"}"#).is_ok());
        assert!(document("[]").is_err() && document("{}").unwrap().as_str() == "{}");
        let written = |text: &str| object(&Value::new(text).unwrap()).is_ok();
        assert!(written(r#"{"a":1.0}"#) && !written(r#"{"a": 1.0}"#) && !written("[]"));
    }

    #[test]
    fn words_are_those_of_values() {
        let json = Json::parse(r#"{"name":["Größe, größe",{"x":"it's 5 o'clock"}],"n":42}"#);
        assert_eq!(json.unwrap().words(), ["42", "5", "clock", "größe", "it", "o", "s"]);
    }
}

//! Rows that only a hand can have made.

use terrace_core::{Error, ErrorKind};

/// The most characters of a key that are shown: one that is not allowed may be long.
const SHOWN: usize = 64;

/// Says in which row it was found that something stored is damaged; other errors are as they were.
pub(crate) fn in_row(error: Error, key: &str) -> Error {
    if error.kind() != ErrorKind::Corrupt {
        return error;
    }
    let end = key.char_indices().nth(SHOWN).map_or(key.len(), |(end, _)| end);
    let more = if end < key.len() { "..." } else { "" };
    error.within(format_args!("the row with the key {:?}{more}", &key[..end]))
}

/// The least text greater than all texts that begin with `prefix`; `None` when there is none.
#[cfg(any(feature = "mongodb", feature = "sqlite"))]
pub(crate) fn successor(prefix: &str) -> Option<String> {
    let mut text = prefix.to_owned();
    while let Some(last) = text.pop() {
        // A range of characters steps over the surrogates, which are none.
        if let Some(next) = (last..=char::MAX).nth(1) {
            text.push(next);
            return Some(text);
        }
    }
    None
}

#[cfg(all(test, any(feature = "mongodb", feature = "sqlite")))]
mod tests {
    use super::successor;

    #[test]
    fn the_successor_of_a_prefix_is_the_end_of_its_range() {
        let cases = [
            ("", None),
            ("a", Some("b")),
            ("user:", Some("user;")),
            ("a\u{10ffff}", Some("b")),
            ("\u{10ffff}", None),
            ("\u{d7ff}", Some("\u{e000}")),
        ];
        for (prefix, end) in cases {
            assert_eq!(successor(prefix).as_deref(), end, "{prefix:?}");
        }
    }
}

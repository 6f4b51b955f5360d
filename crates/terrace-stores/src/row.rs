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

//! Text that clients carry without looking into it, in characters that every place of a request takes
//! as they are, and in a form that a pattern describes exactly.

use std::fmt::Write as _;

/// One character of an escaped text, as a regular expression: a plain one, or the number of any other in
/// hexadecimal digits between underscores.
pub const PATTERN: &str = "([0-9A-Za-z.:-]|_([1-9a-f][0-9a-f]{0,2}|[1-9a-ce-f][0-9a-f]{3}\
     |d[0-7][0-9a-f]{2}|[1-9a-f][0-9a-f]{4}|10[0-9a-f]{4})_)";

/// Adds the escaped form of a text, which has no NUL.
///
/// ```
/// # use terrace_core::opaque;
/// let mut escaped = String::new();
/// opaque::escape("a/é", &mut escaped);
/// assert_eq!(escaped, "a_2f__e9_");
/// assert_eq!(opaque::unescape(&escaped).as_deref(), Some("a/é"));
/// assert_eq!(opaque::unescape("a/b"), None);
/// ```
pub fn escape(text: &str, into: &mut String) {
    for character in text.chars() {
        if is_plain(character) {
            into.push(character);
        } else {
            // A String takes every character.
            let _ = write!(into, "_{:x}_", u32::from(character));
        }
    }
}

/// The text of an escaped form; `None` for what is none.
pub fn unescape(escaped: &str) -> Option<String> {
    let mut text = String::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some(character) = rest.chars().next() {
        if is_plain(character) {
            text.push(character);
            rest = &rest[1..];
            continue;
        }
        let (number, after) = rest.strip_prefix('_')?.split_once('_')?;
        let digits = number.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        let number = u32::from_str_radix(number, 16).ok().filter(|number| digits && *number > 0)?;
        text.push(char::from_u32(number)?);
        rest = after;
    }
    Some(text)
}

fn is_plain(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '.' | ':' | '-')
}

//! Fields of JSON bodies, read so that a refusal names the field and never repeats its content.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::problem::Problem;

/// The longest part of a parser's message that is shown; field names come from the client.
const SHOWN_CHARS: usize = 160;

/// A field as it was sent, not yet looked into. `None` when it is missing or null.
pub(crate) type Raw<'a> = Option<&'a RawValue>;

/// Reads the body as an object whose fields are all [`Raw`].
///
/// # Errors
/// 422 that says where the text stops being JSON, or which field is unknown or sent twice.
pub(crate) fn object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_str(json(body)?).map_err(|error| {
        let what = match error.classify() {
            Category::Data => "the body has the wrong fields",
            Category::Io | Category::Syntax | Category::Eof => "the body is not valid JSON",
        };
        Problem::invalid(format!("{what}: {}", shown(&error)))
    })
}

/// The text of a body that is an object.
///
/// # Errors
/// 422 when it is not UTF-8, or no object.
pub(crate) fn json(body: &[u8]) -> Result<&str, Problem> {
    let text = str::from_utf8(body).map_err(|error| {
        let place = error.valid_up_to();
        Problem::invalid(format!("the body is not UTF-8 from byte {place} on; send UTF-8"))
    })?;
    // RFC 8259, section 8.1: who reads may ignore a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // Checked before the parser sees it: its own message would repeat what was sent.
    match text.trim_ascii_start().as_bytes().first() {
        Some(b'{') => Ok(text),
        None => Err(Problem::invalid("the body is empty; send a JSON object")),
        Some(_) => Err(Problem::invalid("the body must be a JSON object, as in {\"...\"}")),
    }
}

/// Reads one item of an array as an object whose fields are all [`Raw`].
///
/// # Errors
/// 422 that names the item.
pub(crate) fn item<'a, T: Deserialize<'a>>(place: &str, raw: &'a RawValue) -> Result<T, Problem> {
    expect_type(place, raw, "an object")?;
    serde_json::from_str(raw.get()).map_err(|error| {
        Problem::invalid(format!("{place} has the wrong fields: {}", shown(&error)))
    })
}

/// Reads a string.
///
/// # Errors
/// 422 that names the field, when it is missing, null, another type, or has half a surrogate pair.
pub(crate) fn text<'a>(name: &str, raw: Raw<'a>) -> Result<Cow<'a, str>, Problem> {
    let raw = present(name, raw, "a string")?;
    expect_type(name, raw, "a string")?;
    let quoted = raw.get();
    let inner = quoted.get(1..quoted.len() - 1).unwrap_or_default();
    // The parser has seen the whole text: without an escape the slice is the string.
    if !inner.as_bytes().contains(&b'\\') {
        return Ok(Cow::Borrowed(inner));
    }
    serde_json::from_str::<String>(quoted).map(Cow::Owned).map_err(|_| {
        Problem::invalid(format!("{name} has an escape that is not Unicode; send whole characters"))
    })
}

/// Reads the text of a number, or of a string that may hold one: no float is made of it.
///
/// # Errors
/// 422 that names the field, when it is missing, null, or another type.
pub(crate) fn decimal<'a>(name: &str, raw: Raw<'a>) -> Result<Cow<'a, str>, Problem> {
    match raw {
        Some(raw) if raw.get().starts_with('"') => text(name, Some(raw)),
        _ => {
            let raw = present(name, raw, "a number")?;
            expect_type(name, raw, "a number")?;
            Ok(Cow::Borrowed(raw.get()))
        }
    }
}

/// Reads the text of an object.
///
/// # Errors
/// 422 that names the field, when it is missing, null, or another type.
pub(crate) fn inner_object<'a>(name: &str, raw: Raw<'a>) -> Result<&'a str, Problem> {
    let raw = present(name, raw, "an object")?;
    expect_type(name, raw, "an object")?;
    Ok(raw.get())
}

/// Reads an array whose items are not yet looked into.
///
/// # Errors
/// 422 that names the field, when it is missing, null, another type, or outside 1 to `limit` items.
pub(crate) fn array<'a>(
    name: &str,
    raw: Raw<'a>,
    limit: usize,
) -> Result<Vec<&'a RawValue>, Problem> {
    let raw = present(name, raw, "an array")?;
    expect_type(name, raw, "an array")?;
    let items = serde_json::from_str::<Vec<&RawValue>>(raw.get())
        .map_err(|_| Problem::invalid(format!("{name} must be a JSON array")))?;
    if (1..=limit).contains(&items.len()) {
        return Ok(items);
    }
    let found = items.len();
    Err(Problem::invalid(format!("{name} has {found} items; send 1 to {limit}")))
}

/// Reads a whole number from 0 on, where there is one.
///
/// # Errors
/// 422 that names the field.
pub(crate) fn number(name: &str, raw: Raw<'_>) -> Result<Option<u64>, Problem> {
    let Some(raw) = raw else { return Ok(None) };
    expect_type(name, raw, "a whole number")?;
    let number = whole(raw.get()).filter(|number| i64::try_from(*number).is_ok());
    number.map(Some).ok_or_else(|| {
        Problem::invalid(format!("{name} must be a whole number from 0 to {}", i64::MAX))
    })
}

/// The whole number that a number of JSON is, however it is written: `7`, `7.0`, `70e-1`.
fn whole(text: &str) -> Option<u64> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (ahead, behind) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent = exponent.parse::<i32>().ok()?.checked_sub(i32::try_from(behind.len()).ok()?)?;
    let digits = format!("{}{behind}", ahead.trim_start_matches('-')).parse::<u128>().ok()?;
    if digits == 0 {
        return Some(0);
    }
    let power = 10_u128.checked_pow(exponent.unsigned_abs())?;
    let number = match exponent {
        0.. => digits.checked_mul(power)?,
        _ => (digits % power == 0).then_some(digits / power)?,
    };
    u64::try_from(number).ok().filter(|_| !ahead.starts_with('-'))
}

fn present<'a>(name: &str, raw: Raw<'a>, wanted: &str) -> Result<&'a RawValue, Problem> {
    raw.ok_or_else(|| Problem::invalid(format!("{name} is missing or null; it must be {wanted}")))
}

fn expect_type(name: &str, raw: &RawValue, wanted: &str) -> Result<(), Problem> {
    let found = match raw.get().as_bytes().first() {
        Some(b'"') => "a string",
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    };
    let fits = found == wanted || (wanted == "a whole number" && found == "a number");
    if fits {
        Ok(())
    } else {
        Err(Problem::invalid(format!("{name} must be {wanted}, not {found}")))
    }
}

fn shown(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}... at line {}", &message[..end], error.line()),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_number_is_one_however_it_is_written() {
        for (text, number) in [
            ("7", 7),
            ("7.0", 7),
            ("70e-1", 7),
            ("-0.0", 0),
            ("0e999999999", 0),
            ("9.1e+18", 9_100_000_000_000_000_000),
            ("9007199254740993.0", 9_007_199_254_740_993),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(whole(text), Some(number), "{text}");
        }
        for text in ["-1", "7.5", "7e-1", "1e20", "1e999999999999", "18446744073709551616"] {
            assert_eq!(whole(text), None, "{text}");
        }
    }
}

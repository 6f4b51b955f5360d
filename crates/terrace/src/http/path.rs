//! Keys in paths and parameters in queries, percent-decoded.

use std::borrow::Cow;
use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use terrace_core::{Key, Scan, opaque};

use super::problem::Problem;

/// The key in the last segment of a path. The path is split before it is decoded, so `%2F` stays
/// inside the key.
///
/// # Errors
/// 422 for a broken escape, for what is not UTF-8, and for what is no [`Key`].
pub(crate) fn key(path: &str) -> Result<Key, Problem> {
    let segment = path.rsplit('/').next().unwrap_or_default();
    Ok(Key::new(decode("the key in the path", segment)?)?)
}

/// What a list asks for.
///
/// # Errors
/// 422 that names the parameter.
pub(crate) fn scan(query: Option<&str>) -> Result<Scan, Problem> {
    let mut scan = Scan::prefix("");
    let mut seen = Vec::new();
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if seen.contains(&name) {
            return Err(Problem::invalid(format!("{} is given twice; give it once", known(name))));
        }
        seen.push(name);
        // A form writes a space as a plus sign.
        let value = value.replace('+', " ");
        match name {
            "prefix" => scan.prefix = prefix(&decode("prefix", &value)?)?,
            "cursor" if value.is_empty() => {}
            "cursor" => scan.after = Some(read_cursor(&decode("cursor", &value)?)?),
            "limit" => scan.limit = limit_of(Some(&value), 100, Scan::MAX_LIMIT)?,
            _ => {
                return Err(Problem::invalid(
                    "the query has an unknown parameter; known are prefix, cursor and limit",
                ));
            }
        }
    }
    Ok(scan)
}

/// The parameters of a query, decoded; only these may be there, each once.
///
/// # Errors
/// 422 that names what is wrong.
pub(crate) fn query(
    query: Option<&str>,
    names: &[&'static str],
) -> Result<BTreeMap<&'static str, String>, Problem> {
    let mut found = BTreeMap::new();
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(name) = names.iter().copied().find(|known| *known == name) else {
            let known = names.join(" and ");
            return Err(Problem::invalid(format!(
                "the query has an unknown parameter; known are {known}"
            )));
        };
        // A form writes a space as a plus sign.
        let value = decode(name, &value.replace('+', " "))?.into_owned();
        if found.insert(name, value).is_some() {
            return Err(Problem::invalid(format!("{name} is given twice; give it once")));
        }
    }
    Ok(found)
}

/// The opaque text that stands for "after this key".
pub(crate) fn cursor(after: &Key) -> String {
    let mut text = CURSOR_FORMAT.to_owned();
    opaque::escape(after.as_str(), &mut text);
    text
}

/// The cursors that are taken, as a regular expression.
pub(crate) fn cursors() -> String {
    format!("^{CURSOR_FORMAT}{}{{1,{}}}$", opaque::PATTERN, Key::MAX_CHARS)
}

/// What a cursor begins with, so that its format can change.
const CURSOR_FORMAT: &str = "c2";

/// The key that a cursor stands for.
///
/// # Errors
/// 422 for what [`cursor`] has not made.
pub(crate) fn read_cursor(text: &str) -> Result<Key, Problem> {
    let key = text.strip_prefix(CURSOR_FORMAT).and_then(opaque::unescape);
    key.and_then(|key| Key::new(key).ok()).ok_or_else(|| {
        Problem::invalid("cursor is not one that Terrace gave; send next_cursor back unchanged")
    })
}

fn prefix(text: &str) -> Result<String, Problem> {
    if text.is_empty() {
        return Ok(String::new());
    }
    // A prefix is the beginning of a key, so what cannot be a key can begin none.
    let key = Key::new(text).map_err(|error| Problem::from(error).within("prefix"))?;
    Ok(key.as_str().to_owned())
}

/// A number of items from 1 to `most`.
///
/// # Errors
/// 422 for anything else.
pub(crate) fn limit_of(
    text: Option<&String>,
    default: usize,
    most: usize,
) -> Result<usize, Problem> {
    let Some(text) = text else { return Ok(default) };
    let number = text.parse().ok().filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| Problem::invalid(format!("limit must be a whole number from 1 to {most}")))
}

fn known(name: &str) -> &str {
    if matches!(name, "prefix" | "cursor" | "limit") { name } else { "a parameter of the query" }
}

/// Decodes percent escapes, and unlike browsers refuses broken ones.
fn decode<'a>(what: &str, text: &'a str) -> Result<Cow<'a, str>, Problem> {
    let bytes = text.as_bytes();
    for (index, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%') {
        let digits = bytes.get(index + 1..index + 3);
        if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            return Err(Problem::invalid(format!(
                "{what} has a % without two hexadecimal digits; write a percent sign as %25"
            )));
        }
    }
    percent_decode_str(text).decode_utf8().map_err(|_| {
        Problem::invalid(format!(
            "{what} is not UTF-8 once decoded; percent-encode its UTF-8 bytes"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_slashes_spaces_and_any_script() {
        let read = |path| key(path).map(|key| key.as_str().to_owned());
        assert_eq!(read("/read/a%2Fb").unwrap(), "a/b");
        assert_eq!(read("/read/a%20b+c").unwrap(), "a b+c");
        assert_eq!(read("/read/%E3%81%82").unwrap(), "あ");
        for bad in ["/read/%", "/read/%2", "/read/%zz", "/read/%ff", "/read/", "/read/%00"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cursors_come_back_as_they_were() {
        let after = Key::new("a/é").unwrap();
        let query = format!("prefix=a%2F&limit=7&cursor={}", cursor(&after));
        let asked = scan(Some(&query)).unwrap();
        assert_eq!(asked, Scan { prefix: "a/".into(), after: Some(after), limit: 7 });
        for bad in ["limit=0", "limit=1001", "limit=x", "limt=1", "cursor=!", "limit=1&limit=2"] {
            assert!(scan(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn fuzzed_paths_and_queries_are_read_or_refused() {
        const LIKE: &[&str] = &[
            "/v1/records/a%2Fb%20%E3%81%82",
            "prefix=a%2F&cursor=c2a_2f_b&limit=7",
            "q=two+words&limit=1000",
        ];
        let inputs = terrace_core::testkit::bytes_like(LIKE);
        let tried = terrace_core::testkit::fuzzed(&inputs, |input| {
            let text = String::from_utf8_lossy(&input);
            if let Ok(key) = key(&text) {
                assert_eq!(read_cursor(&cursor(&key)).expect("its own cursor"), key);
            }
            if let Ok(scan) = scan(Some(&text)) {
                assert!((1..=Scan::MAX_LIMIT).contains(&scan.limit));
            }
            let _ = query(Some(&text), &["q", "limit"]);
            let _ = read_cursor(&text);
        });
        println!("{tried} inputs were tried");
    }
}

//! What stands in a body, without parsing all of it.
//!
//! The generator must cost little beside the server, so it looks for the one field it needs. Its own
//! keys and values are plain ASCII without quotes or backslashes, so the first quote ends them.

use memchr::memmem;

/// The text of the field of this name, `Some(None)` when it is null, `None` when it is not there.
pub fn text<'a>(body: &'a [u8], name: &[u8]) -> Option<Option<&'a str>> {
    let rest = field(body, name)?;
    if rest.starts_with(b"null") {
        return Some(None);
    }
    let rest = rest.strip_prefix(b"\"")?;
    let end = memchr::memchr(b'"', rest)?;
    Some(Some(str::from_utf8(&rest[..end]).ok()?))
}

/// The value that a read shows, `Some(None)` when it says that there is none, `None` when it is no
/// answer to a read.
pub fn value(body: &[u8]) -> Option<Option<&str>> {
    let missing = || field(body, b"\"success\"")?.starts_with(b"false").then_some(None);
    text(body, b"\"value\"").or_else(missing)
}

/// The kinds of a statement's transactions; `None` when it is no statement.
pub fn kinds(body: &[u8]) -> Option<impl Iterator<Item = &str>> {
    let list = field(body, b"\"value\"")?;
    let name = b"\"transaction_type\"";
    let found = memmem::find_iter(list, name);
    Some(found.map(|at| text(&list[at..], name).flatten().unwrap_or_default()))
}

/// Whether the field of this name is `true`.
pub fn is_true(body: &[u8], name: &[u8]) -> bool {
    field(body, name).is_some_and(|rest| rest.starts_with(b"true"))
}

/// Each record of a list: its key and its value.
pub fn records(body: &[u8]) -> impl Iterator<Item = (&str, Option<&str>)> {
    memmem::find_iter(body, b"\"key\"").map(|at| {
        let rest = &body[at..];
        // A record that is missing has no value of its own: stop at the next record.
        let end = memmem::find(&rest[1..], b"\"key\"").map_or(rest.len(), |end| end + 1);
        let record = &rest[..end];
        (
            text(record, b"\"key\"").flatten().unwrap_or_default(),
            text(record, b"\"value\"").flatten(),
        )
    })
}

/// Where a read came from, by the fields of the documents' API, for servers without the header.
pub fn origin(body: &[u8]) -> Option<&'static str> {
    match text(body, b"\"cache_level\"").flatten() {
        Some("L1") => return Some("near"),
        Some("L2") => return Some("far"),
        Some(_) => return Some("primary"),
        None => {}
    }
    if is_true(body, b"\"from_cache\"") || is_true(body, b"\"cache_hit\"") {
        return Some("far");
    }
    if is_true(body, b"\"from_replica\"") {
        return Some("replica");
    }
    if is_true(body, b"\"from_read_db\"") {
        return Some("read-model");
    }
    match text(body, b"\"source\"").flatten() {
        Some("cache") => Some("far"),
        Some("database" | "postgres") => Some("primary"),
        _ => field(body, b"\"from_cache\"").map(|_| "primary"),
    }
}

/// What follows `"name":`.
fn field<'a>(body: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let after = memmem::find(body, name)? + name.len();
    let rest = body[after..].trim_ascii_start().strip_prefix(b":")?;
    Some(rest.trim_ascii_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_however_the_body_is_spaced() {
        for body in [
            &br#"{"success":true,"key":"k","value":"v.1","message":null}"#[..],
            b"{\"success\" : true,\n  \"key\": \"k\",\n  \"value\" :\t\"v.1\", \"message\": null}",
        ] {
            assert_eq!(text(body, b"\"value\""), Some(Some("v.1")));
            assert_eq!(text(body, b"\"message\""), Some(None));
            assert_eq!(text(body, b"\"other\""), None);
            assert!(is_true(body, b"\"success\""));
        }
        assert_eq!(text(b"{\"value\":\"cut", b"\"value\""), None);
    }

    #[test]
    fn a_list_is_read_record_by_record() {
        let body = br#"{"records":[{"key":"a","value":"1"},{"key":"b","missing":true},
            {"key":"c","value":"3","version":4}],"next_cursor":"x"}"#;
        let found: Vec<_> = records(body).collect();
        assert_eq!(found, [("a", Some("1")), ("b", None), ("c", Some("3"))]);
    }

    #[test]
    fn a_missing_document_is_told_from_what_is_no_answer() {
        for (body, wanted) in [
            (&br#"{"success":true,"key":"k","data":{"value":"v.1"}}"#[..], Some(Some("v.1"))),
            (br#"{"success":false,"key":"k","data":{"message":"Document not found"}}"#, Some(None)),
            (br#"{"success":false,"key":"k","value":null}"#, Some(None)),
            (br#"{"detail":"there is no such path"}"#, None),
        ] {
            assert_eq!(value(body), wanted);
        }
    }

    #[test]
    fn a_statement_is_read_transaction_by_transaction() {
        let body = br#"{"success":true,"value":[{"id":2,"transaction_type":"b"},
            {"id":1, "transaction_type": "a"}],"source":"cache"}"#;
        assert_eq!(kinds(body).unwrap().collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(kinds(br#"{"success":false,"value":[]}"#).unwrap().count(), 0);
        assert!(kinds(br#"{"detail":"busy"}"#).is_none());
    }

    #[test]
    fn the_documents_fields_tell_the_origin() {
        for (body, wanted) in [
            (&br#"{"from_cache":false,"from_replica":true}"#[..], Some("replica")),
            (br#"{"from_cache":true,"from_replica":false}"#, Some("far")),
            (br#"{"from_cache": false}"#, Some("primary")),
            (br#"{"cache_level":"L1"}"#, Some("near")),
            (br#"{"cache_level":"L3"}"#, Some("primary")),
            (br#"{"cache_hit":true,"cache_level":"L2"}"#, Some("far")),
            (br#"{"source":"cache","region":"US-EAST"}"#, Some("far")),
            (br#"{"source":"postgres","message":null}"#, Some("primary")),
            (br#"{"from_read_db":true}"#, Some("read-model")),
            (br#"{"success":true}"#, None),
        ] {
            assert_eq!(origin(body), wanted);
        }
    }
}

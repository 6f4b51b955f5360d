//! Entity tags and the conditions that requests put on them (RFC 9110, section 13).

use bytes::{BufMut as _, BytesMut};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use terrace_core::{Precondition, Record, Version};

use super::problem::Problem;
use super::{headers, http_date};

/// The entity tag of a version: the number in quotes.
pub(crate) fn etag(version: Version) -> HeaderValue {
    let mut text = BytesMut::with_capacity(22);
    text.put_u8(b'"');
    text.put_slice(version.to_string().as_bytes());
    text.put_u8(b'"');
    // Digits in quotes are always a valid header value.
    HeaderValue::from_maybe_shared(text.freeze()).unwrap_or(HeaderValue::from_static("\"\""))
}

/// The conditions of one request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Conditions {
    if_match: Option<Tags>,
    /// Second of the date; `None` beside `If-Match`, which is exact.
    unmodified_since: Option<i64>,
    if_none_match: Option<Tags>,
    /// Second of the date; `None` beside `If-None-Match`, which is exact.
    modified_since: Option<i64>,
}

/// What a condition compares with.
#[derive(Debug, PartialEq, Eq)]
enum Tags {
    /// Any record at all.
    Any,
    /// One of these.
    Of {
        given: Vec<Version>,
        /// Whether there are tags that Terrace never gave. They match nothing.
        others: bool,
    },
}

impl Conditions {
    /// The conditions in `If-Match` and `If-None-Match`; several lines of one count as one list.
    /// Where one of them is missing its counterpart with a date counts.
    ///
    /// # Errors
    /// 422 for what is not a list of tags. What is not a date is ignored, as the RFC demands.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        // Strong comparison: a weak tag matches nothing.
        let if_match = tags(headers, &header::IF_MATCH, false)?;
        let if_none_match = tags(headers, &header::IF_NONE_MATCH, true)?;
        let date = |name, tags: &Option<Tags>| match tags {
            None => second(headers, name),
            Some(_) => None,
        };
        Ok(Self {
            unmodified_since: date(&header::IF_UNMODIFIED_SINCE, &if_match),
            modified_since: date(&header::IF_MODIFIED_SINCE, &if_none_match),
            if_match,
            if_none_match,
        })
    }

    /// Whether a request has any.
    pub(crate) fn are_in(headers: &HeaderMap) -> bool {
        ALL.iter().any(|name| headers.contains_key(name))
    }

    /// The precondition that says the same, when one does that without a look at the record.
    pub(crate) fn as_precondition(&self) -> Option<Precondition> {
        if self.unmodified_since.is_some() {
            return None;
        }
        match (&self.if_match, &self.if_none_match) {
            (None, None) => Some(Precondition::None),
            (None, Some(Tags::Any)) => Some(Precondition::Absent),
            (Some(Tags::Of { given, .. }), None) if given.len() == 1 => {
                Some(Precondition::Version(given[0]))
            }
            _ => None,
        }
    }

    /// The precondition that pins what was just read, or `None` when the conditions do not hold.
    pub(crate) fn pin(&self, current: Option<&Record>) -> Option<Precondition> {
        let version = current.map(|record| record.version);
        if !self.is_expected(current) || !self.none_match_holds(version) {
            return None;
        }
        Some(version.map_or(Precondition::Absent, Precondition::Version))
    }

    /// Whether the conditions of a write hold for a version that came while it was tried. A date
    /// does not: the record was modified since.
    pub(crate) fn hold_again(&self, current: Option<Version>) -> bool {
        self.unmodified_since.is_none()
            && self.match_holds(current)
            && self.none_match_holds(current)
    }

    /// Whether `If-Match` or `If-Unmodified-Since` lets a request pass. A date says nothing of a
    /// key without a record.
    pub(crate) fn is_expected(&self, current: Option<&Record>) -> bool {
        self.match_holds(current.map(|record| record.version))
            && current.is_none_or(|record| !is_later(record, self.unmodified_since))
    }

    /// Whether `If-Match` has tags that Terrace never gave: a proxy may have made them of its own.
    pub(crate) fn has_other_tags(&self) -> bool {
        matches!(self.if_match, Some(Tags::Of { others: true, .. }))
    }

    /// Whether `If-None-Match` or `If-Modified-Since` says that the client does not have this.
    pub(crate) fn is_news(&self, record: &Record) -> bool {
        self.none_match_holds(Some(record.version))
            && (self.modified_since.is_none() || is_later(record, self.modified_since))
    }

    fn match_holds(&self, current: Option<Version>) -> bool {
        self.if_match.as_ref().is_none_or(|tags| tags.has(current))
    }

    fn none_match_holds(&self, current: Option<Version>) -> bool {
        self.if_none_match.as_ref().is_none_or(|tags| !tags.has(current))
    }
}

/// The headers with conditions that Terrace knows; they are part of what a write asks.
pub(crate) const ALL: [HeaderName; 4] = [
    header::IF_MATCH,
    header::IF_UNMODIFIED_SINCE,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
];

/// Whether a record was written after the second of a date.
fn is_later(record: &Record, second: Option<i64>) -> bool {
    second.is_some_and(|second| record.updated_at.as_second() > second)
}

fn second(headers: &HeaderMap, name: &HeaderName) -> Option<i64> {
    http_date::read(headers::single(headers, name).ok()??)
}

impl Tags {
    fn has(&self, current: Option<Version>) -> bool {
        current.is_some_and(|version| match self {
            Self::Any => true,
            // A record that waits in a journal has no version yet, and so no tag.
            Self::Of { given, .. } => version != Version::NONE && given.contains(&version),
        })
    }
}

fn tags(headers: &HeaderMap, name: &HeaderName, weak: bool) -> Result<Option<Tags>, Problem> {
    if !headers.contains_key(name) {
        return Ok(None);
    }
    let wrong = || {
        Problem::invalid(format!(
            "{name} must be * or entity tags in quotes, as in \"42\"; send an ETag back unchanged"
        ))
    };
    let (mut found, mut count) = (Vec::new(), 0);
    for line in headers.get_all(name) {
        let mut rest = line.as_bytes();
        if rest.trim_ascii() == b"*" {
            let alone = headers.get_all(name).iter().count() == 1;
            return if alone { Ok(Some(Tags::Any)) } else { Err(wrong()) };
        }
        while let Some((tag, after)) = next_tag(rest).ok_or_else(wrong)? {
            (rest, count) = (after, count + 1);
            if weak || !tag.weak {
                found.extend(version(tag.inner));
            }
        }
    }
    // A list of nothing asks nothing that anybody can have meant.
    if count == 0 {
        return Err(wrong());
    }
    let others = found.len() < count;
    Ok(Some(Tags::Of { given: found, others }))
}

/// One tag of a list, without its quotes.
struct Tag<'a> {
    inner: &'a [u8],
    weak: bool,
}

/// The next tag of a list and what is behind it, or that there is none; `None` for what is no list.
/// A comma in quotes belongs to its tag, and empty elements are ignored (RFC 9110, section 5.6.1.2).
fn next_tag(list: &[u8]) -> Option<Option<(Tag<'_>, &[u8])>> {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let Some(start) = list.iter().position(|byte| !is_space(byte) && *byte != b',') else {
        return Some(None);
    };
    let tag = &list[start..];
    let (weak, quoted) = tag.strip_prefix(b"W/").map_or((false, tag), |tag| (true, tag));
    let inner = quoted.strip_prefix(b"\"")?;
    let end = inner.iter().position(|byte| *byte == b'"')?;
    let (inner, rest) = (&inner[..end], &inner[end + 1..]);
    match rest.iter().find(|byte| !is_space(byte)) {
        None | Some(b',') => Some(Some((Tag { inner, weak }, rest))),
        Some(_) => None,
    }
}

/// A version, written exactly as [`etag`] writes it.
fn version(text: &[u8]) -> Option<Version> {
    let text = str::from_utf8(text).ok()?;
    let number = text.parse::<u64>().ok()?;
    (number.to_string() == text).then(|| Version::new(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conditions(lines: &[(HeaderName, &'static str)]) -> Result<Conditions, Problem> {
        let mut headers = HeaderMap::new();
        for (name, line) in lines {
            headers.append(name, HeaderValue::from_static(line));
        }
        Conditions::of(&headers)
    }

    const SEVEN: Option<Version> = Some(Version::new(7));

    #[test]
    fn lists_stars_and_weak_tags_compare_as_the_rfc_says() {
        let matching = |line| conditions(&[(header::IF_MATCH, line)]).unwrap();
        assert!(matching("\"7\"").match_holds(SEVEN));
        assert!(matching("\"1\", \"7\"").match_holds(SEVEN));
        assert!(!matching("\"07\", \"+7\", \"abc\"").match_holds(SEVEN));
        assert!(!matching("W/\"7\"").match_holds(SEVEN));
        assert!(matching("*").match_holds(SEVEN));
        assert!(!matching("*").match_holds(None));
        let none = |line| conditions(&[(header::IF_NONE_MATCH, line)]).unwrap();
        assert!(!none("W/\"7\"").none_match_holds(SEVEN));
        assert!(!none("*").none_match_holds(SEVEN));
        assert!(none("*").none_match_holds(None));
    }

    #[test]
    fn commas_in_quotes_and_empty_elements_are_no_borders() {
        for line in
            ["\"a,b\", \"7\"", "\",7,\",\"7\"", ",, \"7\" ,", "\"7\"\t,\"\"", "\"\u{e9}\",\"7\""]
        {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_MATCH, HeaderValue::from_bytes(line.as_bytes()).unwrap());
            let conditions = Conditions::of(&headers).unwrap();
            assert!(conditions.match_holds(SEVEN), "{line}");
            assert!(!conditions.match_holds(Some(Version::new(8))), "{line}");
        }
        let conditions = conditions(&[(header::IF_MATCH, "\"1,7\"")]).unwrap();
        assert!(!conditions.match_holds(SEVEN));
    }

    #[test]
    fn simple_conditions_need_no_look_at_the_record() {
        let of = |name, line| conditions(&[(name, line)]).unwrap().as_precondition();
        let seven = Precondition::Version(Version::new(7));
        assert_eq!(of(header::IF_MATCH, "\"7\""), Some(seven));
        assert_eq!(of(header::IF_NONE_MATCH, "*"), Some(Precondition::Absent));
        assert_eq!(of(header::IF_MATCH, "*"), None);
        assert_eq!(conditions(&[]).unwrap().as_precondition(), Some(Precondition::None));
    }

    #[test]
    fn what_is_no_list_of_tags_is_refused() {
        for bad in ["7", "\"7", "\"7\" \"8\"", "\"7\"8", "*, \"7\"", "", " , ,", "w/\"7\""] {
            assert!(conditions(&[(header::IF_MATCH, bad)]).is_err(), "{bad}");
        }
        let twice = [(header::IF_MATCH, "*"), (header::IF_MATCH, "\"7\"")];
        assert!(conditions(&twice).is_err());
    }
}

//! Entity tags and the conditions that requests put on them (RFC 9110, section 13).

use bytes::{BufMut as _, BytesMut};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use terrace_core::{Precondition, Version};

use super::problem::Problem;

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
    if_none_match: Option<Tags>,
}

/// What a condition compares with.
#[derive(Debug, PartialEq, Eq)]
enum Tags {
    /// Any record at all.
    Any,
    /// One of these. Tags that Terrace never gave match nothing and are left out.
    Of(Vec<Version>),
}

impl Conditions {
    /// The conditions in `If-Match` and `If-None-Match`; several lines of one count as one list.
    ///
    /// # Errors
    /// 422 for what is not a list of tags.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        Ok(Self {
            // Strong comparison: a weak tag matches nothing.
            if_match: tags(headers, &header::IF_MATCH, false)?,
            if_none_match: tags(headers, &header::IF_NONE_MATCH, true)?,
        })
    }

    /// The precondition that says the same, when one does that without a look at the record.
    pub(crate) fn as_precondition(&self) -> Option<Precondition> {
        match (&self.if_match, &self.if_none_match) {
            (None, None) => Some(Precondition::None),
            (None, Some(Tags::Any)) => Some(Precondition::Absent),
            (Some(Tags::Of(tags)), None) if tags.len() == 1 => Some(Precondition::Version(tags[0])),
            _ => None,
        }
    }

    /// The precondition that pins what was just read, or `None` when the conditions do not hold.
    pub(crate) fn pin(&self, current: Option<Version>) -> Option<Precondition> {
        if !self.match_holds(current) || !self.none_match_holds(current) {
            return None;
        }
        Some(current.map_or(Precondition::Absent, Precondition::Version))
    }

    /// Whether `If-Match` lets a request pass.
    pub(crate) fn match_holds(&self, current: Option<Version>) -> bool {
        self.if_match.as_ref().is_none_or(|tags| tags.has(current))
    }

    /// Whether `If-None-Match` lets a request pass.
    pub(crate) fn none_match_holds(&self, current: Option<Version>) -> bool {
        self.if_none_match.as_ref().is_none_or(|tags| !tags.has(current))
    }
}

impl Tags {
    fn has(&self, current: Option<Version>) -> bool {
        current.is_some_and(|version| match self {
            Self::Any => true,
            Self::Of(tags) => tags.contains(&version),
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
    let mut found = Vec::new();
    for line in headers.get_all(name) {
        let line = line.to_str().map_err(|_| wrong())?.trim();
        if line == "*" {
            let alone = headers.get_all(name).iter().count() == 1;
            return if alone { Ok(Some(Tags::Any)) } else { Err(wrong()) };
        }
        for tag in line.split(',').map(str::trim) {
            let (is_weak, quoted) = tag.strip_prefix("W/").map_or((false, tag), |tag| (true, tag));
            let inner = quoted.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
            let inner = inner.filter(|inner| !inner.contains('"')).ok_or_else(wrong)?;
            if is_weak && !weak {
                continue;
            }
            found.extend(version(inner));
        }
    }
    Ok(Some(Tags::Of(found)))
}

/// A version, written exactly as [`etag`] writes it.
fn version(text: &str) -> Option<Version> {
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
        for bad in ["7", "\"7", "\"7\" \"8\"", "*, \"7\"", "", "\"7\","] {
            assert!(conditions(&[(header::IF_MATCH, bad)]).is_err(), "{bad}");
        }
        let twice = [(header::IF_MATCH, "*"), (header::IF_MATCH, "\"7\"")];
        assert!(conditions(&twice).is_err());
    }
}

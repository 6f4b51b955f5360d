//! Dates as HTTP headers have them: to the second, in GMT (RFC 9110, section 5.6.7).

use hyper::header::HeaderValue;
use jiff::fmt::rfc2822::DateTimePrinter;
use jiff::fmt::strtime::BrokenDownTime;
use jiff::tz::Offset;
use terrace_core::Timestamp;

/// `Mon, 23 Nov 2026 08:58:37 GMT`; `None` for years that the format does not have.
pub(crate) fn write(time: Timestamp) -> Option<HeaderValue> {
    let text = DateTimePrinter::new().timestamp_to_rfc9110_string(&time).ok()?;
    HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).ok()
}

/// The form that is written today, and the two old ones that every recipient has to know.
const FORMS: [&str; 3] =
    ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];

/// The second of a date; `None` for what is none.
pub(crate) fn read(text: &str) -> Option<i64> {
    let time = FORMS.iter().find_map(|form| BrokenDownTime::parse(form, text).ok())?;
    Some(Offset::UTC.to_timestamp(time.to_datetime().ok()?).ok()?.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_forms_are_read_and_nothing_else() {
        let time: Timestamp = "1994-11-06T08:49:37.9Z".parse().unwrap();
        for good in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(read(good), Some(time.as_second()), "{good}");
        }
        assert_eq!(write(time).unwrap(), "Sun, 06 Nov 1994 08:49:37 GMT");
        for bad in ["", "now", "1994-11-06T08:49:37Z", "Sun, 06 Nov 1994 08:49:37 +0100"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}

//! JSON bodies written straight into one buffer.

use bytes::Bytes;
use serde::Serialize;
use terrace_core::{Record, Timestamp};

/// A JSON object that is being written, field by field, in the order of the calls.
#[derive(Debug)]
pub(crate) struct Object(Vec<u8>);

impl Object {
    /// An empty object with room for this many bytes.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        let mut buffer = Vec::with_capacity(bytes);
        buffer.push(b'{');
        Self(buffer)
    }

    /// Adds a field. Names are plain ASCII and stand in the source, so they need no escapes.
    pub(crate) fn field<T: Serialize + ?Sized>(mut self, name: &'static str, value: &T) -> Self {
        self.name(name);
        write(&mut self.0, value);
        self
    }

    /// Adds a field whose value is JSON already.
    pub(crate) fn json(mut self, name: &'static str, text: &str) -> Self {
        self.name(name);
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    /// Adds a time as the documents have it: `2026-11-23T08:58:37.592000`.
    pub(crate) fn plain_time(mut self, name: &'static str, time: Option<Timestamp>) -> Self {
        self.name(name);
        match time {
            Some(time) => write_time(&mut self.0, time, ""),
            None => self.0.extend_from_slice(b"null"),
        }
        self
    }

    /// Adds a time in RFC 3339, UTC: `2026-11-23T08:58:37.592000Z`.
    pub(crate) fn time(mut self, name: &'static str, time: Timestamp) -> Self {
        self.name(name);
        write_time(&mut self.0, time, "Z");
        self
    }

    /// Adds what the record API shows of a record.
    pub(crate) fn record(self, record: &Record) -> Self {
        self.field("key", record.key.as_str())
            .field("value", record.value.as_str())
            .field("version", &record.version.get())
            .time("created_at", record.created_at)
            .time("updated_at", record.updated_at)
    }

    /// Adds an array whose items are objects, each written by `item`.
    pub(crate) fn objects<T>(
        mut self,
        name: &'static str,
        items: impl IntoIterator<Item = T>,
        mut item: impl FnMut(Self, T) -> Self,
    ) -> Self {
        self.name(name);
        self.0.push(b'[');
        for (index, each) in items.into_iter().enumerate() {
            self.0.extend_from_slice(if index == 0 { b"{" } else { b",{" });
            self = item(self, each);
            self.0.push(b'}');
        }
        self.0.push(b']');
        self
    }

    /// Ends the object.
    pub(crate) fn finish(mut self) -> Bytes {
        self.0.push(b'}');
        self.0.into()
    }

    fn name(&mut self, name: &'static str) {
        if self.0.last() != Some(&b'{') {
            self.0.push(b',');
        }
        self.0.push(b'"');
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }
}

fn write<T: Serialize + ?Sized>(buffer: &mut Vec<u8>, value: &T) {
    #[expect(clippy::expect_used, reason = "the proof stands in the message")]
    serde_json::to_writer(buffer, value)
        .expect("a Vec takes every byte, and no value here has keys that are not strings");
}

/// Twenty-six digits and separators in quotes. A time outside the years 0 to 9999 is cut to them.
fn write_time(buffer: &mut Vec<u8>, time: Timestamp, zone: &str) {
    let time = jiff::tz::Offset::UTC.to_datetime(time);
    let mut text = *b"\"0000-00-00T00:00:00.000000";
    digits(&mut text[1..5], i32::from(time.year().max(0)));
    digits(&mut text[6..8], i32::from(time.month()));
    digits(&mut text[9..11], i32::from(time.day()));
    digits(&mut text[12..14], i32::from(time.hour()));
    digits(&mut text[15..17], i32::from(time.minute()));
    digits(&mut text[18..20], i32::from(time.second()));
    digits(&mut text[21..27], time.subsec_nanosecond() / 1000);
    buffer.extend_from_slice(&text);
    buffer.extend_from_slice(zone.as_bytes());
    buffer.push(b'"');
}

fn digits(into: &mut [u8], mut number: i32) {
    for digit in into.iter_mut().rev() {
        *digit = b"0123456789"[number.unsigned_abs() as usize % 10];
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_json_and_times_have_six_digits() {
        let time: Timestamp = "2026-11-23T08:58:37.592Z".parse().unwrap();
        let body = Object::with_capacity(8)
            .field("text", "a\"b\n")
            .objects("list", [1, 2], |object, number| object.field("n", &number))
            .plain_time("at", Some(time))
            .plain_time("never", None)
            .time("zoned", time)
            .finish();
        assert_eq!(
            str::from_utf8(&body).unwrap(),
            r#"{"text":"a\"b\n","list":[{"n":1},{"n":2}],"at":"2026-11-23T08:58:37.592000","#
                .to_owned()
                + r#""never":null,"zoned":"2026-11-23T08:58:37.592000Z"}"#
        );
    }
}

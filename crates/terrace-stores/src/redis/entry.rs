//! The bytes of an entry: a head that scripts compare as text, and a body for this side alone.
//!
//! ```text
//!  0      format, "3"
//!  1..17  epoch, 16 hexadecimal digits
//! 17..37  version, 20 decimal digits
//! 37      kind: "v" value, "m" missing, "t" tombstone (the end)
//! 38..    loaded, over, created, updated: microseconds since 1970 by the server's clock, i64, little
//!         endian (missing: loaded, over); what is over is a miss that still keeps older fills out
//!         generation, through, shown: what the load proved, u64, little endian
//!         length of the history's name, u8; the name
//!         the value
//! ```
//!
//! The tombstone of a write whose version is not known has the version [`Version::UNKNOWN`] and goes
//! on after its kind: the latest known version and the server's time when the doubt ends, in
//! milliseconds since 1970, 20 decimal digits each.
//!
//! Versions are decimal because Lua orders strings by the server's locale, where digits keep their
//! order and letters need not (Danish sorts "aa" after "z"); as numbers they would lose bits, since
//! Lua's are doubles.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use terrace_core::{
    Entry, Generation, Key, Lease, Position, Proof, Record, Timestamp, Value, Version,
};

/// The version of this layout; entries of another are misses.
pub(super) const FORMAT: &str = "3";
const HEAD: usize = 38;

/// What the bytes under a key come to.
pub(super) enum Parsed {
    /// A record, or the knowledge that there is none.
    Entry(Entry),
    /// Nothing that can be answered: an entry of another epoch, or one that is over.
    Nothing,
    /// The trace of a write at this version.
    Tombstone(Version),
    /// Not an entry, or one of another format.
    Malformed,
}

/// The name of the history that tokens here are of: kept, so that hits share one.
///
/// A database keeps its name for life, so the first that was seen is nearly always the one.
#[derive(Debug, Default)]
pub(super) struct Histories(OnceLock<Arc<str>>);

impl Histories {
    fn name(&self, name: &str) -> Arc<str> {
        let first = self.0.get_or_init(|| name.into());
        if **first == *name { Arc::clone(first) } else { name.into() }
    }
}

/// 16 digits, as scripts compare them.
pub(super) fn epoch_digits(epoch: Lease) -> String {
    format!("{:016x}", epoch.0)
}

/// Reads an epoch from the head of its value.
pub(super) fn parse_epoch(bytes: &[u8]) -> Option<Lease> {
    let digits = std::str::from_utf8(bytes.get(..16)?).ok()?;
    u64::from_str_radix(digits, 16).ok().map(Lease)
}

/// 20 digits, as scripts compare them.
pub(super) fn version_digits(version: Version) -> String {
    format!("{:020}", version.get())
}

/// The bytes of an entry that has `life` left; `None` for what no cache should keep.
pub(super) fn encode(
    entry: &Entry,
    lease: Lease,
    now: Timestamp,
    life: Duration,
) -> Option<Vec<u8>> {
    // A write of unknown outcome is not a state that can be read.
    if entry.version == Version::UNKNOWN {
        return None;
    }
    let proof = &entry.proof;
    let name = proof.history.as_bytes();
    let value = entry.record.as_ref().map_or("", |record| record.value.as_str());
    let mut bytes = Vec::with_capacity(HEAD + 57 + name.len() + value.len());
    bytes.extend_from_slice(FORMAT.as_bytes());
    bytes.extend_from_slice(epoch_digits(lease).as_bytes());
    bytes.extend_from_slice(version_digits(entry.version).as_bytes());
    bytes.push(if entry.record.is_some() { b'v' } else { b'm' });
    let age = i64::try_from(entry.age.as_micros()).ok()?;
    let (now, life) = (now.as_microsecond(), i64::try_from(life.as_micros()).ok()?);
    bytes.extend_from_slice(&now.saturating_sub(age).to_le_bytes());
    bytes.extend_from_slice(&now.saturating_add(life).to_le_bytes());
    if let Some(record) = &entry.record {
        bytes.extend_from_slice(&record.created_at.as_microsecond().to_le_bytes());
        bytes.extend_from_slice(&record.updated_at.as_microsecond().to_le_bytes());
    }
    for number in [proof.generation.get(), proof.through.get(), proof.shown.get()] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.push(u8::try_from(name.len()).ok()?);
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(value.as_bytes());
    Some(bytes)
}

/// Reads what is stored under `key`, as seen in this epoch.
pub(super) fn parse(
    bytes: &[u8],
    key: &Key,
    epoch: &[u8; 16],
    now: Timestamp,
    histories: &Histories,
) -> Parsed {
    let Some((head, body)) = bytes.split_at_checked(HEAD) else { return Parsed::Malformed };
    if &head[..1] != FORMAT.as_bytes() {
        return Parsed::Malformed;
    }
    if head[37] == b't' {
        let version = std::str::from_utf8(&head[17..37]).ok().and_then(|it| it.parse().ok());
        return version.map_or(Parsed::Malformed, |it| Parsed::Tombstone(Version::new(it)));
    }
    if head[1..17] != *epoch {
        return Parsed::Nothing;
    }
    match parse_body(head, body, key, now, histories) {
        Some((entry, over)) if now.as_microsecond() < over => Parsed::Entry(entry),
        Some(_) => Parsed::Nothing,
        None => Parsed::Malformed,
    }
}

/// The entry, and when it is over.
fn parse_body(
    head: &[u8],
    body: &[u8],
    key: &Key,
    now: Timestamp,
    histories: &Histories,
) -> Option<(Entry, i64)> {
    let version = Version::new(std::str::from_utf8(&head[17..37]).ok()?.parse().ok()?);
    let (loaded, body) = take_i64(body)?;
    let (over, mut body) = take_i64(body)?;
    let times = match head[37] {
        b'v' => {
            let (created, rest) = take_i64(body)?;
            let (updated, rest) = take_i64(rest)?;
            body = rest;
            let moment = |micros| Timestamp::from_microsecond(micros).ok();
            Some((moment(created)?, moment(updated)?))
        }
        b'm' => None,
        _ => return None,
    };
    let (generation, body) = take_u64(body)?;
    let (through, body) = take_u64(body)?;
    let (shown, body) = take_u64(body)?;
    let (&length, body) = body.split_first()?;
    let (name, value) = body.split_at_checked(usize::from(length))?;
    let proof = Proof {
        history: histories.name(std::str::from_utf8(name).ok()?),
        generation: Generation::new(generation),
        through: Position::new(through),
        shown: Position::new(shown),
    };
    let record = match times {
        None => None,
        Some((created_at, updated_at)) => {
            let value = Value::new(std::str::from_utf8(value).ok()?).ok()?;
            Some(Record { key: key.clone(), value, version, created_at, updated_at })
        }
    };
    // Filled with a time that is at least as late as here: an entry from the future has no age.
    let age = u64::try_from(now.as_microsecond().saturating_sub(loaded)).unwrap_or(0);
    Some((Entry { record, version, proof, age: Duration::from_micros(age) }, over))
}

fn take_i64(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    Some((i64::from_le_bytes(*number), rest))
}

fn take_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*number), rest))
}

/// A time of the server in milliseconds.
pub(super) fn timestamp(millis: u64) -> Timestamp {
    let millis = i64::try_from(millis).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn moment(micros: i64) -> Timestamp {
        Timestamp::from_microsecond(micros).unwrap()
    }

    fn entry(value: Option<&str>) -> Entry {
        let version = Version::new(u64::MAX - 1);
        let key = Key::new("k").unwrap();
        Entry {
            record: value.map(|value| Record {
                key,
                value: Value::new(value).unwrap(),
                version,
                created_at: moment(-5),
                updated_at: moment(1_700_000_000_000_001),
            }),
            version,
            proof: Proof {
                history: "db.1".into(),
                generation: Generation::new(3),
                through: Position::new(u64::MAX - 2),
                shown: Position::new(u64::MAX - 1),
            },
            age: Duration::from_micros(7),
        }
    }

    fn read(bytes: &[u8], epoch: u64, now: i64) -> Parsed {
        let epoch = epoch_digits(Lease(epoch));
        let epoch = epoch.as_bytes().try_into().unwrap();
        let histories = Histories::default();
        histories.name("another");
        parse(bytes, &Key::new("k").unwrap(), epoch, moment(now), &histories)
    }

    #[test]
    fn an_entry_is_read_as_it_was_written_and_grows_older() {
        for value in [Some("Grüße, 世界"), Some(""), None] {
            let bytes = encode(&entry(value), Lease(0xabc), moment(1_000), SECOND).unwrap();
            let Parsed::Entry(read) = read(&bytes, 0xabc, 1_500) else { panic!("no entry") };
            assert_eq!(read, Entry { age: Duration::from_micros(507), ..entry(value) });
        }
    }

    #[test]
    fn an_entry_of_another_epoch_does_not_exist() {
        let bytes = encode(&entry(Some("v")), Lease(1), moment(0), SECOND).unwrap();
        assert!(matches!(read(&bytes, 2, 0), Parsed::Nothing));
    }

    #[test]
    fn an_entry_that_is_over_is_a_miss() {
        let bytes = encode(&entry(Some("v")), Lease(1), moment(5), SECOND).unwrap();
        assert!(matches!(read(&bytes, 1, 1_000_004), Parsed::Entry(_)));
        assert!(matches!(read(&bytes, 1, 1_000_005), Parsed::Nothing));
    }

    #[test]
    fn names_of_the_first_history_are_shared_and_others_are_right() {
        let histories = Histories::default();
        let first = histories.name("db");
        assert!(Arc::ptr_eq(&first, &histories.name("db")));
        assert_eq!(&*histories.name("another"), "another");
        assert!(Arc::ptr_eq(&first, &histories.name("db")));
    }

    #[test]
    fn a_clock_that_lags_makes_no_negative_age() {
        let bytes = encode(&entry(None), Lease(1), moment(1_000_000), SECOND).unwrap();
        let Parsed::Entry(read) = read(&bytes, 1, 0) else { panic!("no entry") };
        assert_eq!(read.age, Duration::ZERO);
    }

    #[test]
    fn cut_and_foreign_bytes_are_malformed() {
        let mut bytes = encode(&entry(None), Lease(1), moment(0), SECOND).unwrap();
        for length in 0..bytes.len() {
            assert!(matches!(read(&bytes[..length], 1, 0), Parsed::Malformed), "{length}");
        }
        bytes[0] = b'2';
        assert!(matches!(read(&bytes, 1, 0), Parsed::Malformed));
        assert!(matches!(
            read(b"\xff garbage that somebody else put under this name", 1, 0),
            Parsed::Malformed
        ));
    }

    #[test]
    fn digits_order_as_the_numbers_do() {
        let versions = [0, 1, 9, 10, 99, 1 << 53, (1 << 53) + 1, u64::MAX - 1, u64::MAX];
        let digits: Vec<_> = versions.map(|v| version_digits(Version::new(v))).into();
        assert!(digits.is_sorted());
        assert!(digits.iter().all(|digits| digits.len() == 20));
    }
}

//! What the journals of all engines share: how requests are packed into entries, and their bytes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use terrace_core::{
    Append, Change, Durability, Error, ErrorKind, Idempotency, Key, Result, Sequence, Span, Value,
    Write,
};

/// The first byte of an entry.
const FORMAT: u8 = 1;
const PUT: u8 = 0;
const DELETE: u8 = 1;

/// What the engine's settings were at the last look.
///
/// People change settings while an engine runs, so a look counts for a second. Without one as young as
/// that no durability is claimed.
#[derive(Debug, Default)]
pub(crate) struct SettingsLook(Mutex<Option<Looked>>);

#[derive(Clone, Debug)]
struct Looked {
    begun: Instant,
    durability: Durability,
    /// How accepted writes may be lost, and what to do.
    loses: Option<String>,
}

impl SettingsLook {
    /// How long a look counts, from its beginning.
    const COUNTS_FOR: Duration = Duration::from_secs(1);

    /// Whether it is time to look again.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.age(now).is_none_or(|age| age >= Self::COUNTS_FOR / 2)
    }

    /// Whether there was a look that counts.
    pub(crate) fn counts(&self, now: Instant) -> bool {
        self.age(now).is_some_and(|age| age <= Self::COUNTS_FOR)
    }

    /// Notes what was found by a look that began at this time.
    pub(crate) fn note(&self, begun: Instant, durability: Durability, loses: Option<String>) {
        let mut last = self.last();
        if last.as_ref().is_some_and(|other| other.begun > begun) {
            return;
        }
        let before = last.replace(Looked { begun, durability, loses: loses.clone() });
        drop(last);
        if before.as_ref().is_some_and(|before| before.durability > durability) {
            tracing::warn!(durability = %durability.as_str(), "the journal's engine keeps less than it did");
        }
        match (loses, before.and_then(|before| before.loses)) {
            (Some(loses), before) if before.as_ref() != Some(&loses) => tracing::error!("{loses}"),
            (None, Some(_)) => tracing::info!("the journal's engine keeps what is accepted again"),
            _ => {}
        }
    }

    /// What an append that is answered now may claim.
    pub(crate) fn durability(&self, now: Instant) -> Durability {
        match &*self.last() {
            Some(last) if self::age(last, now) <= Self::COUNTS_FOR => last.durability,
            _ => Durability::Accepted,
        }
    }

    /// How accepted writes may be lost, and what to do, as the last look has found.
    pub(crate) fn loses(&self) -> Option<String> {
        self.last().as_ref()?.loses.clone()
    }

    fn age(&self, now: Instant) -> Option<Duration> {
        self.last().as_ref().map(|last| age(last, now))
    }

    fn last(&self) -> MutexGuard<'_, Option<Looked>> {
        // Every change is complete when a panic could happen, so poison means nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn age(looked: &Looked, now: Instant) -> Duration {
    now.saturating_duration_since(looked.begun)
}

/// Requests that become one entry.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    pub(crate) count: u64,
    /// See [`encode`].
    pub(crate) payload: Vec<u8>,
    /// Only in a chunk of one request.
    pub(crate) idempotency: Option<Arc<Idempotency>>,
}

/// Chunks, and for each request its chunk and its place therein.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    pub(crate) chunks: Vec<Chunk>,
    places: Vec<(usize, u64)>,
}

impl Packed {
    /// Writes of one entry, unless a single request has more.
    const MOST_WRITES: u64 = 256;
    /// Bytes of one entry, unless a single request has more.
    const MOST_BYTES: usize = 256 * 1024;

    /// Packs requests in order. A request stays whole; one with an idempotency key stays alone.
    pub(crate) fn of(requests: &[Append]) -> Self {
        let mut packed = Self::default();
        for request in requests {
            let alone = request.idempotency.is_some();
            let bytes: usize = request.writes.iter().map(Write::bytes).sum();
            let fits = packed.chunks.last().is_some_and(|chunk| {
                chunk.idempotency.is_none()
                    && chunk.count + request.writes.len() as u64 <= Self::MOST_WRITES
                    && chunk.payload.len() + bytes <= Self::MOST_BYTES
            });
            if !fits || alone {
                let mut chunk = Chunk::default();
                chunk.payload.push(FORMAT);
                put_number(&mut chunk.payload, 0);
                packed.chunks.push(chunk);
            }
            let last = packed.chunks.len() - 1;
            let chunk = &mut packed.chunks[last];
            packed.places.push((last, chunk.count));
            chunk.idempotency.clone_from(&request.idempotency);
            request.writes.iter().for_each(|write| put_write(&mut chunk.payload, write));
            chunk.count += request.writes.len() as u64;
        }
        packed
    }

    /// Where the requests went, by where their chunks went.
    pub(crate) fn spans(&self, chunks: &[Result<Span>]) -> Vec<Result<Span>> {
        let span = |(chunk, offset): &(usize, u64)| {
            let span = chunks.get(*chunk).cloned().unwrap_or_else(|| Err(corrupt()));
            span.map(|span| Span { first: span.first.plus(*offset), ..span })
        };
        self.places.iter().map(span).collect()
    }
}

/// An entry of one write under a sequence of its own.
pub(crate) fn encode(sequence: Sequence, write: &Write) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    put_number(&mut bytes, sequence.get());
    put_write(&mut bytes, write);
    bytes
}

/// The sequence of the first write, where that is not the entry's place, and the writes.
pub(crate) fn decode(bytes: &[u8]) -> Result<(Option<Sequence>, Vec<Write>)> {
    let (format, rest) = bytes.split_first().ok_or_else(corrupt)?;
    if *format != FORMAT {
        return Err(corrupt());
    }
    let (first, mut rest) = take_number(rest)?;
    let mut writes = Vec::new();
    while let Some((kind, tail)) = rest.split_first() {
        let (key, tail) = take_text(tail)?;
        let key = Key::new(key).map_err(|_| corrupt())?;
        let (write, tail) = match *kind {
            PUT => {
                let (value, tail) = take_text(tail)?;
                (Write::put(key, Value::new(value).map_err(|_| corrupt())?), tail)
            }
            DELETE => (Write::delete(key), tail),
            _ => return Err(corrupt()),
        };
        writes.push(write);
        rest = tail;
    }
    Ok((Some(Sequence::new(first)).filter(|first| *first != Sequence::NONE), writes))
}

fn put_write(bytes: &mut Vec<u8>, write: &Write) {
    let text = |bytes: &mut Vec<u8>, text: &str| {
        put_number(bytes, text.len() as u64);
        bytes.extend_from_slice(text.as_bytes());
    };
    match &write.change {
        Change::Put(value) => {
            bytes.push(PUT);
            text(bytes, write.key.as_str());
            text(bytes, value.as_str());
        }
        Change::Delete => {
            bytes.push(DELETE);
            text(bytes, write.key.as_str());
        }
    }
}

/// LEB128: seven bits a byte, low bits first.
fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push((number & 0x7f) as u8);
}

fn take_number(bytes: &[u8]) -> Result<(u64, &[u8])> {
    let mut number = 0_u64;
    for (index, &byte) in bytes.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * index).min(63);
        if byte < 0x80 {
            return Ok((number, &bytes[index + 1..]));
        }
    }
    Err(corrupt())
}

fn take_text(bytes: &[u8]) -> Result<(&str, &[u8])> {
    let (length, rest) = take_number(bytes)?;
    let length = usize::try_from(length).map_err(|_| corrupt())?;
    let (text, rest) = rest.split_at_checked(length).ok_or_else(corrupt)?;
    Ok((std::str::from_utf8(text).map_err(|_| corrupt())?, rest))
}

/// The error for an entry that no journal can have written.
pub(crate) fn corrupt() -> Error {
    let message = "an entry of the journal cannot be read; it was not written by Terrace";
    Error::new(ErrorKind::Corrupt, message)
}

/// The refusal of a journal that is full.
pub(crate) fn full() -> Error {
    Error::new(
        ErrorKind::Overloaded,
        "too many writes wait to be applied; nothing was changed; try again a little later",
    )
    .retry_after(Duration::from_secs(1))
}

/// The error for an append that left and was not answered.
pub(crate) fn outcome_unknown() -> Error {
    Error::new(
        ErrorKind::OutcomeUnknown,
        "the journal may or may not have accepted the write; repeat it with its Idempotency-Key, \
         or read the record later",
    )
}

/// The error for calls after `close`.
pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "the journal is closed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> Write {
        Write::put(Key::new(key).unwrap(), Value::new(value).unwrap())
    }

    #[test]
    fn what_is_packed_comes_back() {
        let gone = Write::delete(Key::new("gone").unwrap());
        let first = vec![put("鍵", &"x".repeat(300)), gone, put("e", "")];
        let many: Vec<_> = (0..300).map(|number| put(&format!("k{number}"), "v")).collect();
        let requests: Vec<_> = [first.clone(), vec![put("b", "2")], many.clone()]
            .into_iter()
            .map(|writes| Append { writes, idempotency: None })
            .collect();
        let packed = Packed::of(&requests);
        assert_eq!(packed.places, [(0, 0), (0, 3), (1, 0)]);
        let (own, writes) = decode(&packed.chunks[0].payload).unwrap();
        assert_eq!((own, writes.len()), (None, 4));
        assert_eq!(writes[..3], first);
        assert_eq!(decode(&packed.chunks[1].payload).unwrap().1, many);
        // What a server may refuse for its size takes no other request with it.
        let large = vec![put("large", &"x".repeat(Packed::MOST_BYTES))];
        let requests = [vec![put("a", "1")], large, vec![put("b", "2")]]
            .map(|writes| Append { writes, idempotency: None });
        assert_eq!(Packed::of(&requests).places, [(0, 0), (1, 0), (2, 0)]);
        let alone = decode(&encode(Sequence::new(1 << 62), &first[0])).unwrap();
        assert_eq!(alone, (Some(Sequence::new(1 << 62)), first[..1].to_vec()));
    }

    #[test]
    fn a_look_at_the_settings_counts_for_a_second() {
        let (look, now) = (SettingsLook::default(), terrace_core::Runtime::system().now());
        let after = |millis| now + Duration::from_millis(millis);
        assert!(look.is_due(now));
        assert_eq!(look.durability(now), Durability::Accepted, "nobody has looked");
        look.note(now, Durability::Journaled, None);
        assert!(!look.is_due(after(499)) && look.is_due(after(500)));
        assert_eq!(look.durability(after(1000)), Durability::Journaled);
        assert_eq!(look.durability(after(1001)), Durability::Accepted);
        look.note(after(600), Durability::Accepted, None);
        look.note(after(500), Durability::Journaled, Some("late".into()));
        assert_eq!(look.durability(after(700)), Durability::Accepted, "an older look came late");
        assert_eq!(look.loses(), None);
    }

    #[test]
    fn any_bytes_are_read_or_refused() {
        let good = encode(Sequence::new(300), &put("key", "value"));
        for cut in 0..good.len() {
            let _ = decode(&good[..cut]);
            let mut flipped = good.clone();
            flipped[cut] ^= 0xff;
            let _ = decode(&flipped);
        }
        assert!(decode(&[]).is_err());
        assert!(decode(&[9, 0]).is_err());
    }

    #[test]
    fn fuzzed_entries_are_read_or_refused() {
        // A put under a sequence, a put and a delete without one, an empty entry.
        let like = &[
            "\u{1}\u{2c}\u{2}\u{0}\u{3}key\u{5}value",
            "\u{1}\u{0}\u{0}\u{1}a\u{0}\u{1}\u{3}\u{e3}b",
            "\u{1}\u{0}",
        ];
        let inputs = terrace_core::testkit::bytes_like(like);
        let tried = terrace_core::testkit::fuzzed(&inputs, |input| {
            let Ok((first, writes)) = decode(&input) else { return };
            let request = Append { writes, idempotency: None };
            let packed = Packed::of(std::slice::from_ref(&request));
            let again = packed.chunks.first().map(|chunk| decode(&chunk.payload).unwrap().1);
            assert_eq!(again.unwrap_or_default(), request.writes);
            if let (Some(first), [write]) = (first, &*request.writes) {
                let alone = (Some(first), vec![write.clone()]);
                assert_eq!(decode(&encode(first, write)).unwrap(), alone);
            }
        });
        println!("{tried} inputs were tried");
    }
}

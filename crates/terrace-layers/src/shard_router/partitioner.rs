//! Which slot a key falls into: by hash, by range, or by place.

use std::fmt;
use std::sync::Arc;

use terrace_core::{Error, Idempotency, Key, Result, SLOTS, Slot, SlotSet};

/// Gives every key its slot. The same for ever: what was written under one slot is looked for there.
///
/// `Display` prints what [`partitioner`] reads; it is stored with the shards, and an instance that is
/// told another refuses to start.
pub trait Partitioner: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// The slot of a key. Allocates nothing.
    fn slot(&self, key: &Key) -> Slot;

    /// The slots of each of so many shards in the beginning: equal shares, in order.
    fn share(&self, shards: u16) -> Vec<SlotSet> {
        let shards = shards.max(1);
        let first = |shard: u16| start(u32::from(shard), u32::from(shards));
        let slots = |shard| (first(shard)..first(shard + 1)).map(Slot::new).collect();
        (0..shards).map(slots).collect()
    }
}

/// Where part `part` of `parts` begins.
fn start(part: u32, parts: u32) -> u16 {
    u16::try_from(part * u32::from(SLOTS) / parts.max(1)).unwrap_or(SLOTS)
}

/// Reads the text form of a partitioner:
///
/// - `hash`: [`HashPartitioner`];
/// - `range:g,n,t`: [`RangePartitioner`] with these first keys of the ranges after the first;
/// - `geo:eu,us,asia` or `geo@2:eu,us,asia`: [`GeoPartitioner`] by the first, or the third, field.
///
/// # Errors
/// [`ErrorKind::InvalidInput`](terrace_core::ErrorKind::InvalidInput) for any other text.
pub fn partitioner(text: &str) -> Result<Arc<dyn Partitioner>> {
    let (kind, names) = text.split_once(':').unwrap_or((text, ""));
    let names = names.split(',').filter(|name| !name.is_empty());
    match kind.split_once('@').unwrap_or((kind, "0")) {
        ("hash", "0") => Ok(Arc::new(HashPartitioner)),
        ("range", "0") => Ok(Arc::new(RangePartitioner::new(names.map(Box::from))?)),
        ("geo", field) => {
            let field = field.parse().map_err(|_| wrong())?;
            Ok(Arc::new(GeoPartitioner::new(field, names.map(Box::from))?))
        }
        _ => Err(wrong()),
    }
}

fn wrong() -> Error {
    Error::invalid(
        "keys are shared out by hash, range:<first keys>, geo:<places> or geo@<field>:<places>, as \
         in hash, range:g,n,t or geo:eu,us,asia",
    )
}

/// CRC16 of the key, modulo [`SLOTS`], as Redis Cluster does it (Redis manual, "Redis cluster
/// specification", "Key distribution model"): CRC16/XMODEM, polynomial 0x1021, initial value 0.
///
/// Where a key has `{text}`, only the text of the first pair of braces counts, so that keys that
/// belong together can be kept together: `{user:1}.profile` and `{user:1}.orders`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashPartitioner;

impl Partitioner for HashPartitioner {
    fn slot(&self, key: &Key) -> Slot {
        hashed(key.as_str())
    }
}

impl fmt::Display for HashPartitioner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hash")
    }
}

fn hashed(text: &str) -> Slot {
    Slot::new(crc16(tag(text).as_bytes()))
}

/// The slot of a request's own key, whatever the records' partitioner is.
pub(super) fn slot_of(request: &Idempotency) -> Slot {
    Slot::new(crc16(request.key().as_bytes()))
}

/// What is between the first `{` and the first `}` after it, unless that is nothing.
fn tag(text: &str) -> &str {
    let inner = text.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    inner.map(|(tag, _)| tag).filter(|tag| !tag.is_empty()).unwrap_or(text)
}

fn crc16(bytes: &[u8]) -> u16 {
    bytes
        .iter()
        .fold(0, |crc: u16, byte| (crc << 8) ^ CRC16[usize::from((crc >> 8) ^ u16::from(*byte))])
}

/// What each byte does to the checksum.
const CRC16: [u16; 256] = {
    let mut table = [0u16; 256];
    let mut byte = 0;
    while byte < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "below 256")]
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// Keys in byte order, cut into ranges at given keys; each range is one slot, and these lie evenly
/// among all, so that equal shares of slots are equal shares of ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangePartitioner {
    /// The first key of each range after the first.
    firsts: Vec<Box<str>>,
}

impl RangePartitioner {
    /// Ranges that begin at these keys, and one before them.
    ///
    /// # Errors
    /// When there is none, they do not rise, or a comma is in them.
    pub fn new(firsts: impl IntoIterator<Item = Box<str>>) -> Result<Self> {
        let firsts = firsts.into_iter().collect::<Vec<_>>();
        let rises = firsts.windows(2).all(|pair| pair[0] < pair[1]);
        let named = firsts.iter().all(|first| !first.is_empty() && !first.contains(','));
        if firsts.is_empty() || firsts.len() >= usize::from(SLOTS) || !rises || !named {
            return Err(Error::invalid(
                "ranges begin at 1 to 16383 keys in rising byte order, as in range:g,n,t",
            ));
        }
        Ok(Self { firsts })
    }
}

impl Partitioner for RangePartitioner {
    fn slot(&self, key: &Key) -> Slot {
        let range = self.firsts.partition_point(|first| **first <= *key.as_str());
        let ranges = self.firsts.len() + 1;
        Slot::new(start(u32::try_from(range).unwrap_or(0), u32::try_from(ranges).unwrap_or(1)))
    }
}

impl fmt::Display for RangePartitioner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "range:{}", self.firsts.join(","))
    }
}

/// By the place that a key names in one of its fields, which are separated by `:`. Every place has
/// as many slots, and what names no known place has as many, too; within them keys are hashed, so
/// that a large place can be shared out among shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeoPartitioner {
    field: usize,
    places: Vec<Box<str>>,
}

impl GeoPartitioner {
    /// By the field of this number, from 0, in these places.
    ///
    /// # Errors
    /// When there is no place, one is there twice, or has a `:` or `,`.
    pub fn new(field: usize, places: impl IntoIterator<Item = Box<str>>) -> Result<Self> {
        let places = places.into_iter().collect::<Vec<_>>();
        let once = (0..places.len()).all(|index| !places[..index].contains(&places[index]));
        let named = places.iter().all(|place| !place.is_empty() && !place.contains([',', ':']));
        if places.is_empty() || places.len() > 1000 || !once || !named {
            return Err(Error::invalid("name 1 to 1000 places, each once, as in geo:eu,us,asia"));
        }
        Ok(Self { field, places })
    }

    /// How many parts the slots have: the places, and elsewhere.
    fn parts(&self) -> u32 {
        u32::try_from(self.places.len()).unwrap_or(0) + 1
    }
}

impl Partitioner for GeoPartitioner {
    fn slot(&self, key: &Key) -> Slot {
        let named = key.as_str().split(':').nth(self.field);
        let place = self.places.iter().position(|place| named == Some(place));
        let part = u32::try_from(place.unwrap_or(self.places.len())).unwrap_or(0);
        let (first, end) = (start(part, self.parts()), start(part + 1, self.parts()));
        Slot::new(first + hashed(key.as_str()).get() % (end - first))
    }

    /// Each place whole on one shard, in turn.
    fn share(&self, shards: u16) -> Vec<SlotSet> {
        let mut shares = vec![SlotSet::default(); usize::from(shards.max(1))];
        for part in 0..self.parts() {
            let shard = part as usize % shares.len();
            let slots = start(part, self.parts())..start(part + 1, self.parts());
            slots.for_each(|slot| shares[shard].insert(Slot::new(slot)));
        }
        shares
    }
}

impl fmt::Display for GeoPartitioner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("geo")?;
        if self.field > 0 {
            write!(f, "@{}", self.field)?;
        }
        write!(f, ":{}", self.places.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC-16/XMODEM of "123456789" from the catalogue of CRCs; slots as `CLUSTER KEYSLOT` of Redis
    /// answers them.
    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        for (key, slot) in [
            ("foo", 12182),
            ("bar", 5061),
            ("hello", 866),
            ("somekey", 11058),
            ("foo{hash_tag}", 2515),
            ("somekey{hash_tag}", 2515),
            ("{user1000}.following", 3443),
            ("{user1000}.followers", 3443),
            ("foo{{bar}}zap", 4015),
            ("foo{bar}{zap}", 5061),
        ] {
            assert_eq!(HashPartitioner.slot(&Key::new(key).unwrap()).get(), slot, "{key}");
        }
        // An empty tag is none.
        assert_eq!(tag("foo{}{bar}"), "foo{}{bar}");
    }

    #[test]
    fn ranges_and_places_are_where_they_are_said_to_be() {
        let slot = |partitioner: &str, key: &str| {
            super::partitioner(partitioner).unwrap().slot(&Key::new(key).unwrap()).get()
        };
        let range = |key| slot("range:g,n,t", key);
        let ranges = ["a", "fz", "g", "m", "n", "t", "z"].map(range);
        assert_eq!(ranges, [0, 0, 4096, 4096, 8192, 12288, 12288]);
        let geo = |key| slot("geo:eu,us", key) / 5461;
        assert_eq!(["eu:1", "us:1", "asia:1", "none"].map(geo), [0, 1, 2, 2]);
        assert_eq!(slot("geo@1:eu,us", "user:us:7") / 5461, 1);
    }

    #[test]
    fn texts_are_read_as_they_are_written_and_shares_are_whole() {
        for text in ["hash", "range:g,n,t", "geo:eu,us,asia", "geo@2:eu"] {
            let partitioner = partitioner(text).unwrap();
            assert_eq!(partitioner.to_string(), text);
            for shards in [1, 2, 3, 7] {
                let shares = partitioner.share(shards);
                assert_eq!(shares.len(), usize::from(shards));
                assert_eq!(shares.iter().map(SlotSet::len).sum::<usize>(), usize::from(SLOTS));
            }
        }
        for text in ["", "md5", "range", "range:b,a", "geo", "geo@x:eu", "geo:eu,eu", "hash@1"] {
            assert!(partitioner(text).is_err(), "{text}");
        }
    }
}

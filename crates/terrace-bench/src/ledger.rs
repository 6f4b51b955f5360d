//! What a server may answer: the writes of a run, and the judgement of every read.
//!
//! A write is *sent*, then *acknowledged*, *refused* (nothing was applied) or *in doubt* (nobody
//! knows). A write supersedes those that were acknowledged before it was sent; writes that overlap
//! are in no order that a client could know. A read that shows a write which had been superseded by
//! an acknowledged one before the read was sent is **stale**, and its age is the time since. A read
//! that shows no record where one was acknowledged is **lost**, one that shows another key's value is
//! **swapped**, and a value that no write of this run explains is **made up**. A write in doubt may
//! show at any time, for ever, and supersedes nothing.
//!
//! Memory is bounded: a key remembers its writes in flight and the last few others; what was
//! superseded long ago is still known to be stale, only its age is then a lower bound.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::value::{Named, Values, WriteId};

/// Microseconds since the ledger was opened.
pub type Moment = u64;

/// Not yet, or never.
const NEVER: Moment = Moment::MAX;

/// Keys are spread over so many locks.
const STRIPES: u32 = 64;

/// What a read turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Something that the key may hold.
    Right,
    /// Superseded before the read was sent, at least this many microseconds earlier.
    Stale(u64),
    /// No record, though a write of the key had been acknowledged so many microseconds earlier.
    Missing(u64),
    /// The value of another key.
    Swapped,
    /// A value that no write of this run explains.
    MadeUp,
}

/// The writes of one run against one server, shared by all workers.
#[derive(Debug)]
pub struct Ledger {
    values: Values,
    stripes: Box<[Mutex<Vec<Key>>]>,
    inserted: AtomicU32,
    remembered: usize,
}

/// What is known of one key.
#[derive(Debug, Default)]
struct Key {
    /// In flight, newest, and lately superseded, in the order in which they were sent.
    writes: Vec<Write>,
    /// Writes whose outcome nobody knows.
    in_doubt: Vec<WriteId>,
    /// When the first write was acknowledged.
    exists_since: Option<Moment>,
    /// Every write that was forgotten had been superseded by then.
    forgotten_until: Moment,
    forgotten: bool,
}

#[derive(Debug)]
struct Write {
    id: WriteId,
    sent: Moment,
    acknowledged: Moment,
    superseded: Moment,
}

impl Ledger {
    /// A ledger for keys `0..keys` and those inserted after them; `run` tells this run's values from
    /// every other's.
    pub fn new(keys: u32, run: u64) -> Self {
        // About 64 MiB for all that is remembered, whatever the number of keys.
        let remembered = (2_000_000 / keys.max(1) as usize).clamp(2, 16);
        Self {
            values: Values::new(run),
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            inserted: AtomicU32::new(keys),
            remembered,
        }
    }

    /// How many keys exist or are being inserted.
    pub fn known(&self) -> u32 {
        self.inserted.load(Ordering::Relaxed)
    }

    /// A new key.
    pub fn insert(&self) -> u32 {
        self.inserted.fetch_add(1, Ordering::Relaxed)
    }

    /// How values are made.
    pub fn values(&self) -> Values {
        self.values
    }

    /// A write leaves now.
    pub fn sent(&self, named: Named, now: Moment) {
        self.with_key(named.key, |key| {
            key.writes.push(Write {
                id: named.write,
                sent: now,
                acknowledged: NEVER,
                superseded: NEVER,
            });
        });
    }

    /// The server says that it is done.
    pub fn acknowledged(&self, named: Named, now: Moment) {
        self.with_key(named.key, |key| {
            let Some(at) = key.position(named.write) else { return };
            key.writes[at].acknowledged = now;
            let sent = key.writes[at].sent;
            key.exists_since.get_or_insert(now);
            for (other, write) in key.writes.iter_mut().enumerate() {
                if other != at && write.acknowledged < sent {
                    write.superseded = write.superseded.min(now);
                }
            }
            key.forget(self.remembered);
        });
    }

    /// The server says that nothing was applied, or nothing was sent.
    pub fn refused(&self, named: Named) {
        self.with_key(named.key, |key| {
            if let Some(at) = key.position(named.write) {
                key.writes.remove(at);
            }
        });
    }

    /// Nobody knows.
    pub fn in_doubt(&self, named: Named) {
        self.with_key(named.key, |key| {
            if let Some(at) = key.position(named.write) {
                key.writes.remove(at);
                key.in_doubt.push(named.write);
            }
        });
    }

    /// What a read that was sent at `sent` and showed `value` is.
    pub fn judge(&self, key: u32, value: Option<&str>, sent: Moment) -> Verdict {
        let Some(value) = value else {
            return self.with_key(key, |known| match known.exists_since {
                Some(since) if since < sent => Verdict::Missing(sent - since),
                _ => Verdict::Right,
            });
        };
        let Some(named) = self.values.read(value) else {
            return Verdict::MadeUp;
        };
        if named.key != key {
            return Verdict::Swapped;
        }
        self.with_key(key, |known| known.judge(named.write, sent))
    }

    fn with_key<T>(&self, key: u32, work: impl FnOnce(&mut Key) -> T) -> T {
        let stripe = &self.stripes[(key % STRIPES) as usize];
        let mut keys: MutexGuard<'_, Vec<Key>> =
            stripe.lock().unwrap_or_else(PoisonError::into_inner);
        let at = (key / STRIPES) as usize;
        if at >= keys.len() {
            keys.resize_with(at + 1, Key::default);
        }
        work(&mut keys[at])
    }
}

impl Key {
    fn position(&self, id: WriteId) -> Option<usize> {
        self.writes.iter().rposition(|write| write.id == id)
    }

    fn judge(&self, id: WriteId, sent: Moment) -> Verdict {
        match self.position(id) {
            Some(at) => match self.writes[at].superseded {
                superseded if superseded < sent => Verdict::Stale(sent - superseded),
                _ => Verdict::Right,
            },
            None if self.in_doubt.contains(&id) => Verdict::Right,
            // A write of this run, by its check, of which nothing is remembered any more.
            None if self.forgotten => match self.forgotten_until < sent {
                true => Verdict::Stale(sent - self.forgotten_until),
                false => Verdict::Right,
            },
            // It was refused, and yet it shows.
            None => Verdict::MadeUp,
        }
    }

    /// Drops the oldest of the superseded writes beyond what is remembered.
    fn forget(&mut self, remembered: usize) {
        while self.writes.len() > remembered {
            let oldest = self.writes.iter().enumerate().min_by_key(|(_, write)| write.superseded);
            match oldest {
                Some((at, write)) if write.superseded != NEVER => {
                    self.forgotten_until = self.forgotten_until.max(write.superseded);
                    self.forgotten = true;
                    self.writes.remove(at);
                }
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests;

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
//! A post adds a transaction to a user. Posts are counted: those that were sent and not refused, and those
//! of them that were acknowledged; the others are on their way, or in doubt for ever. A statement shows at
//! least as many as were acknowledged before it was sent, or 1000, each of them once, and never more than
//! were sent.
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

/// A statement has so many transactions at most.
const LATEST: usize = 1000;

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
    /// A statement without so many of the transactions that had been acknowledged.
    Lacking(u64),
    /// A statement with so many transactions too many: shown twice, or never posted.
    Surplus(u64),
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
    /// Posts to the user of this key that were sent, without those that were refused.
    posts_sent: u32,
    posts_acknowledged: u32,
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

    /// A post to the user of this key leaves now.
    pub fn post_sent(&self, key: u32) {
        self.with_key(key, |key| key.posts_sent += 1);
    }

    /// The server says that the transaction is added.
    pub fn post_acknowledged(&self, key: u32) {
        self.with_key(key, |key| key.posts_acknowledged += 1);
    }

    /// The server says that nothing was added.
    pub fn post_refused(&self, key: u32) {
        self.with_key(key, |key| key.posts_sent -= 1);
    }

    /// How many posts to the user of this key have been acknowledged: what a statement that is sent now
    /// must show.
    pub fn posts_acknowledged(&self, key: u32) -> u32 {
        self.with_key(key, |key| key.posts_acknowledged)
    }

    /// The keys whose users were posted to.
    pub fn posted(&self) -> Vec<u32> {
        (0..self.known()).filter(|key| self.with_key(*key, |key| key.posts_sent > 0)).collect()
    }

    /// What a statement is that shows transactions of these kinds and was sent when so many posts had been
    /// acknowledged; with the kind that is wrong.
    pub fn judge_statement<'k>(
        &self,
        key: u32,
        kinds: impl Iterator<Item = &'k str>,
        acknowledged: u32,
    ) -> (Verdict, Option<&'k str>) {
        let mut shown = Vec::new();
        for kind in kinds {
            match self.values.read(kind) {
                None => return (Verdict::MadeUp, Some(kind)),
                Some(named) if named.key != key => return (Verdict::Swapped, Some(kind)),
                Some(named) => shown.push(named.write),
            }
        }
        let listed = shown.len();
        shown.sort_unstable();
        shown.dedup();
        let sent = self.with_key(key, |known| known.posts_sent) as usize;
        let surplus = listed - shown.len().min(sent);
        let lacking = (acknowledged as usize).min(LATEST).saturating_sub(shown.len());
        let verdict = match (surplus, lacking) {
            (0, 0) => Verdict::Right,
            (0, lacking) => Verdict::Lacking(lacking as u64),
            (surplus, _) => Verdict::Surplus(surplus as u64),
        };
        (verdict, None)
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

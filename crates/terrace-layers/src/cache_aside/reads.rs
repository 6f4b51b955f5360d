//! How `CacheAside` reads.

use std::slice;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use terrace_core::{
    Consistency, Entry, Key, Lease, Lookup, Offer, Origin, Read, ReadOptions, Result, Token,
    Version,
};

use super::Shared;

/// What the cache had to say of one key.
enum Found {
    Hit(Read),
    /// To be loaded, and offered under the lease, if there is one.
    Missing(Option<Lease>),
    /// The same, for a key that was written a moment ago at this version.
    Written(Option<Lease>, Version),
}

impl Shared {
    pub(super) async fn read(
        self: &Arc<Self>,
        keys: &[Key],
        how: &ReadOptions,
    ) -> Result<Vec<Read>> {
        self.open()?;
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        if how.consistency == Consistency::Strong {
            return self.inner.read(keys, how).await;
        }
        let begun = self.runtime.now();
        how.deadline.check(begun)?;
        // Looked at before the cache is asked: whoever begins to read after a receipt finds its key
        // here, or else its tombstone there. (Looked at afterwards, a tombstone that is delivered
        // in between would let through what was got before it.)
        let listed = self.listed(keys);
        let Some(mut lookups) = self.far.get(keys, how.deadline).await else {
            self.bypassed.fetch_add(keys.len() as u64, Ordering::Relaxed);
            return self.inner.read(keys, how).await;
        };
        // Nearly every read is of one key, and goes without the lists of many.
        if let [key] = keys
            && listed.is_empty()
            && let Some(lookup) = lookups.pop()
        {
            return self.complete_one(key, how, self.judge(lookup, how), begun).await;
        }
        let mut found: Vec<Found> = lookups.into_iter().map(|it| self.judge(it, how)).collect();
        for index in listed {
            found[index] = Found::Written(None, Version::UNKNOWN);
            self.bypassed.fetch_add(1, Ordering::Relaxed);
        }
        self.complete(keys, how, found, begun).await
    }

    /// The keys that bypass the cache, by their places.
    fn listed(self: &Arc<Self>, keys: &[Key]) -> Vec<usize> {
        if self.undelivered.is_empty() {
            return Vec::new();
        }
        self.keep_delivering();
        self.undelivered.which(keys)
    }

    async fn complete_one(
        self: &Arc<Self>,
        key: &Key,
        how: &ReadOptions,
        found: Found,
        begun: Instant,
    ) -> Result<Vec<Read>> {
        let (lease, written) = match found {
            Found::Hit(read) => {
                self.hits.fetch_add(1, Ordering::Relaxed);
                return Ok(vec![read]);
            }
            Found::Missing(lease) => (lease, Version::NONE),
            Found::Written(lease, version) => (lease, version),
        };
        self.misses.fetch_add(1, Ordering::Relaxed);
        let (loaded, sound) = self.load(slice::from_ref(key), &[written], how).await?;
        if let (Some(lease), [read]) = (lease.filter(|_| sound), loaded.as_slice()) {
            self.offer(vec![offer(key.clone(), lease, read, how)], how, begun).await;
        }
        Ok(loaded)
    }

    /// Loads what is missing and answers all.
    async fn complete(
        self: &Arc<Self>,
        keys: &[Key],
        how: &ReadOptions,
        found: Vec<Found>,
        begun: Instant,
    ) -> Result<Vec<Read>> {
        let missing = keys.iter().zip(&found).filter_map(|(key, found)| match found {
            Found::Hit(_) => None,
            Found::Missing(_) => Some((key.clone(), Version::NONE)),
            Found::Written(_, version) => Some((key.clone(), *version)),
        });
        let (missing, written): (Vec<Key>, Vec<Version>) = missing.unzip();
        self.hits.fetch_add((keys.len() - missing.len()) as u64, Ordering::Relaxed);
        let (mut loaded, mut sound) = (Vec::new(), true);
        if !missing.is_empty() {
            self.misses.fetch_add(missing.len() as u64, Ordering::Relaxed);
            (loaded, sound) = self.load(&missing, &written, how).await?;
        }
        let mut loaded = missing.into_iter().zip(loaded);
        let mut offers = Vec::new();
        let mut answers = Vec::with_capacity(keys.len());
        for found in found {
            match found {
                Found::Hit(read) => answers.push(read),
                Found::Missing(lease) | Found::Written(lease, _) => {
                    // A store that answers fewer keys than asked breaks the contract; the caller
                    // notices by the number of answers.
                    let Some((key, read)) = loaded.next() else { break };
                    let lease = lease.filter(|_| sound);
                    offers.extend(lease.map(|lease| offer(key, lease, &read, how)));
                    answers.push(read);
                }
            }
        }
        self.offer(offers, how, begun).await;
        Ok(answers)
    }

    fn judge(&self, lookup: Lookup, how: &ReadOptions) -> Found {
        match lookup {
            Lookup::Miss(lease) => Found::Missing(Some(lease)),
            Lookup::Written { lease, version } => Found::Written(Some(lease), version),
            Lookup::Hit(entry) if satisfies(&entry, how) && !self.is_beyond_a_fork(&entry, how) => {
                let Entry { record, version, token, age } = entry;
                Found::Hit(Read { record, version, origin: Origin::Far, age, token })
            }
            Lookup::Hit(_) => Found::Missing(None),
        }
    }

    /// Whether a promotion lies between a token and an entry: what the token proves may be lost, and
    /// only the router knows.
    fn is_beyond_a_fork(&self, entry: &Entry, how: &ReadOptions) -> bool {
        let asked = how.token.as_ref().filter(|_| self.options.over_replicas);
        asked.is_some_and(|asked| !entry.token.is_unforked_since(asked))
    }

    /// Loads from the inner store, and says whether that may be kept. A replica may be behind what was
    /// written a moment ago; then the primary is asked.
    async fn load(
        &self,
        keys: &[Key],
        written: &[Version],
        how: &ReadOptions,
    ) -> Result<(Vec<Read>, bool)> {
        if !self.options.over_replicas {
            return Ok((self.inner.read(keys, how).await?, true));
        }
        let mut stale = None;
        // Otherwise nobody knows what would be new enough.
        if !written.contains(&Version::UNKNOWN) {
            // Before the cache began to remember, writes have left no trace in it.
            let whole = self.far.whole_for();
            let loaded = self.inner.read(keys, how).await?;
            if loaded.iter().zip(written).all(|(read, floor)| read.version >= *floor) {
                if loaded.iter().all(|read| read.age <= whole) {
                    return Ok((loaded, true));
                }
                stale = Some(loaded).filter(|_| how.is_default());
            }
        }
        let strong = ReadOptions { consistency: Consistency::Strong, ..how.clone() };
        match (self.inner.read(keys, &strong).await, stale) {
            // Nothing says that it is too old, and it says how old it is.
            (Err(error), Some(loaded)) if error.is_retryable() => Ok((loaded, false)),
            (answer, _) => Ok((answer?, true)),
        }
    }

    async fn offer(self: &Arc<Self>, mut offers: Vec<Offer>, how: &ReadOptions, begun: Instant) {
        // Looked at again: an invalidation that failed during the load left no tombstone that
        // would refuse this.
        if !self.undelivered.is_empty() {
            offers.retain(|offer| !self.undelivered.holds(&offer.key));
        }
        // What is older than tombstones last could undo one that has expired: no version tells.
        let taken = self.runtime.now() - begun;
        offers.retain(|offer| offer.entry.age.saturating_add(taken) <= self.options.max_load);
        if offers.is_empty() {
            return;
        }
        self.far.fill(offers, self.options.fill_wait, how.deadline).await;
    }
}

/// Whether an entry is as new as asked.
pub(crate) fn satisfies(entry: &Entry, how: &ReadOptions) -> bool {
    let young = match how.consistency {
        Consistency::Default => true,
        Consistency::MaxStale(limit) => entry.age <= limit,
        Consistency::Strong => false,
    };
    young && how.token.as_ref().is_none_or(|asked| entry.token.covers(asked))
}

/// What a load proves: its own token, and what was asked of it.
pub(crate) fn proof(read: &Read, how: &ReadOptions) -> Token {
    let mut token = read.token.clone();
    if let Some(asked) = &how.token {
        token.merge(asked);
    }
    token
}

fn offer(key: Key, lease: Lease, read: &Read, how: &ReadOptions) -> Offer {
    let entry = Entry {
        record: read.record.clone(),
        version: read.version,
        token: proof(read, how),
        age: read.age,
    };
    Offer { key, lease, entry }
}

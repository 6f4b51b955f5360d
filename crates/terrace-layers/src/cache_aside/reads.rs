//! How `CacheAside` reads.

use std::slice;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use terrace_core::{
    Consistency, Entry, Key, Lease, Lookup, Offer, Origin, Page, Proof, Read, ReadOptions, Result,
    Scan, Version,
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
        let mut lookups = None;
        if self.trust.is_owed() {
            self.pay();
        } else {
            lookups = self.far.get(keys, how).await;
        }
        let Some(mut lookups) = lookups else {
            self.bypassed.fetch_add(keys.len() as u64, Ordering::Relaxed);
            return self.read_past_the_cache(keys, how).await;
        };
        self.reassure().await;
        // Nearly every read is of one key, and goes without the lists of many.
        if let [key] = keys
            && let Some(lookup) = lookups.pop()
        {
            return self.complete_one(key, how, self.judge(key, lookup, how), begun).await;
        }
        let found = keys.iter().zip(lookups).map(|(key, lookup)| self.judge(key, lookup, how));
        let found = found.collect();
        self.complete(keys, how, found, begun).await
    }

    /// Without the cache nobody knows what was written a moment ago, so replicas, which may be behind, are
    /// asked only when the primary cannot answer.
    async fn read_past_the_cache(&self, keys: &[Key], how: &ReadOptions) -> Result<Vec<Read>> {
        if !self.options.over_replicas || how.consistency != Consistency::Default {
            return self.inner.read(keys, how).await;
        }
        let strong = ReadOptions { consistency: Consistency::Strong, ..how.clone() };
        match self.inner.read(keys, &strong).await {
            Err(error) if error.is_retryable() => self.inner.read(keys, how).await,
            answer => answer,
        }
    }

    /// Lists are not cached. Single reads are as new as every acknowledged write, so lists must not be
    /// left to replicas, which may be behind; unless the primary cannot answer.
    pub(super) async fn scan(&self, scan: &Scan, how: &ReadOptions) -> Result<Page> {
        if !self.options.over_replicas || how.consistency != Consistency::Default {
            return self.inner.scan(scan, how).await;
        }
        let strong = ReadOptions { consistency: Consistency::Strong, ..how.clone() };
        match self.inner.scan(scan, &strong).await {
            Err(error) if error.is_retryable() && how.token.is_none() => {
                self.inner.scan(scan, how).await
            }
            answer => answer,
        }
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
            let offers = offer(key.clone(), lease, read).into_iter().collect();
            self.offer(offers, how, begun).await;
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
        let hits = found.iter().filter_map(|found| match found {
            Found::Hit(read) => Some(read),
            Found::Missing(_) | Found::Written(..) => None,
        });
        let rest = how.after(hits)?;
        let (mut loaded, mut sound) = (Vec::new(), true);
        if !missing.is_empty() {
            self.misses.fetch_add(missing.len() as u64, Ordering::Relaxed);
            (loaded, sound) = self.load(&missing, &written, &rest).await?;
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
                    offers.extend(lease.and_then(|lease| offer(key, lease, &read)));
                    answers.push(read);
                }
            }
        }
        self.offer(offers, how, begun).await;
        Ok(answers)
    }

    fn judge(&self, key: &Key, lookup: Lookup, how: &ReadOptions) -> Found {
        let entry = match lookup {
            Lookup::Miss(lease) => return Found::Missing(Some(lease)),
            Lookup::Written { lease, version } => return Found::Written(Some(lease), version),
            Lookup::Hit(entry) => entry,
        };
        let asked = how.token.as_ref();
        if is_young(entry.age, how) && self.generations.admits(&entry.proof, asked) {
            let Entry { record, version, proof, age } = entry;
            let token = proof.token();
            let proof = Some(proof);
            return Found::Hit(Read { record, version, origin: Origin::FAR, age, token, proof });
        }
        // What was believed a moment ago is a floor for replicas.
        let floor = match self.generations.admits(&entry.proof, None) {
            true => entry.version,
            false => Version::NONE,
        };
        Found::Written(self.far.lease(key), floor)
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
            let fresh = |read: &Read, floor: Version| {
                read.version >= floor && read.proof.as_ref().is_none_or(|it| self.is_current(it))
            };
            if loaded.iter().zip(written).all(|(read, floor)| fresh(read, *floor)) {
                if loaded.iter().all(|read| read.age <= whole) {
                    return Ok((loaded, true));
                }
                stale = Some(loaded).filter(|_| how.is_default());
            }
        }
        let strong = ReadOptions { consistency: Consistency::Strong, ..how.clone() };
        match (self.inner.read(keys, &strong).await, stale) {
            // Nothing says that it is too old, and it says how old it is.
            (Err(error), Some(mut loaded)) if error.is_retryable() => {
                // No cache above may keep it either.
                loaded.iter_mut().for_each(|read| read.proof = None);
                Ok((loaded, false))
            }
            (answer, _) => Ok((answer?, true)),
        }
    }

    fn is_current(&self, proof: &Proof) -> bool {
        self.generations.admits(proof, None)
    }

    async fn offer(self: &Arc<Self>, mut offers: Vec<Offer>, how: &ReadOptions, begun: Instant) {
        offers.retain(|offer| self.is_current(&offer.entry.proof));
        // What is older than tombstones last could undo one that has expired: no version tells.
        let taken = self.runtime.now() - begun;
        offers.retain(|offer| offer.entry.age.saturating_add(taken) <= self.options.max_load);
        if offers.is_empty() {
            return;
        }
        self.far.fill(offers, self.options.fill_wait, how.deadline).await;
    }
}

/// Whether an answer of this age is as young as asked.
pub(crate) fn is_young(age: Duration, how: &ReadOptions) -> bool {
    match how.consistency {
        Consistency::Default => true,
        Consistency::MaxStale(limit) => age <= limit,
        Consistency::Strong => false,
    }
}

/// `None` for what may not be kept.
fn offer(key: Key, lease: Lease, read: &Read) -> Option<Offer> {
    let entry = Entry {
        record: read.record.clone(),
        version: read.version,
        proof: read.proof.clone()?,
        age: read.age,
    };
    Some(Offer { key, lease, entry })
}

//! What becomes of a key when an update of another region arrives: the one place that decides.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Ancestry, RegionId};
use crate::{Logged, Version};

/// Up to which version updates of a key have arrived, of each region. Each region's updates of a key
/// arrive in the order of their versions. Stored as a JSON list, ordered by region.
///
/// A [`Version::at`] a time in it says that deletions up to then have arrived, of every region; where there
/// is no row, that every update up to then has: it was deleted, and the deletion collected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seen(Vec<Version>);

impl Seen {
    /// Whether the version has arrived.
    pub fn has(&self, version: Version) -> bool {
        version <= self.of(version.region())
    }

    /// Up to when deletions were collected, as far as the rows of a region say.
    pub fn collected(rows: &[Logged]) -> Version {
        let each = rows.iter().map(|row| match row.ancestry.as_deref() {
            Some(Ancestry::Row { seen, .. }) => seen.of(None),
            _ => Version::NONE,
        });
        each.max().unwrap_or_default()
    }

    fn of(&self, region: Option<RegionId>) -> Version {
        self.0.iter().copied().find(|known| known.region() == region).unwrap_or(Version::NONE)
    }

    /// Notes that the versions of its region have arrived up to this one.
    pub fn add(&mut self, version: Version) {
        if version == Version::NONE {
            return;
        }
        match self.0.binary_search_by_key(&version.region(), |known| known.region()) {
            Ok(at) => self.0[at] = self.0[at].max(version),
            Err(at) => self.0.insert(at, version),
        }
    }

    /// The versions, one of each region.
    pub fn versions(&self) -> &[Version] {
        &self.0
    }
}

impl FromIterator<Version> for Seen {
    fn from_iter<T: IntoIterator<Item = Version>>(versions: T) -> Self {
        let mut seen = Self::default();
        versions.into_iter().for_each(|version| seen.add(version));
        seen
    }
}

/// What a region knows of the updates of one key; the default knows of none.
///
/// Merging two of them is commutative, associative and idempotent: it is the observed-remove set of
/// updates that none has replaced, with version vectors (Bieniusa et al., "An Optimized Conflict-free
/// Replicated Set", INRIA RR-8083, 2012), whose greatest element is the record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyState {
    /// The version of the record, or of its deletion: the highest that has arrived.
    pub version: Version,
    /// Whether it is a deletion.
    pub deleted: bool,
    /// What has arrived.
    pub seen: Seen,
    /// What has arrived, is not the record and was replaced by nothing. Whoever merges one change may
    /// leave out what is neither its version nor what it replaced.
    pub lost: BTreeSet<Version>,
    /// What was replaced and has not arrived.
    pub awaited: BTreeSet<Version>,
}

impl KeyState {
    /// The state after an update that was written in another region, or in this one. Updates of one
    /// region come in the order of their versions; one that comes again changes nothing.
    #[must_use]
    pub fn after(&self, version: Version, deleted: bool, replaced: Version) -> Self {
        let is_old = version <= self.seen.of(None);
        if self.seen.has(version) || (is_old && self.version == Version::NONE) {
            return self.clone();
        }
        let mut next = self.clone();
        let was_replaced = next.awaited.contains(&version) || (is_old && deleted);
        let replaces_record = self.version == replaced
            || self.version == Version::NONE
            || (self.deleted && replaced.region().is_none() && self.version <= replaced);
        match replaced.region() {
            None => next.seen.add(replaced),
            Some(_) if !self.seen.has(replaced) => drop(next.awaited.insert(replaced)),
            Some(_) => drop(next.lost.remove(&replaced)),
        }
        next.seen.add(version);
        next.awaited.retain(|awaited| !next.seen.has(*awaited));
        if version > self.version {
            (next.version, next.deleted) = (version, deleted);
            if !replaces_record {
                next.lost.insert(self.version);
            }
        } else if !was_replaced {
            next.lost.insert(version);
        }
        next
    }

    /// The state after a change or a row of another region; what says nothing for regions changes nothing.
    #[must_use]
    pub fn with(&self, change: &Logged) -> Self {
        let (version, deleted) = (change.version, change.record.is_none());
        match change.ancestry.as_deref() {
            None => self.clone(),
            Some(Ancestry::Change { replaced, .. }) => self.after(version, deleted, *replaced),
            Some(Ancestry::Row { seen, lost, awaited }) => self.merge(&Self {
                version,
                deleted,
                seen: seen.clone(),
                lost: lost.iter().map(|conflict| conflict.loser).collect(),
                awaited: awaited.iter().copied().collect(),
            }),
        }
    }

    /// All that either knows.
    #[must_use]
    pub fn merge(&self, other: &Self) -> Self {
        let mut heads = BTreeSet::new();
        for (one, another) in [(self, other), (other, self)] {
            let stands = |head: &Version| another.is_head(*head) || !another.knows(one, *head);
            heads.extend(one.heads().filter(stands));
        }
        let newer = if self.version >= other.version { self } else { other };
        heads.remove(&newer.version);
        let seen = self.seen.versions().iter().chain(other.seen.versions());
        let seen = seen.copied().collect::<Seen>();
        let mut awaited = &self.awaited | &other.awaited;
        awaited.retain(|version| !seen.has(*version));
        Self { version: newer.version, deleted: newer.deleted, seen, lost: heads, awaited }
    }

    fn heads(&self) -> impl Iterator<Item = Version> {
        let record = Some(self.version).filter(|version| *version != Version::NONE);
        record.into_iter().chain(self.lost.iter().copied())
    }

    fn is_head(&self, version: Version) -> bool {
        self.version == version || self.lost.contains(&version)
    }

    /// Whether it knows of an update that stands in another state.
    fn knows(&self, stands_in: &Self, version: Version) -> bool {
        let deletion = stands_in.deleted && stands_in.version == version;
        self.seen.has(version)
            || self.awaited.contains(&version)
            || (deletion && version <= self.seen.of(None))
    }
}

#[cfg(test)]
mod tests;

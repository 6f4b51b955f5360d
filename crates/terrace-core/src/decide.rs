//! What a write does to a row: one pure function, which every store uses.

use crate::{Change, Outcome, Precondition, Sequence, Timestamp, Value, Version, Write};

/// A row before a write; the default is no row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Current {
    /// The version of the record, or of its deletion.
    pub version: Version,
    /// Whether there is a record; else this is the trace of a deleted one, or nothing.
    pub live: bool,
    /// The last write of a journal that was applied.
    pub applied: Sequence,
}

/// What becomes of the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// What is answered.
    pub outcome: Outcome,
    /// The new value; `None` for a deletion.
    pub value: Option<&'a Value>,
    /// The last write of a journal that is then applied.
    pub applied: Sequence,
    /// When the write was accepted, where that was before now: by a journal.
    pub accepted: Option<Timestamp>,
}

/// Decides a write over a row. `Err` has what is answered where nothing changes.
///
/// # Errors
/// A precondition that does not hold; a deletion of nothing.
pub fn decide<'a>(
    write: &'a Write,
    current: &Current,
) -> std::result::Result<Decision<'a>, (Outcome, Version)> {
    let there = if current.live { current.version } else { Version::NONE };
    let (holds, place) = match write.precondition {
        Precondition::None => (true, None),
        Precondition::Absent => (!current.live, None),
        Precondition::Version(wanted) => (current.live && there == wanted, None),
        Precondition::After(place) => (current.applied < place.sequence, Some(place.sequence)),
    };
    if !holds {
        return Err((Outcome::PreconditionFailed, there));
    }
    let outcome = match (&write.change, current.live) {
        // A journal's deletion leaves a trace, or an older put that comes late would stay.
        (Change::Delete, false) if place.is_none() => return Err((Outcome::Absent, there)),
        (Change::Delete, false) => Outcome::Absent,
        (Change::Delete, true) => Outcome::Deleted,
        (Change::Put(_), true) => Outcome::Replaced,
        (Change::Put(_), false) => Outcome::Created,
    };
    let value = match &write.change {
        Change::Put(value) => Some(value),
        Change::Delete => None,
    };
    let (applied, accepted) = (place.unwrap_or(current.applied), place.map(Sequence::time));
    Ok(Decision { outcome, value, applied, accepted })
}

impl Decision<'_> {
    /// The row's next version, of one that was drawn under its lock: a person may have given it a later
    /// one.
    pub fn successor(drawn: Version, current: &Current) -> Version {
        drawn.max(Version::new(current.version.get() + 1))
    }

    /// What the receipt says of a row with this version.
    pub fn answer(&self, version: Version) -> (Outcome, Version) {
        let none = self.outcome == Outcome::Absent;
        (self.outcome, if none { Version::NONE } else { version })
    }
}

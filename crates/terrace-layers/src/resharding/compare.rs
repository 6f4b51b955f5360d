//! Whether giver and taker have the same: count and digest of each slot, at one position.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use terrace_core::{Deadline, Error, ErrorKind, Result, Rows, Slot, SlotSet};

use super::moves::Way;
use super::{Progress, Resharding};
use crate::live_copy::held_back;

/// Records of a slot: how many, and the sum of their digests.
type Digests = BTreeMap<Slot, (u64, u64)>;

impl Resharding {
    /// At a moment without writes at the giver the taker catches up to the log's head, and the giver's
    /// snapshot is taken. The taker owns none of these slots, so what it has stays as it is until more
    /// is applied.
    pub(super) async fn compare(&self, way: &Way) -> Result<()> {
        let slots = &way.slots;
        (self.watch)(Progress::Comparing { from: way.from, to: way.to });
        let follow = self.follow(way)?;
        follow.catch_up().await?;
        let deadline = Deadline::at(self.runtime.now() + self.options.fence);
        let tail = self.runtime.within(deadline, follow.catch_up_to_head());
        // Writers wait for this, so it is bounded.
        let tail = Box::pin(async { tail.await.unwrap_or_else(|| Err(held_back())) });
        let mut given = way.giver.rows(None, Some(tail)).await?;
        let given = digests(&mut *given, way, slots).await?;
        let mut taken = way.taker.rows(None, None).await?;
        let taken = digests(&mut *taken, way, slots).await?;
        if given == taken {
            return Ok(());
        }
        let differ = |slot: &Slot| given.get(slot) != taken.get(slot);
        let wrong = slots.iter().filter(differ).collect::<SlotSet>();
        // Copied anew at the next attempt.
        self.taking(way)?.begin_anew(&way.log.name()).await?;
        let message = "the copy differs from what was copied, as when somebody has changed rows of these \
                       slots by hand; nothing has changed hands. --resume copies anew";
        Err(Error::new(ErrorKind::Corrupt, message).with("slots", wrong.to_string()))
    }
}

/// Traces of deleted records do not count: each database drops them in its own time.
async fn digests(rows: &mut dyn Rows, way: &Way, slots: &SlotSet) -> Result<Digests> {
    let mut digests = Digests::new();
    loop {
        let some = rows.next().await?;
        if some.is_empty() {
            return Ok(digests);
        }
        for row in some {
            let Some(record) = row.record else { continue };
            let slot = way.partitioner.slot(&row.key);
            if !slots.contains(slot) {
                continue;
            }
            let mut hasher = DefaultHasher::new();
            (row.key.as_str(), record.value.as_str(), row.version.get()).hash(&mut hasher);
            let times = (record.created_at.as_microsecond(), record.updated_at.as_microsecond());
            times.hash(&mut hasher);
            let (count, sum) = digests.entry(slot).or_default();
            *count += 1;
            *sum = sum.wrapping_add(hasher.finish());
        }
    }
}

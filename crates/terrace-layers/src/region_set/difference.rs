//! What differs between regions: found by halving ranges whose digests are not the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join;
use terrace_core::{Key, KeyRange, Logged, RegionName, RegionStore, Result, Version};

use super::{Pair, RegionSet};

/// A key whose rows are not the same in two regions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowDifference {
    /// The key.
    pub key: Key,
    /// The one region, and the version there; of deleted records, too.
    pub one: (RegionName, Version),
    /// The other region.
    pub other: (RegionName, Version),
}

impl RegionSet {
    /// Ranges with fewer rows are compared row by row.
    const LEAF: u64 = 64;
    /// What differs is looked at again after this time: it may have been on its way.
    const AGAIN: Duration = Duration::from_millis(500);
    /// How often.
    const LOOKS: usize = 4;

    /// The keys whose rows are not the same everywhere, at most so many; what is on its way is given time
    /// to arrive.
    ///
    /// # Errors
    /// `Unavailable` when a region cannot be reached.
    pub async fn differences(&self, limit: usize) -> Result<Vec<RowDifference>> {
        let mut found = Vec::new();
        for pair in self.neighbours() {
            let mut ranges = vec![KeyRange::default()];
            let mut keys = Vec::new();
            for look in 0..Self::LOOKS {
                if look > 0 {
                    self.runtime.sleep(Self::AGAIN).await;
                }
                ranges = differing(pair, ranges).await?;
                keys = compared(pair, &ranges).await?;
                if keys.is_empty() {
                    break;
                }
            }
            found.extend(keys);
        }
        found.sort_by(|a, b| a.key.cmp(&b.key));
        found.truncate(limit);
        Ok(found)
    }

    /// Merges what differs, into both of each two regions; answers how many rows that were.
    pub(super) async fn merge_differences(&self) -> Result<u64> {
        let mut merged = 0;
        // Along the row and back again, so that what the last one alone has comes to the first.
        let there = self.neighbours();
        let back = there.iter().rev().skip(1).copied().collect::<Vec<_>>();
        for (one, other) in there.into_iter().chain(back) {
            let mut ranges = vec![KeyRange::default()];
            // What is written meanwhile may differ again, and is on its way.
            for _ in 0..Self::LOOKS {
                ranges = differing((one, other), ranges).await?;
                for range in &ranges {
                    let (mine, theirs) = both((one, other), range).await?;
                    merged += different((one, other), &mine, &theirs).len() as u64;
                    merge_pages(one, theirs).await?;
                    merge_pages(other, mine).await?;
                }
                if ranges.is_empty() {
                    break;
                }
            }
        }
        Ok(merged)
    }

    /// Each region with the next one: equal neighbours are all equal.
    fn neighbours(&self) -> Vec<Pair<'_>> {
        self.regions.iter().zip(self.regions.iter().skip(1)).collect()
    }
}

/// The parts of these ranges that are not the same in both, small enough to be compared row by row.
async fn differing((one, other): Pair<'_>, mut ranges: Vec<KeyRange>) -> Result<Vec<KeyRange>> {
    let mut found = Vec::new();
    while let Some(range) = ranges.pop() {
        let (mine, theirs) = try_join(one.digest(&range), other.digest(&range)).await?;
        if (mine.rows, mine.sum) == (theirs.rows, theirs.sum) {
            continue;
        }
        let larger = if mine.rows >= theirs.rows { &mine } else { &theirs };
        match larger.middle.as_ref().filter(|_| larger.rows > RegionSet::LEAF) {
            Some(middle) => {
                let (lower, upper) = range.halves(middle);
                ranges.extend([lower, upper]);
            }
            None => found.push(range),
        }
    }
    Ok(found)
}

async fn compared(pair: Pair<'_>, ranges: &[KeyRange]) -> Result<Vec<RowDifference>> {
    let mut found = Vec::new();
    for range in ranges {
        let (mine, theirs) = both(pair, range).await?;
        found.extend(different(pair, &mine, &theirs));
    }
    Ok(found)
}

/// Rows as they were read: a page at a time, none of which has more than 16 MiB of values.
type Pages = Vec<Vec<Logged>>;

/// All rows of a small range in both.
async fn both((one, other): Pair<'_>, range: &KeyRange) -> Result<(Pages, Pages)> {
    try_join(all(one, range), all(other, range)).await
}

async fn all(region: &Arc<dyn RegionStore>, range: &KeyRange) -> Result<Pages> {
    let (mut pages, mut rest) = (Vec::new(), range.clone());
    let most = usize::try_from(RegionSet::LEAF).unwrap_or(usize::MAX);
    loop {
        let page = region.rows(&rest, most).await?;
        let Some(last) = page.last() else { return Ok(pages) };
        rest.after = Some(last.key.clone());
        pages.push(page);
    }
}

async fn merge_pages(into: &Arc<dyn RegionStore>, pages: Pages) -> Result<()> {
    for page in pages {
        into.merge_rows(page).await?;
    }
    Ok(())
}

fn different((one, other): Pair<'_>, mine: &Pages, theirs: &Pages) -> Vec<RowDifference> {
    let mut keys = BTreeMap::<&Key, [Option<&Logged>; 2]>::new();
    mine.iter().flatten().for_each(|row| keys.entry(&row.key).or_default()[0] = Some(row));
    theirs.iter().flatten().for_each(|row| keys.entry(&row.key).or_default()[1] = Some(row));
    let content = |row: Option<&Logged>| {
        let value = |row: &Logged| row.record.as_ref().map(|record| record.value.clone());
        row.map(|row| (row.version, value(row)))
    };
    let version = |row: Option<&Logged>| row.map_or(Version::NONE, |row| row.version);
    let differing = keys.into_iter().filter(|(_, rows)| content(rows[0]) != content(rows[1]));
    let differing = differing.map(|(key, rows)| RowDifference {
        key: key.clone(),
        one: (one.region().name, version(rows[0])),
        other: (other.region().name, version(rows[1])),
    });
    differing.collect()
}

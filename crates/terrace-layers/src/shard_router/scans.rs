//! How `ShardRouter` lists.

use std::sync::Arc;

use futures_util::future::join_all;
use terrace_core::{ErrorKind, Key, Origin, Page, ReadOptions, Record, Result, Scan, Token};

use super::map::ShardMap;
use super::{Shared, unreached};

impl Shared {
    /// A page of all shards. What a shard has and does not own (on its way in, or not yet tidied up)
    /// is left out, so a page may be short; an empty one is looked beyond.
    pub(super) async fn scan(&self, scan: &Scan, how: &ReadOptions) -> Result<Page> {
        self.open()?;
        let mut waits = self.waits(how.deadline);
        let mut scan = scan.clone();
        loop {
            how.deadline.check(self.runtime.now())?;
            let map = self.map.load_full();
            if !map.is_complete() && !map.whole {
                return Err(unreached());
            }
            let page = match map.is_complete() {
                true => page(&map, &scan, how).await?,
                false => None,
            };
            match page {
                None => self.look_again(&map, &mut waits).await?,
                Some(Page { records, next: Some(next), .. }) if records.is_empty() => {
                    scan.after = Some(next);
                }
                Some(page) => return Ok(page),
            }
        }
    }
}

/// The page under this map; `None` when a shard refuses the map.
async fn page(map: &Arc<ShardMap>, scan: &Scan, how: &ReadOptions) -> Result<Option<Page>> {
    let owners = map.views().filter(|view| map.slots_of(Some(view.number)) > 0);
    let pages = join_all(owners.map(|view| async move {
        (view.number, view.tally.time(view.store.scan(scan, how)).await)
    }));
    let (mut records, mut ends, mut token) = (Vec::<Record>::new(), None::<Key>, Token::default());
    for (number, answer) in pages.await {
        let page = match answer {
            Ok(page) => page,
            Err(error) if error.kind() == ErrorKind::Moved => return Ok(None),
            Err(error) => return Err(error),
        };
        token.merge(&page.token);
        // What lies beyond the shortest page is not known of all shards.
        if let Some(next) = page.next
            && ends.as_ref().is_none_or(|end| next < *end)
        {
            ends = Some(next);
        }
        let own = page.records.into_iter().filter(|it| map.owner(&it.key) == Some(number));
        records.extend(own);
    }
    records.retain(|record| ends.as_ref().is_none_or(|end| record.key <= *end));
    records.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    let mut page = Page::cut(records, scan.limit, Origin::PRIMARY).proving(token);
    page.next = page.next.or(ends);
    Ok(Some(page))
}

//! What is done beside the requests: looks at the regions, and at traces that nobody needs any more.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use terrace_core::{Deadline, Result, Version};

use super::Routes;

/// How often traces of deleted records are collected.
const COLLECT: Duration = Duration::from_secs(60 * 60);

/// Looks at every region again and again.
pub(super) async fn look(routes: Weak<Routes>) -> Result<()> {
    loop {
        let Some(shared) = routes.upgrade() else { return Ok(()) };
        let (runtime, pause) = (shared.runtime.clone(), shared.options.look);
        shared.look().await;
        drop(shared);
        runtime.sleep(runtime.jitter(pause, 0.2)).await;
    }
}

/// Collects traces of deleted records now and then.
pub(super) async fn collect(routes: Weak<Routes>) -> Result<()> {
    loop {
        let Some(runtime) = routes.upgrade().map(|shared| shared.runtime.clone()) else {
            return Ok(());
        };
        runtime.sleep(runtime.jitter(COLLECT, 0.2)).await;
        let Some(shared) = routes.upgrade() else { return Ok(()) };
        match shared.collect().await {
            Ok(0) => {}
            Ok(traces) => tracing::info!(traces, "traces of deleted records were removed"),
            Err(error) => tracing::info!(%error, "traces of deleted records are kept"),
        }
    }
}

impl Routes {
    /// Asks every region how far it has come, and where its log ends.
    pub(super) async fn look(&self) {
        let by = Deadline::at(self.runtime.now() + Duration::from_secs(1));
        let links = self.links();
        let looks = links.iter().map(|link| async move {
            // A failure is noted by the link.
            let _told = link.look(by, &self.runtime).await;
        });
        let heads = self.regions.iter().enumerate().map(|(place, region)| async move {
            let link = self.link(self.here, place);
            let (asked, log) = (self.runtime.now(), link.region().own_log());
            if let Ok(head) = link.call(by, &self.runtime, log.head()).await {
                region.heads.note(head, asked);
            }
        });
        futures_util::future::join(join_all(looks), join_all(heads)).await;
    }

    /// Removes traces of records that were deleted long ago, when every region has applied the deletions,
    /// and whatever was written before it had.
    pub(super) async fn collect(&self) -> Result<u64> {
        let horizon = Version::at(self.runtime.wall() - self.options.tombstones_for);
        let by = Deadline::at(self.runtime.now() + Duration::from_secs(60));
        // Twice: a region that had not applied a deletion may have written over what was deleted.
        for _ in 0..2 {
            for at in 0..self.regions.len() {
                if self.come_to_heads(self.here, at, by).await?.is_none() {
                    return Ok(0);
                }
            }
        }
        let links =
            (0..self.regions.len()).map(|at| Arc::clone(&self.regions[self.here].links[at]));
        let mut removed = 0;
        for link in links {
            removed += link.region().collect(horizon).await?;
        }
        Ok(removed)
    }
}

//! How a region follows the others: what it applies its cache is told of.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use terrace_core::{
    Batch, BoxFuture, Checkpoint, Error, ErrorKind, Follower, Key, LogPosition, RegionStore,
    Result, Runtime, Version,
};

use super::{GeoRouterOptions, Region, RegionParts};
use crate::cache_aside::CacheAside;
use crate::follow::{Follow, FollowOptions, Following};
use crate::heads::Heads;
use crate::region_set::first_rows;

/// The regions, each following the others where it shall.
pub(super) fn regions(
    parts: Vec<RegionParts>,
    options: &GeoRouterOptions,
    runtime: &Runtime,
) -> Vec<Region> {
    let ids = parts.iter().map(|part| part.id).collect::<Vec<_>>();
    let each = parts.into_iter().enumerate().map(|(place, part)| {
        let follows = |origin: usize| origin != place && part.follows && options.replicates;
        let following = (0..ids.len())
            .map(|origin| {
                follows(origin).then(|| follow(&part, place, (origin, ids[origin]), runtime))
            })
            .collect();
        let RegionParts { name, id, links, .. } = part;
        Region { name, id, links, following, heads: Heads::default() }
    });
    each.collect()
}

fn follow(
    part: &RegionParts,
    place: usize,
    (origin, id): (usize, terrace_core::RegionId),
    runtime: &Runtime,
) -> Following {
    let (own, other) = (part.links[place].region(), part.links[origin].region());
    let follower = Arc::new(RegionFollower {
        inner: own.follower_of(id),
        region: Arc::clone(own),
        cache: part.cache.clone(),
        left: Mutex::default(),
    });
    let log = other.own_log();
    let rows = first_rows(other);
    // What is written within this time is one batch with one commit; the round trips between regions are
    // longer.
    let pace = std::time::Duration::from_millis(5);
    let options = FollowOptions { pace, ..FollowOptions::default() };
    let follow = Follow::new("replication", log, follower, options, runtime.clone());
    follow.led_by(own.lease(id)).copying(rows).start()
}

/// Applies changes of another region, and tells the cache of this one.
#[derive(Debug)]
struct RegionFollower {
    inner: Arc<dyn Follower>,
    region: Arc<dyn RegionStore>,
    cache: Option<Arc<CacheAside>>,
    /// Where this follower has left its checkpoint, when it was told of all that it applied.
    left: Mutex<Option<Checkpoint>>,
}

impl RegionFollower {
    /// Whether nobody else has moved the checkpoint.
    fn has_left(&self, checkpoint: &Checkpoint) -> bool {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).as_ref() == Some(checkpoint)
    }

    fn leaves(&self, checkpoint: Option<Checkpoint>) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = checkpoint;
    }

    /// Applies a batch; the cache is told before anybody hears that it is applied.
    async fn tell(&self, cache: &CacheAside, batch: &Batch) -> Result<bool> {
        let keys = batch.changes.iter().map(|change| change.key.clone()).collect();
        let versions = batch.changes.iter().map(|it| (it.key.clone(), it.version)).collect();
        let (inner, batch) = (Arc::clone(&self.inner), batch.clone());
        let work = Box::pin(async move {
            let applied = inner.apply(&batch).await?;
            Ok(Applied { applied, versions })
        });
        let written = |done: &Applied| match done.applied {
            true => done.versions.clone(),
            false => Vec::new(),
        };
        Ok(cache.tell_of(keys, work, written).await?.applied)
    }
}

/// What came of a batch.
struct Applied {
    applied: bool,
    versions: Vec<(Key, Version)>,
}

impl Follower for RegionFollower {
    fn checkpoint(&self) -> BoxFuture<'_, Result<Checkpoint>> {
        Box::pin(async move {
            let found = self.inner.checkpoint().await?;
            if self.cache.is_some() && !self.has_left(&found) {
                // Somebody else has applied what came before, and may have died before the cache heard.
                self.region.raise(&[]).await?;
                self.leaves(Some(found.clone()));
            }
            Ok(found)
        })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            let applied = match &self.cache {
                Some(cache) => self.tell(cache, batch).await,
                None => self.inner.apply(batch).await,
            };
            let told = applied.as_ref().is_ok_and(|applied| *applied);
            self.leaves(told.then(|| batch.to.clone()));
            applied
        })
    }

    /// Where the log has another name than the one that was followed, or lacks the place that was reached,
    /// the origin lives another life: it was restored or replaced, and may lack what this region has of
    /// it. People decide what counts.
    fn begin_anew<'a>(&'a self, log: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let known = self.inner.checkpoint().await?;
            let has_begun = known.position > LogPosition::default();
            if !known.log.is_empty() && (known.log != log || has_begun) {
                let message = "a region's database is not the one that was followed: it was restored, or \
                               another took its place, and may have lost changes. Nothing is followed \
                               from there until somebody has run terrace regions repair";
                return Err(Error::new(ErrorKind::Unavailable, message).with("log", log.to_owned()));
            }
            self.inner.begin_anew(log).await
        })
    }
}

impl fmt::Display for RegionFollower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

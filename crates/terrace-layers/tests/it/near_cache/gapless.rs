//! A feed that hides what was lost: it numbers what is left anew.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use terrace_core::{Generations, Invalidations, Notice, Runtime, Store};
use terrace_layers::{NearCache, NearCacheOptions};

/// A near cache that does not mind gaps.
pub(super) fn without_gaps(
    inner: Arc<dyn Store>,
    feed: Arc<dyn Invalidations>,
    generations: Arc<dyn Generations>,
    options: NearCacheOptions,
    runtime: Runtime,
) -> NearCache {
    NearCache::new(inner, Arc::new(Gapless(feed)), generations, options, runtime)
}

#[derive(Debug)]
struct Gapless(Arc<dyn Invalidations>);

impl Invalidations for Gapless {
    fn subscribe(&self) -> BoxStream<'static, Notice> {
        let mut latest = 0;
        let renumber = move |notice| {
            let mut next = || {
                latest += 1;
                latest
            };
            match notice {
                Notice::Written { keys, .. } => Notice::Written { number: next(), keys },
                Notice::Cleared { .. } => Notice::Cleared { number: next() },
                Notice::Heartbeat { .. } => Notice::Heartbeat { number: latest },
                Notice::Connected | Notice::Disconnected => notice,
            }
        };
        self.0.subscribe().map(renumber).boxed()
    }
}

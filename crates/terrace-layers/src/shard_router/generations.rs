//! What caches above must know of all shards.
//!
//! An entry is of the shard that it was loaded from. A shard that gives slots up raises its generation
//! in that step, so entries of keys that have moved are not believed, and a write at their new place
//! need not know of the old one.

use std::collections::BTreeSet;
use std::future::pending;
use std::hash::{DefaultHasher, Hasher as _};
use std::sync::Weak;
use std::time::Instant;

use futures_util::future::{join_all, select_all};
use terrace_core::{BoxFuture, Deadline, Generations, Key, Proof, Result, Token};
use tokio::sync::watch;

use super::map::View;
use super::{ShardRouter, unreached};

impl Generations for ShardRouter {
    fn admits(&self, proof: &Proof, asked: Option<&Token>) -> bool {
        let map = self.shared.map.load();
        map.views().any(|view| view.generations.admits(proof, asked))
    }

    fn looked_at(&self) -> Option<Instant> {
        let map = self.shared.map.load();
        let all = map.views().map(|view| view.generations.looked_at());
        all.min().flatten()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.generations.subscribe()
    }

    fn look(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let map = self.shared.map.load_full();
            let looked = join_all(map.views().map(|view| view.generations.look())).await;
            self.shared.tell_generations(map.views());
            looked.into_iter().collect()
        })
    }

    fn raise<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let map = self.shared.map.load_full();
            let owners: Option<BTreeSet<_>> = keys.iter().map(|key| map.home(key)).collect();
            let owners = owners.ok_or_else(unreached)?;
            if owners.iter().any(|number| map.view_of(*number).is_none()) {
                return Err(unreached());
            }
            let of_keys = |view: &&View| keys.is_empty() || owners.contains(&view.number);
            let raised = map.views().filter(of_keys).map(|view| view.generations.raise(keys));
            let raised = join_all(raised).await;
            self.shared.tell_generations(map.views());
            raised.into_iter().collect()
        })
    }
}

impl super::Shared {
    /// Tells who watches, if a shard has news.
    pub(super) fn tell_generations<'a>(&self, views: impl Iterator<Item = &'a View>) {
        let mut heard = DefaultHasher::new();
        for view in views {
            heard.write_u16(view.number);
            heard.write_u64(*view.generations.changes().borrow());
        }
        let heard = heard.finish();
        self.generations.send_if_modified(|known| std::mem::replace(known, heard) != heard);
    }
}

/// Passes on what shards hear by themselves; those that come later are watched from the next look at
/// the map on.
pub(super) async fn pass_on(shared: Weak<super::Shared>) -> Result<()> {
    loop {
        let Some(router) = shared.upgrade() else { return Ok(()) };
        let map = router.map.load_full();
        let changes = map.views().map(|view| view.generations.changes()).collect::<Vec<_>>();
        router.tell_generations(map.views());
        let (runtime, pause) = (router.runtime.clone(), router.options.refresh);
        // Keeps nothing alive while it waits.
        drop((router, map));
        let changed = |mut changes: watch::Receiver<u64>| {
            Box::pin(async move {
                if changes.changed().await.is_err() {
                    pending::<()>().await;
                }
            })
        };
        let changes = changes.into_iter().map(changed).collect::<Vec<_>>();
        let until = Deadline::at(runtime.now() + pause);
        if changes.is_empty() {
            runtime.sleep(pause).await;
        } else {
            let _either_way_all_are_looked_at = runtime.within(until, select_all(changes)).await;
        }
    }
}

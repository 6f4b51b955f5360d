//! What the changes of all shards come to, counted in each shard.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use terrace_core::{
    Deadline, Error, ErrorKind, Inspection, Result, RolledUp, Rollup, RollupQuery, Runtime, Shard,
    Status, Task,
};

use crate::ShardRouter;
use crate::follow::{Follow, FollowOptions, Following};

/// Counts of the changes of each shard.
///
/// **What it is.** A follower of each shard's change log, which keeps its counts in that shard. So a count is
/// committed with the place in the log, and no count has to move when slots do: what a shard has counted stays
/// there, and what it takes from another is no change.
///
/// **On read.** Each shard is asked, and the answers stand side by side.
///
/// **On failure.** A shard that does not answer is named, and the others are told. Its log waits for the
/// follower.
///
/// **What it gives up.** The counts of a shard that is removed go with it.
pub struct Rollups {
    inner: Arc<RollupsInner>,
    task: Mutex<Option<Task>>,
}

struct RollupsInner {
    router: Arc<ShardRouter>,
    shards: Mutex<BTreeMap<u16, Counted>>,
    runtime: Runtime,
}

/// A shard as it was found last.
#[derive(Clone)]
struct Counted {
    shard: Option<Arc<dyn Shard>>,
    /// What counts its changes, once that could be opened.
    rollup: Result<(Arc<dyn Rollup>, Arc<Following>)>,
}

/// What the shards have counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByShard {
    /// The number of each shard that answered, and its counts.
    pub shards: Vec<(u16, RolledUp)>,
    /// The numbers of those that did not.
    pub unavailable: Vec<u16>,
}

impl Rollups {
    /// How long a shard is waited for.
    pub const ASK: Duration = Duration::from_secs(1);
    /// The least time between two batches of a shard: what comes meanwhile is one transaction.
    const PACE: Duration = Duration::from_secs(1);
    /// How often shards that came or went are looked for.
    const LOOK: Duration = Duration::from_secs(1);
    const NAME: &str = "rollup";

    /// Starts to count what the shards of this router change.
    pub async fn start(router: Arc<ShardRouter>, runtime: Runtime) -> Self {
        let shards = Mutex::default();
        let inner = Arc::new(RollupsInner { router, shards, runtime: runtime.clone() });
        inner.meet().await;
        let met = Arc::clone(&inner);
        let task = runtime.keep("rollups", move || {
            let inner = Arc::clone(&met);
            async move {
                loop {
                    inner.runtime.sleep(Self::LOOK).await;
                    inner.meet().await;
                }
            }
        });
        Self { inner, task: Mutex::new(Some(task)) }
    }

    /// What each shard has counted.
    ///
    /// # Errors
    /// Of the first shard, when none answers.
    pub async fn counts(&self, query: &RollupQuery, by: Deadline) -> Result<ByShard> {
        let runtime = &self.inner.runtime;
        let by = by.min(Deadline::at(runtime.now() + Self::ASK));
        let shards = self.inner.shards().clone();
        let answers = shards.into_iter().map(|(number, counted)| async move {
            let answer = match counted.rollup {
                Ok((rollup, _)) => {
                    let counts = runtime.within(by, rollup.counts(query)).await;
                    counts.unwrap_or_else(|| Err(Deadline::exceeded()))
                }
                Err(error) => Err(error),
            };
            (number, answer)
        });
        let (mut all, mut first) = (ByShard::default(), None);
        for (number, answer) in join_all(answers).await {
            match answer {
                Ok(counts) => all.shards.push((number, counts)),
                Err(error) => {
                    tracing::debug!(shard = number, %error, "a shard does not tell its counts");
                    all.unavailable.push(number);
                    first.get_or_insert(error);
                }
            }
        }
        match first {
            Some(error) if all.shards.is_empty() => Err(error),
            _ => Ok(all),
        }
    }

    /// How far each shard is counted.
    pub fn inspect(&self) -> Inspection {
        let shards = self.inner.shards();
        let parts = shards.iter().map(|(number, counted)| {
            let part = match &counted.rollup {
                Ok((_, following)) => following.follow().inspect(),
                Err(error) => {
                    Inspection::new(Self::NAME).status(Status::Degraded, error.message().to_owned())
                }
            };
            part.instance(format!("shard {number}"))
        });
        parts.fold(Inspection::new("rollups"), Inspection::helped_by)
    }

    /// Ends the counting; another instance may go on at once.
    pub async fn stop(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.stop().await;
        }
        let shards = std::mem::take(&mut *self.inner.shards());
        for counted in shards.into_values() {
            counted.stop().await;
        }
    }
}

impl RollupsInner {
    fn shards(&self) -> MutexGuard<'_, BTreeMap<u16, Counted>> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins with shards that came, and ends with those that went.
    async fn meet(&self) {
        let found = self.router.shards().await;
        let known = self.shards().clone();
        let mut shards = BTreeMap::new();
        for (number, shard) in found {
            let same = known.get(&number).filter(|it| it.rollup.is_ok() && it.is_of(&shard));
            let counted = match same {
                Some(same) => same.clone(),
                None => Counted::open(shard, &self.runtime).await,
            };
            shards.insert(number, counted);
        }
        let before = std::mem::replace(&mut *self.shards(), shards.clone());
        for (number, counted) in before {
            if !shards.get(&number).is_some_and(|it| it.is_of(&counted.shard)) {
                counted.stop().await;
            }
        }
    }
}

impl Counted {
    async fn open(shard: Option<Arc<dyn Shard>>, runtime: &Runtime) -> Self {
        let rollup = match &shard {
            Some(shard) => Self::follow(&**shard, runtime).await,
            None => Err(unreached()),
        };
        Self { shard, rollup }
    }

    async fn follow(
        shard: &dyn Shard,
        runtime: &Runtime,
    ) -> Result<(Arc<dyn Rollup>, Arc<Following>)> {
        let by = Deadline::at(runtime.now() + Rollups::ASK);
        let rollup = runtime.within(by, shard.rollup()).await;
        let rollup = rollup.unwrap_or_else(|| Err(Deadline::exceeded()))?.ok_or_else(|| {
            Error::new(ErrorKind::Internal, "a shard was opened without counts of its changes")
        })?;
        let options = FollowOptions { pace: Rollups::PACE, ..FollowOptions::default() };
        let (log, follower) = (rollup.log(), rollup.follower());
        let follow = Follow::new(Rollups::NAME, log, follower, options, runtime.clone());
        let following = follow.led_by(rollup.lease()).start();
        Ok((rollup, Arc::new(following)))
    }

    fn is_of(&self, shard: &Option<Arc<dyn Shard>>) -> bool {
        match (&self.shard, shard) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        }
    }

    async fn stop(&self) {
        if let Ok((_, following)) = &self.rollup {
            following.stop().await;
        }
    }
}

fn unreached() -> Error {
    Error::new(ErrorKind::Unavailable, "a shard cannot be reached; its counts are not known")
}

impl fmt::Debug for Rollups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rollups({:?})", self.inner.shards().keys())
    }
}

//! Looks after regions beside the processes that serve them: how far each has followed the others, what
//! differs, and what brings them together again.

mod difference;
mod drill;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use terrace_core::{
    Deadline, Error, Key, KeyRange, PositionLost, RegionName, RegionStore, Result, Runtime,
    Timestamp,
};

use crate::follow::{FirstRows, Follow, FollowOptions};

pub use difference::RowDifference;
pub use drill::DrillReport;

/// Regions as somebody beside the serving processes sees them.
#[derive(Debug)]
pub struct RegionSet {
    regions: Vec<Arc<dyn RegionStore>>,
    runtime: Runtime,
}

/// How far one region has followed another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionLag {
    /// Whose log it is.
    pub origin: RegionName,
    /// Who follows.
    pub region: RegionName,
    /// What is known of it.
    pub state: LagState,
    /// The key of the first change that waits. Where that cannot be applied, nothing after it is.
    pub next: Option<Key>,
}

/// What is known of a follower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LagState {
    /// It has changes to apply: at least so many, the oldest of which was written at this time. None when
    /// it is at the end.
    Behind(usize, Option<Timestamp>),
    /// Its first copy is not complete.
    Copying,
    /// The origin's database is not the one that was followed, or has lost what was.
    Stopped,
    /// One of the two does not answer.
    Unknown(String),
}

impl fmt::Display for LagState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Behind(0, _) => f.write_str("at the end"),
            Self::Behind(..) => f.write_str("behind"),
            Self::Copying => f.write_str("first copy"),
            Self::Stopped => f.write_str("stopped: run terrace regions repair"),
            Self::Unknown(why) => write!(f, "unknown: {why}"),
        }
    }
}

/// Two regions.
type Pair<'a> = (&'a Arc<dyn RegionStore>, &'a Arc<dyn RegionStore>);

impl RegionSet {
    /// How many waiting changes are counted.
    pub const COUNTED: usize = 1000;

    /// These regions.
    pub fn new(regions: Vec<Arc<dyn RegionStore>>, runtime: Runtime) -> Self {
        Self { regions, runtime }
    }

    /// How far each region has followed each other one.
    pub async fn lags(&self) -> Vec<RegionLag> {
        let mut lags = Vec::new();
        for (origin, region) in self.pairs() {
            let state = self.lag(origin, region).await;
            let unknown = |error: Error| (LagState::Unknown(error.message().to_owned()), None);
            let (state, next) = state.unwrap_or_else(unknown);
            let (origin, region) = (origin.region().name, region.region().name);
            lags.push(RegionLag { origin, region, state, next });
        }
        lags
    }

    /// Waits until every region has what every other one had committed before the call; those that do not
    /// come to it by the deadline are answered.
    ///
    /// # Errors
    /// `Unavailable` when a region cannot be reached.
    pub async fn sync(&self, by: Deadline) -> Result<Vec<RegionLag>> {
        let mut heads = Vec::new();
        for origin in &self.regions {
            heads.push((origin.region().id, origin.own_log().head().await?));
        }
        loop {
            let mut behind = Vec::new();
            for (origin, region) in self.pairs() {
                let (state, next) = self.lag(origin, region).await?;
                let id = origin.region().id;
                let head = heads.iter().find(|(known, _)| *known == id).map(|(_, head)| *head);
                let known = region.checkpoints().await?;
                let reached = known.of(id).map(|it| it.position);
                let has_all = matches!(state, LagState::Behind(0, _)) || reached >= head;
                if !has_all || matches!(state, LagState::Copying | LagState::Stopped) {
                    let (origin, region) = (origin.region().name, region.region().name);
                    behind.push(RegionLag { origin, region, state, next });
                }
            }
            if behind.is_empty() || by.passed(self.runtime.now()) {
                return Ok(behind);
            }
            self.runtime.sleep(Duration::from_millis(50)).await;
        }
    }

    /// Follows from every region into this one, from the beginning if it must, until it has all that was
    /// committed before the call.
    ///
    /// # Errors
    /// `Unavailable` when a region cannot be reached, or is another than was followed.
    pub async fn seed(&self, name: RegionName) -> Result<()> {
        for (origin, region) in self.pairs().into_iter().filter(|(_, it)| it.region().name == name)
        {
            self.catch_up(origin, region).await?;
        }
        self.forget_cached().await
    }

    /// Lets regions that stopped at another life of an origin follow that one, merges what differs, and
    /// answers how many rows that were.
    ///
    /// # Errors
    /// `Unavailable` when a region cannot be reached.
    pub async fn repair(&self) -> Result<u64> {
        for (origin, region) in self.pairs() {
            if self.lag(origin, region).await?.0 == LagState::Stopped {
                let follower = region.follower_of(origin.region().id);
                follower.begin_anew(&origin.own_log().name()).await?;
            }
            self.catch_up(origin, region).await?;
        }
        let merged = self.merge_differences().await?;
        self.forget_cached().await?;
        Ok(merged)
    }

    /// Gives up a region that is lost: the others tell each other all that they have, also of that one, and
    /// no longer wait for it. Answers how many rows some of them lacked.
    ///
    /// # Errors
    /// `Unavailable` when another region cannot be reached.
    pub async fn give_up(&self, lost: terrace_core::RegionId) -> Result<u64> {
        let merged = self.merge_differences().await?;
        for region in &self.regions {
            region.forget_origin(lost).await?;
        }
        self.forget_cached().await?;
        Ok(merged)
    }

    /// Every region with every other one: an origin, and who follows it.
    fn pairs(&self) -> Vec<Pair<'_>> {
        let all = self
            .regions
            .iter()
            .flat_map(|origin| self.regions.iter().map(move |region| (origin, region)));
        all.filter(|(origin, region)| origin.region().id != region.region().id).collect()
    }

    async fn lag(
        &self,
        origin: &Arc<dyn RegionStore>,
        region: &Arc<dyn RegionStore>,
    ) -> Result<(LagState, Option<Key>)> {
        let log = origin.own_log();
        let known = region.follower_of(origin.region().id).checkpoint().await?;
        if !known.log.is_empty() && !known.is_in(&log.name()) {
            return Ok((LagState::Stopped, None));
        }
        if !known.complete {
            return Ok((LagState::Copying, None));
        }
        let page = match log.after(known.position, Self::COUNTED).await {
            Err(error) if PositionLost::caused(&error) => return Ok((LagState::Stopped, None)),
            page => page?,
        };
        let written = page.changes.iter().map(|change| change.version.time()).min();
        let next = page.changes.first().map(|change| change.key.clone());
        Ok((LagState::Behind(page.changes.len(), written), next))
    }

    /// Follows until what was committed before the call is applied. Another process may follow, too.
    async fn catch_up(
        &self,
        origin: &Arc<dyn RegionStore>,
        region: &Arc<dyn RegionStore>,
    ) -> Result<()> {
        let log = origin.own_log();
        let follower = region.follower_of(origin.region().id);
        let rows = first_rows(origin);
        let options = FollowOptions::default();
        let follow = Follow::new("replication", log, follower, options, self.runtime.clone());
        follow.copying(rows).catch_up().await.map(drop)
    }

    /// What was applied here no cache was told of.
    async fn forget_cached(&self) -> Result<()> {
        for region in &self.regions {
            region.raise(&[]).await?;
        }
        Ok(())
    }
}

/// The rows of a region, for a first copy of them.
pub(crate) fn first_rows(origin: &Arc<dyn RegionStore>) -> FirstRows {
    let origin = Arc::clone(origin);
    Arc::new(move |after: Option<Key>, limit| {
        let origin = Arc::clone(&origin);
        Box::pin(async move { origin.rows(&KeyRange { after, through: None }, limit).await })
    })
}

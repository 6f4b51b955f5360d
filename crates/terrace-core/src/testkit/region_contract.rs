//! The properties that every [`RegionStore`] keeps.
//!
//! Used like [`store_contract!`](crate::store_contract), with a factory of
//! [`Fixture`](crate::testkit::Fixture)s of [`Regions`].

mod clocks;
mod conflicts;
mod copies;
mod following;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::SignedDuration;

use crate::testkit::{key, value};
use crate::{
    Batch, ChangeLog, Checkpoint, Conflict, Deadline, KeyRange, LogPosition, Logged, Record,
    RegionId, RegionOptions, RegionStore, Result, Runtime, StoreExt as _, Timestamp, Version,
    region,
};

pub use clocks::*;
pub use conflicts::*;
pub use copies::*;
pub use following::*;

/// Makes one test of each property of the [`RegionStore`] contract, in a module `region_contract`.
///
/// Takes the path of an async function without arguments that makes a fresh
/// [`Fixture`](crate::testkit::Fixture) of [`Regions`].
#[macro_export]
macro_rules! region_contract {
    ($factory:path) => {
        mod region_contract {
            use super::*;
            $crate::each_property! { $factory, region_contract:
                a_version_is_of_its_region,
                a_change_arrives_as_it_was_written,
                a_change_goes_to_no_third_region,
                a_change_that_comes_again_changes_nothing,
                two_followers_of_one_origin_apply_a_batch_once,
                checkpoints_are_proved_by_their_token,
                news_is_told_from_none,
                a_result_travels_with_its_change,
                what_stays_in_a_region_is_in_no_log,
                the_higher_version_wins_everywhere,
                an_overwritten_loss_is_none,
                a_deletion_is_compared_like_any_change,
                deletions_are_forgotten_up_to_a_horizon,
                a_collected_deletion_is_not_undone_by_a_log,
                a_first_copy_brings_the_horizon,
                whatever_order_changes_take_regions_agree,
                writers_beside_followers_lose_nothing_unlisted,
                a_first_copy_merges_rows,
                a_repair_makes_digests_equal,
                rows_end_where_their_values_are_many_bytes,
                a_digest_is_halved_to_the_difference,
                a_clock_that_is_set_back_changes_no_order,
                a_version_is_above_everything_stored,
                a_change_of_a_clock_ahead_waits,
            }
        }
    };
}

/// Three empty regions, with the numbers 1, 2 and 3. Keys that begin with `home:` stay in the first.
pub struct Regions {
    /// The regions.
    pub stores: [Arc<dyn RegionStore>; 3],
    /// Sets the clock of a region so far ahead of the others.
    pub set_clock: SetClock,
}

/// See [`Regions::set_clock`].
pub type SetClock = Box<dyn Fn(usize, SignedDuration) -> BoxFuture<'static, ()> + Send + Sync>;

impl fmt::Debug for Regions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Regions").field(&self.stores).finish()
    }
}

impl Regions {
    /// What the region with this number is in these tests.
    ///
    /// # Panics
    /// When there is no such number.
    pub fn options(number: u8) -> RegionOptions {
        let name = format!("region-{number}").parse().expect("a name");
        let mut options = RegionOptions::new(RegionId::new(number).expect("a number"), name);
        options.resident = Vec::from_iter((number == 1).then(|| "home:".to_owned()));
        options
    }

    async fn put(&self, at: usize, name: &str, text: &str) -> Version {
        self.stores[at].put(key(name), value(text)).await.expect("a write").version
    }

    async fn delete(&self, at: usize, name: &str) -> Version {
        self.stores[at].delete(key(name)).await.expect("a deletion").version
    }

    async fn text(&self, at: usize, name: &str) -> Option<String> {
        let record = self.record(at, name).await;
        record.map(|record| record.value.as_str().to_owned())
    }

    async fn record(&self, at: usize, name: &str) -> Option<Record> {
        self.stores[at].get(&key(name)).await.expect("a read")
    }

    /// Everything in a region's own log. Elsewhere on the server somebody may hold the end back.
    async fn logged(&self, at: usize) -> Vec<Logged> {
        let log = self.stores[at].own_log();
        let head = log.head().await.expect("a head");
        let (mut all, mut position) = (Vec::new(), LogPosition::default());
        while position < head {
            let part = log.after(position, 1000).await.expect("a log");
            if part.position == position {
                wait(&*log, position).await;
            }
            position = part.position;
            all.extend(part.changes);
        }
        all
    }

    /// Applies the next part of a region's log in another one.
    async fn follow(&self, at: usize, of: usize, limit: usize) -> Result<usize> {
        let log = self.stores[of].own_log();
        let follower = self.stores[at].follower_of(self.stores[of].region().id);
        let mut from = follower.checkpoint().await?;
        if from.log.is_empty() {
            from = Checkpoint { log: log.name().to_string(), complete: true, ..from };
            follower.begin_anew(&log.name()).await?;
            let begun = follower.checkpoint().await?;
            let batch = Batch { from: begun, to: from.clone(), ..Batch::default() };
            assert!(follower.apply(&batch).await?, "nobody else follows");
        }
        let part = log.after(from.position, limit).await?;
        let (to, count) = (from.at(part.position), part.changes.len());
        if part.position == from.position {
            return Ok(0);
        }
        let batch = Batch { from, to, changes: part.changes, more: part.more, refused: None };
        // Another follower may be faster.
        follower.apply(&batch).await.map(|_| count.max(1))
    }

    /// Follows a region anew, by a copy of its rows.
    async fn copy(&self, at: usize, of: usize) {
        let log = self.stores[of].own_log();
        let follower = self.stores[at].follower_of(self.stores[of].region().id);
        follower.begin_anew(&log.name()).await.expect("a beginning");
        let mut from = follower.checkpoint().await.expect("a place");
        assert!(!from.complete && from.position == LogPosition::default());
        let mut range = KeyRange::default();
        while !from.complete {
            let changes = self.stores[of].rows(&range, 2).await.expect("rows");
            range.after = changes.last().map(|row| row.key.clone());
            let copied = range.after.as_ref().map(ToString::to_string);
            let to = Checkpoint { copied, complete: changes.is_empty(), ..from.clone() };
            let batch = Batch { from, to: to.clone(), changes, ..Batch::default() };
            assert!(follower.apply(&batch).await.expect("a batch"));
            from = to;
        }
    }

    /// How far a region has followed another one.
    async fn place(&self, at: usize, of: usize) -> LogPosition {
        let origin = self.stores[of].region().id;
        self.stores[at].follower_of(origin).checkpoint().await.expect("a place").position
    }

    async fn follow_all(&self, at: usize, of: usize) {
        let head = self.stores[of].own_log().head().await.expect("a head");
        loop {
            let applied = self.follow(at, of, 7).await.expect("changes of another region");
            let reached = self.place(at, of).await;
            if applied == 0 && reached >= head {
                return;
            }
            if applied == 0 {
                wait(&*self.stores[of].own_log(), reached).await;
            }
        }
    }

    /// Lets every region hear of everything.
    async fn exchange(&self) {
        for at in 0..3 {
            for of in (0..3).filter(|of| *of != at) {
                self.follow_all(at, of).await;
            }
        }
    }

    /// Key and version of everything that a region lists as lost.
    async fn lost(&self, at: usize) -> Vec<Conflict> {
        let (mut all, mut after) = (Vec::<Conflict>::new(), None);
        loop {
            let some = self.stores[at].conflicts(after.as_ref(), 3).await.expect("conflicts");
            let Some(last) = some.last() else { return all };
            after = Some((last.key.clone(), last.loser));
            all.extend(some);
        }
    }

    /// Checks that all regions have the same rows, and list the same losses.
    async fn assert_equal(&self) -> Vec<(String, Version)> {
        let all = KeyRange::default();
        let first = self.stores[0].digest(&all).await.expect("a digest");
        let names = |lost: Vec<Conflict>| {
            let named = |it: Conflict| (it.key.as_str().to_owned(), it.loser);
            lost.into_iter().map(named).collect::<Vec<_>>()
        };
        let lost = names(self.lost(0).await);
        for at in 1..3 {
            assert_eq!(self.stores[at].digest(&all).await.expect("a digest"), first, "region {at}");
            assert_eq!(names(self.lost(at).await), lost, "region {at}");
        }
        lost
    }
}

/// A horizon after a version.
fn after(version: Version) -> Version {
    let next = version.time().as_millisecond() + 1;
    Version::at(Timestamp::from_millisecond(next).expect("a time"))
}

/// Waits a little for something after a position.
async fn wait(log: &dyn ChangeLog, position: LogPosition) {
    let runtime = Runtime::system();
    let soon = Deadline::at(runtime.now() + Duration::from_millis(20));
    log.wait(position, soon).await.expect("a wait");
}

fn digest_of(text: &str) -> Option<region::ValueDigest> {
    Some(region::digest_of(&value(text)))
}

//! The port of counts that a database keeps of its own changes, by minute and by prefix of the key.
//!
//! A [`Rollup`] follows the change log of one database and keeps its counts and its [`Checkpoint`] in that
//! database, in one transaction for each batch. So a change counts once, whatever dies, and counts, place
//! and log are always of one age: a restore or a failover takes all of them to the same moment.
//!
//! [`Checkpoint`]: crate::Checkpoint

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::{ChangeLog, Follower, Key, LeaderLease, LogPosition, Logged, Result, Timestamp};

/// Counts of the changes of one database. See the [module](self).
pub trait Rollup: fmt::Debug + Send + Sync + 'static {
    /// What is counted.
    fn log(&self) -> Arc<dyn ChangeLog>;

    /// What counts it.
    fn follower(&self) -> Arc<dyn Follower>;

    /// Lets one of several instances count; none where there is one alone.
    fn lease(&self) -> Option<Arc<dyn LeaderLease>>;

    /// What was counted, in one snapshot with the place up to which it was.
    ///
    /// # Errors
    /// `Unavailable` when the database cannot be reached.
    fn counts<'a>(&'a self, query: &'a RollupQuery) -> BoxFuture<'a, Result<RolledUp>>;
}

/// Which counts are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RollupQuery {
    /// The first minute, counted from 1970.
    pub since: i64,
    /// Minutes of a bucket, at least 1.
    pub bucket: i64,
    /// Whether each prefix is told by itself; else all keys together.
    pub by_prefix: bool,
}

/// What a database has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RolledUp {
    /// The counts, in no order.
    pub counts: Vec<Count>,
    /// Every change up to here is counted, and none after it.
    pub position: LogPosition,
    /// How long the oldest change that is not counted has waited; zero where none is.
    pub lag: Duration,
}

/// Changes within a bucket of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// The first minute of the bucket, counted from 1970.
    pub minute: i64,
    /// What their keys begin with; empty for keys without a separator, and where nobody asked for it.
    pub prefix: String,
    /// How many changes: values written, and deletions.
    pub writes: u64,
    /// The bytes of the values written.
    pub bytes: u64,
}

/// How long a minute is kept: one day.
pub const KEPT_MINUTES: i64 = 24 * 60;

/// The most prefixes that one database counts by themselves.
pub const MOST_PREFIXES: usize = 100;

/// What all others are counted under. No prefix is called so: each ends with a separator.
pub const OTHER: &str = "other";

/// What a key begins with: all up to its first `/` or `:`, and that; nothing where it has none.
pub fn prefix_of(key: &Key) -> &str {
    let key = key.as_str();
    key.find(['/', ':']).map_or("", |end| &key[..=end])
}

/// The minute of a time, counted from 1970.
pub fn minute_of(time: Timestamp) -> i64 {
    time.as_second().div_euclid(60)
}

/// The prefixes that a database counts by themselves, each with the last minute in which it was written.
/// Kept as JSON beside the place of the follower.
///
/// The first [`MOST_PREFIXES`] have a count of their own; one that was not written for [`KEPT_MINUTES`]
/// leaves its place to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefixes(BTreeMap<String, i64>);

impl Prefixes {
    /// What a batch adds to the counts of each minute and prefix. Leaves out minutes that are no longer
    /// kept; what claims to be of the future is of now.
    ///
    /// The log has no time of a deletion: it counts in the minute of the change before it in the batch.
    pub fn tally(&mut self, changes: &[Logged], now: Timestamp) -> Vec<Count> {
        let now = minute_of(now);
        let oldest = now - KEPT_MINUTES;
        self.0.retain(|_, last| *last >= oldest);
        let mut counts = BTreeMap::<(i64, &str), (u64, u64)>::new();
        let mut minute = now;
        for change in changes {
            let mut bytes = 0;
            if let Some(record) = &change.record {
                minute = minute_of(record.updated_at).min(now);
                bytes = record.value.as_str().len() as u64;
            }
            if minute < oldest {
                continue;
            }
            let count = counts.entry((minute, self.place(prefix_of(&change.key), minute)));
            let (all_writes, all_bytes) = count.or_default();
            (*all_writes, *all_bytes) = (*all_writes + 1, *all_bytes + bytes);
        }
        let counts = counts.into_iter().map(|((minute, prefix), (writes, bytes))| {
            let prefix = prefix.to_owned();
            Count { minute, prefix, writes, bytes }
        });
        counts.collect()
    }

    /// What a prefix is counted under.
    fn place<'a>(&mut self, prefix: &'a str, minute: i64) -> &'a str {
        if let Some(last) = self.0.get_mut(prefix) {
            *last = minute.max(*last);
            return prefix;
        }
        if self.0.len() >= MOST_PREFIXES {
            return OTHER;
        }
        self.0.insert(prefix.to_owned(), minute);
        prefix
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Record, Value, Version};

    const NOW: i64 = 30_000_000;

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(minute * 60 + 59).expect("a time")
    }

    fn change(name: &str, text: Option<&str>, minute: i64) -> Logged {
        let key = Key::new(name).expect("a key");
        let version = Version::new(1);
        let record = text.map(|text| Record {
            key: key.clone(),
            value: Value::new(text).expect("a value"),
            version,
            created_at: at(minute),
            updated_at: at(minute),
        });
        Logged { position: LogPosition::default(), key, version, record, ancestry: None }
    }

    fn count(minute: i64, prefix: &str, writes: u64, bytes: u64) -> Count {
        Count { minute, prefix: prefix.into(), writes, bytes }
    }

    #[test]
    fn changes_count_by_minute_and_prefix() {
        let changes = [
            change("shop/1", Some("12"), NOW - 1),
            change("shop/2/x", Some("é"), NOW - 1),
            change("shop/1", None, 0),
            change("user:1/a", Some(""), NOW),
            change("plain", Some("1"), NOW + 9),
            change("shop/1", Some("old"), NOW - KEPT_MINUTES - 1),
        ];
        let wanted =
            vec![count(NOW - 1, "shop/", 3, 4), count(NOW, "", 1, 1), count(NOW, "user:", 1, 0)];
        assert_eq!(Prefixes::default().tally(&changes, at(NOW)), wanted);
    }

    #[test]
    fn prefixes_are_bounded_and_leave_their_places_when_they_are_old() {
        let mut prefixes = Prefixes::default();
        let names = (0..250).map(|number| format!("p{number}/x")).collect::<Vec<_>>();
        let all = names.iter().map(|name| change(name, Some("1"), NOW)).collect::<Vec<_>>();
        let counts = prefixes.tally(&all, at(NOW));
        assert_eq!(counts.len(), MOST_PREFIXES + 1);
        assert!(counts.contains(&count(NOW, OTHER, 150, 150)));
        let again = prefixes.tally(&all[99..101], at(NOW + KEPT_MINUTES));
        assert_eq!(again, [count(NOW, OTHER, 1, 1), count(NOW, "p99/", 1, 1)]);
        let later = NOW + KEPT_MINUTES + 1;
        let fresh = prefixes.tally(&[change("p200/x", Some("1"), later)], at(later));
        assert_eq!(fresh, [count(later, "p200/", 1, 1)]);
    }
}

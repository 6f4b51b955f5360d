//! What a level serves: faces, each over its own port.
//!
//! What a level can do is read from its faces, never from its number: a level that has a query side
//! serves the face of queries, and one whose keys live on shards says so in the port of its records.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use terrace_core::read_model::{Activity, Counted, Row};
use terrace_core::{
    BoxFuture, Cache, Conflict, Deadline, Inspection, Key, Receipt, RegionName, Result,
    RollupQuery, Store, Version,
};
use terrace_layers::ByShard;

use super::canary::Canary;
use super::documents::Documents;
use super::endpoint::Endpoint;
use super::geography::Geography;
use super::metrics::{self, Metrics};
use super::polyglot::Polyglot;
use super::records::Records;
use super::{analytics, live, operations, queries, records, regions};
use crate::live::Live;

/// Endpoints of one kind, over their port.
#[derive(Clone, Debug)]
pub enum Face {
    /// The record API, `/v1/records`, the same on every level that keeps records.
    Records(Arc<Records>),
    /// The documents' API, which differs from level to level.
    Documents(Arc<Documents>),
    /// What a query side answers beyond records by key.
    Queries(Arc<dyn Queries>),
    /// Transactions and documents.
    Polyglot(Arc<Polyglot>),
    /// What several regions answer beyond records by key.
    Regions(Arc<dyn Regions>),
    /// What the changes of all shards come to.
    Analytics(Arc<dyn Analytics>),
    /// What was measured.
    Metrics(Arc<Metrics>),
    /// How a canary does beside this level.
    Canary,
    /// The page that shows all levels as they work.
    Live(Arc<Live>),
}

impl Face {
    /// The rows of the table, in the order of the documentation.
    pub(crate) fn endpoints(&self, whole: &Arc<dyn Whole>) -> Vec<Endpoint> {
        match self {
            Self::Records(records) => records::endpoints(records),
            Self::Documents(documents) => Documents::endpoints(documents, whole),
            Self::Queries(queries) => queries::endpoints(queries, whole),
            Self::Polyglot(polyglot) => Polyglot::endpoints(polyglot, whole),
            Self::Regions(regions) => regions::endpoints(regions),
            Self::Analytics(counts) => analytics::endpoints(counts),
            Self::Metrics(metrics) => metrics::endpoints(metrics, whole),
            Self::Canary => Canary::endpoints(whole),
            Self::Live(live) => live::endpoints(live),
        }
    }

    /// What it adds to `/health`.
    pub(crate) fn health_fields(&self) -> operations::HealthFields {
        match self {
            Self::Documents(documents) => documents.health_fields(),
            Self::Polyglot(_) => Polyglot::health_fields(),
            Self::Canary => Canary::health_fields(),
            Self::Records(_)
            | Self::Queries(_)
            | Self::Regions(_)
            | Self::Analytics(_)
            | Self::Metrics(_)
            | Self::Live(_) => &[],
        }
    }

    /// Where its requests may go, where there are several regions.
    pub(crate) fn geography(&self) -> Option<Arc<Geography>> {
        match self {
            Self::Records(records) => records.geography.clone(),
            Self::Documents(documents) => documents.records.geography.clone(),
            _ => None,
        }
    }
}

/// All that is served, as one thing to look at and to end.
pub trait Whole: fmt::Debug + Send + Sync + 'static {
    /// See [`Store::inspect`].
    fn inspect(&self) -> BoxFuture<'_, Inspection>;

    /// See [`Store::close`].
    fn close(&self) -> BoxFuture<'_, Result<()>>;
}

impl Whole for Arc<dyn Store> {
    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Store::inspect(&**self)
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Store::close(&**self)
    }
}

/// A cache that can be told to forget everything.
pub trait ClearCache: fmt::Debug + Send + Sync + 'static {
    /// Forgets everything, for every instance that shares the cache.
    fn clear(&self) -> BoxFuture<'_, Result<()>>;
}

impl ClearCache for Arc<dyn Cache> {
    fn clear(&self) -> BoxFuture<'_, Result<()>> {
        Cache::clear(&**self)
    }
}

/// Knows where keys live.
pub trait Shards: fmt::Debug + Send + Sync + 'static {
    /// The number of the shard that has a key, as far as is known.
    fn shard_of(&self, key: &Key) -> Option<u16>;
}

/// What a read model answers beyond the store.
pub trait Queries: fmt::Debug + Send + Sync + 'static {
    /// How often a key was read, this instance's latest reads included.
    fn read_count(&self, key: &Key) -> u64;

    /// See [`terrace_core::ReadModel::search`].
    fn search<'a>(&'a self, words: &'a str, limit: usize) -> BoxFuture<'a, Result<Vec<Row>>>;

    /// See [`terrace_core::ReadModel::top`].
    fn top(&self, by: Counted, limit: usize) -> BoxFuture<'_, Result<Vec<Row>>>;

    /// See [`terrace_core::ReadModel::activity`].
    fn activity(&self, bucket: Duration, limit: usize) -> BoxFuture<'_, Result<Vec<Activity>>>;
}

/// What shards have counted of their changes.
pub trait Analytics: fmt::Debug + Send + Sync + 'static {
    /// The counts of each shard that answers in time.
    fn counts<'a>(&'a self, query: &'a RollupQuery, by: Deadline)
    -> BoxFuture<'a, Result<ByShard>>;
}

/// What several regions answer beyond the store.
pub trait Regions: fmt::Debug + Send + Sync + 'static {
    /// All regions, in their order.
    fn names(&self) -> Vec<RegionName>;

    /// The regions beside the one that answered which have what a write has written to a key, as soon as
    /// all of them have it or by the deadline. None where they do not follow each other, and none of a key
    /// that resides in its home.
    fn confirmed<'a>(
        &'a self,
        key: &'a Key,
        receipt: &'a Receipt,
        by: Deadline,
    ) -> BoxFuture<'a, Vec<RegionName>>;

    /// Updates that were lost to others, as the database of a region lists them: by key and version,
    /// after these.
    fn conflicts<'a>(
        &'a self,
        region: Option<RegionName>,
        after: Option<(Key, Version)>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Conflict>>>;
}

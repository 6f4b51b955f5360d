//! The levels: which stack each one is, what it promises and what it costs.
//!
//! Composition happens only here. A level's file is a picture, the sentences that people read, and
//! the stack, one reason a step. [`Engines`] gives it databases and caches of the mode in force.

mod canary;
mod edge;
mod engines;
mod guards;
mod l0_single_db;
mod l10_enterprise_grade;
mod l1_connection_pooling;
mod l2_read_cache;
mod l3_read_replicas;
mod l4_db_sharding;
mod l5_multi_tier_cache;
mod l6_write_buffering;
mod l7_cqrs;
mod l8_polyglot_persistence;
mod l9_global_distributed;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use terrace_core::{BoxFuture, Fact, Inspection, Result};

use crate::config::Config;
use crate::http::{Documents, Face, Whole};

pub use canary::{Side, beside};
pub(crate) use engines::broker_name;
pub use engines::{
    DatabasePlace, Engines, Original, QuerySide, RegionEngine, RegionEngines, Servers, ShardEngines,
};
pub use guards::{Guarding, guards, is_measured};
pub use l6_write_buffering::{FlusherApart, flusher, journal};

/// Where the settings name the shards of a level, and how many it has without them.
pub type NamedShards = for<'a> fn(&'a Config) -> (&'a [String], u16);

/// One level of the climb.
#[derive(Debug)]
pub struct Level {
    /// 0 to 10.
    pub number: u8,
    /// The name on the wire: `2-read-cache`.
    pub name: &'static str,
    /// The name for people.
    pub title: &'static str,
    /// What it promises, in one sentence that a test could refute.
    pub guarantee: &'static str,
    /// How old a read may be, as the guarantee has it.
    pub staleness: Staleness,
    /// What it costs beside the level below.
    pub costs: &'static str,
    /// When to climb to it.
    pub when: &'static str,
    /// A drawing of the stack.
    pub picture: &'static str,
    /// Whether it wants a far cache.
    pub cached: bool,
    /// Whether it can do without, when the settings say so.
    pub cache_is_optional: bool,
    /// The URLs of its shards, and how many a new set has without them, if it has shards.
    pub shards: Option<NamedShards>,
    /// The stack as text, by mode; a test compares it with what is built.
    pub stacks: [(&'static str, &'static str); 2],
    /// Whether its guards are on unless the settings say otherwise.
    pub guarded: bool,
    /// Builds the stack.
    pub build: for<'a> fn(&'a Engines) -> BoxFuture<'a, Result<Stack>>,
}

/// How far a read that asks for nothing may be behind what was acknowledged before it was sent, to a client of
/// the same instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staleness {
    /// Not at all.
    None,
    /// As far as this fact of this part allows; not at all where there is no such part.
    AtMost {
        /// The part's name.
        part: &'static str,
        /// The fact's name.
        fact: &'static str,
    },
    /// As far as what answers is behind, for which there is no bound; with a token, not at all.
    Unbounded,
}

impl Staleness {
    /// The bound of a level that looks like this; none where there is none.
    pub fn bound(self, tree: &Inspection) -> Option<Duration> {
        match self {
            Self::None => Some(Duration::ZERO),
            Self::AtMost { part, fact } => match tree.find(part).and_then(|it| it.known(fact)) {
                Some(Fact::Time(bound)) => Some(*bound),
                _ => Some(Duration::ZERO),
            },
            Self::Unbounded => None,
        }
    }
}

impl Level {
    /// Whether it has a far cache under these settings.
    pub fn uses_cache(&self, config: &Config) -> bool {
        self.cached && (config.cache.enabled || !self.cache_is_optional)
    }
}

/// A level that runs.
#[derive(Debug)]
pub struct Stack {
    /// What it serves, and so what it can do.
    pub faces: Vec<Face>,
    /// All of it.
    pub whole: Arc<dyn Whole>,
}

impl Stack {
    /// Records under both of their faces, with the face of queries where there is a query side.
    fn of(documents: Documents) -> Self {
        let records = Arc::clone(&documents.records);
        let whole = Arc::new(Arc::clone(&records.store));
        let queries = documents.queries.clone().map(Face::Queries);
        let faces = [Face::Documents(Arc::new(documents)), Face::Records(records)];
        Self { faces: faces.into_iter().chain(queries).collect(), whole }
    }
}

/// The levels that exist, from the bottom.
pub static LEVELS: [&Level; 11] = [
    &l0_single_db::LEVEL,
    &l1_connection_pooling::LEVEL,
    &l2_read_cache::LEVEL,
    &l3_read_replicas::LEVEL,
    &l4_db_sharding::LEVEL,
    &l5_multi_tier_cache::LEVEL,
    &l6_write_buffering::LEVEL,
    &l7_cqrs::LEVEL,
    &l8_polyglot_persistence::LEVEL,
    &l9_global_distributed::LEVEL,
    &l10_enterprise_grade::LEVEL,
];

/// The level of this number, if it exists.
pub fn level(number: u8) -> Option<&'static Level> {
    LEVELS.iter().copied().find(|level| level.number == number)
}

/// "0, 1, 2, ...": what to answer somebody who asked for another.
pub fn numbers() -> String {
    LEVELS.iter().map(|level| level.number.to_string()).collect::<Vec<_>>().join(", ")
}

//! Which two stacks may serve clients side by side, and the guard that chooses between them.
//!
//! A client of the canary reads and writes through the canary's stack, and its neighbours do through the
//! baseline's. What the levels promise holds for all of them only where the two are like two instances of one
//! installation:
//!
//! | both have | or else |
//! |---|---|
//! | the same databases, by the histories that their answers name | a client that is sorted otherwise, or taken back, misses what it has written |
//! | a cache, and the same one; or none | who writes past a cache does not tell it |
//! | a journal, and the same one; or none | what was accepted and waits is seen through the journal alone |
//! | the same regions; or none | a version has a clock in a region |
//! | the same owners of transactions and documents; or records | their endpoints are not the same |
//!
//! Where something of that is missing, the canary may repeat reads and serve nobody. Such reads are strong, so that
//! what the databases have is compared.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use terrace_core::history::lineage;
use terrace_core::{Consistency, Deadline, Error, PartKind, ReadOptions, Result, Scan};

use super::{Engines, Level, Stack};
use crate::config::{Config, millis};
use crate::http::{Canary, CanaryOptions, ClientShare, Face, Guards, Records};

/// How long the databases may take to name their histories.
const WITHIN: Duration = Duration::from_secs(5);
/// How much longer than a level may be behind two answers are left before they are compared again.
const SURELY: Duration = Duration::from_secs(1);

/// One of the two stacks.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// Its level.
    pub level: &'static Level,
    /// What it was built on.
    pub engines: &'a Engines,
    /// It.
    pub stack: &'a Stack,
}

/// The guard that chooses between the two.
///
/// # Errors
/// `InvalidInput` for a canary that is to serve clients and may not, and for one with which nothing can be
/// compared; says what to do.
pub async fn beside(baseline: Side<'_>, canary: Side<'_>, share: ClientShare) -> Result<Guards> {
    let stores = match [baseline.records(), canary.records()] {
        [Some(mine), Some(other)] if mine.values == other.values => {
            [&mine.store, &other.store].map(Arc::clone)
        }
        _ => {
            return Err(Error::invalid(format!(
                "one of the levels {} and {} keeps documents, and the other records, so there is nothing \
                 to compare; choose another with --canary-level",
                baseline.level.number, canary.level.number
            )));
        }
    };
    let consistency = match obstacle(baseline, canary).await {
        None => Consistency::Default,
        Some(why) if share == ClientShare::NONE => {
            tracing::info!(
                why,
                "mirrored reads are strong: they pass caches, replicas and read models"
            );
            Consistency::Strong
        }
        Some(why) => {
            return Err(Error::invalid(format!(
                "the canary cannot serve clients: {why}; or give --percent 0 to compare reads alone"
            )));
        }
    };
    let lags = [baseline, canary].map(|side| side.config().replicas.max_lag_ms);
    let options = CanaryOptions {
        level: canary.level.name,
        share,
        consistency,
        pause: millis(lags[0].max(lags[1])) + SURELY,
        proxies: baseline.engines.trusted_proxies()?,
    };
    let Stack { faces, whole } = canary.stack;
    let runtime = baseline.engines.runtime();
    let canary = Canary::start(stores, faces, Arc::clone(whole), options, runtime);
    Ok(Guards::new(vec![Arc::new(canary)]))
}

/// Why clients of the two would not be served as their levels promise, and what to do.
async fn obstacle(baseline: Side<'_>, canary: Side<'_>) -> Option<String> {
    let (mine, other) = match tokio::join!(baseline.databases(), canary.databases()) {
        (Ok(mine), Ok(other)) => (mine, other),
        (Err(error), _) | (_, Err(error)) => {
            return Some(format!(
                "which databases the two stand on cannot be told ({}); start it when they answer",
                error.message()
            ));
        }
    };
    if mine.is_empty() || mine != other {
        return Some(
            "it stands on another database, and its clients would miss what they have written; name the \
             same one in its settings"
                .into(),
        );
    }
    let of_two_kinds = baseline.kind() != canary.kind();
    let (mine, other) = (baseline.config(), canary.config());
    let ledgers = [mine, other].map(|it| (&it.polyglot, &it.database.url, &it.database.schema));
    let has_ledger = baseline.kind()[0];
    if of_two_kinds || mine.regions != other.regions || (has_ledger && ledgers[0] != ledgers[1]) {
        return Some(
            "the two do not keep records in the same way; choose another level, and leave [regions], \
             [polyglot] and [database] out of its settings"
                .into(),
        );
    }
    unheard(baseline, canary).await.map(str::to_owned)
}

/// Why one of the two, which stand on the same databases, would not hear of what the other writes.
async fn unheard(baseline: Side<'_>, canary: Side<'_>) -> Option<&'static str> {
    let (mine, other) = (baseline.config(), canary.config());
    let (of_mine, of_other) =
        tokio::join!(baseline.stack.whole.inspect(), canary.stack.whole.inspect());
    let trees = [&of_mine, &of_other];
    let caches = trees.map(|tree| tree.find("cache-aside").is_some());
    let journals = trees.map(|tree| tree.find_kind(PartKind::Journal).is_some());
    let is_same = mine.mode() == other.mode()
        && mine.stores.namespace == other.stores.namespace
        && mine.cache.url == other.cache.url;
    match (caches, journals) {
        ([true, false], _) => Some(
            "it would write past the baseline's cache, which would answer what was there before; choose a \
             level with a cache",
        ),
        ([false, true], _) => Some(
            "the baseline writes past its cache, which would answer what was there before; it can serve \
             clients once all instances write at a level with a cache",
        ),
        ([true, true], _) if !is_same => Some(
            "each would have a cache of its own, which does not hear what the other writes; leave cache.url \
             and stores.namespace out of its settings",
        ),
        (_, [true, false] | [false, true]) => Some(
            "one accepts writes into a journal that the other does not read, and the other would answer what \
             was there before; choose level 6 for both, or for neither",
        ),
        (_, [true, true]) if !is_same || mine.journal != other.journal => Some(
            "each would have a journal of its own, whose writes the other does not know of; leave [journal] \
             out of its settings",
        ),
        _ => None,
    }
}

impl<'a> Side<'a> {
    fn config(&self) -> &'a Config {
        self.engines.config()
    }

    /// What is read and written by key: records, or documents.
    fn records(&self) -> Option<&'a Arc<Records>> {
        self.stack.faces.iter().find_map(|face| match face {
            Face::Records(records) => Some(records),
            Face::Polyglot(all) => Some(&all.by_key),
            _ => None,
        })
    }

    /// Whether it keeps documents, and whether in regions.
    fn kind(&self) -> [bool; 2] {
        let has = |is: fn(&Face) -> bool| self.stack.faces.iter().any(is);
        [
            has(|face| matches!(face, Face::Polyglot(_))),
            has(|face| matches!(face, Face::Regions(_))),
        ]
    }

    /// The databases of its records, by their histories.
    async fn databases(&self) -> Result<BTreeSet<String>> {
        let Some(records) = self.records() else { return Ok(BTreeSet::new()) };
        let deadline = Deadline::at(self.engines.runtime().now() + WITHIN);
        // A strong list comes from all databases, and from nothing else.
        let page = Scan { limit: 1, ..Scan::prefix("") };
        let page = records.store.scan(&page, &ReadOptions::strong(deadline)).await?;
        let names = page.token.marks().map(|(history, _)| history);
        // A journal is none, though a token names it; it is compared by itself.
        let databases = names.filter(|name| !name.starts_with("journal-of-"));
        // A failover in between gives the same database another name.
        Ok(databases.map(|name| lineage(name).to_owned()).collect())
    }
}

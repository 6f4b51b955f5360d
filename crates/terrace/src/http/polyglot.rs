//! The faces of level 8: transactions and documents, each with its owner.
//!
//! Documents by key are records whose values are documents, so they have the endpoints of
//! [`records`](super::records). What is here is the rest: transactions, what they come to, documents by
//! their content, and the documents' API of this level.

mod described;
mod entries;
mod search;
mod statistics;
mod summary;

use std::sync::Arc;

use terrace_core::{Documents, Inspection, Store};
use terrace_layers::{CachedLedger, Late, Summaries};

use super::endpoint::Endpoint;
use super::face::Whole;
use super::operations::HealthFields;
use super::records::{self, Records, Values};

/// What the level keeps. Each part may be down, or not open yet, while the others serve.
#[derive(Debug)]
pub struct Polyglot {
    /// The owner of transactions.
    pub ledger: Arc<Late<Arc<CachedLedger>>>,
    /// The owner of documents.
    pub documents: Arc<dyn Documents>,
    /// The same as records by key.
    pub by_key: Arc<Records>,
    /// What transactions come to, kept beside the documents.
    pub summaries: Arc<Late<Summaries>>,
}

impl Polyglot {
    /// Over these parts.
    pub fn new(
        ledger: Arc<Late<Arc<CachedLedger>>>,
        documents: Arc<dyn Documents>,
        summaries: Arc<Late<Summaries>>,
    ) -> Self {
        let store = Arc::clone(&documents) as Arc<dyn Store>;
        let by_key = Arc::new(Records { values: Values::Documents, ..Records::of(store) });
        Self { ledger, documents, by_key, summaries }
    }

    /// The rows of the table.
    pub(crate) fn endpoints(this: &Arc<Self>, whole: &Arc<dyn Whole>) -> Vec<Endpoint> {
        let mut table = described::endpoints(this);
        table.push(statistics::endpoint(this, whole));
        table.extend(records::endpoints(&this.by_key));
        table.push(search::endpoint(this));
        table.extend(entries::endpoints(this));
        table.push(summary::endpoint(this));
        table
    }

    /// What it adds to `/health`.
    pub(crate) fn health_fields() -> HealthFields {
        statistics::HEALTH
    }
}

/// The name of the part of the tree that keeps transactions.
pub(crate) const TRANSACTIONS: &str = "transactions";
/// The name of the part of the tree that keeps documents.
pub(crate) const DOCUMENTS: &str = "documents";

/// The part of the tree that keeps transactions.
pub(super) fn ledger_part(tree: &Inspection) -> Option<&Inspection> {
    tree.children.iter().find(|part| part.instance == TRANSACTIONS)
}

/// The part of the tree that keeps documents.
pub(super) fn documents_part(tree: &Inspection) -> Option<&Inspection> {
    tree.children.iter().find(|part| part.instance == DOCUMENTS)
}

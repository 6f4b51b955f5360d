//! The lists as a cache keeps them: read only, a text each.

use std::fmt;
use std::sync::Arc;

use futures_util::future::try_join_all;
use terrace_core::ledger::{Statement, list};
use terrace_core::{
    BoxFuture, Error, ErrorKind, Inspection, Key, Ledger, Origin, Page, Read, ReadOptions, Receipt,
    Record, Result, Scan, Store, Write, WriteOptions,
};

use super::CachedLedger;

/// A ledger's lists as a store whose keys are users.
#[derive(Debug)]
pub(super) struct Lists {
    ledger: Arc<dyn Ledger>,
}

impl Lists {
    pub(super) fn new(ledger: Arc<dyn Ledger>) -> Self {
        Self { ledger }
    }

    async fn list(&self, user: &Key, how: &ReadOptions) -> Result<Read> {
        let page = self.ledger.page(user, None, CachedLedger::LATEST, how).await?;
        let Statement { transactions, version, token, proof, .. } = page;
        let record = match transactions.as_slice() {
            [] => None,
            [latest, ..] => Some(Record {
                key: user.clone(),
                value: list::to_value(&transactions)?,
                version,
                created_at: latest.created_at,
                updated_at: latest.created_at,
            }),
        };
        let (origin, age) = (Origin::PRIMARY, std::time::Duration::ZERO);
        Ok(Read { record, version, origin, age, token, proof })
    }
}

impl fmt::Display for Lists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ledger.fmt(f)
    }
}

/// Transactions are posted, and a user is no key of a list.
fn no_records() -> Error {
    Error::new(ErrorKind::Internal, "a list of transactions is read by its user only")
}

#[deny(clippy::missing_trait_methods)]
impl Store for Lists {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(try_join_all(keys.iter().map(|user| self.list(user, how))))
    }

    fn write<'a>(
        &'a self,
        _: Vec<Write>,
        _: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async { Err(no_records()) })
    }

    fn scan<'a>(&'a self, _: &'a Scan, _: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async { Err(no_records()) })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        self.ledger.inspect()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.ledger.close()
    }
}

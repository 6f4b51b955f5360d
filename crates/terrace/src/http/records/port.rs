//! The port of the record API: a store, and what it says beyond the contract. Which records a client may
//! touch is decided here, on the keys that the store is given.

use std::sync::Arc;

use terrace_core::{
    Key, Origin, Page, Read, ReadOptions, Receipt, Scan, Store, Write, WriteOptions, one,
};

use super::Values;
use crate::http::call::Call;
use crate::http::face::Shards;
use crate::http::front_caches::telling;
use crate::http::geography::Geography;
use crate::http::headers;
use crate::http::problem::Problem;

/// Records to serve. A client that keeps the latest token of an answer alone keeps all that it has
/// seen: every answer's token takes in the request's.
#[derive(Debug)]
pub struct Records {
    /// Where they are. It must end every call by its deadline, as `terrace_layers::Timeout` at its
    /// top does: nothing else bounds how long a request may take.
    pub store: Arc<dyn Store>,
    /// Where keys live, when there are shards.
    pub shards: Option<Arc<dyn Shards>>,
    /// Whether writes may be accepted before they are applied (202).
    pub queues: bool,
    /// What the values are.
    pub values: Values,
    /// Where requests may go, where there are several regions.
    pub geography: Option<Arc<Geography>>,
}

impl Records {
    /// Records of one place, written when that is acknowledged.
    pub fn of(store: Arc<dyn Store>) -> Self {
        let values = Values::Texts;
        Self { store, shards: None, queues: false, values, geography: None }
    }

    /// Reads one key.
    pub(crate) async fn read_one(
        &self,
        call: &Call,
        key: &Key,
        how: &ReadOptions,
    ) -> Result<Read, Problem> {
        Ok(one(self.read(call, std::slice::from_ref(key), how).await?)?)
    }

    /// Reads keys.
    pub(crate) async fn read(
        &self,
        call: &Call,
        keys: &[Key],
        how: &ReadOptions,
    ) -> Result<Vec<Read>, Problem> {
        keys.iter().try_for_each(|key| call.may_touch(key))?;
        let mut reads = self.store.read(keys, how).await?;
        if let Some(asked) = &how.token {
            reads.iter_mut().for_each(|read| read.token.merge(asked));
        }
        Ok(reads)
    }

    /// Lists records.
    pub(crate) async fn scan(
        &self,
        call: &Call,
        scan: &Scan,
        how: &ReadOptions,
    ) -> Result<Page, Problem> {
        call.may_list(&scan.prefix)?;
        let mut page = self.store.scan(scan, how).await?;
        if let Some(asked) = &how.token {
            page.token.merge(asked);
        }
        Ok(page)
    }

    /// Applies one write of a request.
    pub(crate) async fn write_one(
        &self,
        call: &Call,
        write: Write,
        how: &WriteOptions,
    ) -> Result<Receipt, Problem> {
        Ok(one(self.write(call, vec![write], how).await?)?)
    }

    /// Applies the writes of a request.
    pub(crate) async fn write(
        &self,
        call: &Call,
        batch: Vec<Write>,
        how: &WriteOptions,
    ) -> Result<Vec<Receipt>, Problem> {
        batch.iter().try_for_each(|write| call.may_touch(&write.key))?;
        let seen = headers::token(&call.parts.headers)?;
        let is_text = self.values == Values::Texts;
        let _told = is_text.then(|| telling(call, batch.iter().map(|write| &write.key)));
        let mut receipts = self.store.write(batch, how).await?;
        if let Some(seen) = &seen {
            receipts.iter_mut().for_each(|receipt| receipt.token.merge(seen));
        }
        Ok(receipts)
    }

    /// The number of the shard that an answer for a key came from; a cache keeps none, so it is the
    /// one that has the key now.
    pub(crate) fn shard_of(&self, key: &Key, origin: Origin) -> Option<u16> {
        origin.shard.or_else(|| self.shards.as_ref()?.shard_of(key))
    }
}

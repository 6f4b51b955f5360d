//! One request in the hands of its handler, and the calls to the store that a handler makes.

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use terrace_core::{
    Deadline, Key, Page, Read, ReadOptions, Receipt, Scan, Write, WriteOptions, one,
};

use super::app::App;
use super::problem::Problem;
use super::{body, headers, path};

/// One request.
#[derive(Debug)]
pub(crate) struct Call {
    /// What serves it.
    pub(crate) app: Arc<App>,
    /// Method, path and headers.
    pub(crate) parts: Parts,
    /// The body, until it was read.
    pub(crate) body: Option<Incoming>,
}

impl Call {
    /// The key in the path.
    pub(crate) fn key(&self) -> Result<Key, Problem> {
        path::key(self.parts.uri.path())
    }

    /// The JSON body.
    pub(crate) async fn json(&mut self) -> Result<Bytes, Problem> {
        let app = &self.app;
        body::read(&mut self.body, &self.parts.headers, &app.limits, &app.runtime).await
    }

    /// How to read, by the headers; the deadline begins now.
    pub(crate) fn read_options(&self) -> Result<ReadOptions, Problem> {
        headers::read_options(&self.parts.headers, self.deadline())
    }

    /// How to write, by the headers and the body; the deadline begins now, after the body came.
    pub(crate) fn write_options(&self, body: &[u8]) -> Result<WriteOptions, Problem> {
        let Parts { method, uri, headers, .. } = &self.parts;
        headers::write_options(method.as_str(), uri, headers, body, self.deadline())
    }

    /// Reads one key.
    pub(crate) async fn read_one(&self, key: &Key, how: &ReadOptions) -> Result<Read, Problem> {
        Ok(one(self.read(std::slice::from_ref(key), how).await?)?)
    }

    /// Reads keys.
    pub(crate) async fn read(&self, keys: &[Key], how: &ReadOptions) -> Result<Vec<Read>, Problem> {
        let mut reads = self.app.store.read(keys, how).await?;
        // A client that keeps the latest token alone keeps all that it has seen.
        if let Some(asked) = &how.token {
            reads.iter_mut().for_each(|read| read.token.merge(asked));
        }
        Ok(reads)
    }

    /// Lists records.
    pub(crate) async fn scan(&self, scan: &Scan, how: &ReadOptions) -> Result<Page, Problem> {
        let mut page = self.app.store.scan(scan, how).await?;
        if let Some(asked) = &how.token {
            page.token.merge(asked);
        }
        Ok(page)
    }

    /// Applies one write.
    pub(crate) async fn write_one(
        &self,
        write: Write,
        how: &WriteOptions,
    ) -> Result<Receipt, Problem> {
        Ok(one(self.write(vec![write], how).await?)?)
    }

    /// Applies writes.
    pub(crate) async fn write(
        &self,
        batch: Vec<Write>,
        how: &WriteOptions,
    ) -> Result<Vec<Receipt>, Problem> {
        let seen = headers::token(&self.parts.headers)?;
        let mut receipts = self.app.store.write(batch, how).await?;
        if let Some(seen) = &seen {
            receipts.iter_mut().for_each(|receipt| receipt.token.merge(seen));
        }
        Ok(receipts)
    }

    fn deadline(&self) -> Deadline {
        Deadline::at(self.app.runtime.now() + self.app.limits.request_time)
    }
}

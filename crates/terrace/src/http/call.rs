//! One request in the hands of its handler.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use terrace_core::{BoxFuture, Deadline, Key, ReadOptions, RegionName, Result, WriteOptions};

use super::app::App;
use super::front_caches::FrontCaches;
use super::geography::Geography;
use super::problem::Problem;
use super::rate_limit::Charge;
use super::request_id::RequestId;
use super::trace_id::TraceId;
use super::{body, headers, path};
use crate::access::Principal;

/// One request.
#[derive(Debug)]
pub(crate) struct Call {
    /// What serves it.
    pub(crate) app: Arc<App>,
    /// Method, path and headers.
    pub(crate) parts: Parts,
    /// The body, until it was read.
    pub(crate) body: Option<Incoming>,
    /// Its name in the answer and in the log.
    pub(crate) id: RequestId,
    /// Its trace, where spans are made of it.
    pub(crate) trace: Option<TraceId>,
    /// Who sent it: a client, or the last proxy.
    pub(crate) peer: Option<IpAddr>,
    /// Who asks, where clients have keys.
    pub(crate) principal: Option<Arc<Principal>>,
    /// The caches in front, where some answers are for all clients.
    pub(crate) front_caches: Option<Arc<FrontCaches>>,
    /// What it was admitted by, the first limit first.
    pub(crate) charges: Vec<Charge>,
}

impl Call {
    /// A request of which nobody has found out anything.
    pub(crate) fn new(
        app: &Arc<App>,
        parts: Parts,
        body: Option<Incoming>,
        peer: Option<IpAddr>,
    ) -> Self {
        let (app, id) = (Arc::clone(app), app.ids.of(&parts.headers));
        let (trace, principal, front_caches, charges) = Default::default();
        Self { app, parts, body, id, trace, peer, principal, front_caches, charges }
    }

    /// Its trace, as far as it is known here: that of its spans, or the one that the client names.
    pub(crate) fn trace(&self) -> Option<TraceId> {
        self.trace.or_else(|| TraceId::sent_in(&self.parts.headers))
    }

    /// The key in the path.
    pub(crate) fn key(&self) -> Result<Key, Problem> {
        path::key(self.parts.uri.path())
    }

    /// Whether who asks may touch this record.
    ///
    /// # Errors
    /// 403.
    pub(crate) fn may_touch(&self, key: &Key) -> Result<(), Problem> {
        match &self.principal {
            Some(principal) if !principal.may_touch(key) => Err(Problem::not_these_records()),
            _ => Ok(()),
        }
    }

    /// Whether who asks may see all records that begin so.
    ///
    /// # Errors
    /// 403.
    pub(crate) fn may_list(&self, prefix: &str) -> Result<(), Problem> {
        match &self.principal {
            Some(principal) if !principal.covers(prefix) => Err(Problem::not_these_records()),
            _ => Ok(()),
        }
    }

    /// The key in the path between these two parts of it.
    pub(crate) fn key_between(&self, (before, after): (&str, &str)) -> Result<Key, Problem> {
        let path = self.parts.uri.path();
        let path = path.strip_suffix(after).unwrap_or(path);
        path::key(path.strip_prefix(before).unwrap_or(path))
    }

    /// What answers, unless it takes longer than a request may.
    pub(crate) async fn in_time<T>(&self, answer: BoxFuture<'_, Result<T>>) -> Result<T, Problem> {
        let answer = self.app.runtime.within(self.deadline(), answer).await;
        Ok(answer.unwrap_or_else(|| Err(Deadline::exceeded()))?)
    }

    /// The JSON body.
    pub(crate) async fn json(&mut self) -> Result<Bytes, Problem> {
        let app = &self.app;
        body::read(&mut self.body, &self.parts.headers, &app.limits, &app.runtime).await
    }

    /// How to read, by the headers; the deadline begins now.
    pub(crate) fn read_options(&self) -> Result<ReadOptions, Problem> {
        let how = headers::read_options(&self.parts.headers, self.deadline())?;
        Ok(ReadOptions { region: self.region(None)?, ..how })
    }

    /// How to write, by the headers and the body; the deadline begins now, after the body came.
    pub(crate) fn write_options(&self, body: &[u8]) -> Result<WriteOptions, Problem> {
        let Parts { method, uri, headers, .. } = &self.parts;
        let mut how = headers::write_options(method.as_str(), uri, headers, body, self.deadline())?;
        if let (Some(principal), Some(request)) = (&self.principal, &how.idempotency) {
            how.idempotency = Some(Arc::new(request.of_client(&principal.id.to_string())));
        }
        let Some(region) = self.region(None)? else { return Ok(how) };
        headers::confirmed(headers, WriteOptions { region: Some(region), ..how })
    }

    /// Which region it is for, where there are several; `named` is what its body says. Only the record
    /// API refuses a name that no region has.
    pub(crate) fn region(&self, named: Option<&str>) -> Result<Option<RegionName>, Problem> {
        let Some(geography) = &self.app.geography else { return Ok(None) };
        let headers = &self.parts.headers;
        if self.parts.uri.path().starts_with("/v1/") {
            let named = geography.named(headers)?;
            return Ok(Some(named.unwrap_or_else(|| geography.nearest(self.peer, headers))));
        }
        Ok(Some(match Geography::sent(headers).or(named) {
            Some(name) => geography.named_or_first(name),
            None => geography.nearest(self.peer, headers),
        }))
    }

    /// When a request that begins now must be answered.
    pub(crate) fn deadline(&self) -> Deadline {
        Deadline::at(self.app.runtime.now() + self.app.limits.request_time)
    }
}

//! No spans, in a build that has none.

use std::sync::Arc;

use terrace_core::{ReadModel, Result, Runtime, Store};

use crate::config::TracesConfig;
use crate::http::Middleware;

/// The settings name no collector in such a build.
pub(crate) fn start(_: &TracesConfig) -> Result<()> {
    Ok(())
}

pub(crate) fn runtime() -> Runtime {
    Runtime::system()
}

pub(crate) fn guard() -> Option<Arc<dyn Middleware>> {
    None
}

pub(crate) fn spans(store: Arc<dyn Store>) -> Arc<dyn Store> {
    store
}

pub(crate) fn spans_of_later(store: Arc<dyn Store>) -> Arc<dyn Store> {
    store
}

pub(crate) fn spans_of_projection(model: Arc<dyn ReadModel>) -> Arc<dyn ReadModel> {
    model
}

pub(crate) fn end() {}

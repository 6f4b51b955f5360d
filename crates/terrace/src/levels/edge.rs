//! What every level has around its stack.

use std::sync::Arc;

use terrace_core::Store;
use terrace_layers::{Observe, Timeout, TimeoutOptions};

use super::Engines;

/// Figures of all that passes, and a deadline for whatever came without one.
pub(super) fn edge(engines: &Engines, store: Arc<dyn Store>) -> Arc<dyn Store> {
    let runtime = engines.runtime();
    let store = Timeout::new(store, TimeoutOptions::default(), runtime.clone());
    // Outermost, so that what it counts is what callers got.
    Arc::new(Observe::new(Arc::new(store), runtime.clone()))
}

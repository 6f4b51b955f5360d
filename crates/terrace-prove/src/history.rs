//! The operations of all clients, on one clock.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use terrace_core::Runtime;

use crate::Operation;

/// What clients asked and were answered, in the order of the answers; shared by all clients of a
/// scenario. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct History {
    runtime: Runtime,
    started: Instant,
    operations: Arc<Mutex<Vec<Operation>>>,
}

impl History {
    /// An empty history that starts now.
    #[must_use]
    pub fn start(runtime: Runtime) -> Self {
        let started = runtime.now();
        Self { runtime, started, operations: Arc::default() }
    }

    /// The time since the start.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.runtime.now().duration_since(self.started)
    }

    /// Adds an operation.
    pub fn record(&self, operation: Operation) {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).push(operation);
    }

    /// A copy of all operations so far.
    #[must_use]
    pub fn operations(&self) -> Vec<Operation> {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All operations so far, as lines of JSON, for a report or another checker.
    ///
    /// # Errors
    /// None at present: every field is plain data.
    pub fn to_json_lines(&self) -> serde_json::Result<String> {
        let mut text = String::new();
        for operation in self.operations() {
            text.push_str(&serde_json::to_string(&operation)?);
            text.push('\n');
        }
        Ok(text)
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }
}

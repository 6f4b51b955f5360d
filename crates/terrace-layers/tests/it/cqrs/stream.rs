//! A stream in memory, which fails and loses its end.

use std::fmt;
use std::sync::{Arc, Mutex};

use terrace_core::{BoxFuture, EventStream, Inspection, LogPosition, Logged, Result};

use super::memory::{Fate, Faults, failed};

/// A stream that may lose its end, as a broker that fails over.
#[derive(Debug)]
pub(super) struct MemoryStream {
    pub(super) events: Mutex<Vec<Logged>>,
    faults: Arc<Faults>,
}

impl MemoryStream {
    pub(super) fn new(faults: Arc<Faults>) -> Self {
        Self { events: Mutex::default(), faults }
    }

    pub(super) fn lose_the_end(&self, events: usize) {
        let mut all = self.events.lock().unwrap();
        let left = all.len().saturating_sub(events);
        all.truncate(left);
    }
}

impl EventStream for MemoryStream {
    fn last(&self) -> BoxFuture<'_, Result<LogPosition>> {
        Box::pin(async move {
            if self.faults.fate().await != Fate::Done {
                return Err(failed(Fate::Refused));
            }
            Ok(self.events.lock().unwrap().last().map_or(LogPosition::default(), |it| it.position))
        })
    }

    fn publish<'a>(
        &'a self,
        last: LogPosition,
        events: &'a [Logged],
    ) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            let fate = self.faults.fate().await;
            if fate == Fate::Refused {
                return Err(failed(fate));
            }
            let mut all = self.events.lock().unwrap();
            let fits = all.last().map_or(LogPosition::default(), |it| it.position) == last;
            if fits {
                all.extend_from_slice(events);
            }
            if fate == Fate::Unknown { Err(failed(fate)) } else { Ok(fits) }
        })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async { Inspection::new("memory-stream") })
    }
}

impl fmt::Display for MemoryStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory stream")
    }
}

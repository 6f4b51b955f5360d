//! A stream in memory, which fails and loses its end.

use std::fmt;
use std::sync::{Arc, Mutex};

use terrace_core::{Batch, BoxFuture, Checkpoint, Follower, LogPosition, Logged, Result};

use super::memory::{Fate, Faults, failed};

/// A stream that may lose its end, as a broker that fails over.
#[derive(Debug)]
pub(super) struct MemoryStream {
    pub(super) events: Mutex<Vec<Logged>>,
    published: Mutex<Option<(LogPosition, LogPosition)>>,
    faults: Arc<Faults>,
}

impl MemoryStream {
    pub(super) fn new(faults: Arc<Faults>) -> Self {
        Self { events: Mutex::default(), published: Mutex::default(), faults }
    }

    pub(super) fn lose_the_end(&self, events: usize) {
        let mut all = self.events.lock().unwrap();
        let left = all.len().saturating_sub(events);
        all.truncate(left);
    }
}

fn end(events: &[Logged]) -> LogPosition {
    events.last().map_or(LogPosition::default(), |it| it.position)
}

impl Follower for MemoryStream {
    fn checkpoint(&self) -> BoxFuture<'_, Result<Checkpoint>> {
        Box::pin(async move {
            if self.faults.fate().await != Fate::Done {
                return Err(failed(Fate::Refused));
            }
            let end = end(&self.events.lock().unwrap());
            Ok(Checkpoint::beginning(Checkpoint::ANY_LOG).at(end))
        })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            let fate = self.faults.fate().await;
            if fate == Fate::Refused {
                return Err(failed(fate));
            }
            let mut all = self.events.lock().unwrap();
            let (from, ends) = (batch.from.position, end(&all));
            // The log's position lies behind its last event; who published that one knows.
            let mut published = self.published.lock().unwrap();
            let fits = from == ends || *published == Some((ends, from));
            if fits {
                all.extend_from_slice(&batch.changes);
                *published = Some((end(&all), batch.to.position));
            }
            if fate == Fate::Unknown { Err(failed(fate)) } else { Ok(fits) }
        })
    }

    fn begin_anew<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Err(failed(Fate::Refused)) })
    }
}

impl fmt::Display for MemoryStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory stream")
    }
}

//! How well the store does, as it says itself.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use terrace_core::{Deadline, ErrorKind, Inspection, PartKind, Status, Unit};

use super::job::ReadJob;
use super::options::Connections;
use super::shared::Shared;

/// An inspection must be done within a second.
const WITHIN: Duration = Duration::from_millis(900);

/// The inspection of a store.
pub(super) async fn inspect(shared: &Shared) -> Inspection {
    let vitals = &shared.vitals;
    let connections = match shared.options.connections {
        Connections::PerRequest => "one for each request",
        Connections::Shared { .. } => "kept",
    };
    let tree = Inspection::of(PartKind::Database, "sqlite")
        .text("path", shared.options.path.display())
        .text("connections", connections)
        .text("journal_mode", &shared.engine.journal_mode)
        .text("synchronous", shared.engine.synchronous)
        .text("durability", shared.durability)
        .counter("reads", vitals.reads.load(Relaxed))
        .counter("writes", vitals.writes.load(Relaxed))
        .counter("commits", vitals.commits.load(Relaxed))
        .counter("errors", vitals.errors.load(Relaxed))
        .gauge("file", shared.file.bytes(), Unit::Bytes);
    let (mut status, mut note) = judge(shared);
    if status != Status::Down {
        let asked = ask(shared).await;
        if asked.0 > status {
            (status, note) = asked;
        }
    }
    shared.held.told(tree.status(status, note)).needs(pool(shared))
}

fn pool(shared: &Shared) -> Inspection {
    let vitals = &shared.vitals;
    let size = vitals.readers.load(Relaxed) + vitals.writers.load(Relaxed);
    let available = size.saturating_sub(vitals.busy.load(Relaxed));
    let waiting = shared.reads.counts().waiting.parts + shared.writes.counts().waiting.parts;
    Inspection::of(PartKind::Pool, "pool")
        .gauge("pool_size", size as u64, Unit::Count)
        .gauge("pool_available", available as u64, Unit::Count)
        .gauge("requests_waiting", waiting as u64, Unit::Count)
        .counter("usage_ms", vitals.usage_micros.load(Relaxed) / 1000)
}

/// What requests meet: asks what they ask, of no key.
async fn ask(shared: &Shared) -> (Status, String) {
    let deadline = Deadline::at(shared.runtime.now() + WITHIN);
    match shared.ask(|reply| ReadJob::Nothing { reply }, 0, deadline).await {
        Ok(Ok(())) => (Status::Healthy, String::new()),
        Ok(Err(error)) => (Status::Degraded, format!("writes fail: {}", error.message())),
        Err(error) if error.kind() == ErrorKind::Overloaded => {
            (Status::Degraded, error.message().to_owned())
        }
        Err(error) => (Status::Down, error.message().to_owned()),
    }
}

/// What is known without asking.
fn judge(shared: &Shared) -> (Status, String) {
    let vitals = &shared.vitals;
    if shared.closing.load(Relaxed) {
        return (Status::Down, "closed".to_owned());
    }
    if !shared.file.is_there() {
        let note = "the file was moved, deleted or replaced; put it back and restart Terrace";
        return (Status::Down, note.to_owned());
    }
    if vitals.stalled(shared.runtime.now()) {
        return (Status::Down, "a COMMIT does not come back; check the disk".to_owned());
    }
    if let Some(trouble) = vitals.trouble() {
        return (Status::Degraded, format!("the last write failed: {trouble}"));
    }
    if shared.engine.journal_mode != "wal" {
        let note = "the file system cannot keep a write-ahead log, so writes are only accepted; \
                    move the file to a local disk";
        return (Status::Degraded, note.to_owned());
    }
    (Status::Healthy, String::new())
}

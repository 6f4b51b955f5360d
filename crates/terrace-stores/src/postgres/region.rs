//! A PostgreSQL database that is one of several regions.
//!
//! **Versions** are drawn by the function `terrace_version`, where other databases draw from their
//! sequence. It draws from the same sequence, whose steps leave the region's number in the low bits.
//! What it drew is the version, unless that lies more than 10 ms behind the clock. Then it raises the
//! sequence above the clock, alone, under an advisory lock of the session. One expression locks, raises and
//! unlocks: between its parts nothing can end it, so no session keeps the lock.
//!
//! **No version twice.** A sequence cannot be raised unless it is lower: who sets it may set it back behind
//! what others have drawn since he looked. So whoever raises it closes a gate before he looks, and opens it
//! when he has set it: the gate is a second sequence, open while its number is even. A draw counts only
//! if the gate was open, and had the same number, before and after it. All that counts was therefore drawn
//! before somebody who raises looks, or after he has set the sequence. That costs a draw about 1 µs.
//!
//! **What a row has overwritten** is in `records.replaced`; the log has it, too. A row that another region
//! brought has the negative of its own version there, and is not logged.
//!
//! **What has arrived** of a key that other regions have written stands in `terrace_arrived`; what was lost,
//! and what was replaced before it arrived, in `terrace_conflicts`. A write of this region touches neither.
//!
//! **The clock** is the function `terrace_clock`. Tests put another one in its place.

mod install;
mod merge;
mod port;
mod rows;

use std::sync::Arc;

use terrace_core::RegionOptions;

use super::log::PostgresLog;
use super::worker::Worker;

pub(super) use install::{check, install};

/// What a store has open for this.
pub(super) struct RegionParts {
    pub(super) options: RegionOptions,
    pub(super) log: Arc<PostgresLog>,
}

impl RegionParts {
    pub(super) fn new(options: RegionOptions, worker: &Worker) -> Self {
        let log = PostgresLog::new(worker.clone(), "".into(), Some(options.clone()));
        Self { options, log: Arc::new(log) }
    }
}

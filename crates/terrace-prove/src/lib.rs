//! The black-box harness of Terrace: what clients asked and were answered, and checkers that hold it
//! against a guarantee.
//!
//! - [`History`] records every operation of every client, in one format and on one clock.
//! - [`Client`] speaks HTTP to one instance and records what it does.
//! - [`Worker`] is a client that does a bit of everything, as a seed says.
//! - [`checkers`] are pure functions from a history to a [`Verdict`].
//!
//! The harness knows the HTTP contract alone, so that a checker shares no code with what it checks.
//! Faults come from `terrace-lab`: private engines, and a proxy between each instance and each engine.

pub mod checkers;
mod client;
mod history;
mod operation;
mod verdict;
mod worker;

pub use client::{Answer, Client, Request};
pub use history::History;
pub use operation::{Action, Condition, Consistency, Operation, Outcome};
pub use verdict::{Verdict, Violation};
pub use worker::Worker;

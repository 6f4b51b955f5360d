//! Commands and queries apart: what a client sees, and the protocol under faults.

mod layer;
mod memory;
mod simulation;
mod stream;

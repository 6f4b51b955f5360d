//! One data tier that you climb level by level: the levels, the HTTP server and the command line.
//!
//! Composition happens only here: [`levels`] builds a stack of layers over stores, [`http`] serves
//! any stack, [`cli`] is the program. The crates below know nothing of each other.

pub mod cli;
pub mod config;
pub mod http;
pub mod levels;

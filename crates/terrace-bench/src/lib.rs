//! Terrace's load generator: workloads, an open and a closed loop, a verifier, and the report.
//!
//! It speaks HTTP only and knows no store and no layer, so that it measures any level, and any other
//! server with the documents' API, from outside. Of Terrace it uses the clock alone, which its own
//! tests pause.
//!
//! A run goes through *targets* in turn: [`run`] loads each, warms it up, and puts *phases* of load on
//! it. Every value names its write ([`value`]), every answer is judged ([`ledger`]), every request of
//! an open loop has an intended start from which its latency counts ([`feed`]).

pub mod answer;
pub mod api;
pub mod claims;
pub mod client;
pub mod compare;
pub mod feed;
pub mod figures;
pub mod keys;
pub mod ledger;
pub mod machine;
pub mod page;
mod phase;
mod prepare;
pub mod run;
#[cfg(test)]
mod simulated;
pub mod summary;
pub mod tally;
pub mod value;
pub mod wire;
pub mod worker;
pub mod workload;

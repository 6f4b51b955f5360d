//! Properties that must hold for whatever comes from outside: tried on generated inputs for a time.
//!
//! Inputs are bytes: real ones of the target with random changes, pieces of real ones in random order, and
//! plain noise. There is no instrumentation, so the examples that a target gives decide how deep the inputs
//! reach. Each round has a seed of its own; a failure is made small and names its seed.

use std::fmt;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use crate::Runtime;

/// How long each target is tried, in seconds. Default 4.
const SECONDS: &str = "TERRACE_FUZZ_SECONDS";
/// Replays the round of a failure, once.
const SEED: &str = "TERRACE_FUZZ_SEED";
/// Inputs of a round.
const ROUND: u32 = 64;

/// Tries a property on many values, and tells on how many.
///
/// # Panics
/// Where the property does: with the smallest input that was found, and its seed.
pub fn fuzzed<S: Strategy>(inputs: &S, property: impl Fn(S::Value)) -> u64
where
    S::Value: fmt::Debug,
{
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let runtime = Runtime::system();
    let until = runtime.now() + Duration::from_secs(number(SECONDS).unwrap_or(4));
    let mut tried = 0_u64;
    while tried == 0 || (runtime.now() < until && number(SEED).is_none()) {
        let seed = number(SEED).unwrap_or_else(|| runtime.random());
        let config = Config {
            cases: ROUND,
            failure_persistence: None,
            rng_seed: RngSeed::Fixed(seed),
            ..Config::default()
        };
        let round = TestRunner::new(config).run(inputs, |input| {
            property(input);
            Ok(())
        });
        if let Err(failure) = round {
            panic!("{SEED}={seed} tries this again: {failure}");
        }
        tried += u64::from(ROUND);
    }
    tried
}

/// Bytes like those of these examples: changed, cut, put together anew, or noise.
pub fn bytes_like(examples: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let example = proptest::sample::select(examples).prop_map(str::as_bytes);
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), change(examples)), 0..6);
    let changed = (example, changes).prop_map(|(example, changes)| {
        let mut bytes = example.to_vec();
        for (place, (cut, put)) in changes {
            let from = place.index(bytes.len() + 1);
            let to = (from + cut).min(bytes.len());
            bytes.splice(from..to, put);
        }
        bytes
    });
    let noise = proptest::collection::vec(any::<u8>(), 0..64);
    prop_oneof![8 => changed, 1 => noise]
}

/// How many bytes go, and which come.
fn change(examples: &'static [&'static str]) -> impl Strategy<Value = (usize, Vec<u8>)> {
    let piece = (proptest::sample::select(examples), any::<[prop::sample::Index; 2]>());
    let piece = piece.prop_map(|(example, ends)| {
        let ends = ends.map(|end| end.index(example.len() + 1));
        example.as_bytes()[ends[0].min(ends[1])..ends[0].max(ends[1])].to_vec()
    });
    let odd = proptest::sample::select(ODD).prop_map(|text| text.as_bytes().to_vec());
    let byte = any::<u8>().prop_map(|byte| vec![byte]);
    (0..8_usize, prop_oneof![Just(Vec::new()), byte, piece, odd])
}

/// What parsers stumble over.
const ODD: &[&str] = &[
    "\0",
    "\u{feff}",
    "\u{10ffff}",
    "%00",
    "%ff",
    "%2F",
    "\\u0000",
    "\\ud800",
    "-0",
    "1e999",
    "-1",
    "0x1",
    "18446744073709551616",
    "9223372036854775808",
    "null",
    "[[[[[[[[",
    "{\"\":",
    "~",
    "_",
    "\"",
    "'''",
    "\r\n",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "TERRACE_FUZZ_SEED=")]
    fn a_property_that_does_not_hold_is_found_and_names_its_seed() {
        let inputs = bytes_like(&["one,two"]);
        fuzzed(&inputs, |input| assert!(!input.ends_with(b",t"), "a comma and a t"));
    }
}

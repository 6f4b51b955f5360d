//! Broken variants, for tests that must see their check fail.

use redis::Script;

use super::scripts::Scripts;

/// Which rule is broken.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A fill is a plain `SET`.
    FillsBlindly,
    /// An invalidation is a plain `DEL`.
    LeavesNoTombstone,
    /// The epoch is not compared with the server's process.
    TrustsAnyMemory,
}

const SET: &str =
    "for i = 2, #KEYS do redis.call('SET', KEYS[i], ARGV[2*i-2], 'PX', ARGV[2*i-1]) end";
const DEL: &str = "for i = 3, #KEYS do redis.call('DEL', KEYS[i]) end";

impl Mutant {
    pub(super) fn break_one_of(self, scripts: &mut Scripts) {
        match self {
            Self::FillsBlindly => scripts.fill = Script::new(SET),
            Self::LeavesNoTombstone => scripts.invalidate = Script::new(DEL),
            Self::TrustsAnyMemory => {}
        }
    }
}

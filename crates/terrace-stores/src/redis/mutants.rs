//! Broken variants, for tests that must see their check fail.

use std::sync::LazyLock;

use redis::Script;

use super::Shared;

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

static SET: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "for i = 2, #KEYS do redis.call('SET', KEYS[i], ARGV[2*i-2], 'PX', ARGV[2*i-1]) end",
    )
});
static DEL: LazyLock<Script> =
    LazyLock::new(|| Script::new("for i = 3, #KEYS do redis.call('DEL', KEYS[i]) end"));

impl Shared {
    pub(super) fn fill_script(&self) -> &Script {
        match self.options.mutant {
            Some(Mutant::FillsBlindly) => &SET,
            _ => &self.link.scripts.fill,
        }
    }

    pub(super) fn invalidate_script(&self) -> &Script {
        match self.options.mutant {
            Some(Mutant::LeavesNoTombstone) => &DEL,
            _ => &self.link.scripts.invalidate,
        }
    }
}

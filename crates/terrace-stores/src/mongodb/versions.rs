//! Versions without a sequence of the server.

use std::sync::atomic::{AtomicU64, Ordering};

use terrace_core::{Runtime, Version};

/// 2020-01-01T00:00:00Z, in milliseconds since 1970.
const BEGIN: i64 = 1_577_836_800_000;

/// How many versions a millisecond has room for: 2^13.
const PER_MILLISECOND: u64 = 8192;

/// Draws versions: above the row's, above all that this process drew, and above what any process drew
/// in an earlier millisecond. So each write of a process has its own, and a row that was removed by hand
/// comes back newer.
#[derive(Debug, Default)]
pub(super) struct Versions(AtomicU64);

impl Versions {
    /// The next one, for a row with this version.
    pub(super) fn next(&self, current: Version, runtime: &Runtime) -> Version {
        let millis = runtime.wall().as_millisecond().saturating_sub(BEGIN);
        let clock = u64::try_from(millis).unwrap_or(0) * PER_MILLISECOND;
        let above = |last: u64| clock.max(last + 1).max(current.get() + 1);
        let last =
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(above(last)));
        // It answers an error only when the function answers nothing.
        let (Ok(last) | Err(last)) = last;
        Version::new(above(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_new_and_above_the_rows() {
        let (versions, runtime) = (Versions::default(), Runtime::system());
        let first = versions.next(Version::NONE, &runtime);
        let second = versions.next(Version::NONE, &runtime);
        assert!(second > first && first.get() < 1 << 53);
        let ahead = Version::new(first.get() + (1 << 40));
        assert_eq!(versions.next(ahead, &runtime).get(), ahead.get() + 1);
    }
}

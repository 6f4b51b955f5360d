//! How many calls a layer may make besides those that it was asked for.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// A share of the calls, and a few at once: what is not used is kept up to [`Budget::MOST`]. A store that
/// fails all calls, or is slow for all, therefore gets that share more of them and never a multiple.
/// (Finagle's retry budget.)
#[derive(Debug)]
pub(crate) struct Budget {
    percent: u32,
    /// In hundredths of a call.
    saved: AtomicU32,
}

impl Budget {
    /// The most extra calls at once.
    pub(crate) const MOST: u32 = 10;
    const CALL: u32 = 100;

    /// A full one that grows by this share of each call.
    pub(crate) fn new(percent: u32) -> Self {
        Self { percent, saved: AtomicU32::new(Self::MOST * Self::CALL) }
    }

    /// Notes a call that was asked for.
    pub(crate) fn earn(&self) {
        let most = Self::MOST * Self::CALL;
        // Nearly always full, and what all callers write is slow.
        if self.saved.load(Relaxed) < most {
            let more = |saved: u32| Some((saved + self.percent).min(most));
            let _always_some = self.saved.fetch_update(Relaxed, Relaxed, more);
        }
    }

    /// Takes an extra call; `false` when there is none left.
    pub(crate) fn spend(&self) -> bool {
        let less = |saved: u32| saved.checked_sub(Self::CALL);
        self.saved.fetch_update(Relaxed, Relaxed, less).is_ok()
    }

    /// How many extra calls are left.
    pub(crate) fn left(&self) -> u64 {
        u64::from(self.saved.load(Relaxed) / Self::CALL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_calls_are_a_share_and_a_few_at_once() {
        let budget = Budget::new(10);
        let spent = |calls: u32| {
            let each = (0..calls).filter(|_| {
                budget.earn();
                budget.spend()
            });
            each.count()
        };
        assert_eq!(spent(1000), 109, "a tenth, and those that were saved");
        (0..1000).for_each(|_| budget.earn());
        assert_eq!(budget.left(), 10);
    }
}

//! How long to wait before something is tried again.

use std::time::Duration;

use crate::Runtime;

/// Waits that double from the first to the longest, each changed by up to a fifth, so that many who
/// failed together do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
    is_full: bool,
}

impl Backoff {
    /// From the first wait to the longest.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first, is_full: false }
    }

    /// The same, but each wait is a random part of what it would be: for requests, of which many fail at the
    /// same moment, and which begin anew with the first wait.
    pub const fn with_full_jitter(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first, is_full: true }
    }

    /// Begins again with the first wait: it went well.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// How long to wait now; the next time is longer.
    pub fn next_pause(&mut self, runtime: &Runtime) -> Duration {
        let pause = match self.is_full {
            true => runtime.jitter(self.next / 2, 1.0),
            false => runtime.jitter(self.next, 0.2),
        };
        self.next = (self.next * 2).min(self.longest);
        pause
    }

    /// Ends when it is time to try again. Cancellation safe.
    pub async fn wait(&mut self, runtime: &Runtime) {
        let pause = self.next_pause(runtime);
        runtime.sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn waits_double_up_to_the_longest_and_begin_again() {
        let runtime = Runtime::seeded(1);
        let mut backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(30));
        let mut waited = async |expected: u64| {
            let begun = runtime.now();
            backoff.wait(&runtime).await;
            let waited = (runtime.now() - begun).as_secs_f64();
            #[expect(clippy::cast_precision_loss, reason = "it is small")]
            let share = waited / expected as f64;
            assert!((0.79..=1.21).contains(&share), "{waited} in place of {expected}");
            if expected == 30 {
                backoff.reset();
            }
        };
        for expected in [10, 20, 30, 10] {
            waited(expected).await;
        }
    }

    #[test]
    fn full_jitter_is_anything_up_to_the_wait() {
        let runtime = Runtime::seeded(1);
        let pauses = (0..1000).map(|_| {
            let mut backoff = Backoff::with_full_jitter(SECOND, SECOND);
            backoff.next_pause(&runtime)
        });
        let pauses = pauses.collect::<Vec<_>>();
        assert!(pauses.iter().all(|pause| *pause <= SECOND));
        for tenth in 0..10 {
            let of = |pause: &&Duration| {
                (SECOND * tenth / 10..SECOND * (tenth + 1) / 10).contains(pause)
            };
            assert!(pauses.iter().filter(of).count() > 60, "{tenth}");
        }
    }
}

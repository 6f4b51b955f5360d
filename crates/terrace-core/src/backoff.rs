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
}

impl Backoff {
    /// From the first wait to the longest.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// Begins again with the first wait: it went well.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// How long to wait now; the next time is longer.
    pub fn next_pause(&mut self, runtime: &Runtime) -> Duration {
        let pause = runtime.jitter(self.next, 0.2);
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
}

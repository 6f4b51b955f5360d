//! The counter that all instances share, and what is done without it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Quotas, Taken, Wanted};
use crate::{
    Backoff, BoxFuture, Breaker, BreakerState, Deadline, Inspection, Result, Runtime, Status, Trip,
};

/// A counter of permits that all instances share, on one clock.
pub trait Permits: fmt::Debug + Send + Sync + 'static {
    /// What [`Windows::take`](super::Windows::take) does with whole limits, for the client of this name. A call whose future
    /// is dropped may have counted; its permits are lost.
    ///
    /// # Errors
    /// `Unavailable` when nobody knows whether they were counted.
    fn take<'a>(
        &'a self,
        client: &'a str,
        quotas: &'a Quotas,
        wanted: Wanted,
    ) -> BoxFuture<'a, Result<Taken>>;
}

/// The shared counter, with what is known of its health. Several limiters may use it.
///
/// While it cannot be reached, and until a window has passed since, each instance keeps to its share of
/// the limit by what it has admitted itself: a counter that comes back may have forgotten everything.
#[derive(Debug)]
pub struct SharedPermits {
    permits: Arc<dyn Permits>,
    instances: u32,
    breaker: Breaker,
    doubted_until: Mutex<Option<Instant>>,
    runtime: Runtime,
}

impl SharedPermits {
    /// The counter that so many instances share.
    pub fn new(permits: Arc<dyn Permits>, instances: u32, runtime: Runtime) -> Self {
        let pauses = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        // One failure opens it: who waits for another one waits in a request.
        let breaker = Breaker::new(Trip::InARow(1), pauses, runtime.clone());
        let doubted_until = Mutex::default();
        Self { permits, instances: instances.max(1), breaker, doubted_until, runtime }
    }

    /// Permits of the counter, or nothing while it cannot be reached. What was granted may be used for
    /// [`Quotas::slot`] from before this call.
    pub(super) async fn take(
        &self,
        client: &str,
        quotas: &Quotas,
        wanted: Wanted,
    ) -> Option<Taken> {
        let pass = self.breaker.admit()?;
        // Later the permits are of no use.
        let deadline = Deadline::at(self.runtime.now() + quotas.slot());
        let taken = self.runtime.within(deadline, self.permits.take(client, quotas, wanted)).await;
        match taken.unwrap_or_else(|| Err(Deadline::exceeded())) {
            Ok(taken) => {
                if self.breaker.state() != BreakerState::Closed {
                    let until = self.runtime.now() + quotas.memory();
                    *self.doubted_until.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(until);
                }
                if pass.succeeded() {
                    tracing::info!("limits are counted over all instances again");
                }
                Some(taken)
            }
            Err(error) => {
                if pass.failed() {
                    tracing::warn!(%error, "limits cannot be counted over all instances");
                }
                None
            }
        }
    }

    /// Whether it is left alone for now.
    pub(super) fn is_out(&self) -> bool {
        self.breaker.state() == BreakerState::Open
    }

    /// Of how many parts of the limits this instance may admit one by its own count at this moment.
    pub(super) fn parts(&self, now: Instant) -> u32 {
        let doubted = *self.doubted_until.lock().unwrap_or_else(PoisonError::into_inner);
        let is_sure = self.breaker.state() == BreakerState::Closed
            && doubted.is_none_or(|until| until <= now);
        if is_sure { 1 } else { self.instances }
    }

    /// Adds to what a limiter says of itself. Tries a counter that is due for it, as there may be no
    /// requests that do.
    pub async fn show(&self, quotas: &Quotas, tree: Inspection) -> Inspection {
        if self.breaker.state() == BreakerState::HalfOpen {
            self.take("probe", quotas, 1.into()).await;
        }
        let tree = self.breaker.show(tree);
        if self.breaker.state() == BreakerState::Closed {
            return tree;
        }
        let note = match self.instances {
            1 => "the shared counter of limits cannot be reached: each instance admits the limit; \
                  reconnecting"
                .to_owned(),
            count => format!(
                "the shared counter of limits cannot be reached: each instance admits 1/{count} of \
                 the limit; reconnecting"
            ),
        };
        tree.status(Status::Degraded, note)
    }
}

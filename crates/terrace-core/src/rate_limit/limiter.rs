//! Whether a request of a client is admitted.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;

use super::{Quota, SharedPermits, Taken, Window};
use crate::Runtime;

/// Admits so many requests of each client in any window.
///
/// **Chunks.** Permits are taken from the shared counter in chunks, which must be used within a slot's
/// length from before they were asked for. What is not used by then is lost, and never given twice. A
/// chunk is one permit at first. It doubles when the last one was used up within 100 ms, up to a
/// twentieth of the limit; a client that is slow gets one again. Requests of one client that wait share
/// the call for a chunk.
///
/// **Own count.** What this instance has admitted it counts itself, too. That is all the counting where
/// there is one instance. It also bounds what an instance admits while the shared counter cannot be
/// reached, or after it has lost its memory.
///
/// Memory is bounded: an instance knows [`RateLimiter::CLIENTS`] clients. Who is forgotten is counted by
/// the shared counter alone.
#[derive(Debug)]
pub struct RateLimiter {
    quota: Quota,
    shared: Option<Arc<SharedPermits>>,
    clients: Cache<String, Arc<Client>>,
    admitted: AtomicU64,
    refused: AtomicU64,
    started: Instant,
    runtime: Runtime,
}

/// How a client stands after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Whether the request is admitted.
    pub admitted: bool,
    /// How many more would be.
    pub left: u32,
    /// How long until more than that would be.
    pub more_in: Duration,
}

impl Admission {
    fn admitted(left: u32, more_in: Duration) -> Self {
        Self { admitted: true, left, more_in }
    }

    fn refused(more_in: Duration) -> Self {
        Self { admitted: false, left: 0, more_in }
    }
}

/// What is known of one client.
#[derive(Debug, Default)]
struct Client {
    account: Mutex<Account>,
    /// Whose turn it is to ask the shared counter.
    turn: tokio::sync::Mutex<()>,
}

impl Client {
    fn account(&self) -> MutexGuard<'_, Account> {
        // Every change is complete when a panic could happen, so poison means nothing.
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Account {
    /// What was admitted here.
    own: Window,
    chunk: Chunk,
}

impl Account {
    fn admit_alone(&mut self, quota: &Quota, now: Duration) -> Admission {
        let Taken { granted, left, more_in } = self.own.take(quota, now, 1);
        match granted {
            0 => Admission::refused(more_in),
            _ => Admission::admitted(left, more_in),
        }
    }
}

/// Permits from the shared counter. Times are since the limiter's start.
#[derive(Debug, Default)]
struct Chunk {
    /// How many were asked for; 0 before the first.
    size: u32,
    /// How many are there to use.
    permits: u32,
    came: Duration,
    until: Duration,
    /// How many the counter had left, and when it has more.
    left: u32,
    more_at: Duration,
}

impl Chunk {
    /// Within which time a chunk must have been too small to get a larger one.
    const SHORT: Duration = Duration::from_millis(100);

    fn next_size(&self, now: Duration, most: u32) -> u32 {
        let short = self.permits == 0 && now.saturating_sub(self.came) <= Self::SHORT;
        let size = if short { self.size.saturating_mul(2) } else { 1 };
        size.clamp(1, most)
    }
}

impl RateLimiter {
    /// The most clients of which an instance knows how they stand.
    pub const CLIENTS: usize = 65_536;

    /// A limiter for these permits a client, which are counted by all instances or by this one alone.
    pub fn new(quota: Quota, shared: Option<Arc<SharedPermits>>, runtime: Runtime) -> Self {
        Self {
            quota,
            shared,
            clients: Cache::new(Self::CLIENTS),
            admitted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            started: runtime.now(),
            runtime,
        }
    }

    /// What each client may have.
    pub fn quota(&self) -> &Quota {
        &self.quota
    }

    /// The counter of all instances, where there is one.
    pub fn shared(&self) -> Option<&SharedPermits> {
        self.shared.as_deref()
    }

    /// How many requests were admitted, and how many were refused.
    pub fn counts(&self) -> (u64, u64) {
        (self.admitted.load(Relaxed), self.refused.load(Relaxed))
    }

    /// Decides a request of the client of this name. Cancellation safe: at most permits are lost.
    pub async fn admit(&self, name: &str) -> Admission {
        let new = || Ok::<_, Infallible>(Arc::default());
        let Ok(client) = self.clients.get_or_insert_with(name, new);
        let admission = match self.decide(&client) {
            Some(admission) => admission,
            None => {
                let _turn = client.turn.lock().await;
                // Somebody else's call may have brought enough meanwhile.
                match self.decide(&client) {
                    Some(admission) => admission,
                    None => self.ask(name, &client).await,
                }
            }
        };
        let count = if admission.admitted { &self.admitted } else { &self.refused };
        count.fetch_add(1, Relaxed);
        admission
    }

    /// What can be decided without a call.
    fn decide(&self, client: &Client) -> Option<Admission> {
        let mut account = client.account();
        let instant = self.runtime.now();
        let now = self.since_start(instant);
        let Some(shared) = &self.shared else {
            return Some(account.admit_alone(&self.quota, now));
        };
        let quota = shared.own(&self.quota, instant);
        if shared.is_out() {
            return Some(account.admit_alone(&quota, now));
        }
        let own = account.own.take(&quota, now, 0);
        let chunk = &mut account.chunk;
        let more_in = chunk.more_at.saturating_sub(now);
        if own.left == 0 {
            // Both must have some: the counter's slots begin at other times.
            let shared = if chunk.left == 0 { more_in } else { Duration::ZERO };
            return Some(Admission::refused(own.more_in.max(shared)));
        }
        if chunk.permits > 0 && now < chunk.until {
            chunk.permits -= 1;
            let left = chunk.left.saturating_add(chunk.permits).min(own.left - 1);
            account.own.take(&quota, now, 1);
            return Some(Admission::admitted(left, more_in));
        }
        // Nobody gives permits back, so the counter would say the same.
        (chunk.left == 0 && more_in > Duration::ZERO).then(|| Admission::refused(more_in))
    }

    /// Gets a chunk for the client whose turn it is.
    async fn ask(&self, name: &str, client: &Client) -> Admission {
        // Only a shared counter leaves something undecided.
        let Some(shared) = &self.shared else { return Admission::refused(Duration::ZERO) };
        let asked = self.since_start(self.runtime.now());
        let size = client.account().chunk.next_size(asked, self.quota.chunk());
        let taken = shared.take(name, &self.quota, size).await;
        let instant = self.runtime.now();
        let came = self.since_start(instant);
        let Some(Taken { granted, left, more_in }) = taken else {
            return client.account().admit_alone(&shared.own(&self.quota, instant), came);
        };
        let until = asked + self.quota.slot();
        client.account().chunk =
            Chunk { size, permits: granted, came, until, left, more_at: asked + more_in };
        // It says nothing where the chunk came too late to be used.
        self.decide(client).unwrap_or(Admission::refused(Duration::ZERO))
    }

    fn since_start(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }
}

#[cfg(test)]
mod tests;

//! Whether a request of a client is admitted.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;

use super::{Quotas, SharedPermits, Taken, Wanted, Windows};
use crate::Runtime;

/// Admits requests of each client whose costs fit into any of its windows.
///
/// **Cost.** A request takes as many permits as it costs, from all windows or from none. One that costs more
/// than a window has in all takes all that it has.
///
/// **Chunks.** Permits are taken from the shared counter in chunks, which must be used within the shortest
/// slot's length from before they were asked for. What is not used by then is lost, and never given twice. A
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
    quotas: Quotas,
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
    /// How many more permits there are, in the tightest window.
    pub left: u32,
    /// How long until there are more. For a refused request, until there are as many as it costs.
    pub more_in: Duration,
    /// Which window is the tightest, by its place among the [`Quotas`].
    pub tightest: usize,
}

impl Admission {
    fn of(admitted: bool, taken: Taken) -> Self {
        let Taken { left, more_in, tightest, .. } = taken;
        Self { admitted, left, more_in, tightest }
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
    own: Windows,
    chunk: Chunk,
}

impl Account {
    fn admit_alone(&mut self, quotas: &Quotas, parts: u32, now: Duration, cost: u32) -> Admission {
        let cost = cost.min(quotas.most(parts));
        let taken = self.own.take(quotas, parts, now, cost.into());
        Admission::of(taken.granted == cost, taken)
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
    /// How many the counter had left.
    left: u32,
    /// As many as this it does not have before that time.
    beyond: u32,
    more_at: Duration,
    tightest: usize,
}

impl Chunk {
    /// Within which time a chunk must have been too small to get a larger one.
    const SHORT: Duration = Duration::from_millis(100);

    fn next_size(&self, now: Duration, most: u32) -> u32 {
        let short = self.permits == 0 && now.saturating_sub(self.came) <= Self::SHORT;
        let size = if short { self.size.saturating_mul(2) } else { 1 };
        size.clamp(1, most)
    }

    fn usable(&self, now: Duration) -> u32 {
        if now < self.until { self.permits } else { 0 }
    }

    /// What the counter would say of so many more, where that is known.
    fn refusal(&self, wanted: u32, now: Duration) -> Option<Taken> {
        let more_in = self.more_at.saturating_sub(now);
        // Nobody gives permits back.
        let is_known = wanted > self.left && wanted >= self.beyond && more_in > Duration::ZERO;
        let left = self.left.saturating_add(self.usable(now));
        is_known.then_some(Taken { granted: 0, left, more_in, tightest: self.tightest })
    }
}

impl RateLimiter {
    /// The most clients of which an instance knows how they stand.
    pub const CLIENTS: usize = 65_536;

    /// A limiter for these permits a client, which are counted by all instances or by this one alone.
    pub fn new(quotas: Quotas, shared: Option<Arc<SharedPermits>>, runtime: Runtime) -> Self {
        Self {
            quotas,
            shared,
            clients: Cache::new(Self::CLIENTS),
            admitted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            started: runtime.now(),
            runtime,
        }
    }

    /// What each client may have.
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// The counter of all instances, where there is one.
    pub fn shared(&self) -> Option<&SharedPermits> {
        self.shared.as_deref()
    }

    /// How many requests were admitted, and how many were refused.
    pub fn counts(&self) -> (u64, u64) {
        (self.admitted.load(Relaxed), self.refused.load(Relaxed))
    }

    /// Decides a request of the client of this name, which costs so many permits. Cancellation safe: at most
    /// permits are lost.
    pub async fn admit(&self, name: &str, cost: u32) -> Admission {
        let admission = self.spend(name, cost).await;
        if admission.admitted {
            self.admitted.fetch_add(1, Relaxed);
        }
        admission
    }

    /// The same for what a request costs more than was known when it was admitted.
    pub async fn spend(&self, name: &str, cost: u32) -> Admission {
        let new = || Ok::<_, Infallible>(Arc::default());
        let Ok(client) = self.clients.get_or_insert_with(name, new);
        let admission = match self.decide(&client, cost) {
            Some(admission) => admission,
            None => {
                let _turn = client.turn.lock().await;
                // Somebody else's call may have brought enough meanwhile.
                match self.decide(&client, cost) {
                    Some(admission) => admission,
                    None => self.ask(name, &client, cost).await,
                }
            }
        };
        if !admission.admitted {
            self.refused.fetch_add(1, Relaxed);
        }
        admission
    }

    /// What can be decided without a call.
    fn decide(&self, client: &Client, cost: u32) -> Option<Admission> {
        let mut account = client.account();
        let (quotas, instant) = (&self.quotas, self.runtime.now());
        let now = self.since_start(instant);
        let Some(shared) = &self.shared else {
            return Some(account.admit_alone(quotas, 1, now, cost));
        };
        let parts = shared.parts(instant);
        if shared.is_out() {
            return Some(account.admit_alone(quotas, parts, now, cost));
        }
        let cost = cost.min(quotas.most(parts));
        let look = account.own.take(quotas, parts, now, Wanted { least: cost, most: 0 });
        let usable = account.chunk.usable(now);
        let known = account.chunk.refusal(cost.saturating_sub(usable), now);
        if look.left < cost {
            // Both must have enough: the counter's slots begin at other times.
            let taken = known.filter(|it| it.more_in > look.more_in).unwrap_or(look);
            return Some(Admission::of(false, taken));
        }
        if usable >= cost {
            account.chunk.permits -= cost;
            let own = account.own.take(quotas, parts, now, cost.into());
            let Chunk { left, permits, more_at, tightest, .. } = account.chunk;
            let left = left.saturating_add(permits);
            let shared = Taken { left, more_in: more_at.saturating_sub(now), tightest, ..own };
            return Some(Admission::of(true, if own.left < left { own } else { shared }));
        }
        known.map(|taken| Admission::of(false, taken))
    }

    /// Gets a chunk for the client whose turn it is.
    async fn ask(&self, name: &str, client: &Client, cost: u32) -> Admission {
        let instant = self.runtime.now();
        let asked = self.since_start(instant);
        // Only a shared counter leaves something undecided.
        let Some(shared) = &self.shared else { return Admission::of(false, Taken::default()) };
        let cost = cost.min(self.quotas.most(shared.parts(instant)));
        let (size, kept, kept_until) = {
            let chunk = &mut client.account().chunk;
            let size = chunk.next_size(asked, self.quotas.chunk());
            let kept = chunk.usable(asked);
            // What is kept for this request is nobody else's until there is an answer.
            chunk.permits = 0;
            (size, kept, chunk.until)
        };
        let least = cost.saturating_sub(kept).max(1);
        let wanted = Wanted { least, most: size.max(least) };
        let taken = shared.take(name, &self.quotas, wanted).await;
        let instant = self.runtime.now();
        let came = self.since_start(instant);
        let Some(Taken { granted, left, more_in, tightest }) = taken else {
            let parts = shared.parts(instant);
            return client.account().admit_alone(&self.quotas, parts, came, cost);
        };
        let mut until = asked + self.quotas.slot();
        if kept > 0 {
            until = until.min(kept_until);
        }
        let beyond = if granted == 0 { least } else { left.saturating_add(1) };
        let (permits, more_at) = (kept + granted, asked + more_in);
        client.account().chunk =
            Chunk { size, permits, came, until, left, beyond, more_at, tightest };
        // It says nothing where the chunk came too late to be used.
        self.decide(client, cost).unwrap_or(Admission::of(false, Taken::default()))
    }

    fn since_start(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }
}

#[cfg(test)]
mod tests;

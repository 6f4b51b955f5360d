use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32};

use super::*;
use crate::{BoxFuture, Error, ErrorKind, Inspection, Permits, Quota, Result, Status};

const QUOTA: Quota = Quota { limit: 100, window: Duration::from_secs(60) };
const SLOT: Duration = Duration::from_secs(3);

/// The shared counter, which takes 1 ms for an answer, and can be taken away.
#[derive(Debug)]
struct Counter {
    windows: Mutex<HashMap<String, Windows>>,
    is_away: AtomicBool,
    calls: AtomicU32,
    started: Instant,
    runtime: Runtime,
}

impl Counter {
    fn new() -> Arc<Self> {
        let runtime = Runtime::seeded(1);
        let (windows, started) = (Mutex::default(), runtime.now());
        let (is_away, calls) = (AtomicBool::default(), AtomicU32::default());
        Arc::new(Self { windows, is_away, calls, started, runtime })
    }

    /// Goes away, and forgets everything.
    fn dies(&self) {
        self.is_away.store(true, Relaxed);
        self.windows.lock().expect("no panic").clear();
    }

    fn comes_back(&self) {
        self.is_away.store(false, Relaxed);
    }

    fn calls(&self) -> u32 {
        self.calls.swap(0, Relaxed)
    }
}

impl Permits for Counter {
    fn take<'a>(
        &'a self,
        client: &'a str,
        quotas: &'a Quotas,
        wanted: Wanted,
    ) -> BoxFuture<'a, Result<Taken>> {
        Box::pin(async move {
            self.calls.fetch_add(1, Relaxed);
            if self.is_away.load(Relaxed) {
                return Err(Error::new(ErrorKind::Unavailable, "away"));
            }
            let at = self.runtime.now() - self.started;
            let taken = {
                let mut windows = self.windows.lock().expect("no panic");
                windows.entry(client.to_owned()).or_default().take(quotas, 1, at, wanted)
            };
            self.runtime.sleep(Duration::from_millis(1)).await;
            Ok(taken)
        })
    }
}

/// Two instances on one counter.
fn instances(counter: &Arc<Counter>) -> [RateLimiter; 2] {
    instances_of(counter, &QUOTA.into())
}

fn instances_of(counter: &Arc<Counter>, quotas: &Quotas) -> [RateLimiter; 2] {
    let runtime = &counter.runtime;
    [0, 1].map(|_| {
        let shared = SharedPermits::new(Arc::clone(counter) as _, 2, runtime.clone());
        RateLimiter::new(quotas.clone(), Some(Arc::new(shared)), runtime.clone())
    })
}

/// How many of so many requests at once are admitted.
async fn burst(limiter: &RateLimiter, count: usize) -> usize {
    let all = (0..count).map(|_| limiter.admit("a", 1));
    let all = futures_util::future::join_all(all).await;
    all.iter().filter(|admission| admission.admitted).count()
}

#[tokio::test(start_paused = true)]
async fn a_burst_gets_the_limit_and_no_more_with_few_calls() {
    let counter = Counter::new();
    let [first, second] = instances(&counter);
    assert_eq!(burst(&first, 300).await, 100);
    // 1, 2, 4, then 5 each; the last answer says that nothing is left.
    assert_eq!(counter.calls(), 3 + 19);
    assert_eq!(burst(&first, 50).await, 0);
    assert_eq!(counter.calls(), 0, "a refusal is known until there may be more");
    assert_eq!(burst(&second, 300).await, 0);
    assert_eq!((first.counts(), second.counts()), ((100, 250), (0, 300)));
    let refused = second.admit("a", 1).await;
    assert!(refused.more_in > 21 * SLOT && refused.more_in <= 22 * SLOT, "{refused:?}");
    counter.runtime.sleep(refused.more_in).await;
    let (one, other) = tokio::join!(burst(&first, 300), burst(&second, 300));
    assert_eq!(one + other, 100, "{one} and {other}");
}

#[tokio::test(start_paused = true)]
async fn no_window_has_more_than_the_limit_over_two_instances() {
    let counter = Counter::new();
    let (instances, runtime) = (instances(&counter), &counter.runtime);
    let mut uses = Vec::new();
    for _ in 0..3_000 {
        let pause = runtime.random() % 4_000;
        if runtime.random() % 3 == 0 {
            runtime.sleep(Duration::from_millis(pause)).await;
        }
        let limiter = &instances[usize::from(runtime.random() % 2 == 0)];
        for _ in 0..runtime.random() % 12 {
            if limiter.admit("a", 1).await.admitted {
                uses.push(runtime.now());
            }
        }
    }
    assert!(uses.len() > 1_000, "{}", uses.len());
    for (place, from) in uses.iter().enumerate() {
        let within = uses[place..].partition_point(|at| *at <= *from + QUOTA.window);
        assert!(within <= 100, "{within} from {place} on");
    }
}

#[tokio::test(start_paused = true)]
async fn a_chunk_is_lost_after_a_slot_and_a_slow_client_gets_one_permit() {
    let counter = Counter::new();
    let ([limiter, _], runtime) = (instances(&counter), &counter.runtime);
    assert_eq!(burst(&limiter, 8).await, 8);
    assert_eq!(counter.calls(), 4, "1, 2, 4 and 5, of which 4 are left");
    runtime.sleep(SLOT).await;
    // It is not given the four, and is slow now.
    let admission = limiter.admit("a", 1).await;
    assert_eq!((admission.left, counter.calls()), (100 - 12 - 1, 1));
    runtime.sleep(Duration::from_secs(1)).await;
    assert_eq!((limiter.admit("a", 1).await.left, counter.calls()), (86, 1));
}

#[tokio::test(start_paused = true)]
async fn each_instance_keeps_to_its_share_while_the_counter_is_away_and_a_window_after() {
    let counter = Counter::new();
    let (instances, runtime) = (instances(&counter), &counter.runtime);
    let status = async |limiter: &RateLimiter| {
        let shared = limiter.shared().expect("a counter");
        shared.show(&QUOTA.into(), Inspection::new("limits")).await
    };
    assert_eq!(burst(&instances[0], 30).await, 30);
    counter.dies();
    for (limiter, admitted) in instances.iter().zip([20 + 3, 50]) {
        // Three of a chunk that was granted before.
        let admitted_now = burst(limiter, 200).await;
        assert!(admitted_now <= admitted, "{admitted_now}");
        let tree = status(limiter).await;
        assert_eq!(tree.status, Status::Degraded);
        assert!(tree.note.contains("1/2 of the limit"), "{}", tree.note);
    }
    counter.comes_back();
    runtime.sleep(Duration::from_secs(3)).await;
    for limiter in &instances {
        assert_eq!(status(limiter).await.status, Status::Healthy);
        assert_eq!(burst(limiter, 200).await, 0, "it remembers what the counter has forgotten");
    }
    runtime.sleep(QUOTA.memory()).await;
    let (one, other) = tokio::join!(burst(&instances[0], 300), burst(&instances[1], 300));
    assert_eq!(one + other, 100);
}

#[tokio::test(start_paused = true)]
async fn who_goes_away_while_it_asks_leaves_the_turn_to_the_next() {
    let counter = Counter::new();
    let [limiter, _] = instances(&counter);
    {
        let mut asks = std::pin::pin!(limiter.admit("a", 1));
        assert!(futures_util::FutureExt::now_or_never(asks.as_mut()).is_none());
    }
    let admission = limiter.admit("a", 1).await;
    assert!(admission.admitted);
    assert_eq!(admission.left, 98, "its permit is lost");
}

#[tokio::test(start_paused = true)]
async fn one_instance_counts_alone() {
    let limiter = RateLimiter::new(QUOTA.into(), None, Runtime::seeded(1));
    assert_eq!(burst(&limiter, 300).await, 100);
    assert!(limiter.admit("b", 1).await.admitted);
    assert_eq!(limiter.admit("b", 1).await.left, 98);
}

/// Two windows, and requests of different costs through two instances.
#[tokio::test(start_paused = true)]
async fn no_window_of_any_length_has_more_than_its_limit_whatever_requests_cost() {
    let second = Quota { limit: 20, window: Duration::from_secs(1) };
    let quotas = Quotas::from_iter([QUOTA, second]);
    let counter = Counter::new();
    let (instances, runtime) = (instances_of(&counter, &quotas), &counter.runtime);
    let (mut uses, mut refused) = (Vec::new(), 0);
    for _ in 0..6_000 {
        if runtime.random() % 3 == 0 {
            runtime.sleep(Duration::from_millis(runtime.random() % 900)).await;
        }
        let limiter = &instances[usize::from(runtime.random() % 2 == 0)];
        let cost = [1, 1, 1, 5, 15][usize::try_from(runtime.random() % 5).expect("small")];
        let admission = limiter.admit("a", cost).await;
        if admission.admitted {
            uses.push((runtime.now(), cost));
        } else {
            refused += 1;
            assert!(admission.left < cost, "{admission:?} of {cost}");
        }
    }
    assert!(uses.len() > 500 && refused > 500, "{} and {refused}", uses.len());
    for quota in quotas.all() {
        for (place, (from, _)) in uses.iter().enumerate() {
            let within = uses[place..].iter().take_while(|(at, _)| *at <= *from + quota.window);
            let sum = within.map(|(_, cost)| cost).sum::<u32>();
            assert!(sum <= quota.limit, "{sum} in {:?} from {place} on", quota.window);
        }
    }
}

/// What is left of a chunk is used for a larger request, and is not lost when that is refused.
#[tokio::test(start_paused = true)]
async fn a_large_request_uses_what_is_there_and_takes_nothing_when_it_is_refused() {
    let counter = Counter::new();
    let [limiter, other] = instances(&counter);
    assert_eq!(burst(&limiter, 8).await, 8);
    assert_eq!(counter.calls(), 4, "1, 2, 4 and 5, of which 4 are left");
    let large = other.admit("a", 10).await;
    assert_eq!((large.admitted, large.left, counter.calls()), (true, 78, 1));
    let refused = limiter.admit("a", 85).await;
    assert_eq!((refused.admitted, refused.left, counter.calls()), (false, 82, 1));
    assert!(!limiter.admit("a", 90).await.admitted);
    assert_eq!(counter.calls(), 0, "known until there are more");
    let whole = limiter.admit("a", 82).await;
    assert_eq!((whole.admitted, whole.left, counter.calls()), (true, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_costs_more_than_there_ever_is_takes_all() {
    let limiter = RateLimiter::new(QUOTA.into(), None, Runtime::seeded(1));
    assert!(limiter.admit("a", 1000).await.admitted);
    let refused = limiter.admit("a", 1).await;
    assert_eq!((refused.admitted, refused.more_in), (false, QUOTA.memory()));
    assert_eq!(limiter.spend("b", 1000).await.left, 0);
    assert_eq!(limiter.counts(), (1, 1), "what is spent is no request");
}

//! Permits in Redis: the same as the window of the core, and never too many.

use std::sync::Arc;
use std::time::Duration;

use redis::Script;
use redis::aio::MultiplexedConnection;
use terrace_core::{
    Inspection, Permits as _, Quota, Quotas, RateLimiter, Runtime, SharedPermits, Status, Taken,
    Wanted, Windows,
};
use terrace_lab::testing;
use terrace_stores::{RedisPermits, RedisPermitsOptions};

use super::{Private, connection, until};

const SCRIPT: &str = include_str!("../../../src/redis/lua/take.lua");

/// The script with the time as a last argument, in microseconds, and this many slots that count.
fn script(slots: u32) -> Script {
    let clock = "redis.call('TIME')";
    let counted = "local COUNTED = 22";
    assert!(SCRIPT.contains(clock) && SCRIPT.contains(counted));
    let text = SCRIPT.replace(clock, "{ 0, ARGV[#ARGV] }");
    Script::new(&text.replace(counted, &format!("local COUNTED = {slots}")))
}

async fn take(
    script: &Script,
    connection: &mut MultiplexedConnection,
    (key, quotas): (&str, &Quotas),
    at: Duration,
    wanted: Wanted,
) -> Taken {
    let mut call = script.prepare_invoke();
    for quota in quotas.all() {
        call.key(format!("{key}:{}", micros(quota.slot())));
    }
    call.arg(wanted.least).arg(wanted.most);
    for quota in quotas.all() {
        call.arg(quota.limit).arg(micros(quota.slot()));
    }
    let answer: (u32, u32, u64, usize) =
        call.arg(micros(at)).invoke_async(connection).await.expect("an answer");
    let (granted, left, micros, tightest) = answer;
    Taken { granted, left, more_in: Duration::from_micros(micros), tightest }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).expect("a short time")
}

fn below(limit: u32, runtime: &Runtime) -> u32 {
    u32::try_from(runtime.random() % u64::from(limit)).expect("it is below the limit")
}

/// How many answers of so many differ between the window and a script.
async fn differences(slots: u32, takes: u32) -> u32 {
    let fresh = testing::fresh_prefix();
    let mut connection = connection(&fresh.url).await;
    let (script, runtime) = (script(slots), Runtime::seeded(7));
    let mut different = 0;
    // Not shorter: what Redis keeps ends by its own clock.
    for (client, seconds, limit) in
        [("a", 60, 1), ("b", 70, 10), ("c", 3600, 100), ("d", 86_400, 1000)]
    {
        let mut quota = Quota { limit, window: Duration::from_secs(seconds) };
        let (key, slot) = (format!("{}{client}", fresh.prefix), quota.slot());
        // Half of it in a quarter of the time, but for the first client.
        let further = (limit > 1).then(|| Quota { limit: limit / 2, window: quota.window / 4 });
        // As many microseconds as a server counts since 1970.
        let (mut windows, mut at) = (Windows::default(), Duration::from_secs(1_800_000_000));
        for _ in 0..takes {
            match runtime.random() % 10 {
                0 => at -= slot.mul_f64(1.5),
                1 => at += quota.window,
                2 => quota.limit = 1 + below(limit, &runtime),
                3..6 => at += runtime.jitter(slot, 0.9),
                _ => at += Duration::from_micros(runtime.random() % 1000),
            }
            let least = below(limit + 2, &runtime) / 2;
            let wanted = Wanted { least, most: least + below(4, &runtime) };
            let quotas = std::iter::once(quota).chain(further).collect();
            let taken = take(&script, &mut connection, (&key, &quotas), at, wanted).await;
            different += u32::from(taken != windows.take(&quotas, 1, at, wanted));
        }
    }
    different
}

#[tokio::test]
async fn the_script_does_what_the_windows_do() {
    assert_eq!(differences(22, 300).await, 0);
    assert!(differences(20, 300).await > 0, "fewer slots are noticed");
}

/// A hash has no more fields than slots that count, and goes by itself.
#[tokio::test]
async fn what_redis_keeps_of_a_client_is_bounded() {
    let fresh = testing::fresh_prefix();
    let mut connection = connection(&fresh.url).await;
    let quotas = Quotas::from(Quota { limit: 1000, window: Duration::from_secs(20) });
    let (script, name) = (script(22), format!("{}a", fresh.prefix));
    let key = format!("{name}:{}", micros(quotas.slot()));
    for second in 0..100 {
        let at = Duration::from_secs(second);
        take(&script, &mut connection, (&name, &quotas), at, 1.into()).await;
        let fields: usize =
            redis::cmd("HLEN").arg(&key).query_async(&mut connection).await.expect("a count");
        assert!(fields <= 22, "{fields}");
    }
    let left: u64 =
        redis::cmd("PTTL").arg(&key).query_async(&mut connection).await.expect("a time");
    assert!((22_000..=23_000).contains(&left), "{left} ms");
}

fn options(url: String, namespace: &str) -> RedisPermitsOptions {
    // A busy machine must not make a test of answers one of timeouts.
    let command_timeout = Duration::from_secs(5);
    RedisPermitsOptions { command_timeout, ..RedisPermitsOptions::new(url, namespace) }
}

fn limiter(
    options: &RedisPermitsOptions,
    quotas: impl Into<Quotas>,
    instances: u32,
) -> RateLimiter {
    let runtime = Runtime::system();
    let permits = RedisPermits::new(options.clone(), runtime.clone()).expect("options");
    let shared = SharedPermits::new(Arc::new(permits), instances, runtime.clone());
    RateLimiter::new(quotas.into(), Some(Arc::new(shared)), runtime)
}

/// How many are admitted of so many at once.
async fn burst(limiter: &RateLimiter, count: usize) -> usize {
    let all = futures_util::future::join_all((0..count).map(|_| limiter.admit("a", 1))).await;
    all.iter().filter(|admission| admission.admitted).count()
}

/// Two lengths of windows under load of two instances, with requests of different costs: never more in any
/// window of either length than is promised.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_instances_admit_the_limit_in_any_window_of_any_length() {
    let fresh = testing::fresh_prefix();
    let options = options(fresh.url, fresh.prefix.trim_end_matches(':'));
    let quota = |limit, seconds| Quota { limit, window: Duration::from_secs(seconds) };
    // A slot of the shorter one is 100 ms: Redis has so long for an answer.
    let quotas = Quotas::from_iter([quota(140, 6), quota(80, 2)]);
    let (runtime, begun) = (Runtime::system(), Runtime::system().now());
    let instances = [0, 1].map(|_| limiter(&options, quotas.clone(), 2));
    let load = instances.iter().cycle().take(8).map(async |limiter| {
        let mut uses = Vec::new();
        while runtime.now() < begun + Duration::from_secs(11) {
            let cost = if runtime.random() % 4 == 0 { 7 } else { 1 };
            let before = runtime.now();
            if limiter.admit("a", cost).await.admitted {
                uses.push((before, runtime.now(), cost));
            }
            runtime.sleep(Duration::from_millis(1)).await;
        }
        uses
    });
    let uses = futures_util::future::join_all(load).await.concat();
    assert!(uses.iter().map(|(.., cost)| cost).sum::<u32>() > 200, "{}", uses.len());
    let mut outages = 0;
    for limiter in &instances {
        let shared = limiter.shared().expect("a counter");
        let tree = shared.show(limiter.quotas(), Inspection::new("limits")).await;
        outages += tree.number("breaker_opened").expect("a count");
    }
    for quota in quotas.all() {
        // On a machine that stands still Redis may be late, and each instance goes on by its share.
        let most = if outages == 0 { quota.limit } else { quota.limit * 3 / 2 };
        for (from, ..) in &uses {
            // Those that were certainly within the window.
            let end = *from + quota.window;
            let within = uses.iter().filter(|(before, after, _)| before >= from && *after <= end);
            let sum = within.map(|(.., cost)| cost).sum::<u32>();
            assert!(sum <= most, "{sum} in {:?}, after {outages} outages", quota.window);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_one_instance_gets_exactly_the_limit() {
    let fresh = testing::fresh_prefix();
    let options = options(fresh.url, fresh.prefix.trim_end_matches(':'));
    let quota = Quota { limit: 100, window: Duration::from_secs(600) };
    let instances = [0, 1].map(|_| limiter(&options, quota, 1));
    assert_eq!(burst(&instances[0], 300).await, 100);
    assert_eq!(burst(&instances[1], 300).await, 0);
    assert_eq!(instances[1].counts(), (0, 300));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_each_instance_admits_its_share_and_says_so() {
    let private = Private::start().await;
    let options = options(private.server.url(), "test");
    let quota = Quota { limit: 100, window: Duration::from_secs(600) };
    let instances = [0, 1].map(|_| limiter(&options, quota, 2));
    let status = async |limiter: &RateLimiter| {
        let shared = limiter.shared().expect("a counter");
        shared.show(limiter.quotas(), Inspection::new("limits")).await.status
    };
    for limiter in &instances {
        assert!(limiter.admit("b", 1).await.admitted);
        assert_eq!(status(limiter).await, Status::Healthy);
    }
    private.server.kill();
    for limiter in &instances {
        assert_eq!(burst(limiter, 200).await, 50);
        assert_eq!(status(limiter).await, Status::Degraded);
    }
    private.server.restart().await.expect("Redis starts again");
    for limiter in &instances {
        until("the counter", || async { status(limiter).await == Status::Healthy }).await;
        assert_eq!(burst(limiter, 200).await, 0, "Redis has forgotten it, the instance has not");
    }
}

#[tokio::test]
async fn a_script_that_the_server_forgot_and_a_connection_that_ended_are_made_anew() {
    let private = Private::start().await;
    let options = options(private.server.url(), "test");
    let permits = RedisPermits::new(options, Runtime::system()).expect("options");
    let quota = Quota { limit: 10, window: Duration::from_secs(600) };
    let quotas = Quotas::from(quota);
    let take = async || permits.take("a", &quotas, 1.into()).await.map(|taken| taken.left);
    assert_eq!(take().await.expect("an answer"), 9);
    private.by_hand::<()>("SCRIPT FLUSH").await;
    assert_eq!(take().await.expect("an answer"), 8);
    private.by_hand::<i64>("CLIENT KILL TYPE normal").await;
    until("another connection", || async { take().await.is_ok() }).await;
    let keys: Vec<String> = private.by_hand("KEYS *").await;
    assert_eq!(keys, ["test:limit:30000000:{a}"]);
}

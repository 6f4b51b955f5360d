//! Permits in Redis: the same as the window of the core, and never too many.

use std::sync::Arc;
use std::time::Duration;

use redis::Script;
use redis::aio::MultiplexedConnection;
use terrace_core::{
    Inspection, Permits as _, Quota, RateLimiter, Runtime, SharedPermits, Status, Taken, Window,
};
use terrace_lab::testing;
use terrace_stores::{RedisPermits, RedisPermitsOptions};

use super::{Private, connection, until};

const SCRIPT: &str = include_str!("../../../src/redis/lua/take.lua");

/// The script with the time as a fourth argument, in microseconds, and this many slots that count.
fn script(slots: u32) -> Script {
    let clock = "redis.call('TIME')";
    let counted = "local COUNTED = 22";
    assert!(SCRIPT.contains(clock) && SCRIPT.contains(counted));
    let text = SCRIPT.replace(clock, "{ 0, ARGV[4] }");
    Script::new(&text.replace(counted, &format!("local COUNTED = {slots}")))
}

async fn take(
    script: &Script,
    connection: &mut MultiplexedConnection,
    (key, quota): (&str, &Quota),
    at: Duration,
    wanted: u32,
) -> Taken {
    let mut call = script.key(key);
    call.arg(quota.limit).arg(micros(quota.slot())).arg(wanted).arg(micros(at));
    let answer: (u32, u32, u64) = call.invoke_async(connection).await.expect("an answer");
    let (granted, left, micros) = answer;
    Taken { granted, left, more_in: Duration::from_micros(micros) }
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
        // As many microseconds as a server counts since 1970.
        let (mut window, mut at) = (Window::default(), Duration::from_secs(1_800_000_000));
        for _ in 0..takes {
            match runtime.random() % 10 {
                0 => at -= slot.mul_f64(1.5),
                1 => at += quota.window,
                2 => quota.limit = 1 + below(limit, &runtime),
                3..6 => at += runtime.jitter(slot, 0.9),
                _ => at += Duration::from_micros(runtime.random() % 1000),
            }
            let wanted = below(limit + 2, &runtime) / 2;
            let taken = take(&script, &mut connection, (&key, &quota), at, wanted).await;
            different += u32::from(taken != window.take(&quota, at, wanted));
        }
    }
    different
}

#[tokio::test]
async fn the_script_does_what_the_window_does() {
    assert_eq!(differences(22, 300).await, 0);
    assert!(differences(20, 300).await > 0, "fewer slots are noticed");
}

/// A hash has no more fields than slots that count, and goes by itself.
#[tokio::test]
async fn what_redis_keeps_of_a_client_is_bounded() {
    let fresh = testing::fresh_prefix();
    let mut connection = connection(&fresh.url).await;
    let quota = Quota { limit: 1000, window: Duration::from_secs(20) };
    let (script, key) = (script(22), format!("{}a", fresh.prefix));
    for second in 0..100 {
        let at = Duration::from_secs(second);
        take(&script, &mut connection, (&key, &quota), at, 1).await;
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

fn limiter(options: &RedisPermitsOptions, quota: Quota, instances: u32) -> RateLimiter {
    let runtime = Runtime::system();
    let permits = RedisPermits::new(options.clone(), runtime.clone()).expect("options");
    let shared = SharedPermits::new(Arc::new(permits), instances, runtime.clone());
    RateLimiter::new(quota, Some(Arc::new(shared)), runtime)
}

/// How many are admitted of so many at once.
async fn burst(limiter: &RateLimiter, count: usize) -> usize {
    let all = futures_util::future::join_all((0..count).map(|_| limiter.admit("a"))).await;
    all.iter().filter(|admission| admission.admitted).count()
}

/// Two windows under load of two instances: never more in a window than is promised.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_instances_admit_the_limit_in_any_window() {
    let fresh = testing::fresh_prefix();
    let options = options(fresh.url, fresh.prefix.trim_end_matches(':'));
    let quota = Quota { limit: 100, window: Duration::from_secs(4) };
    let (runtime, begun) = (Runtime::system(), Runtime::system().now());
    let instances = [0, 1].map(|_| limiter(&options, quota, 2));
    let load = instances.iter().cycle().take(8).map(async |limiter| {
        let mut uses = Vec::new();
        while runtime.now() < begun + quota.window.mul_f64(2.3) {
            let before = runtime.now();
            if limiter.admit("a").await.admitted {
                uses.push((before, runtime.now()));
            }
            runtime.sleep(Duration::from_millis(1)).await;
        }
        uses
    });
    let uses = futures_util::future::join_all(load).await.concat();
    assert!(uses.len() > 150, "{}", uses.len());
    let mut outages = 0;
    for limiter in &instances {
        let shared = limiter.shared().expect("a counter");
        let tree = shared.show(&quota, Inspection::new("limits")).await;
        outages += tree.number("breaker_opened").expect("a count");
    }
    // On a machine that stands still Redis may be late, and each instance goes on by its share.
    let most = if outages == 0 { 100 } else { 150 };
    for (from, _) in &uses {
        // Those that were certainly within the window.
        let within = |(before, after): &&(_, _)| before >= from && *after <= *from + quota.window;
        let count = uses.iter().filter(within).count();
        assert!(count <= most, "{count} in a window, after {outages} outages");
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
        shared.show(&quota, Inspection::new("limits")).await.status
    };
    for limiter in &instances {
        assert!(limiter.admit("b").await.admitted);
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
    let take = async || permits.take("a", &quota, 1).await.map(|taken| taken.left);
    assert_eq!(take().await.expect("an answer"), 9);
    private.by_hand::<()>("SCRIPT FLUSH").await;
    assert_eq!(take().await.expect("an answer"), 8);
    private.by_hand::<i64>("CLIENT KILL TYPE normal").await;
    until("another connection", || async { take().await.is_ok() }).await;
    let keys: Vec<String> = private.by_hand("KEYS *").await;
    assert_eq!(keys, ["test:limit:30000000:{a}"]);
}

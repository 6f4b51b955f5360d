//! Two instances, clients that do a bit of everything, and one fault after the other, as a seed says;
//! then every checker.
//!
//! `TERRACE_SEED` begins with another seed. Faults do not overlap: an instance that can reach neither
//! the database nor the one that wrote is the stated exception.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use terrace_core::Runtime;
use terrace_lab::{Direction, FaultProxy};
use terrace_prove::checkers::{
    Freshness, conditions, freshness, idempotency, linearizability, lost_writes, sessions,
};
use terrace_prove::{Verdict, Worker};

use super::field::{Field, Instance};
use super::{SLACK, WATCH, pause, rounds, until};

const WORKERS: usize = 6;
const FAULTS: usize = 5;
const HOT_KEYS: usize = 4;
const COLD_KEYS: usize = 60;
/// Steps of the search for an order, over all keys.
const BUDGET: usize = 20_000_000;

struct Storm {
    field: Field,
    a: Instance,
    b: Instance,
    random: Runtime,
    keys: Vec<String>,
}

impl Storm {
    async fn new(level: u8, seed: u64) -> Self {
        let field = Field::new(level).await;
        let (a, b) = (field.instance("a").await, field.instance("b").await);
        // Half of the operations meet on few keys; the others leave entries in caches for a while.
        let hot = (0..COLD_KEYS).map(|number| format!("hot{}", number % HOT_KEYS));
        let keys = hot.chain((0..COLD_KEYS).map(|number| format!("cold{number}"))).collect();
        Self { field, a, b, random: Runtime::seeded(seed), keys }
    }

    fn draw(&self, below: u64) -> u64 {
        self.random.random() % below
    }

    /// One fault and its end; what it was.
    async fn fault(&self) -> String {
        let (name, instance) = if self.draw(2) == 0 { ("a", &self.a) } else { ("b", &self.b) };
        let time = Duration::from_millis(100 + self.draw(2900));
        let broken = async |proxy: &FaultProxy, what: &str, fault: &dyn Fn(&FaultProxy)| {
            fault(proxy);
            pause(time).await;
            proxy.pass();
            format!("{what} of {name} for {time:?}")
        };
        let cut = FaultProxy::cut;
        let hold = |proxy: &FaultProxy| proxy.hold(Direction::Both);
        let deafen = |proxy: &FaultProxy| proxy.blackhole(Direction::Responses);
        // Level 1 has no Redis.
        let first = if self.field.level == 1 { 5 } else { 0 };
        match first + self.draw(9 - first) {
            0 => broken(&instance.redis, "Redis cut", &cut).await,
            1 => broken(&instance.redis, "Redis held", &hold).await,
            2 => broken(&instance.redis, "answers of Redis lost", &deafen).await,
            3 => {
                self.field.redis.pause();
                pause(time).await;
                self.field.redis.resume();
                format!("Redis paused for {time:?}")
            }
            4 => {
                self.field.redis.kill();
                pause(time).await;
                self.field.redis.restart().await.expect("Redis starts again");
                format!("Redis dead for {time:?}")
            }
            5 => broken(&instance.postgres, "PostgreSQL cut", &cut).await,
            6 => broken(&instance.postgres, "PostgreSQL reset", &FaultProxy::reset).await,
            7 => broken(&instance.postgres, "PostgreSQL held", &hold).await,
            _ => broken(&instance.postgres, "answers of PostgreSQL lost", &deafen).await,
        }
    }

    /// Faults and work at once; what the faults were.
    async fn rage(&self, seed: u64) -> Vec<String> {
        let mut faults = Vec::new();
        let over = Arc::new(AtomicBool::new(false));
        let clients = vec![self.a.client.clone(), self.b.client.clone()];
        let workers: Vec<_> = (0..WORKERS)
            .map(|number| {
                let random = Runtime::seeded(seed << 8 | number as u64);
                let name = format!("w{number}");
                let worker = Worker::new(&name, clients.clone(), self.keys.clone(), random);
                let over = Arc::clone(&over);
                self.random.spawn("worker", async move { worker.run(&over).await })
            })
            .collect();
        for _ in 0..FAULTS {
            pause(WATCH + SLACK).await;
            let began = self.field.history.now().as_secs_f32();
            faults.push(format!("at {began:.1} s: {}", self.fault().await));
        }
        pause(WATCH + SLACK).await;
        over.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.await;
        }
        let keys: std::collections::BTreeSet<_> = self.keys.iter().collect();
        for key in keys {
            until("strong reads are answered", async || {
                self.b.client.read(key).strong().send().await.has_read()
            })
            .await;
        }
        faults
    }
}

/// What each checker says of each seed.
async fn every_checker(level: u8) -> String {
    let mut report = String::new();
    let first = std::env::var("TERRACE_SEED").ok().and_then(|text| text.parse::<u64>().ok());
    for seed in (first.unwrap_or(1)..).take(rounds()) {
        let storm = Storm::new(level, seed).await;
        let faults = storm.rage(seed).await.join("\n");
        let proxies = [&storm.a.redis, &storm.a.postgres, &storm.b.redis, &storm.b.postgres];
        let happened = proxies.iter().any(|proxy| {
            let seen = proxy.evidence();
            seen.reset + seen.held_bytes + seen.dropped_bytes + seen.unreachable > 0
        });
        assert!(happened || faults.contains("Redis"), "no fault reached anybody:\n{faults}");
        let operations = storm.field.history.operations();
        let bound = if level == 1 { Duration::ZERO } else { WATCH + SLACK };
        let promise = Freshness { allowed: bound, ..Freshness::default() };
        let mut verdicts: Vec<(&str, Verdict)> = vec![
            ("freshness", freshness(&operations, &promise)),
            ("sessions", sessions(&operations)),
            ("lost writes", lost_writes(&operations)),
            ("conditions", conditions(&operations)),
            ("idempotency", idempotency(&operations)),
        ];
        if level == 1 {
            verdicts.push(("linearizability", linearizability(&operations, BUDGET)));
        }
        let mut refuted = String::new();
        for (checker, verdict) in &verdicts {
            report.push_str(&format!("level {level}, seed {seed}, {checker}: {verdict}\n"));
            if !verdict.holds() {
                refuted.push_str(&format!("\n{checker}: {verdict}"));
            }
        }
        assert!(refuted.is_empty(), "seed {seed}\n{faults}{refuted}");
    }
    report
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn level_1() {
    eprintln!("{}", every_checker(1).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn level_2() {
    eprintln!("{}", every_checker(2).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn level_5() {
    eprintln!("{}", every_checker(5).await);
}

//! Level 6 on NATS while answers of the journal are lost: what was acknowledged
//! is seen through the instance that took it, applied or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use terrace_core::Runtime;
use terrace_lab::{Direction, FaultProxy, NatsOptions, NatsServer};
use terrace_prove::checkers::{Freshness, freshness, sessions};

use super::field::{Field, Instance, port_of};
use super::{pause, rounds};

const KEYS: usize = 16;
const FAULTS: u32 = 40;
/// How often each write is read before the next one.
const READS: usize = 8;

/// Writes to one key, and reads each acknowledged write for a while, with its token and without: it
/// must be seen while it waits, while it is applied, and afterwards.
async fn write_and_read(a: Arc<Instance>, key: String, over: Arc<AtomicBool>) {
    let mut number = 0;
    while !over.load(Ordering::Relaxed) {
        number += 1;
        let write = a.client.write(&key, &number.to_string()).send().await;
        for _ in 0..READS {
            a.client.read(&key).send().await;
            a.client.read(&key).after(&write).send().await;
            pause(Duration::from_millis(40)).await;
        }
    }
}

/// Faults of the network between one instance and NATS, as long and as far apart as the seed says.
async fn faults(proxy: &FaultProxy, random: &Runtime) {
    let time =
        |from: u64, below: u64| Duration::from_millis(from + random.random() % (below - from));
    for _ in 0..FAULTS {
        proxy.blackhole(Direction::Responses);
        // Short enough to lose one delivery, or long enough to lose the connection.
        let lasts = if random.random().is_multiple_of(4) { time(40, 500) } else { time(2, 30) };
        pause(lasts).await;
        proxy.pass();
        pause(time(50, 250)).await;
    }
}

async fn answers_are_lost(seed: u64) {
    let random = Runtime::seeded(seed);
    let field = Field::new(6).await;
    let directory = tempfile::tempdir().expect("a directory");
    let server = NatsServer::start(NatsOptions::new(directory.path().join("nats"))).await;
    let server = server.expect("NATS starts");
    let proxy = FaultProxy::to_port(port_of(&server.url())).await.expect("a proxy");
    let (through, direct) = (proxy.url(&server.url()), server.url());
    // Who flushes: the instance whose answers are lost, the other one, or both.
    let (of_a, of_b) = match seed % 3 {
        0 => ("inside", "apart"),
        1 => ("inside", "inside"),
        _ => ("apart", "inside"),
    };
    let takeover = ("TERRACE_JOURNAL_TAKEOVER_SECONDS", "3");
    let a = [("JOURNAL_URL", through.as_str()), takeover, ("TERRACE_JOURNAL_FLUSHER", of_a)];
    let b = [("JOURNAL_URL", direct.as_str()), takeover, ("TERRACE_JOURNAL_FLUSHER", of_b)];
    let a = Arc::new(field.instance_with("a", &field.database, &a).await);
    let _other = field.instance_with("b", &field.database, &b).await;
    let over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..KEYS)
        .map(|number| {
            let work = write_and_read(Arc::clone(&a), format!("k{number}"), Arc::clone(&over));
            random.spawn("writer", work)
        })
        .collect();
    faults(&proxy, &random).await;
    over.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await;
    }
    assert!(proxy.evidence().dropped_bytes > 0 && proxy.evidence().reset > 0);
    let operations = field.history.operations();
    let fresh = freshness(&operations, &Freshness::default());
    assert!(fresh.holds(), "seed {seed}: {fresh}");
    let sessions = sessions(&operations);
    assert!(sessions.holds(), "seed {seed}: {sessions}");
}

/// `TERRACE_SEED` begins with another seed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_are_seen_while_answers_are_lost() {
    let first = std::env::var("TERRACE_SEED").ok().and_then(|text| text.parse().ok());
    for seed in (first.unwrap_or(0)..).take(rounds()) {
        answers_are_lost(seed).await;
    }
}

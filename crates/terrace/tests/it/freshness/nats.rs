//! Level 6 on NATS while answers of the journal are lost (issue, number 11): what was acknowledged
//! is seen through the instance that took it, applied or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use terrace_core::Runtime;
use terrace_lab::{Direction, FaultProxy, NatsOptions, NatsServer};
use terrace_prove::checkers::{Freshness, freshness, sessions};

use super::field::{Field, Instance, port_of};
use super::{pause, rounds};

const KEYS: usize = 6;
const FAULTS: u32 = 16;

/// Writes to one key, and reads each acknowledged write at once, with its token and without.
async fn write_and_read(a: Arc<Instance>, key: String, over: Arc<AtomicBool>) {
    let mut number = 0;
    while !over.load(Ordering::Relaxed) {
        number += 1;
        let write = a.client.write(&key, &number.to_string()).send().await;
        for _ in 0..4 {
            a.client.read(&key).send().await;
            a.client.read(&key).after(&write).send().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_are_seen_while_answers_are_lost() {
    let runtime = Runtime::system();
    for _ in 0..rounds() {
        let field = Field::new(6).await;
        let directory = tempfile::tempdir().expect("a directory");
        let server = NatsServer::start(NatsOptions::new(directory.path().join("nats"))).await;
        let server = server.expect("NATS starts");
        let proxy = FaultProxy::to_port(port_of(&server.url())).await.expect("a proxy");
        let (through, direct) = (proxy.url(&server.url()), server.url());
        let environment = |url| [("JOURNAL_URL", url), ("TERRACE_JOURNAL_TAKEOVER_SECONDS", "1")];
        let a = field.instance_with("a", &field.database, &environment(&*through)).await;
        let _b = field.instance_with("b", &field.database, &environment(&*direct)).await;
        let (a, over) = (Arc::new(a), Arc::new(AtomicBool::new(false)));
        let writers: Vec<_> = (0..KEYS)
            .map(|number| {
                let work = write_and_read(Arc::clone(&a), format!("k{number}"), Arc::clone(&over));
                runtime.spawn("writer", work)
            })
            .collect();
        for fault in 0..FAULTS {
            proxy.blackhole(Direction::Responses);
            pause(Duration::from_millis(u64::from(50 + 40 * (fault % 8)))).await;
            proxy.pass();
            pause(Duration::from_millis(350)).await;
        }
        over.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await;
        }
        assert!(proxy.evidence().dropped_bytes > 0 && proxy.evidence().reset > 0);
        let operations = field.history.operations();
        freshness(&operations, &Freshness::default()).assert_holds();
        sessions(&operations).assert_holds();
    }
}

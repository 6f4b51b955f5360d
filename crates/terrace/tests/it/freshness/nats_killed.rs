//! NATS is killed and started again. It may bring settled messages back; all the same, what was accepted
//! is applied, and reads of it answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use terrace_lab::{NatsOptions, NatsServer};
use terrace_prove::checkers::lost_writes;

use super::field::{Field, Instance};
use super::{pause, until};

const WRITERS: usize = 8;

fn key(writer: usize) -> String {
    format!("k{writer}")
}

/// Writes all keys, each over and over, while `meanwhile` happens.
async fn while_writing(instances: &[Instance], meanwhile: impl Future<Output = ()>) {
    let over = Arc::new(AtomicBool::new(false));
    let writers = (0..WRITERS).map(|writer| {
        let client = instances[writer % instances.len()].client.clone();
        let over = Arc::clone(&over);
        tokio::spawn(async move {
            for count in 0.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                client.write(&key(writer), &format!("{writer}-{count}")).send().await;
                pause(Duration::from_millis(60)).await;
            }
        })
    });
    let writers = writers.collect::<Vec<_>>();
    meanwhile.await;
    over.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("no panic");
    }
}

async fn killed(instances: usize, kills: usize) {
    let field = Field::new(6).await;
    let directory = tempfile::tempdir().expect("a directory");
    let server = NatsServer::start(NatsOptions::new(directory.path().join("nats"))).await;
    let server = server.expect("NATS starts");
    let url = server.url();
    let environment = [("JOURNAL_URL", url.as_str()), ("TERRACE_JOURNAL_TAKEOVER_SECONDS", "2")];
    let mut all = Vec::new();
    for number in 0..instances {
        all.push(field.instance_with(&format!("i{number}"), &field.database, &environment).await);
    }
    while_writing(&all, async {
        for _ in 0..kills {
            pause(Duration::from_millis(900)).await;
            server.kill();
            pause(Duration::from_secs(1)).await;
            server.restart().await.expect("NATS starts");
        }
        pause(Duration::from_secs(2)).await;
    })
    .await;
    for writer in 0..WRITERS {
        until("a strong read answers", async || {
            all[0].client.read(&key(writer)).strong().send().await.has_read()
        })
        .await;
    }
    lost_writes(&field.history.operations()).assert_holds();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn once_under_one_instance() {
    killed(1, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_times_under_two_instances() {
    killed(2, 3).await;
}

//! `kill -9` of the program between the two stores: nothing is lost, doubled, or apart for good.

use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::join_all;

use super::super::cqrs::kills;
use super::reconciling::reconcile;
use super::*;

/// Users, each of whom is paid by one client at a time.
const USERS: usize = 8;

/// Posts one request until it is acknowledged or the program is gone; whether it was acknowledged.
async fn pay_once(program: &Program, user: u64, number: u64) -> bool {
    let name = format!("pay-{user}-{number}");
    let body =
        json!({"user_id": format!("user {user}"), "amount": "0.01", "transaction_type": "credit"});
    let url = format!("{}/v1/transactions", program.url());
    let sent = program.client.post(url).header("idempotency-key", name).json(&body).send().await;
    matches!(sent, Ok(answer) if answer.status() == 201)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_between_the_stores_leave_no_difference() {
    let directory = tempfile::tempdir().expect("a directory");
    let (redis, documents) =
        tokio::join!(own_redis(directory.path()), own_documents(directory.path()));
    let (database, cache, store) = (fresh_database(), redis.url(), documents.url());
    let stores = Stores::Servers { database: &database, cache: &cache };
    let owners = [("MONGODB_URL", &*store)];
    // The first request of each user that is not known to be done.
    let mut next = [0_u64; USERS];
    for round in 0..kills() {
        let program = Program::serve_with(8, &stores, &[], &owners).await;
        // The kill comes with an acknowledgement, in the middle of what others have sent.
        let (acknowledged, last) = (AtomicU64::new(0), round as u64 % 29 + 1);
        join_all(next.iter_mut().zip(0..).map(async |(next, user)| {
            while pay_once(&program, user, *next).await {
                *next += 1;
                if acknowledged.fetch_add(1, Ordering::SeqCst) + 1 == last {
                    program.signal("KILL");
                }
            }
        }))
        .await;
        program.kill().await;
    }
    let program = Program::serve_with(8, &stores, &[], &owners).await;
    // What was in doubt is repeated under its key: it counts once.
    for (user, next) in next.iter().enumerate() {
        assert!(pay_once(&program, user as u64, *next).await, "user {user}");
    }
    for (user, next) in next.iter().enumerate() {
        let summary = program.summary(&format!("user%20{user}")).await;
        assert_eq!(summary["transactions"], next + 1, "user {user}: {summary}");
    }
    let beside = [("DATABASE_URL", &*database), ("MONGODB_URL", &*store)];
    let (clean, found) = reconcile(&beside, &["--dry-run"]).await;
    assert!(clean, "{found}");
}

//! Connections that are cut between a post and its answer.
//!
//! `TERRACE_KILLS=200` cuts that often.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use terrace_core::ledger::{Kind, Posting};
use terrace_core::testkit::ledger_contract::posting;
use terrace_core::{ErrorKind, Idempotency, Ledger, Runtime, WriteOptions};
use terrace_lab::testing;
use terrace_lab::{Direction, FaultProxy};
use terrace_stores::postgres::ConnectionSource;

use super::{PostgresLedger, assert_sound, open, options, session};

/// A share of what the guarantee's page tells.
const KILLS: u64 = 20;

fn kills() -> u64 {
    std::env::var("TERRACE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS)
}

/// How often a posting is there: at least, and at most.
type Expected = (i64, i64);
const ONCE: Expected = (1, 1);

/// An error says that nothing was done, unless nobody knows.
fn after(error: &terrace_core::Error) -> Expected {
    match error.kind() {
        ErrorKind::OutcomeUnknown => (0, 1),
        ErrorKind::Unavailable => (0, 0),
        _ => panic!("{error}"),
    }
}

const THERE: &str = "SELECT id FROM transactions WHERE transaction_type = $1";

struct Scene {
    ledger: Arc<PostgresLedger>,
    proxy: FaultProxy,
    hand: tokio_postgres::Client,
    runtime: Runtime,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_connection_loses_and_doubles_nothing() {
    let url = testing::fresh_database();
    let proxy = FaultProxy::to_port(testing::postgres().port()).await.expect("a proxy");
    let options = terrace_stores::PostgresOptions {
        source: ConnectionSource::pooled(1, 2),
        ..options(&proxy.url(&url))
    };
    let ledger = Arc::new(open(options).await.expect("a ledger"));
    let runtime = Runtime::seeded(8);
    let scene = Scene { ledger, proxy, hand: session(&url).await, runtime };
    let (mut expected, mut unknown, mut found) = (HashMap::new(), 0, 0);
    for number in 0..kills() {
        let name = format!("kill {number}");
        // A post beside it, which shares its fate where it is in its batch.
        let beside = Arc::clone(&scene.ledger);
        let other = async move {
            beside
                .post(vec![named("user0", &format!("beside {number}"))], &Default::default())
                .await
        };
        let (killed, other) = futures_util::future::join(scene.kill(number, &name), other).await;
        let (state, was_unknown, was_found) = killed;
        expected.insert(name, state);
        (unknown, found) = (unknown + u64::from(was_unknown), found + u64::from(was_found));
        let state = other.as_ref().map_or_else(after, |_| ONCE);
        expected.insert(format!("beside {number}"), state);
    }
    assert!(scene.proxy.evidence().reset * 2 > kills(), "{:?}", scene.proxy.evidence());
    assert!(unknown * 4 > kills(), "answers must be lost: {unknown}");
    assert!(found * 10 > kills(), "a request must be found to be done already");
    scene.quiet().await;
    let rows = "SELECT transaction_type, count(*) FROM transactions GROUP BY 1";
    let rows = scene.hand.query(rows, &[]).await.expect("rows");
    let rows = rows.iter().map(|row| (row.get::<_, String>(0), row.get::<_, i64>(1)));
    let rows = rows.collect::<HashMap<_, _>>();
    for (name, state) in &expected {
        let count = rows.get(name).copied().unwrap_or(0);
        assert!((state.0..=state.1).contains(&count), "{name}: {count}, expected {state:?}");
    }
    assert!(rows.keys().all(|name| expected.contains_key(name)));
    assert_sound(&scene.ledger).await;
}

fn named(user: &str, name: &str) -> Posting {
    Posting { kind: Kind::new(name).expect("a kind"), ..posting(user, 125) }
}

impl Scene {
    /// Posts, and cuts the connection meanwhile. What may be there then, whether the answer was unknown,
    /// and whether a repeated request found that it had been done.
    async fn kill(&self, number: u64, name: &str) -> (Expected, bool, bool) {
        let request = Idempotency::new(name, [1; 32]).expect("a key");
        let request = (number / 3).is_multiple_of(2).then(|| Arc::new(request));
        let how = WriteOptions { idempotency: request.clone(), ..WriteOptions::default() };
        let batch = || vec![named(&format!("user{}", number % 3), name)];
        let posted = {
            let (ledger, batch, how) = (Arc::clone(&self.ledger), batch(), how.clone());
            async move { ledger.post(batch, &how).await }
        };
        // A post that is answered needs no cut any more, and the next one begins on whole connections.
        let cut = self.cut(number, name);
        let first = match select(pin!(posted), pin!(cut)).await {
            Either::Left((posted, _)) => posted,
            Either::Right(((), posted)) => posted.await,
        };
        self.proxy.pass();
        let error = match first {
            Ok(_) => return (ONCE, false, false),
            Err(error) => error,
        };
        let (state, unknown) = (after(&error), error.kind() == ErrorKind::OutcomeUnknown);
        if request.is_none() {
            return (state, unknown, false);
        }
        self.quiet().await;
        let before = self.hand.query_opt(THERE, &[&name]).await.expect("a row at most");
        let before = before.map(|row| row.get::<_, i64>(0).unsigned_abs());
        let again = loop {
            match self.ledger.post(batch(), &how).await {
                Ok(again) => break again,
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
        };
        let found = before.is_some();
        assert!(before.is_none_or(|id| id == again[0].transaction.id), "the same answer");
        (ONCE, unknown, found)
    }

    /// When the server has answered something and nobody hears it, or at any moment, or once the
    /// transaction is there.
    async fn cut(&self, number: u64, name: &str) {
        let before = self.proxy.evidence();
        match number % 3 {
            0 => {
                self.proxy.hold(Direction::Responses);
                while self.proxy.evidence().held_bytes == before.held_bytes {
                    tokio::task::yield_now().await;
                }
            }
            1 => {
                self.proxy.delay(Direction::Responses, Duration::from_millis(3));
                let time = Duration::from_micros(self.runtime.random() % 12_000);
                self.runtime.sleep(time).await;
            }
            _ => {
                self.proxy.delay(Direction::Responses, Duration::from_millis(50));
                while self.hand.query_opt(THERE, &[&name]).await.expect("a row").is_none() {}
            }
        }
        self.proxy.reset();
        while self.proxy.evidence().reset == before.reset {
            tokio::task::yield_now().await;
        }
    }

    /// What the server was told, it has done or given up.
    async fn quiet(&self) {
        let busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'terrace' \
                    AND datname = current_database() AND state <> 'idle'";
        while self.hand.query_one(busy, &[]).await.expect("sessions").get::<_, i64>(0) > 0 {
            tokio::task::yield_now().await;
        }
    }
}

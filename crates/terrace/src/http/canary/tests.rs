//! The guard as requests meet it.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use hyper::Request;
use hyper::header::HeaderValue;
use terrace_core::testkit::{Hand, Scripted, key, value};
use terrace_core::{ErrorKind, MemoryStore, StoreExt as _};

use super::*;
use crate::http::app::App;
use crate::http::{Documents, Guards, Limits, Records, Service, documents};

/// A level with a canary of half of its clients.
struct Served {
    app: Arc<App>,
    whole: Arc<dyn Whole>,
}

fn options(share: &str) -> CanaryOptions {
    CanaryOptions {
        level: "1-connection-pooling",
        share: share.parse().expect("a share"),
        consistency: Consistency::Default,
        pause: Duration::from_secs(6),
        proxies: TrustedProxies::default(),
    }
}

fn faces(store: &Arc<dyn Store>) -> Vec<Face> {
    let documents = Documents::of(&documents::L0, Records::of(Arc::clone(store)));
    let records = Arc::clone(&documents.records);
    vec![Face::Documents(Arc::new(documents)), Face::Records(records)]
}

fn served(baseline: Arc<dyn Store>, canary: Arc<dyn Store>, share: &str) -> Served {
    let runtime = Runtime::seeded(1);
    let stores = [&baseline, &canary].map(Arc::clone);
    let of_canary = faces(&canary);
    let step = Canary::start(stores, &of_canary, Arc::new(canary), options(share), &runtime);
    let guards = Guards::new(vec![Arc::new(step)]);
    let faces = faces(&baseline).into_iter().chain(guards.faces()).collect();
    let whole = guards.before(Arc::new(baseline));
    let (name, tls, limits) = ("0-single-db", None, Limits::default());
    let service = Service { name, faces, whole: Arc::clone(&whole), guards, limits, tls, runtime };
    Served { app: Arc::new(App::new(service)), whole }
}

impl Served {
    /// The status of a request of a client, and its body.
    async fn ask(&self, client: &str, path: &str) -> (u16, String) {
        let request = Request::get(path).header("host", "a").header("x-client-id", client);
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        let mut call = Call::new(&self.app, parts, None, None);
        let answer = AssertUnwindSafe(self.app.run(&mut call)).catch_unwind().await;
        match answer {
            Ok(Ok(reply)) => {
                let status = reply.status().as_u16();
                let body = http_body_util::BodyExt::collect(reply.into_body()).await;
                let body = body.expect("a body").to_bytes();
                (status, String::from_utf8(body.to_vec()).expect("text"))
            }
            Ok(Err(problem)) => (problem.status().as_u16(), String::new()),
            Err(_) => (500, "a panic".to_owned()),
        }
    }

    async fn stats(&self) -> serde_json::Value {
        let (status, body) = self.ask("operator", "/canary-stats").await;
        assert_eq!(status, 200);
        serde_json::from_str(&body).expect("JSON")
    }

    async fn figure(&self, name: &str) -> u64 {
        self.whole.inspect().await.find("canary").and_then(|part| part.number(name)).unwrap_or(0)
    }
}

/// A record in a store of its own: who reads it says which store that was.
async fn store_with(text: &str) -> Arc<dyn Store> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    store.put(key("a"), value(text)).await.expect("a write");
    store
}

/// The client of this number is one of the canary's.
fn is_of_canary(number: u32) -> bool {
    let id = HeaderValue::try_from(format!("client {number}")).expect("a header");
    options("50").share.has(&client_name::of_settings(&id))
}

fn clients(of_canary: bool) -> impl Iterator<Item = String> {
    let numbers = (0..).filter(move |number| is_of_canary(*number) == of_canary);
    numbers.map(|number| format!("client {number}"))
}

/// Answers all reads of a store in this way, after this time.
fn answering(delay: Duration, kind: Option<ErrorKind>) -> Arc<dyn Store> {
    let (store, mut hand): (_, Hand) = Scripted::new();
    let runtime = Runtime::system();
    let clock = runtime.clone();
    let task = runtime.spawn("a store", async move {
        loop {
            let (call, slept) = (hand.read().await, clock.sleep(delay));
            let answer = clock.spawn("an answer", async move {
                slept.await;
                match kind {
                    Some(kind) => call.fail(kind),
                    None => call.found(&[("a", "one", 1)]),
                }
            });
            answer.detach();
        }
    });
    task.detach();
    store
}

#[tokio::test(start_paused = true)]
async fn a_client_stays_with_one_stack_whatever_it_asks() {
    let served = served(store_with("baseline").await, store_with("canary").await, "50");
    for of_canary in [true, false] {
        let wanted = if of_canary { "canary" } else { "baseline" };
        for client in clients(of_canary).take(10) {
            for path in ["/read/a", "/v1/records/a", "/read/a"] {
                let (status, body) = served.ask(&client, path).await;
                assert!(status == 200 && body.contains(wanted), "{client}: {body}");
            }
        }
    }
    let stats = served.stats().await;
    assert_eq!((&stats["canary"]["reads"], &stats["baseline"]["reads"]), (&30.into(), &30.into()));
    assert_eq!(stats["state"], "serving");
    assert_eq!((&stats["percent"], &stats["verdict"]), (&50.0.into(), &"none".into()));
    // Without an id a client is an address, which this one has not.
    let request = Request::get("/read/a").header("host", "a").body(()).expect("a request");
    let mut call = Call::new(&served.app, request.into_parts().0, None, None);
    assert!(served.app.run(&mut call).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_is_not_about_records_is_the_baselines() {
    let served = served(store_with("baseline").await, store_with("canary").await, "50");
    let client = clients(true).next().expect("a client");
    let (status, body) = served.ask(&client, "/health").await;
    let health = serde_json::from_str::<serde_json::Value>(&body).expect("JSON");
    assert_eq!((status, &health["layer"]), (200, &"0-single-db".into()));
    assert_eq!(health["canary"], "serving");
    assert_eq!(served.ask(&client, "/nothing").await.0, 404);
    assert_eq!(served.stats().await["canary"]["reads"], 0);
}

/// Requests of both cohorts until the canary is taken back, or so many looks have passed.
async fn asked_until_over(served: &Served, looks: u32) -> bool {
    for _ in 0..looks {
        for of_canary in [true, false] {
            let all = clients(of_canary).take(20).flat_map(|client| vec![client; 6]);
            let all = all.map(|client| async move { served.ask(&client, "/read/a").await });
            futures_util::future::join_all(all).await;
        }
        served.app.runtime.sleep(LOOK_EVERY).await;
        if served.stats().await["state"] == "returned" {
            return true;
        }
    }
    false
}

/// Everybody is served by the baseline, and stays so.
async fn is_taken_back(served: &Served, reason: &str) {
    assert!(asked_until_over(served, 3).await, "{}", served.stats().await);
    let before = served.stats().await;
    assert!(before["reason"].as_str().is_some_and(|it| it.contains(reason)), "{before}");
    assert_eq!((&before["percent"], &before["verdict"]), (&0.0.into(), &"bad".into()));
    for client in clients(true).take(20) {
        assert_eq!(served.ask(&client, "/read/a").await.0, 200);
    }
    served.app.runtime.sleep(100 * LOOK_EVERY).await;
    let after = served.stats().await;
    assert_eq!((&after["canary"], &after["state"]), (&before["canary"], &"returned".into()));
    let (_, health) = served.ask("operator", "/health").await;
    assert!(health.contains("degraded") && health.contains("taken back"), "{health}");
}

#[tokio::test(start_paused = true)]
async fn a_canary_that_fails_is_taken_back_and_stays_so() {
    let canary = answering(Duration::ZERO, Some(ErrorKind::Unavailable));
    is_taken_back(&served(store_with("baseline").await, canary, "50"), "reads fail").await;
}

#[tokio::test(start_paused = true)]
async fn a_canary_that_is_slow_is_taken_back() {
    let baseline = answering(Duration::from_millis(2), None);
    let canary = answering(Duration::from_millis(30), None);
    is_taken_back(&served(baseline, canary, "50"), "take longer than").await;
}

#[tokio::test(start_paused = true)]
async fn a_canary_that_answers_otherwise_is_taken_back() {
    let served = served(store_with("baseline").await, store_with("canary").await, "50");
    // The versions of both are the same. One in ten reads is repeated.
    for _ in 0..40 {
        if served.figure("compared").await >= trial::ENOUGH {
            break;
        }
        for client in clients(false).take(50) {
            served.ask(&client, "/read/a").await;
        }
        served.app.runtime.sleep(Duration::from_secs(1)).await;
    }
    served.app.runtime.sleep(2 * LOOK_EVERY).await;
    let stats = served.stats().await;
    assert_eq!(
        (&stats["state"], &stats["verdict"]),
        (&"returned".into(), &"bad".into()),
        "{stats}"
    );
    assert!(stats["differences"]["value"].as_u64() > Some(0), "{stats}");
    let client = clients(true).next().expect("a client");
    assert!(served.ask(&client, "/read/a").await.1.contains("baseline"));
}

#[tokio::test(start_paused = true)]
async fn a_canary_that_does_well_stays_what_it_is() {
    let baseline = answering(Duration::from_millis(2), None);
    let canary = answering(Duration::from_millis(3), None);
    let served = served(baseline, canary, "50");
    assert!(!asked_until_over(&served, 5).await);
    let stats = served.stats().await;
    assert_eq!((&stats["percent"], &stats["verdict"]), (&50.0.into(), &"good".into()), "{stats}");
}

#[tokio::test(start_paused = true)]
async fn no_traffic_is_no_verdict() {
    let canary = answering(Duration::ZERO, Some(ErrorKind::Unavailable));
    let served = served(store_with("baseline").await, canary, "50");
    served.app.runtime.sleep(10_000 * LOOK_EVERY).await;
    let stats = served.stats().await;
    assert_eq!((&stats["verdict"], &stats["percent"]), (&"none".into(), &50.0.into()));
    assert_eq!((&stats["windows"], &stats["state"]), (&0.into(), &"serving".into()));
}

#[tokio::test(start_paused = true)]
async fn a_canary_of_nobody_repeats_reads_alone() {
    let served = served(store_with("baseline").await, store_with("canary").await, "0");
    for _ in 0..10 {
        for client in clients(true).take(50) {
            let (_, body) = served.ask(&client, "/read/a").await;
            assert!(body.contains("baseline"), "{body}");
        }
        served.app.runtime.sleep(Duration::from_secs(7)).await;
    }
    let stats = served.stats().await;
    assert_eq!((&stats["state"], &stats["canary"]["reads"]), (&"mirroring".into(), &0.into()));
    assert!(stats["compared"].as_u64() > Some(0), "{stats}");
    assert_eq!(stats["differences"]["value"], stats["compared"], "{stats}");
}

#[tokio::test(start_paused = true)]
async fn an_end_ends_both() {
    let (baseline, canary) = (store_with("baseline").await, store_with("canary").await);
    let served = served(Arc::clone(&baseline), Arc::clone(&canary), "50");
    served.whole.close().await.expect("an end");
    for store in [baseline, canary] {
        let read = store.get(&key("a")).await;
        assert_eq!(read.map_err(|error| error.kind()), Err(ErrorKind::Unavailable));
    }
}

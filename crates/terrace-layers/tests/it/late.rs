//! `Late`: a program starts while an engine is down, and uses it once it is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use terrace_core::{BoxFuture, Error, ErrorKind, Inspection, Result, Runtime, Status};
use terrace_layers::Late;

#[derive(Default)]
struct Engine {
    up: AtomicBool,
    tries: AtomicU32,
}

impl Engine {
    fn open(self: &Arc<Self>) -> impl Fn() -> BoxFuture<'static, Result<u32>> + use<> {
        let engine = Arc::clone(self);
        move || {
            let tries = engine.tries.fetch_add(1, Ordering::SeqCst) + 1;
            let up = engine.up.load(Ordering::SeqCst);
            let down = || Error::new(ErrorKind::Unavailable, "the engine is down");
            Box::pin(async move { if up { Ok(tries) } else { Err(down()) } })
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_down_at_the_start_is_opened_when_it_is_up() {
    let (engine, runtime) = (Arc::<Engine>::default(), Runtime::system());
    let late = Late::open("engine", engine.open(), &runtime).await.unwrap();
    assert_eq!(late.get().unwrap_err().message(), "the engine is down");
    let seen = late.inspect_with(|_| unreachable!("nothing is open")).await;
    assert_eq!((seen.status, seen.note.as_str()), (Status::Down, "the engine is down"));
    runtime.sleep(Duration::from_secs(10)).await;
    let tries = engine.tries.load(Ordering::SeqCst);
    assert!((4..=20).contains(&tries), "{tries}: more and more seldom");
    engine.up.store(true, Ordering::SeqCst);
    runtime.sleep(Duration::from_secs(4)).await;
    assert_eq!(*late.get().unwrap(), tries + 1);
    let well = late.inspect_with(|_| Box::pin(async { Inspection::new("engine") })).await;
    assert_eq!(well.status, Status::Healthy);
    runtime.sleep(Duration::from_secs(60)).await;
    assert_eq!(engine.tries.load(Ordering::SeqCst), tries + 1, "opened once");
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_for_good_fails_the_start_and_an_end_ends_the_tries() {
    let runtime = Runtime::system();
    let wrong = || Box::pin(async { Err::<(), _>(Error::invalid("no such engine")) }) as _;
    let error = Late::open("engine", wrong, &runtime).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let engine = Arc::<Engine>::default();
    let late = Late::open("engine", engine.open(), &runtime).await.unwrap();
    assert!(late.end().await.is_none());
    runtime.sleep(Duration::from_secs(60)).await;
    assert_eq!(engine.tries.load(Ordering::SeqCst), 1);
}

//! Walks over whole tables in the background: a page a second, then an hour's rest.

use std::sync::Arc;
use std::time::Duration;

use terrace_core::{Result, Runtime, Task};
use tokio::sync::Mutex;

/// Removes rows that nobody needs any more, page by page.
pub(crate) trait Walk: Send + 'static {
    /// What logs call it.
    const NAME: &'static str;

    /// Does the next page, and answers whether it was the last one. After a failure the next page is
    /// the first one again.
    fn page(&mut self) -> impl Future<Output = Result<bool>> + Send;
}

/// Walks until the task is dropped.
pub(crate) fn start<W: Walk>(runtime: &Runtime, walk: W) -> Task {
    /// Many instances may start at once, to serve.
    const FIRST: Duration = Duration::from_secs(60);
    const NEXT_PAGE: Duration = Duration::from_secs(1);
    const REST: Duration = Duration::from_secs(60 * 60);
    let clock = runtime.clone();
    // The walk itself goes on where it was.
    let walk = Arc::new(Mutex::new(walk));
    runtime.keep(W::NAME, move || {
        let (walk, clock) = (Arc::clone(&walk), clock.clone());
        async move {
            let mut pause = FIRST;
            loop {
                clock.sleep(pause).await;
                pause = match walk.lock().await.page().await {
                    Ok(false) => NEXT_PAGE,
                    Ok(true) => REST,
                    Err(error) => {
                        tracing::warn!(%error, walk = W::NAME, "tried again in an hour");
                        REST
                    }
                };
            }
        }
    })
}

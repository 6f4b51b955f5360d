//! How serving ends.

use std::time::Duration;

use terrace_core::{Deadline, Runtime};

use super::Running;
use crate::levels::Level;

/// Ends serving, then closes the stores, so that what was accepted is finished.
pub(super) async fn drain(running: Vec<Running>, at_once: bool) {
    for Running { level, service, servers, watch, .. } in running {
        for server in servers {
            if at_once {
                server.stop().await;
            } else {
                tell_if_slow(&service.runtime, level, "requests in flight", server).await;
            }
        }
        // What closes is not unwell.
        watch.stop().await;
        let closed = tell_if_slow(
            &service.runtime,
            level,
            "accepted writes and the stores' own ends",
            service.whole.close(),
        );
        if let Err(error) = closed.await {
            tracing::warn!(level = level.number, %error, "the stores did not close in order");
        }
    }
}

/// Whoever has asked for the end is told what it waits for, once a second has passed.
async fn tell_if_slow<T>(
    runtime: &Runtime,
    level: &Level,
    what: &str,
    work: impl Future<Output = T>,
) -> T {
    let mut work = std::pin::pin!(work);
    let soon = Deadline::at(runtime.now() + Duration::from_secs(1));
    match runtime.within(soon, &mut work).await {
        Some(done) => done,
        None => {
            tracing::info!(level = level.number, "stopping: waits for {what}");
            work.await
        }
    }
}

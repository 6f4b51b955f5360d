//! What goes on beside the requests: the journal is asked how far it has come, and what is settled is
//! forgotten.

use std::sync::Arc;
use std::time::Duration;

use terrace_core::{Result, Sequence, Task};

use super::Shared;
use crate::flusher::Acceptor as _;

/// Forgets what is settled once the caches below have looked at the database's cache generation.
pub(super) fn keep_forgetting(shared: &Arc<Shared>) -> Task {
    let kept = Arc::clone(shared);
    shared.runtime.keep("write-buffer forget", move || forget(Arc::clone(&kept)))
}

async fn forget(shared: Arc<Shared>) -> Result<()> {
    let mut settled = shared.horizon.settled.subscribe();
    // What was settled before this began is to be forgotten, too.
    if settled.borrow().1 > Sequence::NONE {
        settled.mark_changed();
    }
    while settled.changed().await.is_ok() {
        let (epoch, applied) = *settled.borrow_and_update();
        while let Err(error) = shared.caches.look().await {
            tracing::debug!(%error, "the caches below cannot look");
            shared.runtime.sleep(shared.options.poll * 5).await;
        }
        shared.horizon.forget(epoch, applied);
        // What was settled may be shown for longer; a question each time costs more.
        if *shared.horizon.waiters.borrow() == 0 {
            shared.runtime.sleep(shared.options.poll).await;
        }
    }
    Ok(())
}

/// Asks the journal how far it has come: often while somebody waits, less often while writes wait,
/// and once a second otherwise. A flusher in this process tells more, and sooner.
pub(super) fn keep_polling(shared: &Arc<Shared>) -> Task {
    let kept = Arc::clone(shared);
    shared.runtime.keep("write-buffer poll", move || poll(Arc::clone(&kept)))
}

async fn poll(shared: Arc<Shared>) -> Result<()> {
    const IDLE: Duration = Duration::from_secs(1);
    let (horizon, poll) = (&shared.horizon, shared.options.poll);
    while !horizon.is_closed() {
        let waits = *horizon.waiters.borrow() > 0;
        let pause = match horizon.waiting() {
            _ if waits => poll,
            0 if horizon.has_begun() => IDLE,
            _ => poll * 5,
        };
        let slept = shared.runtime.sleep(pause);
        if pause == IDLE {
            tokio::select! {
                () = slept => {}
                () = horizon.wanted.notified() => continue,
            }
        } else {
            slept.await;
        }
        let news = match horizon.has_begun() {
            true => shared.journal.progress().await.map(|progress| horizon.learn(&progress)),
            false => shared.begin().await,
        };
        if let Err(error) = news {
            tracing::debug!(%error, "the journal cannot be asked");
        }
    }
    Ok(())
}

//! What goes on beside the requests: the journal is asked how far it has come, and what is settled is
//! forgotten.

use std::sync::Arc;
use std::time::Duration;

use terrace_core::Sequence;

use super::Shared;
use crate::flusher::Acceptor as _;

/// Forgets what is settled once the caches below have looked at the database's cache generation.
pub(super) fn keep_forgetting(shared: &Arc<Shared>) {
    let (weak, runtime) = (Arc::downgrade(shared), shared.runtime.clone());
    let mut settled = shared.horizon.settled.subscribe();
    // What was settled before this instance began is to be forgotten, too.
    if settled.borrow().1 > Sequence::NONE {
        settled.mark_changed();
    }
    let work = async move {
        while settled.changed().await.is_ok() {
            let (epoch, applied) = *settled.borrow_and_update();
            loop {
                let Some(shared) = weak.upgrade() else { return };
                match shared.caches.look().await {
                    Ok(()) => {
                        shared.horizon.forget(epoch, applied);
                        // What was settled may be shown for longer; a question each time costs more.
                        if *shared.horizon.waiters.borrow() == 0 {
                            let pause = shared.options.poll;
                            drop(shared);
                            runtime.sleep(pause).await;
                        }
                        break;
                    }
                    Err(error) => tracing::debug!(%error, "the caches below cannot look"),
                }
                let pause = shared.options.poll * 5;
                drop(shared);
                runtime.sleep(pause).await;
            }
        }
    };
    shared.runtime.spawn("write-buffer forget", work).detach();
}

/// Asks the journal how far it has come: often while somebody waits, less often while writes wait,
/// and once a second otherwise. A flusher in this process tells more, and sooner.
pub(super) fn keep_polling(shared: &Arc<Shared>) {
    const IDLE: Duration = Duration::from_secs(1);
    let (weak, runtime) = (Arc::downgrade(shared), shared.runtime.clone());
    let horizon = Arc::clone(&shared.horizon);
    let (poll, clock) = (shared.options.poll, runtime.clone());
    let work = async move {
        loop {
            let waits = *horizon.waiters.borrow() > 0;
            let pause = match horizon.waiting() {
                _ if waits => poll,
                0 if horizon.has_begun() => IDLE,
                _ => poll * 5,
            };
            let slept = clock.sleep(pause);
            if pause == IDLE {
                tokio::select! {
                    () = slept => {}
                    () = horizon.wanted.notified() => continue,
                }
            } else {
                slept.await;
            }
            let Some(shared) = weak.upgrade() else { return };
            if horizon.is_closed() {
                return;
            }
            let news = match horizon.has_begun() {
                true => shared.journal.progress().await.map(|progress| horizon.learn(&progress)),
                false => shared.begin().await,
            };
            if let Err(error) = news {
                tracing::debug!(%error, "the journal cannot be asked");
            }
        }
    };
    runtime.spawn("write-buffer poll", work).detach();
}

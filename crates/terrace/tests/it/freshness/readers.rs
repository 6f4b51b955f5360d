//! Clients that read all the time, so that a moment of staleness is seen.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use terrace_core::{Runtime, Task};
use terrace_prove::Client;

use super::pause;

/// How long each reader waits between two reads.
const GAP: Duration = Duration::from_millis(8);

/// One reader per key and client; they stop at [`end`](Self::end).
pub(super) struct Readers {
    over: Arc<AtomicBool>,
    tasks: Vec<Task>,
}

impl Readers {
    pub(super) fn start(clients: &[&Client], keys: &[String]) -> Self {
        let (over, runtime) = (Arc::new(AtomicBool::new(false)), Runtime::system());
        let mut tasks = Vec::new();
        for client in clients {
            for key in keys {
                let (client, key, over) = ((*client).clone(), key.clone(), Arc::clone(&over));
                tasks.push(runtime.spawn("reader", async move {
                    while !over.load(Ordering::Relaxed) {
                        client.read(&key).send().await;
                        pause(GAP).await;
                    }
                }));
            }
        }
        Self { over, tasks }
    }

    /// Lets reads under way end.
    pub(super) async fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await;
        }
    }
}

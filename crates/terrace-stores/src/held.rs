//! What a change log says of followers that stand still.

use std::sync::{Arc, Mutex, PoisonError};

use terrace_core::{Inspection, Status};

/// The followers for which a log keeps more than its horizon, as was found last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held(Arc<Mutex<Vec<String>>>);

impl Held {
    /// Takes note of the followers that have not moved for a week, each with whether that is so long
    /// that the log no longer waits for it.
    pub(crate) fn found(&self, standing: Vec<(String, bool)>) {
        let mut held = Vec::new();
        for (follower, left_behind) in standing {
            if left_behind {
                tracing::error!(
                    follower,
                    "a follower has not moved for 30 days: the change log goes on without it, and \
                     it must begin anew"
                );
            } else {
                tracing::warn!(
                    follower,
                    "a follower has not moved for a week: the change log keeps everything for it"
                );
                held.push(follower);
            }
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    /// Says so in an inspection that has nothing worse to say.
    pub(crate) fn told(&self, tree: Inspection) -> Inspection {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_empty() || tree.status != Status::Healthy {
            return tree;
        }
        let note = format!(
            "the change log grows, because it keeps what a follower has not read for a week: {}; let \
             it go on, or the log leaves it behind after 30 days",
            held.join(", ")
        );
        tree.status(Status::Degraded, note)
    }
}

//! Writes of which nobody knows whether they were applied.
//!
//! Such a write may still come: it lies in a network, or in a server that stands still. It is made under the
//! version that its row had, so it cannot come any more once the row has another one. The row is given one,
//! and only then the generation is raised, so that what was cached meanwhile is not believed.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use terrace_core::Key;

use super::link::ServerSession;

/// The keys of such writes.
#[derive(Debug, Default)]
pub(super) struct Doubts(Mutex<BTreeSet<Key>>);

impl Doubts {
    /// Notes these keys, once something was sent in the session, unless it is known what became of all of
    /// them: also when the call is dropped, or nobody takes its answer.
    pub(super) fn guard(self: &Arc<Self>, keys: BTreeSet<Key>, session: &ServerSession) -> Doubt {
        Doubt { doubts: Arc::clone(self), keys, session: Some(session.clone()) }
    }

    /// The first of those that were noted; they are noted again unless they are settled.
    pub(super) fn take(self: &Arc<Self>, most: usize) -> Doubt {
        let mut noted = self.noted();
        let rest = noted.iter().nth(most).cloned().map(|next| noted.split_off(&next));
        let keys = std::mem::replace(&mut *noted, rest.unwrap_or_default());
        Doubt { doubts: Arc::clone(self), keys, session: None }
    }

    fn noted(&self) -> MutexGuard<'_, BTreeSet<Key>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keys of which nobody knows until they are settled.
#[derive(Debug)]
pub(super) struct Doubt {
    doubts: Arc<Doubts>,
    keys: BTreeSet<Key>,
    /// Where they are written.
    session: Option<ServerSession>,
}

impl Doubt {
    pub(super) fn keys(&self) -> &BTreeSet<Key> {
        &self.keys
    }

    /// It is known what became of this one.
    pub(super) fn settle(&mut self, key: &Key) {
        self.keys.remove(key);
    }

    /// It is known what became of all of them.
    pub(super) fn settle_all(mut self) {
        self.keys.clear();
    }
}

impl Drop for Doubt {
    fn drop(&mut self) {
        if self.session.as_ref().is_none_or(ServerSession::has_written) {
            self.doubts.noted().append(&mut self.keys);
        }
    }
}

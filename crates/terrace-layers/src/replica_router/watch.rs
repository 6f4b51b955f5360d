//! Asks each server how it is, and keeps the table.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use terrace_core::{Deadline, Result};

use super::Shared;
use super::book::Book;

/// However many ask for it, a server is not asked again before this.
const PAUSE: Duration = Duration::from_millis(5);

/// Watches one server, until it is dropped.
pub(super) async fn run(router: Arc<Shared>, number: usize) {
    loop {
        router.runtime.sleep(PAUSE).await;
        tokio::select! {
            () = router.runtime.sleep(router.options.refresh.saturating_sub(PAUSE)) => {}
            () = router.members[number].look.notified() => {}
        }
        let _noted = router.look(number).await;
    }
}

impl Shared {
    /// Asks one server and swaps the table.
    ///
    /// # Errors
    /// Those of the server.
    pub(super) async fn look(&self, number: usize) -> Result<()> {
        let asked = self.runtime.now();
        let deadline = Deadline::at(asked + self.options.refresh_timeout);
        let node = &self.members[number].member.node;
        let heard = self.runtime.within(deadline, node.state(deadline)).await;
        match heard.unwrap_or_else(|| Err(Deadline::exceeded())) {
            Ok(state) => {
                self.change(Some((number, asked)), |book| book.heard(number, state.clone(), asked));
                // Only now: whoever gets an answer of a new life finds it in the table.
                node.admit(&state);
                Ok(())
            }
            Err(error) => {
                tracing::debug!(%node, %error, "a server does not say how it is");
                self.change(None, |book| book.silent(number));
                Err(error)
            }
        }
    }

    /// Changes the book, and shows what follows to everybody; `heard` is who was asked for what has
    /// changed, and when.
    pub(super) fn change(&self, heard: Option<(usize, Instant)>, change: impl FnOnce(&mut Book)) {
        let mut book = self.book();
        let before = self.table.load();
        change(&mut book);
        let table = Arc::new(book.table(self.runtime.now()));
        self.announce(&before, &table);
        let (version, primary) = (table.version, table.primary);
        self.table.store(table);
        // What others say that take writes, as a former primary does, is no word of the history.
        if let Some((_, asked)) = heard.filter(|(number, _)| primary == Some(*number)) {
            self.histories.heard(book.standing().clone(), asked);
        }
        drop(book);
        self.swapped.send_replace(version);
    }

    fn announce(&self, before: &super::Table, after: &super::Table) {
        if before.primary != after.primary {
            match after.primary {
                Some(number) => {
                    let node = &self.members[number].member.node;
                    tracing::info!(%node, timeline = after.timeline, "this server takes the writes");
                }
                None => tracing::warn!("{}", after.why_no_primary()),
            }
        }
        for (number, server) in self.members.iter().enumerate() {
            let trouble = |table: &super::Table| table.trouble(number).map(|(_, note)| note);
            let (old, new, node) = (trouble(before), trouble(after), &server.member.node);
            match new {
                _ if old == new => {}
                Some(note) => tracing::warn!(%node, note, "a server is out of service"),
                None => tracing::info!(%node, "a server is in service"),
            }
        }
    }

    /// Asks for all states to be asked for now.
    pub(super) fn look_all(&self) {
        self.members.iter().for_each(|server| server.look.notify_one());
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Every change is complete when a panic could happen, so poison means nothing.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

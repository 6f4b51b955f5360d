//! Asks each server how it is, and keeps the table.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use terrace_core::{Deadline, Result};

use super::Shared;
use super::freshness::PrimaryLog;
use super::table::Table;

/// However many ask for it, a server is not asked again before this.
const PAUSE: Duration = Duration::from_millis(5);

/// Watches one server, until it is dropped.
pub(super) async fn run(router: Arc<Shared>, number: usize) -> Result<()> {
    loop {
        router.runtime.sleep(PAUSE).await;
        tokio::select! {
            () = router.runtime.sleep(router.options.refresh.saturating_sub(PAUSE)) => {}
            () = router.members[number].look.notified() => {}
        }
        let _noted = router.look(number).await;
        router.hedge.look(router.runtime.now());
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
                let said = state.clone();
                self.change(Some((number, asked)), |table, log| {
                    table.heard(number, said, asked, log);
                });
                // Only now: whoever gets an answer of a new life finds it in the table.
                node.admit(&state);
                Ok(())
            }
            Err(error) => {
                tracing::debug!(%node, %error, "a server does not say how it is");
                self.change(None, |table, log| table.silent(number, log));
                Err(error)
            }
        }
    }

    /// Replaces the table by a changed one; `heard` is who was asked for what has changed, and when.
    pub(super) fn change(
        &self,
        heard: Option<(usize, Instant)>,
        change: impl FnOnce(&mut Table, &mut PrimaryLog),
    ) {
        // Every change is complete when a panic could happen, so poison means nothing.
        let mut log = self.primary_log.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.table.load();
        let mut table = Table::clone(&before);
        change(&mut table, &mut log);
        table.conclude(self.runtime.now());
        self.announce(&before, &table);
        let table = Arc::new(table);
        self.table.store(Arc::clone(&table));
        // What others say that take writes, as a former primary does, is no word of the history.
        if let Some((_, asked)) = heard.filter(|(number, _)| table.lead.primary == Some(*number)) {
            self.histories.heard(table.lead.standing.clone(), asked);
        }
        drop(log);
        self.swapped.send_replace(table.version);
    }

    fn announce(&self, before: &Table, after: &Table) {
        if before.lead.primary != after.lead.primary {
            match after.lead.primary {
                Some(number) => {
                    let (node, timeline) = (&self.members[number].member.node, after.lead.timeline);
                    match &before.seats[number] {
                        // The first look: what is as it should be needs no line.
                        None => tracing::debug!(%node, timeline, "this server takes the writes"),
                        Some(_) => tracing::info!(%node, timeline, "this server takes the writes"),
                    }
                }
                None => tracing::warn!("{}", after.lead.why_no_primary()),
            }
        }
        for (number, server) in self.members.iter().enumerate() {
            let (old, new) = (before.trouble(number), after.trouble(number));
            let node = &server.member.node;
            match new {
                _ if old == new => {}
                Some(note) => tracing::warn!(%node, note, "a server is out of service"),
                None if before.seats[number].is_none() => {
                    tracing::debug!(%node, "a server is in service");
                }
                None => tracing::info!(%node, "a server is in service"),
            }
        }
    }

    /// Asks for all states to be asked for now.
    pub(super) fn look_all(&self) {
        self.members.iter().for_each(|server| server.look.notify_one());
    }
}

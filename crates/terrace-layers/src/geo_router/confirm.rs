//! Which other regions have what was written in one.

use futures_util::future::join_all;
use terrace_core::{
    Deadline, Durability, Error, ErrorKind, LogPosition, Receipt, RegionName, Result, WriteOptions,
};

use super::Routes;

impl Routes {
    pub(super) async fn confirmed(&self, receipt: &Receipt, by: Deadline) -> Vec<RegionName> {
        let from = receipt.origin.region.and_then(|name| self.place(Some(name)).ok());
        match from {
            Some(from) => {
                let places = self.having(from, std::slice::from_ref(receipt), by, usize::MAX).await;
                places.into_iter().map(|place| self.regions[place].name).collect()
            }
            None => Vec::new(),
        }
    }

    /// Waits until other regions have what was written, as many as was asked for.
    ///
    /// # Errors
    /// `OutcomeUnknown` when they do not come in time: the writes are committed where they were made.
    pub(super) async fn replicated(
        &self,
        receipts: &mut [Receipt],
        how: &WriteOptions,
    ) -> Result<()> {
        let count = self.regions.len();
        let wanted = if how.everywhere { count } else { count / 2 + 1 };
        // So that there is time left to say what is known.
        let by = match how.deadline.instant() {
            Some(end) => Deadline::at(end - (end - self.runtime.now()) / 10),
            None => Deadline::NEVER,
        };
        let mut froms = receipts
            .iter()
            .filter_map(|it| it.origin.region.and_then(|name| self.place(Some(name)).ok()))
            .collect::<Vec<_>>();
        froms.sort_unstable();
        froms.dedup();
        for from in froms {
            let name = self.regions[from].name;
            let own = receipts.iter().filter(|it| it.origin.region == Some(name)).cloned();
            let own = own.collect::<Vec<_>>();
            let having = self.having(from, &own, by, wanted - 1).await;
            if having.len() + 1 < wanted {
                let names = having.iter().map(|place| self.regions[*place].name.to_string());
                return Err(unconfirmed(name, names.collect(), wanted, count));
            }
        }
        receipts.iter_mut().for_each(|it| it.durability = Durability::Replicated);
        Ok(())
    }

    /// The other regions that have what was written in this one, as soon as there are so many; or all that
    /// have it by the deadline.
    async fn having(
        &self,
        from: usize,
        receipts: &[Receipt],
        by: Deadline,
        enough: usize,
    ) -> Vec<usize> {
        let link = self.link(from, from);
        let Some(history) = link.region().history() else { return Vec::new() };
        let positions = receipts.iter().filter_map(|it| it.token.position(&history));
        let Some(position) = positions.max() else { return Vec::new() };
        let log = link.region().own_log();
        let (name, place) = (log.name(), log.place_of(position));
        let others = (0..self.regions.len()).filter(|other| *other != from);
        let having = std::sync::Mutex::new(Vec::new());
        let note = |other: usize| {
            let mut known = having.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            known.push(other);
            known.len() >= enough
        };
        let (sender, mut receiver) = tokio::sync::watch::channel(false);
        let waits = others.map(|other| {
            let (name, note, sender) = (&name, &note, &sender);
            async move {
                if self.comes_to(from, other, name, place, by).await && note(other) {
                    sender.send_replace(true);
                }
            }
        });
        tokio::select! {
            _ = join_all(waits) => {}
            _ = receiver.wait_for(|enough| *enough) => {}
        }
        let mut having = having.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        having.sort_unstable();
        having
    }

    /// Whether a region comes to a place in the log of another one by the deadline.
    async fn comes_to(
        &self,
        from: usize,
        other: usize,
        log: &str,
        place: LogPosition,
        by: Deadline,
    ) -> bool {
        if !self.options.replicates || !self.link(from, other).is_well() {
            return false;
        }
        let id = self.regions[from].id;
        for round in 0_u32.. {
            let following = self.regions[other].following[from].as_ref();
            if following.is_some_and(|it| it.follow().has_reached(place)) {
                return true;
            }
            if by.passed(self.runtime.now()) {
                return false;
            }
            self.progress(other, from, place, round, by).await;
            let has_reached = following.is_some_and(|it| it.follow().has_reached(place));
            if !has_reached && round > 0 {
                // Perhaps another instance follows.
                let found = self.link(from, other).look(by, &self.runtime).await;
                let Ok(found) = found else { continue };
                let known = found.of(id).filter(|it| it.complete && it.is_in(log));
                if known.is_some_and(|known| known.position >= place) {
                    return true;
                }
            }
        }
        false
    }
}

fn unconfirmed(name: RegionName, having: Vec<String>, wanted: usize, count: usize) -> Error {
    let others = match having.as_slice() {
        [] => "no other region".to_owned(),
        some => some.join(", "),
    };
    let message = format!(
        "the write is committed in {name}, and {others} confirmed in time, of {wanted} regions of {count} \
         that were asked for; the others get it when they can be reached"
    );
    Error::new(ErrorKind::OutcomeUnknown, message).during("write")
}

//! Which other regions have what was written in one.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use terrace_core::{
    Deadline, Durability, Error, ErrorKind, Key, LogPosition, Receipt, RegionName, Result, Write,
    WriteOptions,
};

use super::Routes;

impl Routes {
    pub(super) async fn confirmed(
        &self,
        key: &Key,
        receipt: &Receipt,
        by: Deadline,
    ) -> Vec<RegionName> {
        let Some(from) = self.written_in(receipt).filter(|_| !self.resides(key)) else {
            return Vec::new();
        };
        let mut places = self.having(from, &[receipt], by, usize::MAX).await;
        places.push(from);
        places.sort_unstable();
        let names = places.into_iter().map(|place| self.regions[place].name);
        names.filter(|name| receipt.origin.region != Some(*name)).collect()
    }

    /// Refuses what cannot come true before anything is written.
    pub(super) fn may_be_replicated(&self, batch: &[Write]) -> Result<()> {
        let Some(write) = batch.iter().find(|write| self.resides(&write.key)) else {
            return Ok(());
        };
        let home = self.home(&write.key).map(|(home, _)| self.regions[home].name.to_string());
        let message = "a key resides in its home, and no other region keeps it; nothing was written: ask \
                       for another durability than replicated";
        let error = Error::invalid(message).with("key", write.key.to_string());
        Err(error.with("home", home.unwrap_or_default()))
    }

    fn resides(&self, key: &Key) -> bool {
        self.home(key).is_some_and(|(_, home)| home.resides)
    }

    /// The place of the region whose log has a write; none where nothing was written. A repeated request
    /// may have been answered by another one.
    fn written_in(&self, receipt: &Receipt) -> Option<usize> {
        let id = receipt.version.region().filter(|_| receipt.outcome.is_applied())?;
        self.regions.iter().position(|region| region.id == id)
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
        let mut parts = BTreeMap::<usize, Vec<&Receipt>>::new();
        for receipt in receipts.iter() {
            if let Some(from) = self.written_in(receipt) {
                parts.entry(from).or_default().push(receipt);
            }
        }
        for (from, own) in parts {
            let name = self.regions[from].name;
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
        receipts: &[&Receipt],
        by: Deadline,
        enough: usize,
    ) -> Vec<usize> {
        let answered = receipts.iter().filter_map(|it| self.place(Some(it.origin.region?)).ok());
        let mut known = answered.filter(|place| *place != from).collect::<Vec<_>>();
        known.dedup();
        if known.len() >= enough {
            return known;
        }
        let log = self.link(from, from).region().own_log();
        let Some(place) = self.end_of(from, receipts, by).await else { return known };
        let name = log.name();
        let others = (0..self.regions.len()).filter(|other| *other != from);
        let others = others.filter(|other| !known.contains(other)).collect::<Vec<_>>();
        let having = std::sync::Mutex::new(known);
        let note = |other: usize| {
            let mut known = having.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            known.push(other);
            known.len() >= enough
        };
        let (sender, mut receiver) = tokio::sync::watch::channel(false);
        let waits = others.into_iter().map(|other| {
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

    /// The place in the log of a region up to which these writes are. Where another one answers in its
    /// stead that is not known: its end is behind them.
    async fn end_of(
        &self,
        from: usize,
        receipts: &[&Receipt],
        by: Deadline,
    ) -> Option<LogPosition> {
        let link = self.link(from, from);
        let (log, history) = (link.region().own_log(), link.region().history()?);
        let position = |it: &Receipt| Some(log.place_of(it.token.position(&history)?));
        let places = receipts.iter().map(|it| it.event.or_else(|| position(it)));
        match places.collect::<Option<Vec<_>>>() {
            Some(places) => places.into_iter().max(),
            None => link.call(by, &self.runtime, log.head()).await.ok(),
        }
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

//! How `ShardRouter` writes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::future::join_all;
use terrace_core::shard::moved;
use terrace_core::{
    Error, ErrorKind, Idempotency, Origin, Receipt, Result, Slot, Write, WriteOptions,
};

use super::map::{ShardMap, View};
use super::partitioner::slot_of;
use super::{Shared, unreached};
use crate::partial::{Failures, Placed};

/// The writes that go to a shard in one transaction: all of them, or with an idempotency key those
/// of one slot, whose result is kept under that slot.
type Part = (u16, Option<Slot>);

impl Shared {
    pub(super) async fn write(
        &self,
        batch: Vec<Write>,
        how: &WriteOptions,
    ) -> Result<Vec<Receipt>> {
        self.open()?;
        how.deadline.check(self.runtime.now())?;
        if let Some(request) = &how.idempotency {
            self.claim(request, how).await?;
        }
        batch.iter().for_each(|write| self.hot.note(&write.key));
        let mut map = self.map.load_full();
        let mut waits = self.waits(how.deadline);
        let mut receipts = vec![None; batch.len()];
        let mut failures = Failures::default();
        let mut left = batch.into_iter().enumerate().collect::<Vec<Placed>>();
        while !left.is_empty() {
            let (parts, nowhere) = split(&map, left, how.idempotency.is_some());
            let sent = parts.into_iter().map(|(part, writes)| send(&map, part, writes, how));
            let sent = join_all(sent).await;
            left = Vec::new();
            for (answer, number, writes) in sent {
                match answer {
                    Ok(answered) => {
                        for ((place, _), receipt) in writes.into_iter().zip(answered) {
                            receipts[place] = Some(receipt);
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::Moved => left.extend(writes),
                    Err(error) => failures.add(on(number), writes, error),
                }
            }
            if map.whole {
                left.extend(nowhere);
            } else if !nowhere.is_empty() {
                failures.add(on(0), nowhere, unreached());
            }
            if !left.is_empty() {
                self.moved.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = self.look_again(&map, &mut waits).await {
                    failures.add(on(0), std::mem::take(&mut left), error);
                }
                map = self.map.load_full();
                left.sort_by_key(|(place, _)| *place);
            }
        }
        failures.into_answer(receipts)
    }

    /// Takes the request's own key, on the shard that has its slot, before any part of the request is
    /// done: so another request under that key is refused, wherever its records live. Whoever ends
    /// between the two has taken the key for this request, and its repeat does the rest.
    async fn claim(&self, request: &Idempotency, how: &WriteOptions) -> Result<()> {
        let slot = slot_of(request);
        let claim = Some(Arc::new(request.claim(slot)));
        let how = WriteOptions { idempotency: claim, ..how.clone() };
        let mut map = self.map.load_full();
        let mut waits = self.waits(how.deadline);
        loop {
            let claimed = match map.view_at(slot) {
                Some(view) => view.tally.time(view.store.write(Vec::new(), &how)).await,
                None if map.whole => Err(moved()),
                None => Err(unreached()),
            };
            match claimed {
                Err(error) if error.kind() == ErrorKind::Moved => {}
                // Nothing is written by it, so nothing is unknown of the request.
                Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
                    return Err(error.into_kind(ErrorKind::Unavailable));
                }
                claimed => return claimed.map(drop),
            }
            self.moved.fetch_add(1, Ordering::Relaxed);
            self.look_again(&map, &mut waits).await?;
            map = self.map.load_full();
        }
    }
}

fn split(
    map: &ShardMap,
    writes: Vec<Placed>,
    by_slot: bool,
) -> (BTreeMap<Part, Vec<Placed>>, Vec<Placed>) {
    let (mut parts, mut nowhere) = (BTreeMap::<Part, Vec<_>>::new(), Vec::new());
    for placed in writes {
        match map.view(&placed.1.key) {
            Some(view) => {
                let slot = by_slot.then(|| map.slot(&placed.1.key));
                parts.entry((view.number, slot)).or_default().push(placed);
            }
            None => nowhere.push(placed),
        }
    }
    (parts, nowhere)
}

async fn send(
    map: &ShardMap,
    (number, slot): Part,
    writes: Vec<Placed>,
    how: &WriteOptions,
) -> (Result<Vec<Receipt>>, u16, Vec<Placed>) {
    let Some(view) = map.view_of(number) else { return (Err(unreached()), number, writes) };
    let batch = writes.iter().map(|(_, write)| write.clone()).collect();
    let answer = match (slot, &how.idempotency) {
        (Some(slot), Some(request)) => {
            let idempotency = Some(Arc::new(request.part(slot)));
            view.write(batch, &WriteOptions { idempotency, ..how.clone() }).await
        }
        _ => view.write(batch, how).await,
    };
    (answer, number, writes)
}

impl View {
    /// Writes here, and says so.
    async fn write(&self, batch: Vec<Write>, how: &WriteOptions) -> Result<Vec<Receipt>> {
        let count = batch.len();
        self.tally.writes.fetch_add(count as u64, Ordering::Relaxed);
        let mut receipts = self.tally.time(self.store.write(batch, how)).await?;
        if receipts.len() != count {
            let message = "a store broke its contract; the write may have been applied";
            return Err(Error::new(ErrorKind::OutcomeUnknown, message));
        }
        for receipt in &mut receipts {
            receipt.origin = receipt.origin.on_shard(self.number);
        }
        Ok(receipts)
    }
}

fn on(shard: u16) -> Origin {
    Origin::PRIMARY.on_shard(shard)
}

//! How `GeoRouter` writes.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;
use terrace_core::{
    Durability, Error, ErrorKind, Origin, Receipt, RegionName, Result, Write, WriteOptions,
};

use super::{Routes, may_ask_another};
use crate::partial::{Failures, Placed};

impl Routes {
    pub(super) async fn write(
        &self,
        batch: Vec<Write>,
        how: &WriteOptions,
    ) -> Result<Vec<Receipt>> {
        self.open()?;
        how.deadline.check(self.runtime.now())?;
        let asked = self.place(how.region)?;
        let is_replicated = how.durability == Some(Durability::Replicated);
        if is_replicated {
            self.may_be_replicated(&batch)?;
        }
        let mut parts = BTreeMap::<Option<usize>, Vec<Placed>>::new();
        for (place, write) in batch.into_iter().enumerate() {
            let home = self.home(&write.key).map(|(home, _)| home);
            parts.entry(home).or_default().push((place, write));
        }
        let mut receipts = match parts.len() {
            0 => self.write_part(asked, None, Vec::new(), how).await?,
            1 => {
                let (home, writes) = parts.into_iter().next().unwrap_or_default();
                let writes = writes.into_iter().map(|(_, write)| write).collect();
                self.write_part(asked, home, writes, how).await?
            }
            _ => self.write_parts(asked, parts, how).await?,
        };
        if is_replicated {
            self.replicated(&mut receipts, how).await?;
        }
        Ok(receipts)
    }

    /// A batch for several homes: a transaction each, with a result of its own for a repeatable request.
    async fn write_parts(
        &self,
        asked: usize,
        parts: BTreeMap<Option<usize>, Vec<Placed>>,
        how: &WriteOptions,
    ) -> Result<Vec<Receipt>> {
        let count = parts.values().map(Vec::len).sum::<usize>();
        let sent = parts.into_iter().map(|(home, writes)| async move {
            let name = home.map(|home| self.regions[home].name);
            let request = how.idempotency.as_ref();
            let idempotency = request.map(|request| Arc::new(request.in_region(name)));
            let how = WriteOptions { idempotency, ..how.clone() };
            let batch = writes.iter().map(|(_, write)| write.clone()).collect();
            (self.write_part(asked, home, batch, &how).await, name, writes)
        });
        let (mut receipts, mut failures) = (vec![None; count], Failures::default());
        for (answer, name, writes) in join_all(sent).await {
            match answer {
                Ok(answers) => {
                    for ((place, _), receipt) in writes.into_iter().zip(answers) {
                        receipts[place] = Some(receipt);
                    }
                }
                Err(error) => failures.add(self.origin(asked, name), writes, error),
            }
        }
        failures.into_answer(receipts)
    }

    fn origin(&self, asked: usize, home: Option<RegionName>) -> Origin {
        Origin::PRIMARY.in_region(home.unwrap_or(self.regions[asked].name))
    }

    /// Writes that go to one region: their home, else the one that was asked, else the next that answers.
    async fn write_part(
        &self,
        asked: usize,
        home: Option<usize>,
        batch: Vec<Write>,
        how: &WriteOptions,
    ) -> Result<Vec<Receipt>> {
        let places = match home {
            Some(home) => vec![home],
            None => self.in_its_place(asked),
        };
        let mut failure = None;
        for at in places {
            how.deadline.check(self.runtime.now())?;
            match self.write_at(asked, at, batch.clone(), how).await {
                Err(error) if may_ask_another(&error) => failure = Some(error),
                answer => return answer,
            }
        }
        let error =
            failure.unwrap_or_else(|| Error::new(ErrorKind::Unavailable, "no region answers"));
        Err(match home {
            None => error,
            Some(home) => {
                let name = self.regions[home].name;
                let message = format!(
                    "the keys have their home in region {name}, which does not answer; nothing was \
                     changed, try again"
                );
                Error::new(ErrorKind::Unavailable, message).caused_by(error)
            }
        })
    }

    async fn write_at(
        &self,
        asked: usize,
        at: usize,
        batch: Vec<Write>,
        how: &WriteOptions,
    ) -> Result<Vec<Receipt>> {
        let (link, count) = (self.link(asked, at), batch.len());
        let keys = batch.iter().map(|write| write.key.clone()).collect::<Vec<_>>();
        // No longer than a try may take, but to its end: what was given up may have been applied.
        let deadline = self.attempt(how.deadline);
        let durability = how.durability.filter(|wanted| *wanted != Durability::Replicated);
        let how = WriteOptions { deadline, durability, region: None, ..how.clone() };
        let begun = self.runtime.now();
        link.reach(deadline, &self.runtime).await?;
        let written = link.store().write(batch, &how).await;
        link.note(&written, self.runtime.now() - begun);
        let mut receipts = written?;
        keys.iter().for_each(|key| self.absent.remove(key));
        if receipts.len() != count {
            let message = "a store broke its contract; the write may have been applied";
            return Err(Error::new(ErrorKind::OutcomeUnknown, message));
        }
        for receipt in &mut receipts {
            receipt.origin = receipt.origin.in_region(self.regions[at].name);
        }
        Ok(receipts)
    }
}

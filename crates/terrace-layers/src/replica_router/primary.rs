//! What goes to the primary: writes, and the reads that no replica may answer.

use std::time::Duration;

use terrace_core::{
    Consistency, Deadline, Error, ErrorKind, Origin, ReadOptions, Receipt, Result, Write,
    WriteOptions,
};
use tokio::sync::SemaphorePermit;

use super::question::Question;
use super::{Shared, count};

impl Shared {
    /// Asks the primary; `spared` when that is for want of a replica.
    pub(super) async fn ask_primary<Q: Question>(
        &self,
        question: &Q,
        how: &ReadOptions,
        spared: bool,
    ) -> Result<Q::Answer> {
        let counted = spared || how.consistency != Consistency::Strong;
        // With no replicas there is nothing to spare it.
        let _room = match counted && self.members.len() > 1 {
            true => Some(self.room(how.deadline).await?),
            false => None,
        };
        for _ in 0..2 {
            let number = self.primary(how.deadline).await?;
            let table = self.table.load_full();
            let Some(seat) = table.seats[number].as_ref() else { continue };
            let server = &self.members[number];
            let busy = server.busy();
            // Whatever is acknowledged is there, and what is lost was refused.
            let asked = question.ask(&*server.member.store, how).await;
            drop(busy);
            let mut answer = match asked {
                Ok(answer) => answer,
                Err(error) => {
                    server.look.notify_one();
                    return Err(error);
                }
            };
            // Another may have been promoted meanwhile.
            let now = self.table.load();
            if now.lead.primary == Some(number) && self.is_same(number, seat) {
                Q::mark(&mut answer, Origin::PRIMARY, Duration::ZERO);
                count(&self.counts.primary_reads);
                return Ok(answer);
            }
        }
        let message = "the primary has changed during the read; try again";
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    /// A place among the reads that the primary takes for want of a replica.
    async fn room(&self, deadline: Deadline) -> Result<SemaphorePermit<'_>> {
        count(&self.counts.fallbacks);
        let until = Deadline::at(self.runtime.now() + self.options.primary_wait).min(deadline);
        match self.runtime.within(until, self.fallback.acquire()).await {
            Some(Ok(permit)) => Ok(permit),
            _ => {
                let message = "no replica is new enough, and the primary takes no more reads in \
                               their place; try again a little later";
                let error = Error::new(ErrorKind::Overloaded, message);
                Err(error.retry_after(Duration::from_secs(1)))
            }
        }
    }

    /// The server that takes writes; waits for one.
    async fn primary(&self, deadline: Deadline) -> Result<usize> {
        if let Some(number) = self.table.load().lead.primary {
            return Ok(number);
        }
        let until = Deadline::at(self.runtime.now() + self.options.primary_wait).min(deadline);
        self.wait_until(until, || self.table.load().lead.primary.is_some()).await;
        let table = self.table.load();
        table.lead.primary.ok_or_else(|| {
            let error = Error::new(ErrorKind::Unavailable, table.lead.why_no_primary());
            self.refused(error.retry_after(Duration::from_secs(1)))
        })
    }

    pub(super) async fn write(
        &self,
        batch: Vec<Write>,
        how: &WriteOptions,
    ) -> Result<Vec<Receipt>> {
        how.deadline.check(self.runtime.now()).map_err(|error| error.during("write"))?;
        let number = self.primary(how.deadline).await.map_err(|error| error.during("write"))?;
        let timeline = self.table.load().lead.timeline;
        let server = &self.members[number];
        let written = server.member.store.write(batch, how).await;
        if written.is_err() {
            // It may be no primary any more.
            self.look_all();
            return written;
        }
        // The write may have waited there for long. What a server commits beside its successor, or
        // its rival, is in no history that goes on.
        let table = self.table.load();
        if (table.lead.primary, table.lead.timeline) == (Some(number), timeline) {
            return written;
        }
        let message = "the primary has changed during the write, which may be lost with the old one; \
                       read the record, or repeat the request with its Idempotency-Key";
        Err(Error::new(ErrorKind::OutcomeUnknown, message).during("write"))
    }
}

//! Claims, settlements and dead letters.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{Consumer, pull};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use futures_util::future::join_all;
use futures_util::stream::StreamExt as _;
use terrace_core::{DeadLetter, Deadline, JournalEntry, Progress, Result, Sequence, Settled};

use super::link::{Claimed, Link, failed, unreachable};
use super::publish::{FINGERPRINT, REQUEST, framed};
use super::reads::entry_of;
use crate::journal::encode;

/// What an answer may take beyond the time for which the server waits.
const GRACE: Duration = Duration::from_secs(1);

impl Link {
    pub(super) async fn claim(&self, writes: usize, wait: Deadline) -> Result<Vec<JournalEntry>> {
        self.check()?;
        self.keep_looking().await;
        let consumer = &self.streams().await?.consumer;
        // Before the messages: what comes of a later stream is taken for the older one's, and comes
        // again after the time of a takeover.
        let epoch = self.epoch().await?;
        // How many writes an entry has is not known before: at most some hundreds when it is busy.
        let most = writes.div_ceil(256).clamp(1, 256);
        let ready = self.fetch(consumer, epoch, most).await;
        let some_wait = self.held_writes.load(Ordering::Relaxed) > 0;
        match ready {
            Ok(entries) if !entries.is_empty() => return Ok(entries),
            _ if some_wait => self.deliver_again().await?,
            ready => drop(ready?),
        }
        let mut entries = Vec::new();
        loop {
            self.check()?;
            let patience = wait.instant().map_or(Duration::from_secs(1), |end| {
                end.saturating_duration_since(self.runtime.now()).min(Duration::from_secs(1))
            });
            if patience.is_zero() {
                return Ok(entries);
            }
            // One: a larger batch would wait until it is full.
            let next = consumer.batch().max_messages(1).expires(patience).messages();
            let mut next = self.timed(next).await?.map_err(failed)?;
            // A consumer that is removed meanwhile says nothing more; the next claim makes it again.
            let limit = Deadline::at(self.runtime.now() + patience + GRACE);
            while let Some(message) =
                self.runtime.within(limit, next.next()).await.ok_or_else(unreachable)?
            {
                entries.extend(self.take(epoch, message.map_err(broken)?)?);
            }
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
    }

    /// What is ready now.
    async fn fetch(
        &self,
        consumer: &Consumer<pull::Config>,
        epoch: u64,
        most: usize,
    ) -> Result<Vec<JournalEntry>> {
        let mut entries = Vec::new();
        let batch = consumer.fetch().max_messages(most).messages();
        let mut batch = self.timed(batch).await?.map_err(failed)?;
        while let Some(message) = self.timed(batch.next()).await? {
            entries.extend(self.take(epoch, message.map_err(broken)?)?);
        }
        Ok(entries)
    }

    /// Notes what it takes to settle an entry.
    fn take(&self, epoch: u64, message: jetstream::Message) -> Result<Option<JournalEntry>> {
        let entry = entry_of(&message.payload)?;
        let told = |name| {
            let headers = message.headers.as_ref()?;
            headers.get(name).map(|value| value.as_str().to_owned())
        };
        let request = told(REQUEST).zip(told(FINGERPRINT));
        let (_, acker) = message.split();
        self.claimed().insert(entry.id, Claimed { epoch, acker, request });
        Ok(Some(entry))
    }

    /// Keeps beside what must outlive the entries, then lets them go.
    pub(super) async fn settle(&self, done: &[Settled]) -> Result<Progress> {
        self.check()?;
        let epoch = self.epoch().await?;
        let mut going = Vec::new();
        for settled in done {
            // An entry of a stream that is gone is gone with it.
            let claimed = self.claimed().remove(&settled.id);
            going.extend(claimed.filter(|it| it.epoch == epoch).map(|it| (settled, it)));
        }
        if let Err(error) = self.let_go(&going).await {
            let back = going.into_iter().map(|(settled, claimed)| (settled.id, claimed));
            self.claimed().extend(back);
            return Err(error);
        }
        self.progress().await
    }

    async fn let_go(&self, going: &[(&Settled, Claimed)]) -> Result<()> {
        let end = |settled: &Settled| settled.id.plus(settled.writes.max(1)).before();
        if let Some(last) = going.iter().map(|(settled, _)| end(settled)).max() {
            self.raise(last).await?;
        }
        for (settled, claimed) in going {
            if let Some((key, fingerprint)) = &claimed.request {
                let place = framed(settled.first, fingerprint.as_bytes());
                self.keep(self.request_subject(key), place).await?;
            }
            for letter in &settled.dead {
                self.keep(self.dead_subject(letter.sequence), letter_bytes(letter)).await?;
            }
        }
        let acks = going.iter().map(|(_, claimed)| claimed.acker.double_ack());
        for answer in self.timed(join_all(acks)).await? {
            answer.map_err(broken)?;
        }
        Ok(())
    }

    async fn keep(&self, subject: String, payload: Vec<u8>) -> Result<()> {
        let sent = self.context.publish(subject, payload.into()).await.map_err(failed)?;
        sent.await.map(drop).map_err(failed)
    }

    /// Raises the floor, beside others who do.
    pub(super) async fn raise(&self, floor: Sequence) -> Result<()> {
        self.lowest.fetch_max(floor.get(), Ordering::Relaxed);
        self.check()?;
        loop {
            let (known, number) = self.floor().await?;
            if known >= floor {
                return Ok(());
            }
            let message = PublishMessage::build()
                .payload(framed(floor, &[]).into())
                .expected_last_subject_sequence(number);
            let sent = self.context.send_publish(self.floor_subject(), message).await;
            let acknowledged = match sent {
                Ok(answer) => answer.await,
                Err(error) => Err(error),
            };
            match acknowledged {
                Ok(_) => {
                    // What this process knows of the end may lie below.
                    if let Some(end) = self.end.lock().await.as_mut() {
                        end.last = end.last.max(floor);
                    }
                    return Ok(());
                }
                Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    pub(super) async fn dead(&self, after: Sequence, limit: usize) -> Result<Vec<DeadLetter>> {
        self.check()?;
        let mut letters = Vec::new();
        for sequence in self.dead_sequences().await? {
            if sequence > after && letters.len() < limit {
                letters.extend(self.letter(sequence).await?.map(|(letter, _)| letter));
            }
        }
        Ok(letters)
    }

    /// A letter that is put back and not yet taken out of the letters is put back twice at worst.
    pub(super) async fn retry(&self, sequences: &[Sequence]) -> Result<u64> {
        self.check()?;
        let mut count = 0;
        for sequence in sequences {
            let Some((letter, number)) = self.letter(*sequence).await? else { continue };
            self.append_again(*sequence, &encode(*sequence, &letter.write)).await?;
            self.remove_letter(number).await?;
            count += 1;
        }
        Ok(count)
    }

    pub(super) async fn bury(&self, sequences: &[Sequence]) -> Result<u64> {
        self.check()?;
        let mut count = 0;
        for sequence in sequences {
            if let Some((_, number)) = self.letter(*sequence).await? {
                count += u64::from(self.remove_letter(number).await?);
            }
        }
        Ok(count)
    }

    async fn remove_letter(&self, number: u64) -> Result<bool> {
        let kept = &self.streams().await?.kept;
        self.timed(kept.delete_message(number)).await?.map_err(failed)
    }
}

/// The driver boxes some of its errors.
fn broken(error: async_nats::Error) -> terrace_core::Error {
    unreachable().with("cause", error.to_string())
}

/// A dead letter as it is stored: the length of the reason, the reason, the write.
fn letter_bytes(letter: &DeadLetter) -> Vec<u8> {
    let reason = letter.reason.as_bytes();
    let length = u32::try_from(reason.len()).unwrap_or(0);
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(&reason[..length as usize]);
    bytes.extend(encode(letter.sequence, &letter.write));
    bytes
}

//! What is looked up: the end of the stream, entries, progress, what is kept.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{Info, LastRawMessageErrorKind, State, Stream};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use terrace_core::{DeadLetter, Idempotency, JournalEntry, Progress, Result, Sequence};

use super::link::{End, Link, failed, unreachable, writes_of};
use super::publish::unframed;
use crate::journal::{corrupt, decode};

/// Every message of a stream. It has no other subjects than those under its name, but what `name.>`
/// finds is wrong in NATS 2.9 where messages were settled in another order than that in which they came:
/// it passes over some that are there.
const ALL: &str = ">";

impl Link {
    /// The end of the stream. What is not there any more was settled, and then the last of it is
    /// kept beside: it is noted before its entry goes.
    pub(super) async fn find_end(&self) -> Result<End> {
        let streams = self.streams().await?;
        let info = self.timed(streams.entries.get_info()).await?.map_err(failed)?;
        let there = match self.last_of(&streams.entries, ALL).await? {
            Some(message) => end_of(&message)?,
            None => Sequence::NONE,
        };
        let lowest = Sequence::new(self.lowest.load(Ordering::Relaxed));
        let last = there.max(self.floor().await?.0).max(lowest);
        // The floor may be removed by hand.
        self.lowest.fetch_max(last.get(), Ordering::Relaxed);
        Ok(End { epoch: epoch_of(&info), number: info.state.last_sequence, last })
    }

    /// Which stream of this name it is, by when it was made.
    pub(super) async fn epoch(&self) -> Result<u64> {
        let streams = self.streams().await?;
        let info = self.timed(streams.entries.get_info()).await?.map_err(failed)?;
        Ok(epoch_of(&info))
    }

    /// The last message under a subject, if there is one.
    pub(super) async fn last_of(
        &self,
        stream: &Stream,
        subject: &str,
    ) -> Result<Option<StreamMessage>> {
        match self.timed(stream.get_last_raw_message_by_subject(subject)).await? {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// The sequence below which nothing is given out any more, and the number of the message that
    /// says so.
    pub(super) async fn floor(&self) -> Result<(Sequence, u64)> {
        let kept = &self.streams().await?.kept;
        match self.last_of(kept, &self.floor_subject()).await? {
            Some(message) => Ok((unframed(&message.payload)?.0, message.sequence)),
            None => Ok((Sequence::NONE, 0)),
        }
    }

    /// The message of this number, unless it was settled.
    pub(super) async fn message(&self, number: u64) -> Result<Option<StreamMessage>> {
        let entries = &self.streams().await?.entries;
        match self.timed(entries.get_raw_message(number)).await? {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// The first message from this number on.
    async fn message_from(&self, number: u64) -> Result<Option<StreamMessage>> {
        let entries = &self.streams().await?.entries;
        let next = entries.raw_message_builder().next_by_subject(ALL).sequence(number);
        match self.timed(next.send()).await? {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Digest and place of a settled request.
    pub(super) async fn settled_request(
        &self,
        request: &Idempotency,
    ) -> Result<Option<(String, Sequence)>> {
        let requests = &self.streams().await?.requests;
        let found = self.last_of(requests, &self.request_subject(request.key())).await?;
        let Some(message) = found else { return Ok(None) };
        let (first, fingerprint) = unframed(&message.payload)?;
        let fingerprint = String::from_utf8(fingerprint.to_vec()).map_err(|_| corrupt())?;
        Ok(Some((fingerprint, first)))
    }

    pub(super) async fn progress(&self) -> Result<Progress> {
        self.check()?;
        self.keep_looking().await;
        let streams = self.streams().await?;
        // First: what is gone of what is known now was settled.
        let end = self.find_end().await?;
        // Before and after the entries: a letter that is tried again meanwhile is an entry first, and
        // one that is set aside a letter.
        let earlier = self.dead_sequences().await?;
        let subjects = streams.entries.info_with_subjects(ALL);
        let mut found = self.timed(subjects).await?.map_err(failed)?;
        if epoch_of(&found.info) != end.epoch {
            return Err(unreachable()); // made anew meanwhile
        }
        let state = found.info.state.clone();
        let mut writes = 0;
        let mut again = None::<Sequence>;
        while let Some(subject) = self.timed(found.try_next()).await?.map_err(failed)? {
            let (name, count) = subject;
            writes += writes_of(&name) * count as u64;
            if let Some((_, sequence)) = name.split_once(".again.") {
                let sequence = Sequence::new(sequence.parse().map_err(|_| corrupt())?);
                again = Some(again.map_or(sequence, |other| other.min(sequence)));
            }
        }
        let oldest = match self.message_from(state.first_sequence).await? {
            Some(message) => unframed(&message.payload)?.0.before(),
            None => end.last,
        };
        let applied = oldest.min(end.last);
        let letters = self.dead_sequences().await?;
        let dead = [earlier.first().copied(), letters.first().copied()];
        let below = dead.into_iter().chain([again]).flatten().map(Sequence::before);
        let settled = below.fold(applied, Sequence::min);
        let bytes = if state.messages == 0 { 0 } else { state.bytes };
        self.held_writes.store(writes, Ordering::Relaxed);
        self.held_bytes.store(bytes, Ordering::Relaxed);
        let (epoch, last, dead) = (end.epoch, end.last, letters.len() as u64);
        let age = self.age(&state);
        Ok(Progress { epoch, last, applied, settled, writes, bytes, age, dead })
    }

    /// How long the oldest message has waited. The server tells when each message came, and not what
    /// time it is: since the last one came it is at least as long as this process has known it.
    fn age(&self, state: &State) -> Duration {
        if state.messages == 0 {
            return Duration::ZERO;
        }
        let now = self.runtime.now();
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.0 != state.last_sequence {
            *newest = (state.last_sequence, now);
        }
        let between = state.last_timestamp - state.first_timestamp;
        Duration::try_from(between).unwrap_or_default() + now.saturating_duration_since(newest.1)
    }

    pub(super) async fn peek(&self, after: Sequence, writes: usize) -> Result<Vec<JournalEntry>> {
        const AT_ONCE: usize = 64;
        self.check()?;
        let streams = self.streams().await?;
        let state = self.timed(streams.entries.get_info()).await?.map_err(failed)?.state;
        let mut number = self.first_after(after, state.first_sequence, state.last_sequence).await?;
        let (mut seen, mut entries) = (0, Vec::new());
        while seen < writes.max(1) && number <= state.last_sequence {
            let to = state.last_sequence.min(number + AT_ONCE as u64 - 1);
            let some = stream::iter(number..=to).map(|number| self.message(number));
            let some: Vec<_> = some.buffered(AT_ONCE).try_collect().await?;
            for message in some.into_iter().flatten() {
                let entry = entry_of(&message.payload)?;
                if seen < writes.max(1) && entry.id > after {
                    seen += entry.writes.len();
                    entries.push(entry);
                }
            }
            number = to + 1;
        }
        Ok(entries)
    }

    /// The number of the first message behind a sequence: sequences grow with numbers.
    async fn first_after(&self, after: Sequence, first: u64, last: u64) -> Result<u64> {
        let (mut low, mut high) = (first, last + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.message_from(middle).await? {
                Some(message) if message.sequence <= last => {
                    let (id, _) = unframed(&message.payload)?;
                    if id > after {
                        high = middle;
                    } else {
                        low = message.sequence + 1;
                    }
                }
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// The sequences of all dead letters, in order.
    pub(super) async fn dead_sequences(&self) -> Result<Vec<Sequence>> {
        let kept = &self.streams().await?.kept;
        let subjects = kept.info_with_subjects(format!("{}_kept.dead.*", self.options.namespace));
        let mut found = self.timed(subjects).await?.map_err(failed)?;
        let mut sequences = Vec::new();
        while let Some((name, _)) = self.timed(found.try_next()).await?.map_err(failed)? {
            let number = name.rsplit('.').next().and_then(|number| number.parse().ok());
            sequences.push(Sequence::new(number.ok_or_else(corrupt)?));
        }
        sequences.sort_unstable();
        Ok(sequences)
    }

    /// A dead letter, and the number of its message.
    pub(super) async fn letter(&self, sequence: Sequence) -> Result<Option<(DeadLetter, u64)>> {
        let kept = &self.streams().await?.kept;
        let Some(message) = self.last_of(kept, &self.dead_subject(sequence)).await? else {
            return Ok(None);
        };
        let (length, rest) = message.payload.split_first_chunk::<4>().ok_or_else(corrupt)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| corrupt())?;
        let (reason, rest) = rest.split_at_checked(length).ok_or_else(corrupt)?;
        let write = decode(rest)?.1.pop().ok_or_else(corrupt)?;
        let reason = String::from_utf8_lossy(reason).into_owned();
        Ok(Some((DeadLetter { sequence, write, reason }, message.sequence)))
    }
}

fn epoch_of(info: &Info) -> u64 {
    u64::try_from(info.created.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

/// The last sequence of an entry.
fn end_of(message: &StreamMessage) -> Result<Sequence> {
    let (first, _) = unframed(&message.payload)?;
    Ok(first.plus(writes_of(&message.subject).max(1)).before())
}

/// The entry in a message.
pub(super) fn entry_of(payload: &[u8]) -> Result<JournalEntry> {
    let (id, rest) = unframed(payload)?;
    let (first, writes) = decode(rest)?;
    Ok(JournalEntry { id, first: first.unwrap_or(id), writes, bytes: payload.len() as u64 })
}

//! Appends: published only behind the message that this process knows as the last.

use std::sync::atomic::Ordering;

use async_nats::HeaderMap;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use futures_util::future::join;
use terrace_core::{
    Append, Appended, Durability, Error, ErrorKind, Idempotency, Result, Sequence, Span,
};

use super::link::{End, Link, failed, unreachable};
use crate::journal::{Chunk, Packed, corrupt, full, outcome_unknown};

/// The key and the digest of a request, beside its entry.
pub(super) const REQUEST: &str = "Terrace-Request";
pub(super) const FINGERPRINT: &str = "Terrace-Fingerprint";

/// What became of a message.
enum Published {
    Done,
    /// It is there since an earlier try, under this number of the stream.
    Before(u64),
}

impl Link {
    pub(super) async fn append(&self, requests: &[Append]) -> Result<Appended> {
        self.have_looked().await?;
        let ((), appended) = join(self.keep_looking(), self.append_all(requests)).await;
        Ok(Appended { durability: self.durability(), ..appended? })
    }

    async fn append_all(&self, requests: &[Append]) -> Result<Appended> {
        self.check()?;
        let packed = Packed::of(requests);
        self.check_room(&packed).await?;
        let mut end = self.end.lock().await;
        let mut at = match *end {
            Some(end) => end,
            None => self.find_end().await?,
        };
        let mut previous = at.last;
        let mut spans = Vec::with_capacity(packed.chunks.len());
        let mut lost = false;
        for chunk in &packed.chunks {
            if lost {
                // Where the stream ends now is for the next append to find out.
                spans.push(Err(unreachable()));
                continue;
            }
            // Not known until it is acknowledged.
            *end = None;
            let span = self.publish_chunk(&mut at, chunk, &mut previous).await;
            lost = span.as_ref().is_err_and(Error::is_retryable);
            *end = (!lost).then_some(at);
            spans.push(span);
        }
        let (epoch, last) = (at.epoch, at.last);
        let durability = Durability::Accepted;
        Ok(Appended { epoch, previous, last, durability, spans: packed.spans(&spans) })
    }

    /// Refuses what would go beyond the limits, by what is known of others' appends.
    async fn check_room(&self, packed: &Packed) -> Result<()> {
        let writes: u64 = packed.chunks.iter().map(|chunk| chunk.count).sum();
        let bytes: u64 = packed.chunks.iter().map(|chunk| chunk.payload.len() as u64).sum();
        let limits = self.options.limits;
        let fits = || {
            self.held_writes.load(Ordering::Relaxed) + writes <= limits.writes
                && self.held_bytes.load(Ordering::Relaxed) + bytes <= limits.bytes
        };
        if !fits() {
            self.progress().await?;
            if !fits() {
                return Err(full());
            }
        }
        self.held_writes.fetch_add(writes, Ordering::Relaxed);
        self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    async fn publish_chunk(
        &self,
        at: &mut End,
        chunk: &Chunk,
        previous: &mut Sequence,
    ) -> Result<Span> {
        if let Some(request) = chunk.idempotency.as_deref()
            && let Some((fingerprint, first)) = self.settled_request(request).await?
        {
            return repeated(request, &fingerprint, first);
        }
        loop {
            let first = Sequence::next(at.last, self.runtime.wall());
            let last = first.plus(chunk.count.max(1)).before();
            let mut headers = HeaderMap::new();
            if let Some(request) = chunk.idempotency.as_deref() {
                headers.insert("Nats-Msg-Id", request.key());
                headers.insert(REQUEST, request.key());
                headers.insert(FINGERPRINT, hex(request.fingerprint()).as_str());
            }
            let subject = self.entry_subject(chunk.count);
            let payload = framed(first, &chunk.payload);
            match self.publish(*at, subject, payload, headers).await {
                Ok(Published::Done) => {
                    *at = End { number: at.number + 1, last, ..*at };
                    return Ok(Span { first, repeated: false });
                }
                Ok(Published::Before(number)) => {
                    let request = chunk.idempotency.as_deref().ok_or_else(corrupt)?;
                    return self.repeat_of(request, number).await;
                }
                Err(None) => {
                    // Somebody else came first.
                    *at = self.find_end().await?;
                    *previous = at.last;
                }
                Err(Some(error)) => return Err(error),
            }
        }
    }

    /// Publishes behind the end; `Err(None)` when that is no longer the end.
    async fn publish(
        &self,
        end: End,
        subject: String,
        payload: Vec<u8>,
        headers: HeaderMap,
    ) -> Result<Published, Option<Error>> {
        let message = PublishMessage::build()
            .payload(payload.into())
            .headers(headers)
            .expected_last_sequence(end.number);
        let sent = self.context.send_publish(subject, message).await;
        let acknowledged = match sent {
            Ok(answer) => answer.await,
            Err(error) => Err(error),
        };
        match acknowledged {
            Ok(ack) if ack.duplicate => Ok(Published::Before(ack.sequence)),
            Ok(_) => Ok(Published::Done),
            Err(error) => Err(match error.kind() {
                PublishErrorKind::WrongLastSequence => None,
                PublishErrorKind::MaxPayloadExceeded => Some(Error::invalid(
                    "the request is larger than the journal's server takes; send less at once, or \
                     raise max_payload of NATS",
                )),
                PublishErrorKind::StreamNotFound | PublishErrorKind::MaxAckPending => {
                    Some(failed(error))
                }
                // The server said no.
                PublishErrorKind::Other => {
                    let message = "the journal refuses writes, and nothing was changed; look for \
                                   the limits of its stream";
                    Some(Error::new(ErrorKind::Unavailable, message).caused_by(error))
                }
                _ => Some(outcome_unknown().caused_by(error)),
            }),
        }
    }

    /// The answer to a request whose entry is there already, or was just settled.
    async fn repeat_of(&self, request: &Idempotency, number: u64) -> Result<Span> {
        if let Some(entry) = self.message(number).await? {
            let told = entry.headers.get(FINGERPRINT).map_or("", |value| value.as_str());
            let (first, _) = unframed(&entry.payload)?;
            return repeated(request, told, first);
        }
        match self.settled_request(request).await? {
            Some((fingerprint, first)) => repeated(request, &fingerprint, first),
            // Its result was removed by hand.
            None => Err(outcome_unknown()),
        }
    }

    /// Puts one write under a sequence of its own at the end.
    pub(super) async fn append_again(&self, sequence: Sequence, payload: &[u8]) -> Result<()> {
        let mut end = self.end.lock().await;
        loop {
            let at = match end.take() {
                Some(at) => at,
                None => self.find_end().await?,
            };
            let id = Sequence::next(at.last, self.runtime.wall());
            let subject = self.again_subject(sequence);
            match self.publish(at, subject, framed(id, payload), HeaderMap::new()).await {
                Ok(_) => {
                    *end = Some(End { number: at.number + 1, last: id, ..at });
                    return Ok(());
                }
                Err(None) => {}
                Err(Some(error)) => return Err(error),
            }
        }
    }
}

fn repeated(request: &Idempotency, fingerprint: &str, first: Sequence) -> Result<Span> {
    let same = fingerprint == hex(request.fingerprint());
    if same { Ok(Span { first, repeated: true }) } else { Err(Idempotency::reused()) }
}

/// A payload behind its sequence.
pub(super) fn framed(sequence: Sequence, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + payload.len());
    bytes.extend_from_slice(&sequence.get().to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A sequence and the payload behind it.
pub(super) fn unframed(bytes: &[u8]) -> Result<(Sequence, &[u8])> {
    let (sequence, rest) = bytes.split_first_chunk::<8>().ok_or_else(corrupt)?;
    Ok((Sequence::new(u64::from_be_bytes(*sequence)), rest))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

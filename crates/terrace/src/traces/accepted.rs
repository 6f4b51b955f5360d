//! Which requests' writes were accepted here and are yet to be applied: by the flusher, or by a projection.
//!
//! An entry of a journal or of a change log has no room for a trace, and gets none: what this process has
//! accepted and applies itself is linked, what another instance accepts or applies is not.

use std::hash::{BuildHasher as _, RandomState};

use opentelemetry::Context;
use opentelemetry::trace::{Link, SpanContext, TraceContextExt as _};
use quick_cache::sync::Cache;
use terrace_core::{Key, Outcome, Receipt, Result, Write};

/// The spans of requests, by the keys that they write. The latest write of a key is the one that is applied.
#[derive(Debug)]
pub(super) struct Accepted {
    spans: Cache<u64, Waiting>,
    hasher: RandomState,
}

/// How many are remembered.
const MOST: usize = 10_000;

/// Where a write stands in its journal or log.
pub(super) type Place = (u64, u64);

#[derive(Clone, Debug)]
struct Waiting {
    span: SpanContext,
    /// Unknown until the write is answered.
    place: Option<Place>,
}

impl Default for Accepted {
    fn default() -> Self {
        Self { spans: Cache::new(MOST), hasher: RandomState::new() }
    }
}

impl Accepted {
    /// Remembers the current span for these writes, before they are accepted: what applies them may be
    /// faster than the answer.
    pub(super) fn note(&self, batch: &[Write]) -> Noted<'_> {
        let span = Context::current().span().span_context().clone();
        let keys = batch.iter().map(|write| self.hash(&write.key)).collect::<Vec<_>>();
        for key in &keys {
            self.spans.insert(*key, Waiting { span: span.clone(), place: None });
        }
        Noted { accepted: self, keys, span }
    }

    /// The spans of the requests that wrote these keys at these places, and which of the keys.
    pub(super) fn applied<'a>(
        &self,
        writes: impl Iterator<Item = (&'a Key, Place)>,
    ) -> (Vec<Link>, Vec<u64>) {
        let (mut links, mut keys) = (Vec::<Link>::new(), Vec::new());
        for (key, place) in writes {
            let key = self.hash(key);
            let Some(waiting) = self.spans.get(&key) else { continue };
            match waiting.place {
                // Another instance accepted this one, or it is an earlier one.
                Some(own) if own != place => continue,
                _ if links.iter().any(|link| link.span_context == waiting.span) => {}
                _ => links.push(Link::with_context(waiting.span)),
            }
            keys.push(key);
        }
        (links, keys)
    }

    /// They were applied.
    pub(super) fn forget(&self, keys: &[u64]) {
        for key in keys {
            self.spans.remove(key);
        }
    }

    fn hash(&self, key: &Key) -> u64 {
        self.hasher.hash_one(key)
    }
}

/// Writes of one request whose answer is waited for.
pub(super) struct Noted<'a> {
    accepted: &'a Accepted,
    keys: Vec<u64>,
    span: SpanContext,
}

impl Noted<'_> {
    /// What is to be applied has its place now; the others are forgotten.
    pub(super) fn ended(self, result: &Result<Vec<Receipt>>) {
        let receipts = result.as_deref().unwrap_or_default().iter().map(Some);
        for (key, receipt) in self.keys.iter().zip(receipts.chain(std::iter::repeat(None))) {
            let waits = self.accepted.spans.get(key);
            if !waits.is_some_and(|waiting| waiting.span == self.span) {
                continue;
            }
            match receipt.and_then(place) {
                Some(place) => {
                    let waiting = Waiting { span: self.span.clone(), place: Some(place) };
                    self.accepted.spans.insert(*key, waiting);
                }
                None => drop(self.accepted.spans.remove(key)),
            }
        }
    }
}

/// Where the write of a receipt waits to be applied.
fn place(receipt: &Receipt) -> Option<Place> {
    match receipt.outcome {
        // Of the positions in its token only that in the journal is not the beginning.
        Outcome::Queued => receipt.token.marks().map(|(_, it)| (0, it.get())).max(),
        _ => receipt.event.map(Place::from),
    }
}

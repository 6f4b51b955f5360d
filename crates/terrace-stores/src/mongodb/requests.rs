//! Requests that may be repeated: a claim, and what it came to.
//!
//! The claim is a document of `terrace_idempotency` under the request's key. Whoever makes it applies the
//! writes, each of which notes the request in the row that it writes, and then keeps the result in the
//! claim. A repeat waits for that. Where the first one died in between, the repeat takes the claim over
//! after [`HELD_FOR`] and goes through the writes again: those whose row knows the request are done.

use std::time::Duration;

use mongodb::Collection;
use mongodb::bson::{
    Binary, Document, RawBsonRef, RawDocument, RawDocumentBuf, doc, spec::BinarySubtype,
};
use mongodb::options::ReadConcern;
use terrace_core::{Error, ErrorKind, Idempotency, Outcome, Result, Version};

use super::failure;
use super::link::ServerSession;
use super::row::{time, whole};

/// The collection.
pub(super) const COLLECTION: &str = "terrace_idempotency";

/// How long a claim is left to who made it.
const HELD_FOR: Duration = Duration::from_secs(5);

/// What a request came to.
pub(super) type Results = Vec<(Outcome, Version)>;

/// What is to be done for a request.
#[derive(Debug)]
pub(super) enum Claim {
    /// Nothing: this is what it came to.
    Done(Results),
    /// The writes, and then [`Held::keep`].
    Held(Held),
    /// Another one has it: it is asked for again after [`PAUSE`].
    Theirs,
}

/// A claim of this caller.
#[derive(Debug)]
pub(super) struct Held {
    claims: Collection<RawDocumentBuf>,
    mine: Document,
}

/// How long to wait for what the holder makes of a claim. Nothing is held meanwhile.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// Takes the claim, or answers what its holder made of it.
///
/// # Errors
/// [`Idempotency::reused`] for another request under the key.
pub(super) async fn claim(session: &ServerSession, request: &Idempotency) -> Result<Claim> {
    let claims = session.database.collection::<RawDocumentBuf>(COLLECTION);
    // Kept as a whole number of JSON everywhere.
    let owner = i64::try_from(session.runtime.random() >> 12).unwrap_or(0);
    let held =
        || Held { claims: claims.clone(), mine: doc! { "_id": request.key(), "owner": owner } };
    loop {
        let now = session.runtime.wall();
        let found = claims.find_one(doc! { "_id": request.key() });
        let found = found.read_concern(ReadConcern::local()).await;
        let Some(found) = found.map_err(failure::of_read)? else {
            session.writes()?;
            let fresh = doc! {
                "_id": request.key(),
                "fingerprint": fingerprint(request),
                "at": time(now),
                "owner": owner,
                "until": time(now + HELD_FOR),
            };
            let fresh = RawDocumentBuf::try_from(&fresh).map_err(failure::bson)?;
            match claims.insert_one(fresh).await {
                Ok(_) => return Ok(Claim::Held(held())),
                Err(error) if failure::is_duplicate(&error) => continue,
                Err(error) => return Err(failure::of_write(error)),
            }
        };
        let stored = Stored::of(&found)?;
        let is_old = stored.at + micros(Idempotency::KEPT_FOR) <= time(now);
        if !is_old && stored.fingerprint != request.fingerprint() {
            return Err(Idempotency::reused());
        }
        if let Some(results) = stored.results.filter(|_| !is_old) {
            return Ok(Claim::Done(results));
        }
        if !is_old && stored.until > time(now) {
            return Ok(Claim::Theirs);
        }
        session.writes()?;
        let taken = doc! { "$set": {
            "fingerprint": fingerprint(request),
            "at": time(now),
            "owner": owner,
            "until": time(now + HELD_FOR),
            "result": null,
        } };
        let theirs = doc! { "_id": request.key(), "owner": stored.owner };
        let taken = claims.update_one(theirs, taken).await.map_err(failure::of_write)?;
        if taken.matched_count == 1 {
            return Ok(Claim::Held(held()));
        }
    }
}

impl Held {
    /// Keeps what the request came to. Where another one has taken over, that keeps the same: every
    /// write that was applied is noted in its row.
    pub(super) async fn keep(self, results: &Results) -> Result<()> {
        let text = serde_json::to_string(results).map_err(|error| {
            let message = "a result cannot be stored; report this defect";
            Error::new(ErrorKind::Internal, message).caused_by(error)
        })?;
        let kept = self.claims.update_one(self.mine, doc! { "$set": { "result": text } });
        kept.await.map(drop).map_err(failure::of_write)
    }

    /// Lets the next one try at once, as nothing came of it.
    pub(super) async fn give_back(self) {
        let freed = doc! { "$set": { "until": 0_i64 } };
        if let Err(error) = self.claims.update_one(self.mine, freed).await {
            tracing::debug!(%error, "a claim is kept until it ends by itself");
        }
    }
}

/// A claim as it is stored.
struct Stored<'a> {
    fingerprint: &'a [u8],
    owner: i64,
    at: i64,
    until: i64,
    results: Option<Results>,
}

impl<'a> Stored<'a> {
    fn of(raw: &'a RawDocument) -> Result<Self> {
        let bad = failure::corrupt;
        let number = |name: &'static str| {
            whole(raw.get(name).map_err(failure::bson)?).ok_or_else(|| bad(name))
        };
        let results = match raw.get("result").map_err(failure::bson)? {
            Some(RawBsonRef::String(text)) => {
                Some(serde_json::from_str(text).map_err(|_| bad("result"))?)
            }
            _ => None,
        };
        Ok(Self {
            fingerprint: raw.get_binary("fingerprint").map_err(|_| bad("fingerprint"))?.bytes,
            owner: number("owner")?,
            at: number("at")?,
            until: number("until")?,
            results,
        })
    }
}

fn fingerprint(request: &Idempotency) -> Binary {
    Binary { subtype: BinarySubtype::Generic, bytes: request.fingerprint().to_vec() }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

//! The grants of an installation, as this instance knows them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use terrace_core::{
    BoxFuture, Deadline, Error, ErrorKind, Inspection, Key, Outcome, Precondition, ReadOptions,
    Record, Result, Runtime, Scan, Status, Store, StoreExt as _, Task, Unit, Value, Write,
    WriteOptions, one,
};

use super::grant::{Grant, GrantState, Principal, Scope};
use super::key::{ApiKey, KeyDigest, KeyId};

/// What grants there are, in a store of their own, and a copy of them in memory.
#[derive(Debug)]
pub struct KeyRing {
    shared: Arc<HeldGrants>,
    /// Reads them again.
    _task: Task,
}

#[derive(Debug)]
struct HeldGrants {
    store: Arc<dyn Store>,
    known: ArcSwap<Known>,
    /// The one key of the settings.
    fixed: Option<(KeyDigest, Arc<Principal>)>,
    runtime: Runtime,
}

/// What was read, and when.
#[derive(Debug)]
struct Known {
    grants: HashMap<KeyId, KnownGrant>,
    read_at: Instant,
    trouble: Option<String>,
}

#[derive(Debug)]
struct KnownGrant {
    grant: Grant,
    digest: KeyDigest,
    principal: Arc<Principal>,
}

/// Why a key or a token is refused. For the audit log; the client hears one answer for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No key came.
    Missing,
    /// It has not the form of a key, or its checksum does not fit.
    Malformed,
    /// There is no grant of this id.
    Unknown,
    /// The id is known, the secret is another one.
    WrongSecret,
    /// Its time is over.
    Expired,
    /// Somebody has ended it.
    Revoked,
    /// Of a token: no key of the provider has this id.
    UnknownSigner,
    /// Of a token: it is not signed by the key that it names.
    WrongSignature,
    /// Of a token: it is signed by another algorithm than its key is for.
    WrongAlgorithm,
    /// Of a token: its time has not come.
    NotYet,
    /// Of a token: somebody else issued it.
    WrongIssuer,
    /// Of a token: it is for somebody else.
    WrongAudience,
    /// Of a token: it does not say whom it is about, or in too many bytes.
    WithoutSubject,
    /// Of a token: the claim with its prefixes is missing or empty.
    WithoutPrefixes,
    /// The grants, or the keys of tokens, could not be read for too long.
    Undecided,
}

impl Refusal {
    /// For the audit log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "no key",
            Self::Malformed => "no key or token of this form, or a checksum does not fit",
            Self::Unknown => "unknown id",
            Self::WrongSecret => "wrong secret",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::UnknownSigner => "unknown kid",
            Self::WrongSignature => "wrong signature",
            Self::WrongAlgorithm => "wrong algorithm",
            Self::NotYet => "not valid yet",
            Self::WrongIssuer => "wrong issuer",
            Self::WrongAudience => "wrong audience",
            Self::WithoutSubject => "no subject, or one that is too long",
            Self::WithoutPrefixes => "no prefixes",
            Self::Undecided => "what is known of keys could not be read for too long",
        }
    }
}

impl KeyRing {
    /// For how long grants are believed while the store of grants does not answer.
    pub const BELIEVED_FOR: Duration = Duration::from_secs(5 * 60);

    /// How often they are read.
    const EVERY: Duration = Duration::from_secs(1);
    /// How long a read may take; with [`Self::EVERY`] well below the 5 s of a revocation.
    const WITHIN: Duration = Duration::from_secs(2);

    /// Under this record it is noted that the first key was made. No id has its form.
    const FIRST: &str = "first-key";

    /// Reads the grants of `store`. `fixed` is the key of the settings, which may do everything.
    ///
    /// # Errors
    /// When they cannot be read: an instance that knows none would refuse everybody.
    pub async fn open(
        store: Arc<dyn Store>,
        fixed: Option<&str>,
        runtime: Runtime,
    ) -> Result<Self> {
        let fixed = fixed.map(|text| (KeyDigest::of(text), Arc::new(Principal::of_settings())));
        let grants = read_all(&*store, &runtime).await?;
        let known = Known { grants, read_at: runtime.now(), trouble: None };
        let known = ArcSwap::from_pointee(known);
        let shared = Arc::new(HeldGrants { store, known, fixed, runtime: runtime.clone() });
        let reads = Arc::clone(&shared);
        let task = runtime.keep("grants of keys", move || {
            let reads = Arc::clone(&reads);
            async move { reads.go_on_reading().await }
        });
        Ok(Self { shared, _task: task })
    }

    /// Makes the first key of an installation that has none, once for all instances; a key of the settings
    /// is enough, too.
    ///
    /// # Errors
    /// Of the store.
    pub async fn first(&self) -> Result<Option<ApiKey>> {
        let shared = &self.shared;
        if shared.fixed.is_some() || !shared.known.load().grants.is_empty() {
            return Ok(None);
        }
        let note = Write::put(Key::new(Self::FIRST)?, Value::new("made")?);
        let note = note.when(Precondition::Absent);
        let how = WriteOptions::default();
        let made = one(shared.store.write(vec![note], &how).await?)?;
        if made.outcome == Outcome::PreconditionFailed {
            return Ok(None);
        }
        let scopes = [Scope::Admin];
        let key = ApiKey::generate()?;
        let grant = Grant::new(&key, "first", &scopes, shared.runtime.wall());
        add(&*shared.store, key.id(), &grant).await?;
        shared.read().await?;
        Ok(Some(key))
    }

    /// Who has the key in this text.
    ///
    /// # Errors
    /// Why it is refused, with the id that it claims.
    pub fn principal(
        &self,
        text: &str,
    ) -> std::result::Result<Arc<Principal>, (Refusal, Option<KeyId>)> {
        let shared = &self.shared;
        if let Some((digest, principal)) = &shared.fixed
            && digest.is(&KeyDigest::of(text))
        {
            return Ok(Arc::clone(principal));
        }
        let key = ApiKey::parse(text).ok_or((Refusal::Malformed, None))?;
        let id = key.id();
        let refused = |refusal| Err((refusal, Some(id.clone())));
        let known = shared.known.load();
        if shared.runtime.now().saturating_duration_since(known.read_at) > Self::BELIEVED_FOR {
            return refused(Refusal::Undecided);
        }
        let Some(found) = known.grants.get(id) else { return refused(Refusal::Unknown) };
        if !found.digest.is(&key.digest()) {
            return refused(Refusal::WrongSecret);
        }
        match found.grant.state(shared.runtime.wall()) {
            GrantState::Active => Ok(Arc::clone(&found.principal)),
            GrantState::Expired => refused(Refusal::Expired),
            GrantState::Revoked => refused(Refusal::Revoked),
        }
    }

    /// Ends the reading, and closes the store.
    ///
    /// # Errors
    /// Of the store.
    pub fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.shared.store.close()
    }

    /// How many there are, and whether they could be read lately.
    pub fn inspect(&self) -> Inspection {
        let known = self.shared.known.load();
        let tree =
            Inspection::new("authentication").gauge("keys", known.grants.len() as u64, Unit::Count);
        match &known.trouble {
            None => tree,
            Some(trouble) => {
                let note = format!(
                    "the grants of keys cannot be read, so one that is revoked may go on for up to 5 \
                     minutes: {trouble}"
                );
                tree.status(Status::Degraded, note)
            }
        }
    }
}

impl HeldGrants {
    /// Never ends.
    async fn go_on_reading(&self) -> Result<()> {
        loop {
            self.runtime.sleep(KeyRing::EVERY).await;
            if let Err(error) = self.read().await {
                self.is_troubled(&error);
            }
        }
    }

    async fn read(&self) -> Result<()> {
        // What is read is as of the beginning.
        let read_at = self.runtime.now();
        let grants = read_all(&*self.store, &self.runtime).await?;
        if self.known.load().trouble.is_some() {
            tracing::info!("the grants of keys can be read again");
        }
        self.known.store(Arc::new(Known { grants, read_at, trouble: None }));
        Ok(())
    }

    fn is_troubled(&self, error: &Error) {
        let known = self.known.load();
        if known.trouble.is_some() {
            return;
        }
        tracing::warn!(%error, "the grants of keys cannot be read; those that are known go on");
        let grants = known.grants.iter().map(|(id, found)| {
            let KnownGrant { grant, digest, principal } = found;
            let (grant, digest, principal) = (grant.clone(), digest.clone(), Arc::clone(principal));
            (id.clone(), KnownGrant { grant, digest, principal })
        });
        let (grants, read_at) = (grants.collect(), known.read_at);
        let trouble = Some(error.message().to_owned());
        self.known.store(Arc::new(Known { grants, read_at, trouble }));
    }
}

async fn read_all(store: &dyn Store, runtime: &Runtime) -> Result<HashMap<KeyId, KnownGrant>> {
    let deadline = Deadline::at(runtime.now() + KeyRing::WITHIN);
    let all = runtime.within(deadline, list(store, deadline)).await;
    let mut known = HashMap::new();
    for (id, grant) in all.unwrap_or_else(|| Err(Deadline::exceeded()))? {
        let Some(digest) = grant.digest() else {
            tracing::error!(key = %id, "the grant of a key has no digest: the key is refused");
            continue;
        };
        let principal = Arc::new(Principal::of(id.clone(), &grant));
        known.insert(id, KnownGrant { grant, digest, principal });
    }
    Ok(known)
}

/// All grants, by their ids. One that cannot be read is left out, and so refused.
///
/// # Errors
/// Of the store.
pub async fn list(store: &dyn Store, deadline: Deadline) -> Result<Vec<(KeyId, Grant)>> {
    let how = ReadOptions::strong(deadline);
    let mut found = Vec::new();
    let mut scan = Scan { prefix: String::new(), after: None, limit: Scan::MAX_LIMIT };
    loop {
        let page = store.scan(&scan, &how).await?;
        for record in &page.records {
            found.extend(read_one(record));
        }
        match page.next {
            Some(after) => scan.after = Some(after),
            None => return Ok(found),
        }
    }
}

fn read_one(record: &Record) -> Option<(KeyId, Grant)> {
    let id = KeyId::new(record.key.as_str()).ok()?;
    match Grant::read(record.value.as_str()) {
        Ok(grant) => Some((id, grant)),
        Err(error) => {
            tracing::error!(key = %id, %error, "the grant of a key cannot be read: it is refused");
            None
        }
    }
}

/// Keeps the grant of a new key.
///
/// # Errors
/// Of the store.
pub async fn add(store: &dyn Store, id: &KeyId, grant: &Grant) -> Result<()> {
    store.put(Key::new(id.as_str())?, value(grant)?).await.map(drop)
}

/// Changes the grant of a key; nobody else's change is lost.
///
/// # Errors
/// `InvalidInput` where there is none; of the store.
pub async fn change(
    store: &dyn Store,
    id: &KeyId,
    mut change: impl FnMut(&mut Grant),
) -> Result<Grant> {
    let key = Key::new(id.as_str())?;
    loop {
        let read = store.get_read(&key, &ReadOptions::strong(Deadline::NEVER)).await?;
        let Some(record) = read.record else {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("there is no key {id}; `terrace keys list` has them"),
            ));
        };
        let mut grant = Grant::read(record.value.as_str())?;
        change(&mut grant);
        let write = Write::put(key.clone(), value(&grant)?);
        let write = write.when(Precondition::Version(record.version));
        let done = one(store.write(vec![write], &WriteOptions::default()).await?)?;
        if done.outcome != Outcome::PreconditionFailed {
            return Ok(grant);
        }
    }
}

fn value(grant: &Grant) -> Result<Value> {
    let text = serde_json::to_string(grant).map_err(|error| {
        Error::new(ErrorKind::Internal, "a grant cannot be written").caused_by(error)
    })?;
    Value::new(text)
}

#[cfg(test)]
mod tests {
    use terrace_core::MemoryStore;
    use terrace_core::testkit::Scripted;

    use super::*;

    async fn ring(store: &Arc<MemoryStore>) -> KeyRing {
        let store = Arc::clone(store) as Arc<dyn Store>;
        KeyRing::open(store, None, Runtime::system()).await.expect("grants are read")
    }

    async fn pass(time: Duration) {
        Runtime::system().sleep(time).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_known_and_its_end_within_the_promised_time() {
        let store = Arc::<MemoryStore>::default();
        let rings = [ring(&store).await, ring(&store).await];
        let key = ApiKey::generate().expect("random numbers");
        let now = Runtime::system().wall();
        let grant = Grant::new(&key, "app", &[Scope::Read], now);
        add(&*store, key.id(), &grant).await.expect("it is kept");
        pass(Duration::from_secs(2)).await;
        for ring in &rings {
            let principal = ring.principal(key.reveal()).expect("it is known");
            assert!(principal.may(Scope::Read) && !principal.may(Scope::Write));
        }
        let other = ApiKey::generate().expect("random numbers");
        let wrong = format!("trc_{}_{}", key.id(), &other.reveal()[15..]);
        assert_eq!(rings[0].principal(&wrong), Err((Refusal::Malformed, None)));
        let unknown = Err((Refusal::Unknown, Some(other.id().clone())));
        assert_eq!(rings[0].principal(other.reveal()), unknown);
        change(&*store, key.id(), |grant| grant.revoked_at = Some(now)).await.expect("it is there");
        pass(Duration::from_secs(5)).await;
        for ring in &rings {
            let refused = Err((Refusal::Revoked, Some(key.id().clone())));
            assert_eq!(ring.principal(key.reveal()), refused);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_key_is_made_once() {
        let store = Arc::<MemoryStore>::default();
        let rings = [ring(&store).await, ring(&store).await];
        let made = [rings[0].first().await, rings[1].first().await];
        let made = made.map(|made| made.expect("it is kept"));
        let key = made[0].as_ref().expect("the first one makes it");
        assert!(made[1].is_none());
        assert!(rings[0].principal(key.reveal()).expect("it is known").may(Scope::Write));
        assert!(ring(&store).await.first().await.expect("grants are read").is_none());
    }

    /// While the store of grants is down, known keys go on for a while, and then nobody does.
    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_decided_is_refused() {
        let memory = MemoryStore::default();
        let key = ApiKey::generate().expect("random numbers");
        let grant = Grant::new(&key, "app", &[Scope::Read], Runtime::system().wall());
        add(&memory, key.id(), &grant).await.expect("it is kept");
        let (store, mut hand) = Scripted::new();
        let (ring, ()) = tokio::join!(KeyRing::open(store, None, Runtime::system()), async {
            hand.next().await.pass_on(&memory).await;
        });
        let ring = ring.expect("grants are read");
        let _fails = Runtime::system().spawn("fails", async move {
            loop {
                hand.scan().await.fail(ErrorKind::Unavailable);
            }
        });
        pass(KeyRing::BELIEVED_FOR - Duration::from_secs(1)).await;
        assert!(ring.principal(key.reveal()).is_ok());
        assert_eq!(ring.inspect().status, Status::Degraded);
        pass(Duration::from_secs(2)).await;
        let refused = Err((Refusal::Undecided, Some(key.id().clone())));
        assert_eq!(ring.principal(key.reveal()), refused);
    }

    #[tokio::test]
    async fn the_key_of_the_settings_may_do_everything() {
        let store = Arc::<MemoryStore>::default() as Arc<dyn Store>;
        let ring = KeyRing::open(store, Some("made up"), Runtime::system()).await;
        let ring = ring.expect("grants are read");
        assert!(ring.first().await.expect("nothing is made").is_none());
        let principal = ring.principal("made up").expect("it is known");
        assert!(principal.may(Scope::Admin) && !principal.is_restricted());
        assert_eq!(ring.principal("made up "), Err((Refusal::Malformed, None)));
        assert_eq!(ring.principal(""), Err((Refusal::Malformed, None)));
    }
}

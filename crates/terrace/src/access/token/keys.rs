//! The keys of an identity provider, and their changes.
//!
//! One task reads them; requests look at what it has read last. A token of an unknown key wakes the task, unless
//! the keys were read lately: that pause is the memory of keys that do not exist, of no size, whoever makes them
//! up. A reading that fails changes nothing, and one that succeeds replaces all keys, so that those which the
//! provider has withdrawn are gone, also where none is left.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use terrace_core::{BoxFuture, Deadline, Error, Inspection, Result, Runtime, Status, Task, Unit};
use tokio::sync::{Notify, watch};

use super::fetch::Document;
use crate::access::ring::Refusal;
use crate::file_state::FileState;

/// Where keys are read.
pub(super) trait KeyServer: Send + Sync + 'static {
    /// The key set as it is now, or why it cannot be had.
    fn get(&self) -> BoxFuture<'_, std::result::Result<Vec<u8>, String>>;
}

impl KeyServer for Document {
    fn get(&self) -> BoxFuture<'_, std::result::Result<Vec<u8>, String>> {
        Box::pin(async { Ok(Document::get(self).await?.to_vec()) })
    }
}

/// A file, or a server.
pub(super) enum KeySource {
    File(PathBuf),
    Server(Box<dyn KeyServer>),
}

impl KeySource {
    pub(super) fn of(text: &str) -> Result<Self> {
        match text.contains("://") {
            true => Ok(Self::Server(Box::new(Document::at(text)?))),
            false => Ok(Self::File(text.into())),
        }
    }
}

/// A key, and what tokens of it are held to.
#[derive(Debug)]
pub(super) struct VerifyKey {
    pub(super) key: DecodingKey,
    pub(super) validation: Validation,
}

/// What is wrong with a key set that has no key that may be used.
const WITHOUT_KEYS: &str = "no key of the set has an id and is of an algorithm of jwt.algorithms";

type KeysById = HashMap<String, VerifyKey>;

/// The keys of the provider.
#[derive(Debug)]
pub(super) struct ProviderKeys {
    shared: Arc<HeldKeys>,
    /// Reads them again.
    _task: Task,
}

struct HeldKeys {
    source: KeySource,
    validations: Vec<Validation>,
    known: ArcSwap<Known>,
    wanted: Notify,
    readings: watch::Sender<Readings>,
    runtime: Runtime,
}

/// What was read, and when; nothing before the first time.
#[derive(Clone, Debug, Default)]
struct Known {
    keys: Arc<KeysById>,
    read_at: Option<Instant>,
    trouble: Option<String>,
}

/// How far reading is.
#[derive(Clone, Copy, Debug)]
struct Readings {
    begun: Instant,
    under_way: bool,
    ended: u64,
}

impl std::fmt::Debug for HeldKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeldKeys").field("known", &self.known).finish_non_exhaustive()
    }
}

impl ProviderKeys {
    /// How often keys are read without need.
    pub(super) const EVERY: Duration = Duration::from_secs(5 * 60);
    /// How long it is left alone at least, whatever tokens come.
    pub(super) const COOLDOWN: Duration = Duration::from_secs(30);
    /// For how long keys are believed while they cannot be read.
    pub(super) const BELIEVED_FOR: Duration = Duration::from_secs(24 * 3600);
    /// How long a reading may take, and how long a request waits for one.
    const WITHIN: Duration = Duration::from_secs(3);
    /// How often a look is taken whether a file was replaced.
    const LOOK: Duration = Duration::from_secs(2);

    pub(super) async fn open(
        source: KeySource,
        validations: Vec<Validation>,
        runtime: Runtime,
    ) -> Result<Self> {
        let is_file = matches!(source, KeySource::File(_));
        let (known, wanted) = (ArcSwap::default(), Notify::new());
        let now = Readings { begun: runtime.now(), under_way: false, ended: 0 };
        let (readings, clock) = (watch::Sender::new(now), runtime.clone());
        let shared =
            Arc::new(HeldKeys { source, validations, known, wanted, readings, runtime: clock });
        shared.read().await;
        if let (true, Some(why)) = (is_file, &shared.known.load().trouble) {
            return Err(Error::invalid(format!("jwt.jwks: {why}; put a key set there")));
        }
        let reads = Arc::clone(&shared);
        let task = runtime.keep("keys of tokens", move || {
            let reads = Arc::clone(&reads);
            async move { reads.go_on_reading().await }
        });
        Ok(Self { shared, _task: task })
    }

    /// The keys by their ids.
    pub(super) fn known(&self) -> std::result::Result<Arc<KeysById>, Refusal> {
        let known = self.shared.known.load();
        let now = self.shared.runtime.now();
        match known.read_at {
            Some(at) if now.saturating_duration_since(at) <= Self::BELIEVED_FOR => {
                Ok(Arc::clone(&known.keys))
            }
            _ => Err(Refusal::Undecided),
        }
    }

    /// See [`Tokens::look_again`](super::Tokens::look_again). A caller holds nothing that another one needs.
    pub(super) async fn look_again(&self) -> bool {
        let shared = &self.shared;
        let mut readings = shared.readings.subscribe();
        let seen = *readings.borrow_and_update();
        if !seen.under_way {
            if shared.is_resting() {
                return false;
            }
            shared.wanted.notify_one();
        }
        let until = Deadline::at(shared.runtime.now() + Self::WITHIN);
        let ended = readings.wait_for(|now| now.ended > seen.ended);
        matches!(shared.runtime.within(until, ended).await, Some(Ok(_)))
    }

    pub(super) fn inspect(&self) -> Inspection {
        let known = self.shared.known.load();
        let tree = Inspection::new("tokens").gauge("keys", known.keys.len() as u64, Unit::Count);
        match &known.trouble {
            None => tree,
            Some(why) => {
                let note = match known.keys.is_empty() {
                    true => format!("there is no key of tokens, so every token is refused: {why}"),
                    false => format!(
                        "the keys of tokens cannot be read ({why}); those that are known go on for a \
                         day after they were read"
                    ),
                };
                tree.status(Status::Degraded, note)
            }
        }
    }
}

impl HeldKeys {
    /// Whether it is too early to ask again. Files are looked at often enough.
    fn is_resting(&self) -> bool {
        matches!(self.source, KeySource::File(_)) || self.since_begun() < ProviderKeys::COOLDOWN
    }

    /// How long ago the last reading began.
    fn since_begun(&self) -> Duration {
        let begun = self.readings.borrow().begun;
        self.runtime.now().saturating_duration_since(begun)
    }

    /// Never ends.
    async fn go_on_reading(&self) -> Result<()> {
        let mut seen = match &self.source {
            KeySource::File(path) => Some(FileState::at(path)),
            KeySource::Server(_) => None,
        };
        loop {
            if let KeySource::File(path) = &self.source {
                self.runtime.sleep(ProviderKeys::LOOK).await;
                let now = Some(FileState::at(path));
                // Also one that nobody replaces: its keys are believed from the last reading on.
                if seen != now || self.since_begun() >= ProviderKeys::EVERY {
                    seen = now;
                    self.read().await;
                }
                continue;
            }
            let pause = match self.known.load().trouble {
                Some(_) => ProviderKeys::COOLDOWN,
                None => ProviderKeys::EVERY,
            };
            tokio::select! {
                () = self.runtime.sleep(pause) => self.read().await,
                // Somebody may have asked while the last reading was under way.
                () = self.wanted.notified() => if !self.is_resting() { self.read().await },
            }
        }
    }

    async fn read(&self) {
        let begun = self.runtime.now();
        self.readings.send_modify(|now| (now.begun, now.under_way) = (begun, true));
        let text = match &self.source {
            KeySource::File(path) => std::fs::read(path)
                .map_err(|error| format!("{} cannot be read ({error})", path.display())),
            KeySource::Server(server) => {
                let until = Deadline::at(begun + ProviderKeys::WITHIN);
                let answer = self.runtime.within(until, server.get()).await;
                answer.unwrap_or_else(|| Err("it does not answer in time".to_owned()))
            }
        };
        match text.and_then(|text| self.keys_in(&text)) {
            Ok(keys) => {
                let trouble = keys.is_empty().then(|| WITHOUT_KEYS.to_owned());
                match &trouble {
                    None => tracing::info!(keys = keys.len(), "the keys of tokens were read"),
                    Some(why) => tracing::warn!(why, "every token is refused"),
                }
                let keys = Arc::new(keys);
                self.known.store(Arc::new(Known { keys, read_at: Some(begun), trouble }));
            }
            Err(why) => {
                let known = Known::clone(&self.known.load());
                tracing::warn!(
                    why,
                    "the keys of tokens cannot be read; those that are known go on"
                );
                self.known.store(Arc::new(Known { trouble: Some(why), ..known }));
            }
        }
        self.readings.send_modify(|now| (now.under_way, now.ended) = (false, now.ended + 1));
    }

    /// The keys that may be used, of which a provider may have withdrawn the last.
    fn keys_in(&self, text: &[u8]) -> std::result::Result<KeysById, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set = serde_json::from_slice(text)
            .map_err(|error| format!("this is no JSON Web Key Set: {error}"))?;
        let keys = set.keys.into_iter().filter_map(|key| self.key(&Jwk::deserialize(key).ok()?));
        Ok(keys.collect())
    }

    fn key(&self, jwk: &Jwk) -> Option<(String, VerifyKey)> {
        let common = &jwk.common;
        if common.public_key_use.as_ref().is_some_and(|of| *of != PublicKeyUse::Signature) {
            return None;
        }
        let (algorithm, named) = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                (Algorithm::ES256, KeyAlgorithm::ES256)
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
            }
            _ => return None,
        };
        if common.key_algorithm.is_some_and(|other| other != named) {
            return None;
        }
        let held = self.validations.iter().find(|held| held.algorithms.contains(&algorithm))?;
        let (key, validation) = (DecodingKey::from_jwk(jwk).ok()?, held.clone());
        Some((common.key_id.clone()?, VerifyKey { key, validation }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A key set with one key of this id. The key itself is nobody's.
    fn set(kid: &str) -> Vec<u8> {
        let key = serde_json::json!({"kty": "OKP", "crv": "Ed25519", "kid": kid,
            "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
        serde_json::json!({"keys": [key]}).to_string().into_bytes()
    }

    /// A provider that answers what it is told to, and counts.
    #[derive(Clone, Default)]
    struct Provider(Arc<(AtomicU64, Mutex<Option<Vec<u8>>>)>);

    impl Provider {
        fn says(&self, answer: Option<Vec<u8>>) {
            *self.0.1.lock().expect("no panic") = answer;
        }

        fn asked(&self) -> u64 {
            self.0.0.load(Ordering::Relaxed)
        }
    }

    impl KeyServer for Provider {
        fn get(&self) -> BoxFuture<'_, std::result::Result<Vec<u8>, String>> {
            Box::pin(async {
                self.0.0.fetch_add(1, Ordering::Relaxed);
                // Long enough for others to come meanwhile.
                Runtime::system().sleep(Duration::from_millis(100)).await;
                self.0.1.lock().expect("no panic").clone().ok_or_else(|| "down".to_owned())
            })
        }
    }

    async fn keys(provider: &Provider) -> ProviderKeys {
        let source = KeySource::Server(Box::new(provider.clone()));
        let held = vec![Validation::new(Algorithm::EdDSA)];
        ProviderKeys::open(source, held, Runtime::system()).await.expect("a provider")
    }

    fn knows(keys: &ProviderKeys, kid: &str) -> bool {
        keys.known().is_ok_and(|known| known.contains_key(kid))
    }

    #[tokio::test(start_paused = true)]
    async fn many_tokens_of_unknown_keys_ask_once_and_then_not_for_a_while() {
        let provider = Provider::default();
        provider.says(Some(set("a")));
        let keys = keys(&provider).await;
        assert!(!keys.look_again().await, "they were just read");
        assert_eq!((provider.asked(), knows(&keys, "a")), (1, true));
        Runtime::system().sleep(ProviderKeys::COOLDOWN).await;
        provider.says(Some(set("b")));
        let all = (0..100).map(|_| keys.look_again());
        let looked = futures_util::future::join_all(all).await;
        assert!(looked.iter().all(|looked| *looked));
        assert_eq!((provider.asked(), knows(&keys, "a"), knows(&keys, "b")), (2, false, true));
        for _ in 0..100 {
            assert!(!keys.look_again().await);
        }
        Runtime::system().sleep(ProviderKeys::EVERY - Duration::from_secs(1)).await;
        assert_eq!(provider.asked(), 2);
        Runtime::system().sleep(Duration::from_secs(2)).await;
        assert_eq!(provider.asked(), 3, "without need, now and then");
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_is_down_takes_no_key_away_for_a_day() {
        let provider = Provider::default();
        provider.says(Some(set("a")));
        let keys = keys(&provider).await;
        for wrong in [None, Some(b"<html>".to_vec()), Some(br#"{"key":[]}"#.to_vec())] {
            provider.says(wrong);
            Runtime::system().sleep(ProviderKeys::COOLDOWN).await;
            assert!(keys.look_again().await);
            assert!(knows(&keys, "a"));
            assert_eq!(keys.inspect().status, Status::Degraded);
        }
        Runtime::system().sleep(ProviderKeys::BELIEVED_FOR).await;
        assert_eq!(keys.known().err(), Some(Refusal::Undecided));
        provider.says(Some(set("a")));
        Runtime::system().sleep(ProviderKeys::COOLDOWN + Duration::from_secs(1)).await;
        assert!(knows(&keys, "a"));
        assert_eq!(keys.inspect().status, Status::Healthy);
    }

    #[tokio::test(start_paused = true)]
    async fn a_set_without_a_usable_key_takes_all_keys_away() {
        let secret = br#"{"keys":[{"kty":"oct","k":"AAAA","kid":"a"}]}"#.to_vec();
        for empty in [br#"{"keys":[]}"#.to_vec(), secret] {
            let provider = Provider::default();
            provider.says(Some(set("a")));
            let keys = keys(&provider).await;
            assert!(knows(&keys, "a"));
            provider.says(Some(empty));
            Runtime::system().sleep(ProviderKeys::COOLDOWN).await;
            assert!(keys.look_again().await);
            assert!(keys.known().is_ok_and(|known| known.is_empty()), "they are withdrawn");
            let tree = keys.inspect();
            assert_eq!(tree.status, Status::Degraded);
            assert!(tree.note.contains("every token is refused"), "{}", tree.note);
            provider.says(Some(set("b")));
            Runtime::system().sleep(ProviderKeys::COOLDOWN + Duration::from_secs(1)).await;
            assert!(knows(&keys, "b"));
            assert_eq!(keys.inspect().status, Status::Healthy);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_nobody_replaces_is_believed_for_more_than_a_day() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), set("a")).expect("a file");
        let source = KeySource::File(file.path().to_owned());
        let held = vec![Validation::new(Algorithm::EdDSA)];
        let keys = ProviderKeys::open(source, held, Runtime::system()).await.expect("keys");
        Runtime::system().sleep(ProviderKeys::BELIEVED_FOR + Duration::from_secs(3600)).await;
        assert!(knows(&keys, "a"));
        assert_eq!(keys.inspect().status, Status::Healthy);
        drop(file);
        Runtime::system().sleep(Duration::from_secs(3600)).await;
        assert!(knows(&keys, "a"));
        assert_eq!(keys.inspect().status, Status::Degraded);
        Runtime::system().sleep(ProviderKeys::BELIEVED_FOR).await;
        assert_eq!(keys.known().err(), Some(Refusal::Undecided));
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_starts_without_its_provider() {
        let provider = Provider::default();
        let keys = keys(&provider).await;
        assert_eq!(keys.known().err(), Some(Refusal::Undecided));
        provider.says(Some(set("a")));
        Runtime::system().sleep(ProviderKeys::COOLDOWN + Duration::from_secs(1)).await;
        assert!(knows(&keys, "a"));
    }
}

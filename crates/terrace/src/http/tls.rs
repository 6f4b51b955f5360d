//! The certificate by which a server proves who it is, and its replacement while the server runs.

use std::fmt::Display;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, ServerConfig};
use terrace_core::{BoxFuture, Error, Inspection, Result, Runtime, Status, Task, Unit};
use tokio_rustls::TlsAcceptor;
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use super::face::Whole;
use crate::file_state::FileState;

/// How a handshake names HTTP/2.
pub(super) const HTTP_2: &[u8] = b"h2";

/// A certificate with its key, from two files that may be replaced while they are in use.
///
/// A new pair is used by the connections that begin after it was noticed. One that cannot be used changes
/// nothing but the log and the inspection: connections go on with the pair before it.
#[derive(Clone, Debug)]
pub struct Tls {
    served: Arc<ServedPair>,
    acceptor: TlsAcceptorDebug,
    /// Looks for a new pair.
    _task: Arc<Task>,
}

/// Where a certificate and its key are, both in PEM form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairFiles {
    /// The certificate, followed by those that lead to an authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What new connections get, and what is known of the files.
#[derive(Debug)]
struct ServedPair {
    files: PairFiles,
    pair: ArcSwap<Pair>,
    /// The files when they were last read, whatever came of it.
    seen: ArcSwap<[FileState; 2]>,
    /// Why the newest files are not in use.
    trouble: ArcSwapOption<String>,
    runtime: Runtime,
}

/// A certificate that fits its key.
#[derive(Debug)]
pub(crate) struct Pair {
    certified: Arc<CertifiedKey>,
    /// Until when it is good, where that can be read.
    pub(crate) expires_at: Option<Timestamp>,
    /// Whether every user of the machine can read the key.
    pub(crate) key_is_open: bool,
}

/// An acceptor, which has no `Debug` of its own.
#[derive(Clone)]
struct TlsAcceptorDebug(TlsAcceptor);

impl std::fmt::Debug for TlsAcceptorDebug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsAcceptor")
    }
}

impl Tls {
    /// How often a look is taken whether the files were replaced.
    const LOOK: Duration = Duration::from_secs(2);

    /// Reads both files, and their successors.
    ///
    /// # Errors
    /// `InvalidInput` that names the file and what is wrong with it.
    pub fn open(files: PairFiles, runtime: &Runtime) -> Result<Self> {
        let seen = ArcSwap::from_pointee(files.states());
        let pair = ArcSwap::from_pointee(Pair::read(&files).map_err(Error::invalid)?);
        let (trouble, clock) = (ArcSwapOption::empty(), runtime.clone());
        let served = Arc::new(ServedPair { files, pair, seen, trouble, runtime: clock });
        served.tell();
        let (weak, clock) = (Arc::downgrade(&served), runtime.clone());
        let task = runtime.keep("certificate", move || {
            let (weak, clock) = (weak.clone(), clock.clone());
            async move {
                loop {
                    clock.sleep(Self::LOOK).await;
                    let Some(served) = weak.upgrade() else { return Ok(()) };
                    served.look();
                }
            }
        });
        let acceptor = TlsAcceptorDebug(TlsAcceptor::from(Arc::new(config(&served)?)));
        Ok(Self { served, acceptor, _task: Arc::new(task) })
    }

    /// What begins a connection.
    pub(crate) fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor.0
    }

    /// What is behind it, with what it says of itself.
    pub fn before(&self, whole: Arc<dyn Whole>) -> Arc<dyn Whole> {
        Arc::new(Secured { served: Arc::clone(&self.served), whole })
    }

    /// Takes a look now.
    #[cfg(test)]
    fn look(&self) {
        self.served.look();
    }
}

fn config(served: &Arc<ServedPair>) -> Result<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let config =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| Error::invalid(format!("TLS cannot be used: {error}")))?;
    let resolver = Arc::clone(served) as Arc<dyn ResolvesServerCert>;
    let mut config = config.with_no_client_auth().with_cert_resolver(resolver);
    config.alpn_protocols = vec![HTTP_2.to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

impl PairFiles {
    fn states(&self) -> [FileState; 2] {
        [FileState::at(&self.certificate), FileState::at(&self.key)]
    }
}

impl Pair {
    /// The pair in these files, or what is wrong with one of them and what to do.
    pub(crate) fn read(files: &PairFiles) -> Result<Self, String> {
        let (of_certificate, of_key) =
            (Of("tls.certificate", &files.certificate), Of("tls.key", &files.key));
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&of_certificate.read()?)
            .collect::<Result<_, _>>()
            .map_err(|error| of_certificate.is_wrong(format!("is damaged ({error})")))?;
        let Some(first) = chain.first() else {
            let why = "has no certificate in PEM form (-----BEGIN CERTIFICATE-----)";
            return Err(of_certificate.is_wrong(why));
        };
        let known = Certificate::from_der(first).ok();
        let expires_at = known.and_then(|known| {
            let after = known.tbs_certificate.validity.not_after.to_unix_duration();
            Timestamp::from_second(i64::try_from(after.as_secs()).ok()?).ok()
        });
        let key = PrivateKeyDer::from_pem_slice(&of_key.read()?).map_err(|_| {
            of_key.is_wrong("has no private key in PEM form (-----BEGIN PRIVATE KEY-----)")
        })?;
        let provider: CryptoProvider = ring::default_provider();
        let key = provider.key_provider.load_private_key(key);
        let key = key.map_err(|error| of_key.is_wrong(format!("cannot be used ({error})")))?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            // A key that does not tell its public part is tried by the first client.
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                let why =
                    format!("does not fit the certificate in {}", files.certificate.display());
                return Err(of_key.is_wrong(why));
            }
            Err(error) => {
                return Err(of_certificate.is_wrong(format!("cannot be used ({error})")));
            }
        }
        let mode = std::fs::metadata(&files.key).map(|known| known.permissions().mode());
        let key_is_open = mode.is_ok_and(|mode| mode & 0o004 != 0);
        Ok(Self { certified: Arc::new(certified), expires_at, key_is_open })
    }
}

/// A file, under the name of its setting.
struct Of<'a>(&'static str, &'a Path);

impl Of<'_> {
    fn read(&self) -> Result<Vec<u8>, String> {
        std::fs::read(self.1).map_err(|error| self.is_wrong(format!("cannot be read ({error})")))
    }

    fn is_wrong(&self, why: impl Display) -> String {
        format!("{}: {} {why}; put the right file there", self.0, self.1.display())
    }
}

impl ServedPair {
    /// Reads the files again if they are others.
    fn look(&self) {
        let states = self.files.states();
        if states == **self.seen.load() {
            return;
        }
        self.seen.store(Arc::new(states));
        match Pair::read(&self.files) {
            Ok(pair) => {
                self.pair.store(Arc::new(pair));
                self.trouble.store(None);
                self.tell();
            }
            Err(why) => {
                tracing::warn!(why, "the new certificate is not used; the one before it goes on");
                self.trouble.store(Some(Arc::new(why)));
            }
        }
    }

    fn tell(&self) {
        let pair = self.pair.load();
        let expires_at = pair.expires_at.map(|at| at.to_string()).unwrap_or_default();
        let certificate = self.files.certificate.display();
        tracing::info!(%certificate, expires_at, "new connections get this certificate");
        if pair.key_is_open {
            let key = self.files.key.display();
            tracing::warn!(%key, "every user of this machine can read the key of TLS; chmod o-r");
        }
    }

    fn inspect(&self) -> Inspection {
        let pair = self.pair.load();
        let mut tree = Inspection::new("tls").text("certificate", self.files.certificate.display());
        if let Some(expires_at) = pair.expires_at {
            let left = expires_at.duration_since(self.runtime.wall());
            let left = u64::try_from(left.as_micros()).unwrap_or(0);
            tree = tree.text("expires_at", expires_at).gauge("expires_in", left, Unit::Micros);
            if left == 0 {
                let note = "the certificate has expired, so clients refuse it; put a new one there";
                tree = tree.status(Status::Degraded, note);
            }
        }
        match self.trouble.load_full() {
            Some(why) => {
                let note = format!("the new certificate is not used, the one before it is: {why}");
                tree.status(Status::Degraded, note)
            }
            None => tree,
        }
    }
}

impl ResolvesServerCert for ServedPair {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.pair.load().certified))
    }
}

/// A service behind TLS.
#[derive(Debug)]
struct Secured {
    served: Arc<ServedPair>,
    whole: Arc<dyn Whole>,
}

impl Whole for Secured {
    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async { self.served.inspect().needs(self.whole.inspect().await) })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.whole.close()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a pair");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn files(directory: &Path) -> PairFiles {
        PairFiles { certificate: directory.join("tls.crt"), key: directory.join("tls.key") }
    }

    /// Replaces both as Kubernetes does: what is written before is not there after, whatever the clock says.
    fn put(files: &PairFiles, certificate: &str, key: &str) {
        for (path, text) in [(&files.certificate, certificate), (&files.key, key)] {
            let new = path.with_extension("new");
            // Files of one tick of the clock differ in length.
            let length = std::fs::metadata(path).map_or(0, |known| known.len());
            let filler = if length == text.len() as u64 { "\n" } else { "" };
            std::fs::write(&new, format!("{text}{filler}")).expect("a file");
            std::fs::rename(&new, path).expect("a file");
        }
    }

    fn served(tls: &Tls) -> CertificateDer<'static> {
        tls.served.pair.load().certified.cert[0].clone()
    }

    fn certificate(text: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(text.as_bytes()).expect("a certificate")
    }

    #[tokio::test]
    async fn a_pair_that_cannot_be_used_keeps_the_one_before_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let (files, (first, first_key), (second, second_key)) =
            (files(directory.path()), pair(), pair());
        put(&files, &first, &first_key);
        let tls = Tls::open(files.clone(), &Runtime::system()).expect("a good pair");
        for (text, key) in [(&*second, &*first_key), (&*first, "x"), ("", &*first_key)] {
            put(&files, text, key);
            tls.look();
            assert_eq!(served(&tls), certificate(&first));
            let tree = tls.served.inspect();
            assert_eq!(tree.status, Status::Degraded);
            assert!(tree.note.contains("the one before it is: tls."), "{}", tree.note);
        }
        std::fs::remove_file(&files.key).expect("it was there");
        tls.look();
        assert_eq!(served(&tls), certificate(&first));
        put(&files, &second, &second_key);
        tls.look();
        assert_eq!(served(&tls), certificate(&second));
        let tree = tls.served.inspect();
        assert_eq!((tree.status, tree.note.as_str()), (Status::Healthy, ""));
        assert!(tree.number("expires_in").is_some_and(|left| left > 0));
    }

    #[tokio::test]
    async fn an_expired_certificate_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let files = files(directory.path());
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut wanted = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a name");
        wanted.not_after = rcgen::date_time_ymd(2020, 1, 1);
        let old = wanted.self_signed(&key).expect("a certificate");
        put(&files, &old.pem(), &key.serialize_pem());
        let tls = Tls::open(files, &Runtime::system()).expect("a pair that fits");
        let tree = tls.served.inspect();
        assert_eq!((tree.status, tree.number("expires_in")), (Status::Degraded, Some(0)));
        assert!(tree.note.contains("has expired"), "{}", tree.note);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let (files, (good, good_key), (_, other_key)) = (files(directory.path()), pair(), pair());
        let refused = || Pair::read(&files).expect_err("it cannot be used");
        assert!(refused().contains("tls.certificate: "), "{}", refused());
        assert!(refused().contains("tls.crt cannot be read (No such file"), "{}", refused());
        for (text, key, wanted) in [
            ("x", &*good_key, "tls.crt has no certificate in PEM form"),
            (
                "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
                &good_key,
                "is damaged",
            ),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                &good_key,
                "tls.crt cannot be used",
            ),
            (&*good, "x", "tls.key has no private key in PEM form"),
            (&good, &good, "tls.key has no private key in PEM form"),
            (&good, &other_key, "tls.key does not fit the certificate in "),
        ] {
            put(&files, text, key);
            assert!(refused().contains(wanted), "{} should say {wanted}", refused());
        }
        put(&files, &good, &good_key);
        for (mode, open) in [(0o644, true), (0o640, false), (0o600, false)] {
            let rights = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&files.key, rights).expect("it is there");
            assert_eq!(Pair::read(&files).expect("a good pair").key_is_open, open);
        }
    }
}

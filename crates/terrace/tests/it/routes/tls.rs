//! TLS: what clients get over it, certificates that are replaced, and handshakes that do not end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "clippy takes only test functions as tests, and real servers run in real time"
)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use terrace::http::{Limits, PairFiles, Service, Tls};
use terrace_core::{MemoryStore, Runtime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::server::{SOON, Server, service};

/// A certificate of its own authority, for `localhost`, with its key; both in PEM form.
pub(super) fn pair() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// Puts a pair where a server looks for it.
fn put(directory: &Path, certificate: &str, key: &str) {
    std::fs::write(directory.join("tls.crt"), certificate).unwrap();
    std::fs::write(directory.join("tls.key"), key).unwrap();
}

/// A server over TLS, with its certificate.
pub(super) struct SecureServer {
    pub(super) server: Server,
    pub(super) certificate: String,
    directory: tempfile::TempDir,
}

impl SecureServer {
    pub(super) fn start(service: Service) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = pair();
        put(directory.path(), &certificate, &key);
        let [file, key] = ["tls.crt", "tls.key"].map(|name| directory.path().join(name));
        let tls = Tls::open(PairFiles { certificate: file, key }, &Runtime::system()).unwrap();
        let server = Server::of(Service { tls: Some(tls), ..service });
        Self { server, certificate, directory }
    }

    fn limited(limits: Limits) -> Self {
        Self::start(Service { limits, ..service(Arc::new(MemoryStore::default())) })
    }
}

/// Connects as a client that trusts these certificates and speaks one version of HTTP.
pub(super) async fn connect(
    address: std::net::SocketAddr,
    trusted: &[&str],
    protocol: &[u8],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for certificate in trusted {
        roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// The status of one request on a connection of its own.
async fn asked(address: std::net::SocketAddr, trusted: &[&str]) -> Result<u16, String> {
    let stream = connect(address, trusted, b"http/1.1").await.map_err(|error| error.to_string())?;
    let shown = |error: hyper::Error| error.to_string();
    let connection = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = connection.map_err(shown)?;
    let driver = tokio::spawn(connection);
    let request = Request::get("/livez").header("host", "localhost");
    let request = request.body(Full::<bytes::Bytes>::default()).unwrap();
    let reply = sender.send_request(request).await.map_err(shown)?;
    let status = reply.status().as_u16();
    reply.into_body().collect().await.map_err(shown)?;
    drop(sender);
    let _ = driver.await;
    Ok(status)
}

#[tokio::test]
async fn requests_are_answered_over_tls_and_not_without() {
    let secure = SecureServer::limited(Limits::default());
    let address = secure.server.address();
    assert_eq!(asked(address, &[&secure.certificate]).await, Ok(200));
    let stranger = pair().0;
    let error = asked(address, &[&stranger]).await.expect_err("it is not trusted");
    assert!(error.contains("certificate"), "{error}");
    let mut plain = secure.server.connect().await;
    plain.request("GET", "/livez", &[], "").await;
    let said = plain.closed().await;
    assert!(!said.starts_with(b"HTTP/"), "an alert of TLS at most");
    assert_eq!(asked(address, &[&secure.certificate]).await, Ok(200));
}

/// A pair is replaced again and again under requests, each on a connection of its own: none fails, and
/// each new certificate is seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_used_and_no_request_fails() {
    let secure = SecureServer::limited(Limits::default());
    let address = secure.server.address();
    let pairs = [pair(), pair()];
    let all: Arc<Vec<String>> = Arc::new(
        [secure.certificate.clone()]
            .into_iter()
            .chain(pairs.iter().map(|it| it.0.clone()))
            .collect(),
    );
    let (answered, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let load = {
        let (all, answered, stop) = (Arc::clone(&all), Arc::clone(&answered), Arc::clone(&stop));
        tokio::spawn(async move {
            let trusted: Vec<_> = all.iter().map(String::as_str).collect();
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(asked(address, &trusted).await, Ok(200));
                answered.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    for (certificate, key) in &pairs {
        let before = answered.load(Ordering::Relaxed);
        put(secure.directory.path(), certificate, key);
        let until = tokio::time::Instant::now() + Duration::from_secs(30);
        while asked(address, &[certificate]).await != Ok(200) {
            assert!(tokio::time::Instant::now() < until, "the new certificate is not used");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(answered.load(Ordering::Relaxed) > before, "there was load");
    }
    stop.store(true, Ordering::Relaxed);
    load.await.expect("no request failed");
}

#[tokio::test]
async fn a_handshake_that_trickles_is_cut_off_and_holds_up_nobody() {
    let secure = SecureServer::limited(Limits { header_time: SOON, ..Limits::default() });
    let mut silent = secure.server.connect().await;
    let mut trickling = secure.server.connect().await;
    // The start of a record that says more is to come.
    trickling.write([0x16, 0x03, 0x01, 0x01, 0x00, 0x01]).await;
    assert_eq!(asked(secure.server.address(), &[&secure.certificate]).await, Ok(200));
    assert_eq!(silent.closed().await, b"");
    assert_eq!(trickling.closed().await, b"");
    // The head after a good handshake has what is left of the same time.
    let trusted = [secure.certificate.as_str()];
    let mut late = connect(secure.server.address(), &trusted, b"http/1.1").await.unwrap();
    late.write_all(b"GET /livez HTTP/1.1\r\nx-").await.unwrap();
    let mut rest = Vec::new();
    let _ = late.read_to_end(&mut rest).await;
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn stopping_does_not_wait_for_handshakes() {
    let hour = Duration::from_secs(3600);
    let limits = Limits { header_time: hour, drain_time: hour, ..Limits::default() };
    let mut secure = SecureServer::limited(limits);
    let mut silent = secure.server.connect().await;
    assert_eq!(asked(secure.server.address(), &[&secure.certificate]).await, Ok(200));
    secure.server.stop();
    assert_eq!(silent.closed().await, b"");
    assert_eq!(secure.server.ended().await, 0);
}

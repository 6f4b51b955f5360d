//! Requests of this process to servers that the settings name: the keys of an identity provider, caches in
//! front, a collector of spans.
//!
//! HTTP/1.1, over TLS by the authorities of the machine. No proxy of the environment is used, and no other
//! address is followed.

use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::http::request::Builder;
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use terrace_core::{Error, Result};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A server by its URL.
pub(crate) struct Remote {
    url: Uri,
    host: String,
    port: u16,
    /// How the server is known; none without TLS.
    tls: Option<TlsConnector>,
}

impl Remote {
    /// The server of an `http` or `https` URL; none for anything else.
    ///
    /// # Errors
    /// `Invalid` when TLS cannot be used here.
    pub(crate) fn at(text: &str) -> Result<Option<Self>> {
        let Ok(url) = text.parse::<Uri>() else { return Ok(None) };
        let Some(host) = url.host().map(|host| host.trim_matches(['[', ']']).to_owned()) else {
            return Ok(None);
        };
        let (tls, port) = match url.scheme_str() {
            Some("https") => (Some(connector()?), 443),
            Some("http") => (None, 80),
            _ => return Ok(None),
        };
        let port = url.port_u16().unwrap_or(port);
        Ok(Some(Self { url, host, port, tls }))
    }

    /// The path of the URL with its query; at least `/`.
    pub(crate) fn path(&self) -> &str {
        self.url.path_and_query().map_or("/", |path| path.as_str())
    }

    /// Whether nobody between could change what the server says: by TLS, or because it is this machine.
    pub(crate) fn is_private(&self) -> bool {
        self.tls.is_some() || ["localhost", "127.0.0.1", "::1"].contains(&self.host.as_str())
    }

    /// A connection to it.
    pub(crate) async fn connect(&self) -> std::result::Result<Connection, String> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(text)?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(stream),
            Some(tls) => {
                let name = ServerName::try_from(self.host.clone()).map_err(text)?;
                Box::new(tls.connect(name, stream).await.map_err(text)?)
            }
        };
        let (sender, wire) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
        let host = self.url.authority().map_or(self.host.as_str(), |host| host.as_str());
        // Who named a user meant no part of the host.
        let host = host.rsplit('@').next().unwrap_or_default().to_owned();
        Ok(Connection { host, sender, wire: Some(Box::pin(wire)) })
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

type Wire = http1::Connection<TokioIo<Box<dyn Stream>>, Full<Bytes>>;

/// A connection to a server, for one request after the other.
pub(crate) struct Connection {
    host: String,
    sender: http1::SendRequest<Full<Bytes>>,
    /// None when the server has ended it.
    wire: Option<Pin<Box<Wire>>>,
}

impl Connection {
    /// Whether another request may be sent.
    pub(crate) fn is_open(&self) -> bool {
        self.wire.is_some()
    }

    /// The answer to a request with this body, of at most this many bytes. After an error, and after a
    /// future that was dropped, the connection is of no more use.
    pub(crate) async fn send(
        &mut self,
        request: Builder,
        body: Bytes,
        most: usize,
    ) -> std::result::Result<Response<Bytes>, String> {
        let Self { host, sender, wire } = self;
        let Some(running) = wire else { return Err("the connection has ended".to_owned()) };
        let request = request.header(HOST, &*host).body(Full::new(body)).map_err(text)?;
        let mut exchange = std::pin::pin!(exchange(sender, request, most));
        tokio::select! {
            answer = &mut exchange => answer,
            // What came before its end is there.
            _ = running => {
                *wire = None;
                exchange.await
            }
        }
    }
}

fn connector() -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions();
    let config = config.map_err(|error| Error::invalid(format!("TLS cannot be used: {error}")))?;
    let config = config.with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The answer to a request over a connection that somebody drives.
///
/// # Errors
/// In words: the answer is longer than so many bytes, or there is none.
pub(crate) async fn exchange(
    sender: &mut http1::SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
    most: usize,
) -> std::result::Result<Response<Bytes>, String> {
    sender.ready().await.map_err(text)?;
    let (head, body) = sender.send_request(request).await.map_err(text)?.into_parts();
    let body = Limited::new(body, most).collect().await.map_err(text)?;
    Ok(Response::from_parts(head, body.to_bytes()))
}

fn text(error: impl Display) -> String {
    error.to_string()
}

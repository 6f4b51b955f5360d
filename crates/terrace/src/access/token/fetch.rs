//! One small document over HTTP, from a server that is named in the settings.

use std::fmt::Display;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use terrace_core::{Error, Result};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The largest document that is taken, in bytes.
const MOST: usize = 1024 * 1024;

/// A document on a server.
pub(super) struct Document {
    url: Uri,
    host: String,
    port: u16,
    /// How the server is known; none on this machine.
    tls: Option<TlsConnector>,
}

impl Document {
    /// At this URL. The keys of a provider decide who may come in, so only a server of this machine is
    /// believed without TLS.
    pub(super) fn at(text: &str) -> Result<Self> {
        let wrong =
            || Error::invalid(format!("jwt.jwks is {text:?}; give a file, or https://host/path"));
        let url: Uri = text.parse().map_err(|_| wrong())?;
        let host = url.host().ok_or_else(wrong)?.trim_matches(['[', ']']).to_owned();
        let is_here = ["localhost", "127.0.0.1", "::1"].contains(&host.as_str());
        let (tls, port) = match url.scheme_str() {
            Some("https") => (Some(connector()?), 443),
            Some("http") if is_here => (None, 80),
            Some("http") => {
                return Err(Error::invalid(format!(
                    "jwt.jwks is {text:?}: without TLS anybody between could send keys of their own; \
                     give https://"
                )));
            }
            _ => return Err(wrong()),
        };
        let port = url.port_u16().unwrap_or(port);
        Ok(Self { url, host, port, tls })
    }

    /// What it is now. No other address is followed.
    pub(super) async fn get(&self) -> std::result::Result<Bytes, String> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(text)?;
        let Some(tls) = &self.tls else { return self.over(stream).await };
        let name = ServerName::try_from(self.host.clone()).map_err(text)?;
        self.over(tls.connect(name, stream).await.map_err(text)?).await
    }

    async fn over<S>(&self, stream: S) -> std::result::Result<Bytes, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
        let path = self.url.path_and_query().map_or("/", |path| path.as_str());
        let host = self.url.authority().map_or(self.host.as_str(), |host| host.as_str());
        let request = Request::get(path).header("host", host).header("accept", "application/json");
        let request = request.body(Empty::<Bytes>::new()).map_err(text)?;
        let exchange = async {
            let reply = sender.send_request(request).await.map_err(text)?;
            if reply.status() != StatusCode::OK {
                return Err(format!("it answers {}", reply.status()));
            }
            let body = Limited::new(reply.into_body(), MOST).collect().await.map_err(text)?;
            Ok(body.to_bytes())
        };
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            answer = &mut exchange => answer,
            // What came before its end is there.
            _ = connection => exchange.await,
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

fn text(error: impl Display) -> String {
    error.to_string()
}

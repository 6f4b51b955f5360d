//! TLS to Redis: whom to believe, who the client is, and why it did not come about.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use redis::io::tcp::{TcpSettings, socket2::SockRef};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig};
use terrace_core::{Error, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The files that a URL names, in PEM form.
#[derive(Clone, Debug)]
pub(super) struct Files {
    /// The authorities that the server's certificate may be of; the machine's where there is none.
    pub(super) ca: Option<PathBuf>,
    /// The client's certificate, and its private key.
    pub(super) pair: Option<(PathBuf, PathBuf)>,
}

impl Files {
    fn read(&self) -> Result<ClientConfig> {
        let trusting =
            crate::tls::trusting(self.ca.as_deref(), "ca", "the Redis that the URL names")?;
        let Some((certificate, key)) = &self.pair else {
            return Ok(trusting.with_no_client_auth());
        };
        let unreadable = |what: &str| {
            let next = "cannot be read; name a file in PEM form that this process may read";
            Error::invalid(format!("{what} of the Redis URL {next}"))
        };
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
            .map_err(|error| unreadable("cert").caused_by(error))?;
        let key = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| unreadable("key").caused_by(error))?;
        trusting.with_client_auth_cert(chain, key).map_err(|error| {
            let unfit = "the certificate in cert of the Redis URL does not fit the private key in key; \
                         name a pair";
            Error::invalid(unfit).caused_by(error)
        })
    }
}

/// How a server is verified.
#[derive(Clone)]
pub(super) struct Tls {
    files: Files,
    /// What the files made at the start.
    first: Arc<ClientConfig>,
}

impl Tls {
    pub(super) fn open(files: Files) -> Result<Self> {
        Ok(Self { first: Arc::new(files.read()?), files })
    }

    /// Certificates are renewed while a process runs, so each connection reads the files that are named.
    fn config(&self) -> io::Result<Arc<ClientConfig>> {
        match &self.files {
            Files { ca: None, pair: None } => Ok(Arc::clone(&self.first)),
            files => files.read().map(Arc::new).map_err(|_| Distrust::Files.into()),
        }
    }

    /// A stream to a server that was verified, and that has accepted the client.
    pub(super) async fn connect(
        &self,
        (host, port): (&str, u16),
        settings: &TcpSettings,
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| Distrust::Name)?;
        let connector = TlsConnector::from(self.config()?);
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(settings.nodelay())?;
        if let Some(keepalive) = settings.keepalive() {
            SockRef::from(&stream).set_tcp_keepalive(keepalive)?;
        }
        let mut stream = connector.connect(name, stream).await.map_err(Distrust::explain)?;
        accepted(&mut stream).await.map_err(Distrust::explain)?;
        Ok(stream)
    }
}

/// A server of TLS 1.3 says what it thinks of the client's certificate when the handshake is over for the
/// client. So one question goes first, of which any answer will do.
async fn accepted(stream: &mut TlsStream<TcpStream>) -> io::Result<()> {
    // What a server says that has closed its side can be read all the same.
    let asked = async {
        stream.write_all(b"*1\r\n$4\r\nPING\r\n").await?;
        stream.flush().await
    };
    let asked = asked.await;
    loop {
        match stream.read_u8().await {
            Ok(b'\n') => return Ok(()),
            Ok(_) => {}
            Err(error) => {
                return Err(asked
                    .err()
                    .filter(|_| Distrust::of(&error).is_none())
                    .unwrap_or(error));
            }
        }
    }
}

/// Why two sides do not trust each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Distrust {
    /// The server's certificate is of an unknown authority.
    Authority,
    Expired,
    NotYet,
    /// The server's certificate is for another host.
    Name,
    /// Anything else about the server's certificate.
    Certificate,
    /// The server wants a certificate of the client.
    Anonymous,
    /// The server does not accept the client's certificate.
    Client,
    /// The server speaks no TLS, or none that is spoken here.
    Protocol,
    /// The files cannot be used any more.
    Files,
}

impl Distrust {
    /// What is wrong, and what to do next.
    pub(crate) fn says(self) -> &'static str {
        match self {
            Self::Authority => {
                "has a certificate of an authority that is not trusted; name the file with the \
                 certificates of its authority in the URL, ?ca=/path/ca.pem"
            }
            Self::Expired => "has a certificate that has expired; renew it",
            Self::NotYet => {
                "has a certificate that is not good yet; compare the clocks of both machines"
            }
            Self::Name => {
                "has a certificate for another name than the host in the URL; write a name that the \
                 certificate has, or give it this one (subject alternative name)"
            }
            Self::Certificate => {
                "has a certificate that cannot be used; have its authority make another"
            }
            Self::Anonymous => {
                "wants a certificate of its clients; name one in the URL, \
                 cert=/path/c.pem&key=/path/k.pem"
            }
            Self::Client => {
                "does not accept the client's certificate; check that the one in cert of the URL has \
                 not expired and is of an authority in the server's tls-ca-cert-file"
            }
            Self::Protocol => {
                "does not speak TLS 1.2 or 1.3 on this port; give its tls-port, or write redis:// \
                 where the way to it is private"
            }
            Self::Files => {
                "cannot be reached, because the files ca, cert and key of its URL cannot be used any \
                 more; bring them back"
            }
        }
    }

    /// In the place of what rustls says. Later errors of a stream stay what they are: they say nothing of
    /// what the server has done.
    fn explain(error: io::Error) -> io::Error {
        Self::of(&error).map_or(error, Into::into)
    }

    fn of(error: &io::Error) -> Option<Self> {
        use rustls::Error as Tls;
        let found = match error.get_ref()?.downcast_ref::<Tls>()? {
            Tls::InvalidCertificate(certificate) => match certificate {
                // One of the same name, with another key.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::Authority,
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    Self::Expired
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Self::NotYet
                }
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => Self::Name,
                _ => Self::Certificate,
            },
            // TLS 1.2 has no word of its own for it.
            Tls::AlertReceived(
                AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure,
            ) => Self::Anonymous,
            Tls::AlertReceived(
                AlertDescription::AccessDenied
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateUnknown
                | AlertDescription::DecryptError
                | AlertDescription::UnknownCA
                | AlertDescription::UnsupportedCertificate,
            ) => Self::Client,
            _ => Self::Protocol,
        };
        Some(found)
    }
}

impl fmt::Display for Distrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server {}", self.says())
    }
}

impl StdError for Distrust {}

impl From<Distrust> for io::Error {
    fn from(distrust: Distrust) -> Self {
        Self::other(distrust)
    }
}

//! One small document over HTTP, from a server that is named in the settings.

use bytes::Bytes;
use hyper::{Request, StatusCode};
use terrace_core::{Error, Result};

use crate::config::redacted;
use crate::outbound::Remote;

/// The largest document that is taken, in bytes.
const MOST: usize = 1024 * 1024;

/// A document on a server.
pub(super) struct Document(Remote);

impl Document {
    /// At this URL. The keys of a provider decide who may come in, so only a server of this machine is
    /// believed without TLS.
    pub(super) fn at(text: &str) -> Result<Self> {
        let shown = redacted(text);
        let wrong =
            || Error::invalid(format!("jwt.jwks is {shown:?}; give a file, or https://host/path"));
        let server = Remote::at(text)?.ok_or_else(wrong)?;
        if !server.is_private() {
            return Err(Error::invalid(format!(
                "jwt.jwks is {shown:?}: without TLS anybody between could send keys of their own; \
                 give https://"
            )));
        }
        Ok(Self(server))
    }

    /// What it is now.
    pub(super) async fn get(&self) -> std::result::Result<Bytes, String> {
        let request = Request::get(self.0.path()).header("accept", "application/json");
        let reply = self.0.connect().await?.send(request, Bytes::new(), MOST).await?;
        match reply.status() {
            StatusCode::OK => Ok(reply.into_body()),
            other => Err(format!("it answers {other}")),
        }
    }
}

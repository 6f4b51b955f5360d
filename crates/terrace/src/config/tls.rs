//! Settings of TLS.

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// The certificate by which this server proves who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// A file with the certificate and those that lead to an authority, in PEM form. Default none: HTTP
    /// without TLS.
    pub certificate: String,
    /// A file with its private key, in PEM form. Default none.
    pub key: String,
}

impl TlsConfig {
    /// Whether there is TLS.
    pub fn is_on(&self) -> bool {
        !self.certificate.is_empty()
    }

    /// Refuses one without the other.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let (set, missing) = match (self.certificate.is_empty(), self.key.is_empty()) {
            (false, true) => ("tls.certificate", "tls.key"),
            (true, false) => ("tls.key", "tls.certificate"),
            _ => return Ok(()),
        };
        Err(ConfigError::new(format!("{set} is set and {missing} is not; set both, or none")))
    }
}

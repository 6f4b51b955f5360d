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

    /// Refuses one without the other, and what is no path.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        names_a_file("tls.certificate", &self.certificate)?;
        names_a_file("tls.key", &self.key)?;
        let (set, missing) = match (self.certificate.is_empty(), self.key.is_empty()) {
            (false, true) => ("tls.certificate", "tls.key"),
            (true, false) => ("tls.key", "tls.certificate"),
            _ => return Ok(()),
        };
        Err(ConfigError::new(format!("{set} is set and {missing} is not; set both, or none")))
    }
}

/// Refuses a key that is given where its file is asked for, before anybody shows it as the path.
pub(super) fn names_a_file(name: &str, value: &str) -> Result<(), ConfigError> {
    let is_key = value.starts_with("-----BEGIN") || value.starts_with('{');
    let wrong = || ConfigError::new(format!("{name} holds a text itself; give the path of a file"));
    if is_key { Err(wrong()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_the_place_of_its_file_is_not_told() {
        let pem = "-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----";
        let pair = |certificate: &str, key: &str| {
            TlsConfig { certificate: certificate.into(), key: key.into() }.check()
        };
        for (answer, name) in [
            (pair("a.pem", pem), "tls.key"),
            (pair("", pem), "tls.key"),
            (pair(pem, "a.pem"), "tls.certificate"),
            (names_a_file("jwt.jwks", r#"{"keys":[{"k":"secret"}]}"#), "jwt.jwks"),
        ] {
            let error = answer.expect_err("it is no path").to_string();
            assert!(error.starts_with(name) && !error.contains("secret"), "{error}");
            assert!(error.ends_with("give the path of a file"), "{error}");
        }
        assert_eq!(pair("a.pem", "b.pem"), Ok(()));
    }
}

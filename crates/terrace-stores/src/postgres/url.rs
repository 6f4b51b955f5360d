//! The parameters of TLS in a URL, which the driver does not know in full.

use std::path::PathBuf;

use terrace_core::{Error, Result};
use tokio_postgres::config::SslMode;

/// What a URL says of TLS.
pub(super) struct Parameters {
    pub(super) ssl_mode: SslMode,
    pub(super) verify: bool,
    pub(super) root_certificates: Option<PathBuf>,
}

/// The URL without the parameters of TLS, and those.
pub(super) fn split(url: &str) -> Result<(String, Parameters)> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(Error::invalid(
            "the PostgreSQL URL must begin with postgres://; write \
             postgres://user:password@host:port/database",
        ));
    }
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let mut rest = Vec::new();
    let (mut mode, mut roots) = ("prefer", None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sslmode", value)) => mode = value,
            Some(("sslrootcert", value)) => roots = Some(PathBuf::from(decode(value)?)),
            _ => rest.push(pair),
        }
    }
    let (ssl_mode, verify) = match mode {
        "disable" => (SslMode::Disable, false),
        "prefer" => (SslMode::Prefer, false),
        "require" => (SslMode::Require, roots.is_some()),
        "verify-full" => (SslMode::Require, true),
        _ => {
            return Err(Error::invalid("sslmode must be disable, prefer, require or verify-full"));
        }
    };
    let url = if rest.is_empty() { base.into() } else { format!("{base}?{}", rest.join("&")) };
    Ok((url, Parameters { ssl_mode, verify, root_certificates: roots }))
}

fn decode(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let coded = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (first, coded) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| Error::invalid("sslrootcert must be UTF-8"))
}

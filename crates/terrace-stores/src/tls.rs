//! What TLS to every engine rests on: rustls with ring, the machine's authorities or a given file.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use terrace_core::{Error, ErrorKind, Result};

/// A configuration with the one provider.
pub(crate) fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(ErrorKind::Internal, "TLS cannot be set up").caused_by(error))
}

/// One that trusts the authorities of a file with PEM certificates, else the machine's. `parameter` is what
/// the file is named by in a URL, `server` who is verified.
pub(crate) fn trusting(
    file: Option<&Path>,
    parameter: &str,
    server: &str,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>> {
    let mut roots = RootCertStore::empty();
    match file {
        Some(path) => {
            let certificates = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| {
                    let unreadable = "cannot be read; name a file with PEM certificates";
                    Error::invalid(format!("{parameter} {unreadable}")).caused_by(error)
                })?;
            roots.add_parsable_certificates(certificates);
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(Error::invalid(format!(
            "there is no certificate authority to verify {server} with; set {parameter}, or install \
             the system's ca-certificates"
        )));
    }
    Ok(builder()?.with_root_certificates(roots))
}

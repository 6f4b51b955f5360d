//! TLS as people run it: what a start refuses, and what it says.

use std::path::Path;

use super::{Program, Stores, terrace};

fn put(directory: &Path, certificate: &str, key: &str) -> [String; 2] {
    [("tls.crt", certificate), ("tls.key", key)].map(|(name, text)| {
        let path = directory.join(name);
        std::fs::write(&path, text).expect("a file");
        path.to_str().expect("text").to_owned()
    })
}

fn pair() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a pair");
    (made.cert.pem(), made.signing_key.serialize_pem())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_does_not_fit_is_refused_at_the_start() {
    let directory = tempfile::tempdir().expect("a directory");
    let [certificate, key] = put(directory.path(), &pair().0, &pair().1);
    let mut command = terrace(&["serve", "0"]);
    Stores::Embedded(directory.path()).tell(&mut command);
    command.env("TERRACE_TLS_CERTIFICATE", &certificate).env("TERRACE_TLS_KEY", &key);
    let ended = command.output().await.expect("it runs");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success());
    assert!(
        said.contains(&format!("{key} does not fit the certificate in {certificate}")),
        "{said}"
    );
    let mut command = terrace(&["doctor"]);
    command.env("TERRACE_TLS_CERTIFICATE", &certificate).env("TERRACE_TLS_KEY", &key);
    let found = command.output().await.expect("it runs");
    let found = String::from_utf8_lossy(&found.stdout);
    assert!(found.contains("certificate") && found.contains("does not fit"), "{found}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_address_with_tls_is_shown() {
    let directory = tempfile::tempdir().expect("a directory");
    let (certificate, key) = pair();
    let [certificate, key] = put(directory.path(), &certificate, &key);
    let environment = [("TERRACE_TLS_CERTIFICATE", &*certificate), ("TERRACE_TLS_KEY", &key)];
    let stores = Stores::Embedded(directory.path());
    let program = Program::serve_with(0, &stores, &[], &environment).await;
    let said = program.said.join("\n");
    assert!(said.contains(&program.url().replace("http://", "https://")), "{said}");
    assert!(!said.contains("http://"), "{said}");
    assert!(program.terminate().await.success());
}

//! Tokens of an identity provider, as its clients meet them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::{Program, Stores};

fn code(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A provider with a key; its server answers with the set until it is told to fail.
struct Provider {
    key: Ed25519KeyPair,
    url: String,
    set: Arc<Mutex<Option<String>>>,
    server: tokio::task::JoinHandle<()>,
}

impl Provider {
    async fn start() -> Self {
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        let key = Ed25519KeyPair::from_pkcs8(key.as_ref()).expect("a key");
        let set = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "one",
            "x": code(key.public_key())}]});
        let set = Arc::new(Mutex::new(Some(set.to_string())));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/keys", listener.local_addr().expect("an address"));
        let answers = Arc::clone(&set);
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let set = answers.lock().expect("no panic").clone();
                let answer = match set {
                    Some(set) => format!("200 OK\r\ncontent-length: {}\r\n\r\n{set}", set.len()),
                    None => "500 Oops\r\ncontent-length: 0\r\n\r\n".to_owned(),
                };
                let _ = stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).await;
            }
        });
        Self { key, url, set, server }
    }

    fn token(&self, kid: &str, other: Value) -> String {
        let now = terrace_core::Runtime::system().wall().as_second();
        let mut claims = json!({"iss": "id", "aud": "terrace", "sub": "ada", "exp": now + 3600,
            "scope": "read write", "records": ["app/"]});
        for (name, value) in other.as_object().expect("claims") {
            claims[name] = value.clone();
        }
        let head = json!({"alg": "EdDSA", "kid": kid}).to_string();
        let message = format!("{}.{}", code(head), code(claims.to_string()));
        format!("{message}.{}", code(self.key.sign(message.as_bytes())))
    }
}

impl Program {
    /// Status and body of one request with a token.
    async fn sent_with(&self, method: &str, path: &str, token: &str, body: Value) -> (u16, Value) {
        let method = method.parse().expect("a method");
        let request = self.client.request(method, format!("{}{path}", self.url));
        let request = request.bearer_auth(token).header("Idempotency-Key", "k");
        let request = if body.is_null() { request } else { request.json(&body) };
        let answer = request.send().await.expect("an answer");
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_does_what_its_claims_say_also_while_its_provider_is_down() {
    let directory = tempfile::tempdir().expect("a directory");
    let (stores, provider) = (Stores::Embedded(directory.path()), Provider::start().await);
    let environment = [
        ("API_KEY", "somebody has made this up"),
        ("TERRACE_JWT_JWKS", &provider.url),
        ("TERRACE_JWT_ISSUER", "id"),
        ("TERRACE_JWT_AUDIENCE", "terrace"),
        ("TERRACE_JWT_ALGORITHMS", "EdDSA"),
        ("TERRACE_JWT_PREFIX_CLAIM", "records"),
    ];
    let program = Program::serve_with(10, &stores, &[], &environment).await;
    let good = provider.token("one", json!({}));
    let value = |text: &str| json!({"value": text});
    assert_eq!(program.sent_with("PUT", "/v1/records/app%2F1", &good, value("1")).await.0, 201);
    assert_eq!(
        program.sent_with("GET", "/v1/records/app%2F1", &good, Value::Null).await.1["value"],
        "1"
    );
    // Decided where a key's is, on the decoded key.
    assert_eq!(program.sent_with("PUT", "/v1/records/other", &good, value("1")).await.0, 403);
    assert_eq!(program.sent_with("GET", "/read/other", &good, Value::Null).await.0, 403);
    let reader = provider.token("one", json!({"scope": "read"}));
    assert_eq!(program.sent_with("GET", "/read/app%2F1", &reader, Value::Null).await.0, 200);
    assert_eq!(program.sent_with("PUT", "/v1/records/app%2F1", &reader, value("2")).await.0, 403);
    // What one client has sent under a name is not another's.
    let eve = provider.token("one", json!({"sub": "eve"}));
    let other = program.sent_with("PUT", "/v1/records/app%2F1", &good, value("2")).await;
    assert_eq!(other.0, 422);
    assert!(
        other.1["detail"].as_str().is_some_and(|it| it.starts_with("Idempotency-Key was used"))
    );
    assert_eq!(program.sent_with("PUT", "/v1/records/app%2F1", &eve, value("2")).await.0, 200);
    // One answer for every failure, the one that keys have.
    let wanted = program.sent_with("GET", "/read/app%2F1", "trc_x", Value::Null).await;
    assert_eq!(wanted.0, 401);
    for wrong in [
        provider.token("one", json!({"exp": 1})),
        provider.token("one", json!({"aud": "other"})),
        provider.token("one", json!({"iss": "other"})),
        provider.token("one", json!({"records": []})),
        provider.token("two", json!({})),
        format!("{good}x"),
        "a.b.c".to_owned(),
    ] {
        let answer = program.sent_with("GET", "/read/app%2F1", &wrong, Value::Null).await;
        assert_eq!((answer.0, &answer.1["detail"]), (401, &wanted.1["detail"]), "{wrong}");
    }
    *provider.set.lock().expect("no panic") = None;
    assert_eq!(program.sent_with("GET", "/read/app%2F1", &good, Value::Null).await.0, 200);
    provider.server.abort();
    assert_eq!(program.sent_with("GET", "/read/app%2F1", &good, Value::Null).await.0, 200);
    assert_eq!(
        program.sent_with("GET", "/read/app%2F1", environment[0].1, Value::Null).await.0,
        200
    );
    assert!(program.terminate().await.success());
}

/// A provider that is down when an instance starts keeps out tokens, and nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_serves_keys_without_its_provider() {
    let directory = tempfile::tempdir().expect("a directory");
    let (stores, provider) = (Stores::Embedded(directory.path()), Provider::start().await);
    provider.server.abort();
    let environment = [
        ("API_KEY", "somebody has made this up"),
        ("TERRACE_JWT_JWKS", &provider.url),
        ("TERRACE_JWT_ISSUER", "id"),
        ("TERRACE_JWT_AUDIENCE", "terrace"),
        ("TERRACE_JWT_ALGORITHMS", "EdDSA"),
    ];
    let within = Duration::from_secs(60);
    let start = Program::serve_with(10, &stores, &[], &environment);
    let program = tokio::time::timeout(within, start).await.expect("it starts");
    assert_eq!(program.sent_with("GET", "/read/a", environment[0].1, Value::Null).await.0, 200);
    let token = provider.token("one", json!({}));
    assert_eq!(program.sent_with("GET", "/read/a", &token, Value::Null).await.0, 503);
    program.becomes("degraded").await;
}

//! Tokens that are good, and every way in which one is not.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RsaKeyPair,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;

use super::*;
use crate::access::ClientId;

/// A key of nobody: RSA keys take too long to be made for a test.
const RSA_KEY: &[u8] = include_bytes!("test_rsa_key.pem");

/// A provider with a key of each algorithm, whose id is the algorithm's name.
struct Provider {
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
    ed: Ed25519KeyPair,
}

fn code(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Provider {
    fn new() -> Self {
        let (random, of_ec) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let rsa = PrivatePkcs8KeyDer::from_pem_slice(RSA_KEY).expect("a key");
        let ec = EcdsaKeyPair::generate_pkcs8(of_ec, &random).expect("a key");
        let ed = Ed25519KeyPair::generate_pkcs8(&random).expect("a key");
        Self {
            rsa: RsaKeyPair::from_pkcs8(rsa.secret_pkcs8_der()).expect("a key"),
            ec: EcdsaKeyPair::from_pkcs8(of_ec, ec.as_ref(), &random).expect("a key"),
            ed: Ed25519KeyPair::from_pkcs8(ed.as_ref()).expect("a key"),
        }
    }

    fn key_set(&self) -> Value {
        let rsa = PublicKeyComponents::<Vec<u8>>::from(self.rsa.public());
        let point = self.ec.public_key().as_ref();
        json!({"keys": [
            {"kty": "RSA", "kid": "RS256", "use": "sig", "alg": "RS256",
             "n": code(rsa.n), "e": code(rsa.e)},
            {"kty": "EC", "kid": "ES256", "crv": "P-256",
             "x": code(&point[1..33]), "y": code(&point[33..])},
            {"kty": "OKP", "kid": "EdDSA", "crv": "Ed25519", "x": code(self.ed.public_key())},
            {"kty": "OKP", "kid": "for encryption", "use": "enc", "crv": "Ed25519",
             "x": code(self.ed.public_key())},
            {"kty": "new", "kid": "of a later time"},
        ]})
    }

    /// A token by the algorithm `signed`, whose head says what it is told to.
    fn token(&self, signed: &str, head: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", code(head.to_string()), code(claims.to_string()));
        let (bytes, random) = (message.as_bytes(), SystemRandom::new());
        let signature = match signed {
            "RS256" => {
                let mut signature = vec![0; self.rsa.public().modulus_len()];
                let done = self.rsa.sign(&RSA_PKCS1_SHA256, &random, bytes, &mut signature);
                done.expect("a signature");
                signature
            }
            "ES256" => self.ec.sign(&random, bytes).expect("a signature").as_ref().to_vec(),
            "EdDSA" => self.ed.sign(bytes).as_ref().to_vec(),
            // With what everybody can know as the secret.
            "HS256" => {
                let secret = PublicKeyComponents::<Vec<u8>>::from(self.rsa.public()).n;
                hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), bytes).as_ref().to_vec()
            }
            _ => Vec::new(),
        };
        format!("{message}.{}", code(signature))
    }

    fn good(&self, algorithm: &str, claims: &Value) -> String {
        self.token(algorithm, &json!({"alg": algorithm, "kid": algorithm}), claims)
    }
}

fn now() -> i64 {
    Runtime::system().wall().as_second()
}

/// Good claims, but for those that are given; null takes one out.
fn claims(other: Value) -> Value {
    let mut claims = json!({"iss": "https://id", "aud": ["x", "terrace"], "sub": "ada",
        "exp": now() + 60, "scope": "openid read write"});
    for (name, value) in other.as_object().expect("claims") {
        claims[name] = value.clone();
    }
    claims.as_object_mut().expect("claims").retain(|_, value| !value.is_null());
    claims
}

async fn tokens(file: &Path, algorithms: &[&str], prefix_claim: Option<&str>) -> Result<Tokens> {
    let options = TokenOptions {
        issuer: "https://id".to_owned(),
        audience: "terrace".to_owned(),
        jwks: file.to_str().expect("text").to_owned(),
        algorithms: algorithms.iter().map(|name| (*name).to_owned()).collect(),
        scope_claim: "scope".to_owned(),
        prefix_claim: prefix_claim.map(str::to_owned),
        leeway: Duration::from_secs(30),
    };
    Tokens::open(&options, &Runtime::system()).await
}

#[tokio::test]
async fn the_password_of_a_provider_is_not_told() {
    for url in ["http://ada:secret@id.example/keys", "ftp://ada:secret@id.example/keys"] {
        let error = tokens(Path::new(url), &ALL, None).await.expect_err("not by TLS").to_string();
        assert!(error.contains("ada:***@id.example") && !error.contains("secret"), "{error}");
    }
}

const ALL: [&str; 3] = ["RS256", "ES256", "EdDSA"];

#[tokio::test]
async fn three_algorithms_are_taken_each_by_its_own_key() {
    let (file, provider) = (tempfile::NamedTempFile::new().expect("a file"), Provider::new());
    std::fs::write(file.path(), provider.key_set().to_string()).expect("a file");
    let all = tokens(file.path(), &ALL, None).await.expect("keys");
    for algorithm in ALL {
        let token = provider.good(algorithm, &claims(json!({})));
        let known = all.principal(&token).expect("a good token");
        assert_eq!(known.id, ClientId::Subject("ada".to_owned()));
        assert!(known.may(Scope::Read) && known.may(Scope::Write) && !known.may(Scope::Admin));
        assert!(!known.is_restricted());
        // One changed letter of the claims.
        let (start, signature) = token.rsplit_once('.').expect("a token");
        let forged = code(claims(json!({"sub": "eve"})).to_string());
        let forged = format!("{}.{forged}.{signature}", start.split_once('.').expect("a token").0);
        assert_eq!(all.principal(&forged), Err(Refusal::WrongSignature), "{algorithm}");
        // Another algorithm than the key is for.
        for other in ["RS256", "ES256", "EdDSA", "HS256"] {
            if other != algorithm {
                let head = json!({"alg": other, "kid": algorithm});
                let token = provider.token(other, &head, &claims(json!({})));
                assert_eq!(all.principal(&token), Err(Refusal::WrongAlgorithm), "{other}");
            }
        }
        // Only what the settings name.
        let pinned = tokens(file.path(), &[algorithm], None).await.expect("keys");
        assert!(pinned.principal(&token).is_ok());
        for other in ALL.into_iter().filter(|other| *other != algorithm) {
            let token = provider.good(other, &claims(json!({})));
            assert_eq!(pinned.principal(&token), Err(Refusal::UnknownSigner));
        }
    }
    let none = provider.token("none", &json!({"alg": "none", "kid": "RS256"}), &claims(json!({})));
    assert_eq!(all.principal(&none), Err(Refusal::Malformed));
}

#[tokio::test]
async fn claims_are_held_to_the_settings() {
    let (file, provider) = (tempfile::NamedTempFile::new().expect("a file"), Provider::new());
    std::fs::write(file.path(), provider.key_set().to_string()).expect("a file");
    let all = tokens(file.path(), &ALL, None).await.expect("keys");
    for (other, wanted) in [
        (json!({"exp": now() - 20}), None),
        (json!({"exp": now() - 40}), Some(Refusal::Expired)),
        (json!({"exp": null}), Some(Refusal::Malformed)),
        (json!({"nbf": now() + 20}), None),
        (json!({"nbf": now() + 40}), Some(Refusal::NotYet)),
        (json!({"aud": "terrace"}), None),
        (json!({"aud": "other"}), Some(Refusal::WrongAudience)),
        (json!({"aud": null}), Some(Refusal::Malformed)),
        (json!({"iss": "https://evil"}), Some(Refusal::WrongIssuer)),
        (json!({"iss": null}), Some(Refusal::Malformed)),
        (json!({"sub": null}), Some(Refusal::Malformed)),
        (json!({"sub": ""}), Some(Refusal::WithoutSubject)),
        (json!({"sub": "x".repeat(256)}), Some(Refusal::WithoutSubject)),
    ] {
        let token = provider.good("EdDSA", &claims(other.clone()));
        assert_eq!(all.principal(&token).err(), wanted, "{other}");
    }
    for kid in [json!("unknown"), json!("for encryption"), json!(null)] {
        let token =
            provider.token("EdDSA", &json!({"alg": "EdDSA", "kid": kid}), &claims(json!({})));
        assert_eq!(all.principal(&token), Err(Refusal::UnknownSigner), "{kid}");
    }
    for (scope, admin) in [(json!(["admin"]), true), (json!("administrator Admin"), false)] {
        let known = all.principal(&provider.good("EdDSA", &claims(json!({"scope": scope}))));
        assert_eq!(known.expect("a good token").may(Scope::Admin), admin, "{scope}");
    }
}

#[tokio::test]
async fn prefixes_are_asked_for_where_their_claim_is_named() {
    let (file, provider) = (tempfile::NamedTempFile::new().expect("a file"), Provider::new());
    std::fs::write(file.path(), provider.key_set().to_string()).expect("a file");
    let all = tokens(file.path(), &ALL, Some("records")).await.expect("keys");
    for (records, wanted) in [
        (json!(["app/", "x:"]), Ok(true)),
        (json!("app/ x:"), Ok(true)),
        (json!([""]), Ok(false)),
        (json!([]), Err(Refusal::WithoutPrefixes)),
        (json!(""), Err(Refusal::WithoutPrefixes)),
        (json!(null), Err(Refusal::WithoutPrefixes)),
        (json!(7), Err(Refusal::WithoutPrefixes)),
    ] {
        let known = all.principal(&provider.good("ES256", &claims(json!({"records": records}))));
        assert_eq!(
            known.as_ref().map(|it| it.is_restricted()).map_err(|it| *it),
            wanted,
            "{records}"
        );
        if wanted == Ok(true) {
            let known = known.expect("a good token");
            assert!(known.covers("app/1") && known.covers("x:1") && !known.covers("a"));
        }
    }
}

#[tokio::test]
async fn options_that_cannot_be_right_are_refused() {
    let (file, provider) = (tempfile::NamedTempFile::new().expect("a file"), Provider::new());
    std::fs::write(file.path(), "{}").expect("a file");
    let refused = async |algorithms: &[&str]| {
        tokens(file.path(), algorithms, None).await.expect_err("refused").message().to_owned()
    };
    assert!(refused(&ALL).await.contains("no JSON Web Key Set"));
    assert!(refused(&["HS256"]).await.contains("it takes RS256, ES256 and EdDSA"));
    assert!(refused(&[]).await.contains("jwt.algorithms is empty"));
    std::fs::write(file.path(), provider.key_set().to_string()).expect("a file");
    assert!(tokens(file.path(), &ALL, None).await.is_ok());
    for (url, wanted) in [
        ("http://id.example/keys", "give https://"),
        ("ftp://id.example/keys", "give a file, or https://"),
        ("https://", "give a file, or https://"),
    ] {
        let error = KeySource::of(url).err().expect("refused");
        assert!(error.message().contains(wanted), "{}", error.message());
    }
    assert!(KeySource::of("http://127.0.0.1:8080/keys").is_ok());
}

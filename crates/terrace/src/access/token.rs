//! Tokens of an identity provider (JWT, RFC 7519), beside keys.
//!
//! A token is good when a key of the provider has signed it by an algorithm that the settings name, for this
//! audience, and its time is not over. What it may do stands in its claims. A key is used by the one algorithm
//! of its own kind, so a token cannot choose how it is looked at.

mod fetch;
mod keys;
mod signature;

use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum as _;
use jsonwebtoken::errors::ErrorKind as Fault;
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde_json::{Map, Value};
use terrace_core::{Error, Inspection, Result, Runtime};

use self::keys::{KeySource, ProviderKeys};
use super::grant::{Principal, Scope};
use super::ring::Refusal;

/// What tokens must be, and where their keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOptions {
    /// Who issues them: the claim `iss`.
    pub issuer: String,
    /// Whom they are for: one of the claim `aud`.
    pub audience: String,
    /// A JSON Web Key Set: a file, or a URL.
    pub jwks: String,
    /// `RS256`, `ES256`, `EdDSA`: those that are taken.
    pub algorithms: Vec<String>,
    /// The claim with what a token may do: words in one text, or a list.
    pub scope_claim: String,
    /// The claim with what the keys of records begin with that it may touch; none: all records.
    pub prefix_claim: Option<String>,
    /// How far clocks may differ.
    pub leeway: Duration,
}

/// Knows tokens by the keys of their provider.
#[derive(Debug)]
pub struct Tokens {
    keys: ProviderKeys,
    scope_claim: String,
    prefix_claim: Option<String>,
}

/// The longest name of a client in a token, in bytes.
const SUBJECT_BYTES: usize = 255;

impl Tokens {
    /// With the keys as they are now. A provider that cannot be reached is asked again, and its tokens are
    /// not decided until then.
    ///
    /// # Errors
    /// `InvalidInput` for options that cannot be right, and a file that cannot be used.
    pub async fn open(options: &TokenOptions, runtime: &Runtime) -> Result<Self> {
        // It is installed already where another level came first.
        let _ = signature::PROVIDER.install_default();
        for (name, value) in [("jwt.issuer", &options.issuer), ("jwt.audience", &options.audience)]
        {
            if value.is_empty() {
                let text =
                    format!("jwt.jwks is set and {name} is not; set it, as tokens must name it");
                return Err(Error::invalid(text));
            }
        }
        let source = KeySource::of(&options.jwks)?;
        let keys = ProviderKeys::open(source, validations(options)?, runtime.clone()).await?;
        let TokenOptions { scope_claim, prefix_claim, .. } = options.clone();
        Ok(Self { keys, scope_claim, prefix_claim })
    }

    /// Whether this text has the form of a token; no key has.
    pub fn is_one(text: &str) -> bool {
        text.bytes().filter(|byte| *byte == b'.').count() == 2
    }

    /// Who has this token.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn principal(&self, text: &str) -> std::result::Result<Arc<Principal>, Refusal> {
        let header = decode_header(text).map_err(|_| Refusal::Malformed)?;
        let kid = header.kid.as_deref().ok_or(Refusal::UnknownSigner)?;
        let known = self.keys.known()?;
        let key = known.get(kid).ok_or(Refusal::UnknownSigner)?;
        let token = decode::<Map<String, Value>>(text, &key.key, &key.validation);
        let claims = token.map_err(|error| refusal(error.kind()))?.claims;
        let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default();
        if subject.is_empty() || subject.len() > SUBJECT_BYTES {
            return Err(Refusal::WithoutSubject);
        }
        let scopes = words(claims.get(&self.scope_claim)).into_iter();
        let scopes = scopes.filter_map(|word| Scope::from_str(word, false).ok()).collect();
        let prefixes = match &self.prefix_claim {
            None => Vec::new(),
            Some(name) => match words(claims.get(name)) {
                none if none.is_empty() => return Err(Refusal::WithoutPrefixes),
                all if all.contains(&"") => Vec::new(),
                some => some.into_iter().map(str::to_owned).collect(),
            },
        };
        Ok(Arc::new(Principal::of_subject(subject, scopes, prefixes)))
    }

    /// Has the provider's keys read again, for a token of an unknown key, unless that was done lately. Whether
    /// they were.
    pub async fn look_again(&self) -> bool {
        self.keys.look_again().await
    }

    /// How many keys there are, and whether they could be read lately.
    pub fn inspect(&self) -> Inspection {
        self.keys.inspect()
    }
}

/// What a token is held to, for each algorithm that is taken.
fn validations(options: &TokenOptions) -> Result<Vec<Validation>> {
    if options.algorithms.is_empty() {
        return Err(Error::invalid("jwt.algorithms is empty; name RS256, ES256 or EdDSA"));
    }
    let one = |name: &String| {
        let algorithm = match name.as_str() {
            "RS256" => Algorithm::RS256,
            "ES256" => Algorithm::ES256,
            "EdDSA" => Algorithm::EdDSA,
            other => {
                let text = format!("jwt.algorithms has {other:?}; it takes RS256, ES256 and EdDSA");
                return Err(Error::invalid(text));
            }
        };
        let mut validation = Validation::new(algorithm);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[&options.issuer]);
        validation.set_audience(&[&options.audience]);
        validation.validate_nbf = true;
        validation.leeway = options.leeway.as_secs();
        Ok(validation)
    };
    options.algorithms.iter().map(one).collect()
}

fn refusal(fault: &Fault) -> Refusal {
    match fault {
        Fault::InvalidSignature => Refusal::WrongSignature,
        Fault::InvalidAlgorithm | Fault::UnsupportedAlgorithm => Refusal::WrongAlgorithm,
        Fault::ExpiredSignature => Refusal::Expired,
        Fault::ImmatureSignature => Refusal::NotYet,
        Fault::InvalidIssuer => Refusal::WrongIssuer,
        Fault::InvalidAudience => Refusal::WrongAudience,
        _ => Refusal::Malformed,
    }
}

/// The words of a claim: of one text (RFC 8693, section 4.2), or of a list.
fn words(claim: Option<&Value>) -> Vec<&str> {
    match claim {
        Some(Value::String(text)) => text.split_whitespace().collect(),
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;

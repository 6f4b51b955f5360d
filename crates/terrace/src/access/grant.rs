//! What a key may do.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use terrace_core::{Error, ErrorKind, Key, Result};

use super::key::{ApiKey, KeyDigest, KeyId};

/// A kind of request.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Reads records, lists, counts and what is made of them.
    Read,
    /// Changes records.
    Write,
    /// Changes how the installation works, as emptying its caches does; and all of the others.
    Admin,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        })
    }
}

/// What is kept of a key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Grant {
    /// What people call it.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// What the keys of records that it may touch begin with; all where there are none.
    pub prefixes: Vec<String>,
    /// Since when it is there.
    pub created_at: Timestamp,
    /// From when on it is refused.
    pub expires_at: Option<Timestamp>,
    /// Since when it is refused because somebody has said so.
    pub revoked_at: Option<Timestamp>,
    /// SHA-256 of the key, in hexadecimal digits.
    digest: String,
}

/// Whether a key is good now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantState {
    /// It is.
    Active,
    /// Its time is over.
    Expired,
    /// Somebody has ended it.
    Revoked,
}

impl fmt::Display for GrantState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        })
    }
}

impl Grant {
    /// A grant of all records for ever, with these scopes.
    pub fn new(key: &ApiKey, name: &str, scopes: &[Scope], created_at: Timestamp) -> Self {
        Self {
            name: name.to_owned(),
            scopes: scopes.to_vec(),
            prefixes: Vec::new(),
            created_at,
            expires_at: None,
            revoked_at: None,
            digest: key.digest().to_hex(),
        }
    }

    /// The same for another key.
    #[must_use]
    pub fn for_key(&self, key: &ApiKey, created_at: Timestamp) -> Self {
        Self { digest: key.digest().to_hex(), created_at, ..self.clone() }
    }

    /// How it is at this time.
    pub fn state(&self, now: Timestamp) -> GrantState {
        // Whatever the clock of whoever revoked it said.
        if self.revoked_at.is_some() {
            GrantState::Revoked
        } else if self.expires_at.is_some_and(|at| at <= now) {
            GrantState::Expired
        } else {
            GrantState::Active
        }
    }

    /// What is kept of its key.
    pub(super) fn digest(&self) -> Option<KeyDigest> {
        KeyDigest::from_hex(&self.digest)
    }

    /// The grant in the value of a record.
    ///
    /// # Errors
    /// `Corrupt` for anything else.
    pub(super) fn read(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|error| {
            Error::new(ErrorKind::Corrupt, "the grant of a key cannot be read").caused_by(error)
        })
    }
}

/// Whose requests these are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientId {
    /// Of whoever has the key of the settings.
    Settings,
    /// Of whoever has the key of this id.
    Key(KeyId),
    /// Of whom tokens call so.
    Subject(String),
}

/// For the audit log, and as the owner of what a client keeps here. No two are the same text.
impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settings => f.write_str("settings"),
            Self::Key(id) => id.fmt(f),
            Self::Subject(subject) => write!(f, "sub:{subject}"),
        }
    }
}

/// Who sent a request, and what that one may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Whose request it is.
    pub id: ClientId,
    /// What people call it.
    pub name: String,
    scopes: Vec<Scope>,
    prefixes: Vec<String>,
}

impl Principal {
    /// Who has this grant.
    pub(super) fn of(id: KeyId, grant: &Grant) -> Self {
        let Grant { name, scopes, prefixes, .. } = grant.clone();
        Self { id: ClientId::Key(id), name, scopes, prefixes }
    }

    /// Who has the one key of the settings: everything.
    pub(super) fn of_settings() -> Self {
        let name = "auth.api_key".to_owned();
        Self { id: ClientId::Settings, name, scopes: vec![Scope::Admin], prefixes: Vec::new() }
    }

    /// Whom a token is about.
    pub(super) fn of_subject(subject: &str, scopes: Vec<Scope>, prefixes: Vec<String>) -> Self {
        let name = subject.to_owned();
        Self { id: ClientId::Subject(name.clone()), name, scopes, prefixes }
    }

    /// Whether requests of this kind are allowed.
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.iter().any(|it| *it == scope || *it == Scope::Admin)
    }

    /// Whether only some records may be touched.
    pub fn is_restricted(&self) -> bool {
        !self.prefixes.is_empty()
    }

    /// Whether this record may be touched. Decided on the decoded key, the one that the store is given.
    pub fn may_touch(&self, key: &Key) -> bool {
        self.covers(key.as_str())
    }

    /// Whether all records that begin so may be touched.
    pub fn covers(&self, prefix: &str) -> bool {
        !self.is_restricted() || self.prefixes.iter().any(|known| prefix.starts_with(known))
    }
}

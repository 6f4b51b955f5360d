//! Settings of what stands before the endpoints.

use serde::{Deserialize, Serialize};

/// What is measured of requests, and where it is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Whether there is `/metrics`: `true`, `false` or `auto`, which means level 10. Default `auto`.
    pub enabled: String,
    /// A port that serves `/metrics` as well, and nothing of the level's data. Default 0: none.
    pub port: u16,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { enabled: "auto".into(), port: 0 }
    }
}

/// Keys of clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// `true`, `false`, or `auto`: at level 10. Whether requests need a key. Default `auto`.
    pub enabled: String,
    /// A key that may do everything, beside those of `terrace keys`. Default none.
    pub api_key: String,
    /// Whether `/stats`, `/metrics` and their like need a key, too. Default `false`.
    pub protect_figures: bool,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self { enabled: "auto".into(), api_key: String::new(), protect_figures: false }
    }
}

/// Tokens of an identity provider, beside keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JwtConfig {
    /// The key set of the provider (JWKS): a file, or a URL. Default none: there are no tokens.
    pub jwks: String,
    /// Who issues tokens: their claim `iss`. Default none.
    pub issuer: String,
    /// Whom they are for: one of their claim `aud`. Default none.
    pub audience: String,
    /// Algorithms that are taken: `RS256`, `ES256`, `EdDSA`. Default `RS256`.
    pub algorithms: Vec<String>,
    /// The claim with `read`, `write` and `admin`. Default `scope`.
    pub scope_claim: String,
    /// The claim with what the keys of records begin with that a token may touch. Default none: all.
    pub prefix_claim: String,
    /// How far the provider's clock and this one may differ, in seconds. Default 30.
    pub leeway_seconds: u64,
}

impl Default for JwtConfig {
    fn default() -> Self {
        Self {
            jwks: String::new(),
            issuer: String::new(),
            audience: String::new(),
            algorithms: vec!["RS256".into()],
            scope_claim: "scope".into(),
            prefix_claim: String::new(),
            leeway_seconds: 30,
        }
    }
}

/// What clients may ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// `true`, `false`, or `auto`: at level 10. Whether requests are limited. Default `auto`.
    pub enabled: String,
    /// The most requests of a client in any window: of a key, or of an address where there are no keys.
    /// Default 100.
    pub requests: u32,
    /// The length of a window, in seconds. Default 60.
    pub window_seconds: u64,
    /// The most requests of an address in any window, whatever keys they have. Default 0: ten times
    /// `requests`.
    pub address_requests: u32,
    /// The Redis in which requests are counted, `redis://:password@host:port/number` or `rediss://...`. Default none: that
    /// of the far cache; in the embedded mode the process counts.
    pub url: String,
    /// While that Redis cannot be reached, each instance admits its part of the limit as one of so many.
    /// Default 1.
    pub instances: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            enabled: "auto".into(),
            requests: 100,
            window_seconds: 60,
            address_requests: 0,
            url: String::new(),
            instances: 1,
        }
    }
}

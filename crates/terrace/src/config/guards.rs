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

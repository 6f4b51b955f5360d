//! The settings of who may do what.

use serde::{Deserialize, Serialize};

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

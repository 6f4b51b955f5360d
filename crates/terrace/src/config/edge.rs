//! Settings of caches in front.

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// What caches in front of Terrace may keep for all clients, and how they hear of writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EdgeConfig {
    /// What the keys of public records begin with, each with the seconds for which a shared cache may keep
    /// one: `shop/=60`. Default none: every answer is private.
    pub public: Vec<String>,
    /// The caches that are told of writes of public records, by `PURGE`: `http://host:port`. Default none.
    pub purge: Vec<String>,
}

impl EdgeConfig {
    /// The longest that an answer may be kept, in seconds.
    const LONGEST: u64 = 86_400;

    /// The prefixes, each with its seconds.
    ///
    /// # Errors
    /// For what is no such pair, and for a prefix that is there twice.
    pub fn prefixes(&self) -> Result<Vec<(String, u64)>, ConfigError> {
        let mut all = Vec::<(String, u64)>::new();
        for text in &self.public {
            let pair = text.rsplit_once('=').and_then(|(prefix, seconds)| {
                let seconds = seconds.parse().ok().filter(|it| (1..=Self::LONGEST).contains(it))?;
                Some((prefix.to_owned(), seconds))
            });
            let Some((prefix, seconds)) = pair else {
                return Err(ConfigError::new(format!(
                    "edge.public has {text:?}; it must be prefix=seconds, from 1 to {}, as in shop/=60",
                    Self::LONGEST
                )));
            };
            if all.iter().any(|(known, _)| *known == prefix) {
                return Err(ConfigError::new(format!("edge.public has {prefix:?} twice")));
            }
            all.push((prefix, seconds));
        }
        Ok(all)
    }

    /// Refuses what cannot be meant.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.prefixes()?.is_empty() && !self.purge.is_empty() {
            let message =
                "edge.purge is set and edge.public is not: no cache may keep anything; set both";
            return Err(ConfigError::new(message));
        }
        Ok(())
    }
}
